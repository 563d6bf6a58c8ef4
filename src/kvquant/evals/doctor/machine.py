"""What about a machine makes its timings worth less: clocks that change, heat, cores of two kinds."""

from __future__ import annotations

from kvquant.evals.doctor.finding import Finding, Severity
from kvquant.evals.machine import Machine, core_list

_STEADY = "performance"
_HOT_CELSIUS = 80.0
"""Where the kernel does not say when it slows down."""

_MEMORY_CLOCK = "dmc"


def check_machine(machine: Machine) -> list[Finding]:
    """Find what to set before measuring speed on this machine."""
    return [*_governors(machine), *_clocks(machine), *_heat(machine), *_layout(machine)]


def _governors(machine: Machine) -> list[Finding]:
    changing = [core for core in machine.cores if core.governor not in {None, _STEADY}]
    if not changing:
        return []
    names = ", ".join(sorted({core.governor for core in changing if core.governor}))
    what = f"cores {core_list([core.index for core in changing])} use the governor {names}: clocks change"
    files = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    fix = f"echo {_STEADY} | sudo tee {files}, and note the old value"
    return [Finding(Severity.WARNING, "cores", what, fix)]


def _clocks(machine: Machine) -> list[Finding]:
    return [
        Finding(
            Severity.WARNING,
            "memory clock",
            f"{clock.name} uses the governor {clock.governor}, at {_mhz(clock.current_hz)} of "
            f"{_mhz(clock.max_hz)}: decoding is as fast as the memory",
            f"echo {_STEADY} | sudo tee /sys/class/devfreq/{clock.name}/governor",
        )
        for clock in machine.clocks
        if clock.name == _MEMORY_CLOCK and clock.governor not in {None, _STEADY}
    ]


def _heat(machine: Machine) -> list[Finding]:
    hot = [zone for zone in machine.zones if zone.celsius >= (zone.hot or _HOT_CELSIUS)]
    return [
        Finding(
            Severity.FIX,
            "temperature",
            f"{zone.name} is at {zone.celsius:.0f} °C, clocks go down from {zone.hot or _HOT_CELSIUS:.0f} °C",
            "let it cool down, or improve the cooling, before measuring",
        )
        for zone in hot
    ]


def _layout(machine: Machine) -> list[Finding]:
    speeds = sorted({core.max_khz for core in machine.cores if core.max_khz})
    if len(speeds) < 2:
        return []
    # Large cores of one board often differ by a few percent (binning); small ones are far slower.
    large = [core.index for core in machine.cores if core.max_khz and core.max_khz >= 0.9 * speeds[-1]]
    if len(large) == len(machine.cores):
        return []
    what = f"cores {core_list(large)} are the fast ones of {len(machine.cores)}"
    return [
        Finding(Severity.NOTE, "cores", f"{what}: run with taskset -c {core_list(large)} and -t {len(large)}")
    ]


def _mhz(hz: int | None) -> str:
    return "an unknown clock" if hz is None else f"{hz / 1e6:.0f} MHz"
