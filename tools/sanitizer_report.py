#!/usr/bin/env python3
"""Summarise what a run under the address and undefined-behaviour sanitizers found, one entry per distinct
place.

Reads the report files that ASAN_OPTIONS and UBSAN_OPTIONS log_path=PREFIX leave behind.

Example: tools/sanitizer_report.py .cache/sanitize/report --tests "83 passed" --out
benchmarks/results/sanitize.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

from kvquant.files import write_atomic

# "…/src/x.cpp:10:5: runtime error: …" and "ERROR: AddressSanitizer: heap-use-after-free on address …".
_UNDEFINED = re.compile(r"(?:.*/tree/)?(\S+:\d+):\d+: runtime error: (.*)")
_ADDRESS = re.compile(r"ERROR: (AddressSanitizer|LeakSanitizer): (\S+)")
_FRAME = re.compile(r"\s+#\d+ \S+ in (.+) (?:.*/tree/)(\S+:\d+)")
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", type=Path, help="the log_path of the sanitizers")
    parser.add_argument(
        "--build-info", type=Path, required=True, metavar="FILE", help="of the build that ran"
    )
    parser.add_argument(
        "--tests", type=Path, required=True, metavar="FILE", help="pytest's output; its last line is kept"
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
        "tests": arguments.tests.read_text().strip().splitlines()[-1].strip("= "),
        "tag": info["tag"],
        "series_digest": info["series_digest"],
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
