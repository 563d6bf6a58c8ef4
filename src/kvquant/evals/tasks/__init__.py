"""The tasks a suite may name, one module each; modules with a leading underscore hold what several share."""

from importlib import import_module
from pkgutil import iter_modules

from kvquant.evals.task import Task

_MODULES = [
    import_module(f"{__name__}.{found.name}")
    for found in iter_modules(__path__)
    if not found.name.startswith("_")
]

TASKS: dict[str, Task] = {module.TASK.name: module.TASK for module in _MODULES}
"""Every task by its name."""
