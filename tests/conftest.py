"""Hypothesis profiles (one seeded for CI and everyday runs, one that explores), and one thread a worker."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# The suite's own workers take the cores: pools of threads inside them, Torch's or BLAS's, would only wait.
# Both read this when they are first imported, which is after this file.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "seeded", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "explore", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "seeded"))
