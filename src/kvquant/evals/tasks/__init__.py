"""The tasks a suite may name, one module for each kind."""

from kvquant.evals.task import Task
from kvquant.evals.tasks import (
    code,
    instruction,
    knowledge,
    made_up_facts,
    published,
    reasoning,
    recall,
    tool_calls,
)

_KINDS = (reasoning, knowledge, code, instruction, tool_calls, recall, made_up_facts, published)

TASKS: dict[str, Task] = {task.name: task for kind in _KINDS for task in kind.TASKS}
"""Every task by its name."""
