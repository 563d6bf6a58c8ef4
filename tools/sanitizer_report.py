#!/usr/bin/env python3
"""Summarise what a run under the address and undefined-behaviour sanitizers found, one entry per distinct
place.

Reads the report files that ASAN_OPTIONS and UBSAN_OPTIONS log_path=PREFIX leave behind.

Example: tools/sanitizer_report.py .cache/sanitize/report --build-info build-info.json
--tests .cache/sanitize/tests --out benchmarks/results/sanitize.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from kvquant.files import write_atomic

# "…/src/x.cpp:10:5: runtime error: …" and "ERROR: AddressSanitizer: heap-use-after-free on address …".
_UNDEFINED = re.compile(r"(?:.*/tree/)?(\S+:\d+):\d+: runtime error: (.*)")
_ADDRESS = re.compile(r"ERROR: (AddressSanitizer|LeakSanitizer): (\S+)")
_FRAME = re.compile(r"\s+#\d+ \S+ in (.+) (?:.*/tree/)(\S+:\d+)")
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")
_SECONDS = re.compile(r" in ([0-9.]+)s")
_NUMBER = re.compile(r"0x[0-9a-f]+|\b\d+\b")


def findings(text: str) -> list[tuple[str, str]]:
    """Place and kind of every finding in one report; numbers in the kind are left out, so that equal ones
    count.
    """
    found = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if match := _UNDEFINED.match(line):
            found.append((match[1], _NUMBER.sub("N", match[2])))
        elif match := _ADDRESS.search(line):
            frames = (frame for later in lines[number:] if (frame := _FRAME.match(later)))
            place = next((f"{frame[2]} in {frame[1]}" for frame in frames), "no frame of llama.cpp")
            found.append((place, f"{match[1]}: {match[2]}"))
    return found


def outcome(outputs: Sequence[str]) -> str:
    """Sum up pytest's last lines; each run after the first repeats tests that did not pass before it."""
    runs = []
    seconds = 0.0
    for output in outputs:
        last = output.strip().splitlines()[-1]
        runs.append({kind: int(n) for n, kind in _COUNT.findall(last)})
        seconds += float(_SECONDS.findall(last)[0])
    passed = sum(run.get("passed", 0) for run in runs)
    failed = sum(n for kind, n in runs[-1].items() if kind in ("failed", "error"))
    counts = {"failed": failed, "passed": passed, "skipped": sum(runs[0].values()) - passed - failed}
    words = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    return f"{words} in {timedelta(seconds=round(seconds))}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", type=Path, help="the log_path of the sanitizers")
    parser.add_argument(
        "--build-info", type=Path, required=True, metavar="FILE", help="of the build that ran"
    )
    parser.add_argument(
        "--tests",
        type=Path,
        required=True,
        action="append",
        metavar="FILE",
        help="pytest's output, whose last line counts; again for a run that repeats what did not pass",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON record")
    arguments = parser.parse_args()
    reports = sorted(arguments.prefix.parent.glob(f"{arguments.prefix.name}.*"))
    counts: Counter[tuple[str, str]] = Counter()
    for report in reports:
        counts.update(findings(report.read_text(errors="replace")))
    info = json.loads(arguments.build_info.read_text())
    record = {
        "schema_version": 1,
        "tests": outcome([path.read_text() for path in arguments.tests]),
        "tag": info["tag"],
        "series_digest": info["series_digest"],
        "patches": [patch["name"] for patch in info["patches"]],
        "compiler": info["compiler"],
        "cmake_args": info["cmake_args"],
        "n_processes_with_findings": len(reports),
        "findings": [
            {"place": place, "kind": kind, "n": count} for (place, kind), count in sorted(counts.items())
        ],
    }
    write_atomic(arguments.out, json.dumps(record, indent=1) + "\n")
    print(f"{len(counts)} distinct findings in {len(reports)} processes", file=sys.stderr)
    return 3 if counts or re.search(r"failed|error", record["tests"]) else 0


if __name__ == "__main__":
    sys.exit(main())
