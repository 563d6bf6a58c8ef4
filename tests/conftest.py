"""Hypothesis profiles (seeded, fast with fewer examples, exploring), one thread a worker, time by folder."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import PurePosixPath

import pytest
from hypothesis import HealthCheck, settings

# The suite's own workers take the cores: pools of threads inside them, Torch's or BLAS's, would only wait.
# Both read this when they are first imported, which is after this file.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tables are as wide as COLUMNS says, which a worker of xdist is given: only a test that sets it may see it.
os.environ.pop("COLUMNS", None)

settings.register_profile(
    "seeded", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fast", settings.get_profile("seeded"), max_examples=10)
settings.register_profile(
    "explore", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "seeded"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many seconds the tests of each folder took, set-up and clean-up included."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[str(PurePosixPath(report.nodeid.split("::")[0]).parent)] += report.duration
    if len(seconds) > 1:
        terminalreporter.section("seconds by folder")
        for folder, spent in seconds.most_common():
            terminalreporter.write_line(f"{spent:8.1f}  {folder}")
