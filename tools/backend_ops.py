#!/usr/bin/env python3
"""Run upstream's test-backend-ops on the CPU backend of a build and record what passed, per operation.

Each case compares the backend as programs use it with ggml's own reference code, the kernels of
0004-kv-attention left out of the latter. Exit code 3 when a case fails.

Example: tools/backend_ops.py --bin DIR --out benchmarks/results/backend-ops.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kvquant.errors import KVQuantError, LlamaError
from kvquant.files import write_atomic
from kvquant.processes.command import run_logged

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CASE = re.compile(r"\s*(?P<op>[A-Z][A-Z0-9_]+)\((?P<case>.*)\): (?P<more>.*)$")
_TOTAL = re.compile(r"\s+(\d+)/(\d+) tests passed")


def summary(lines: Iterable[str]) -> dict[str, Any]:
    """Return the counts per operation, the cases that failed and the program's own total.

    Raises LlamaError when there is no total: the program has not come to its end.
    """
    counts: dict[str, Counter[str]] = {}
    failed: list[str] = []
    total: tuple[int, int] | None = None
    for line in (_COLOUR.sub("", line).rstrip() for line in lines):
        if match := _TOTAL.fullmatch(line):
            total = (int(match[1]), int(match[2]))
        elif match := _CASE.fullmatch(line):
            outcome = _outcome(match["more"])
            counts.setdefault(match["op"], Counter())[outcome] += 1
            if outcome == "failed":
                failed.append(f"{match['op']}({match['case']}): {match['more']}")
    if total is None:
        raise LlamaError("test-backend-ops ended without a total; see its output")
    return {
        "passed": total[0],
        "run": total[1],
        "failed": sorted(failed),
        "operations": {name: dict(sorted(counts[name].items())) for name in sorted(counts)},
    }


def _outcome(more: str) -> str:
    if more.endswith("OK"):
        return "ok"
    return "not supported" if more.startswith(("not supported", "skipping")) else "failed"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bin", type=Path, required=True, metavar="DIR", help="the folder of test-backend-ops"
    )
    parser.add_argument(
        "--op", metavar="NAME[,NAME...]", help="only these operations, such as FLASH_ATTN_EXT"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON record")
    arguments = parser.parse_args()
    argv = ["test-backend-ops", "test", "-b", "CPU", *(["-o", arguments.op] if arguments.op else [])]
    lines: list[str] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            program = str(arguments.bin / argv[0])
            status = run_logged([program, *argv[1:]], Path(folder, "log"), on_line=lines.append)
        found = summary(lines)
        build = json.loads((arguments.bin.parent / "build-info.json").read_text())
        kept = {key: build[key] for key in ("commit", "tag", "series_digest", "compiler", "cmake_args")}
        record = {"schema_version": 1, "command": argv, "status": status, "build": kept, **found}
        write_atomic(arguments.out, json.dumps(record, indent=1) + "\n")
    except KVQuantError as error:
        print(f"backend_ops.py: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{found['passed']} of {found['run']} cases passed", file=sys.stderr)
    return 0 if status == 0 and not found["failed"] else 3


if __name__ == "__main__":
    sys.exit(main())
