"""What a version of a task stands for, in two digests: of the questions it asks and of the grades it gives.

    PYTHONPATH=tests python tests/evals/task_marks.py

writes them to recorded/task_versions.json for versions that are not there yet.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from evals.solvers import solve
from kvquant.evals.reply import Reply, ToolCall
from kvquant.evals.task import Task, grade, questions
from kvquant.evals.tasks import TASKS, published

RECORDED = Path(__file__).with_name("recorded") / "task_versions.json"

N_ASKED = 200
N_GRADED = {"list_comprehension": 2, "palindrome": 2}
"""Questions graded, of a task whose answers are run; of others GRADED."""

GRADED = 12
_FIXED = (
    Reply(""),
    Reply("I'm sorry, but I can't help with that."),
    Reply("Answer: 42"),
    Reply("The answer is yes. It is valid."),
    Reply('{"name": "Ann", "age": 30, "city": "Rome"}'),
    Reply("", (ToolCall("web_search", '{"query": "weather"}'),)),
    Reply("", (ToolCall("calculator", '{"expression": "1 + 1"}'),)),
)


def mark(task: Task) -> dict[str, str]:
    """Return both digests of a task with its default parameters."""
    asked = questions(task, N_ASKED, 0, task.name, {})
    said = [[question.prompt, list(question.tools), dict(question.labels)] for question in asked]
    graded = asked[: N_GRADED.get(task.name, GRADED)]
    solved = [solve(question.prompt) for question in graded]
    grades = [
        [str(grade(question, reply).outcome) for reply in (solved[i], solved[i - 1], *_FIXED)]
        for i, question in enumerate(graded)
    ]
    return {"questions": _digest(said), "grades": _digest(grades)}


def _digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def main() -> None:
    known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    random.seed(0)
    for task in (task for task in TASKS.values() if task not in published.TASKS):
        known.setdefault(f"{task.name} {getattr(task, 'version', 1)}", mark(task))
    RECORDED.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
