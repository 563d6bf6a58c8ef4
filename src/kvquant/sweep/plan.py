"""What a sweep runs: the TOML file that says it, and the cells and probes that come of it, in their order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from kvquant.documents import read_toml
from kvquant.errors import UsageError
from kvquant.evals.variations import split_variations
from kvquant.formats.registry import CACHE_TYPES
from kvquant.policy import parse_policy, preset_text
from kvquant.results.sweep import ALL_CPUS, Setting, cell_key, probe_key
from kvquant.sweep.cores import NAMES, parse_cores
from kvquant.units import parse_n_bytes, parse_n_tokens

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Depth = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True)
class Measure:
    """``[measure]``. depths: tokens in the cache, multiples of n_prompt; those that a context has no room for
    are left out. n_prompt, n_gen: tokens timed in prefill and decode. warmup: tokens processed first,
    untimed. timeout_seconds: for one answer; start_seconds: for loading.
    """

    depths: tuple[Depth, ...] = (0, 2048)
    n_prompt: Count = 512
    n_gen: Annotated[int, Meta(ge=2)] = 32
    warmup: Count = 32
    timeout_seconds: Seconds = 600.0
    start_seconds: Seconds = 600.0


@dataclass(frozen=True)
class Cooling:
    """``[cooling]``. below_celsius: what every sensor must be below before a cell starts. at_most_seconds:
    how long is waited for that.
    """

    below_celsius: float = 60.0
    at_most_seconds: Annotated[float, Meta(ge=0)] = 600.0


@dataclass(frozen=True)
class Probe:
    """``[probe]``. start: the first context tried, then twice as long up to max_ctx. times: right answers in
    a row that make a context stable. step: how finely the longest is found. threads, cpus, flash_attn: of its
    server.
    """

    start: Text | Count = 1024
    max_ctx: Text | Count = "32k"
    step: Text | Count = 1024
    times: Count = 3
    threads: Count | None = None
    cpus: Text = ALL_CPUS
    flash_attn: Literal["on", "off"] = "on"


@dataclass(frozen=True)
class EndpointPlan:
    """``[[endpoint]]``: a server that is running already. base_url: up to its version, such as
    http://board:8080/v1. model: as it names it. router: load the model before its cells and unload it after.
    api_key_env: the variable that holds its key.
    """

    name: Text
    base_url: Text
    model: Text | None = None
    router: bool = False
    api_key_env: Text | None = None


@dataclass(frozen=True)
class SweepPlan:
    """A plan: the file's keys and tables.

    threads: none leaves them to llama.cpp. cpus: cores as taskset takes them, or all, big, little. ctx:
    tokens. rounds: every second one runs backwards. reserve: memory that is left alone. drop_page_cache:
    before each cell, as root. board: what this machine is called. boards: whether the workers of a cluster
    share the cells or each run all of them. quality: folders of `kvquant validate`, `eval` and `divergence`.
    published: CSV files shown beside. ram: sizes that jobs are chosen for. transforms: files of `kvquant
    calibrate` by model, which all its policies get but those with @no-transform behind them.
    """

    models: tuple[Text, ...] = ()
    policies: tuple[Text, ...] = ("f16",)
    threads: tuple[Count, ...] = ()
    cpus: tuple[Text, ...] = (ALL_CPUS,)
    flash_attn: tuple[Literal["on", "off"], ...] = ("on",)
    ctx: tuple[Text | Count, ...] = ("4k",)
    rounds: Count = 2
    reserve: Text = "512MiB"
    drop_page_cache: bool = False
    board: Text | None = None
    boards: Literal["share", "each"] = "share"
    quality: tuple[Text, ...] = ()
    published: tuple[Text, ...] = ()
    ram: tuple[Text, ...] = ()
    transforms: Mapping[str, Text] = field(default_factory=dict)
    measure: Measure = Measure()
    cooling: Cooling = Cooling()
    probe: Probe | None = None
    endpoint: tuple[EndpointPlan, ...] = ()

    @property
    def contexts(self) -> tuple[int, ...]:
        """The contexts in tokens."""
        return tuple(tokens(entry) for entry in self.ctx)

    @property
    def reserve_n_bytes(self) -> int:
        """Memory that is left alone."""
        return parse_n_bytes(self.reserve)

    def endpoint_named(self, name: str) -> EndpointPlan | None:
        """The endpoint of a name."""
        return next((entry for entry in self.endpoint if entry.name == name), None)


@dataclass(frozen=True)
class Task:
    """A cell, or a probe, to be run. round is 0 for a probe. block: cells that are compared with each other,
    which run one after the other on one board.
    """

    kind: Literal["cell", "probe"]
    setting: Setting
    round: int = 0
    block: int = 0

    @property
    def key(self) -> str:
        """Names it within a plan, as its record is named."""
        return cell_key(self.setting, self.round) if self.kind == "cell" else probe_key(self.setting)


def read_plan(path: Path) -> SweepPlan:
    """Read a plan. Raises UsageError, one line, for a file that is none or holds an unknown key."""
    return check_plan(read_toml(SweepPlan, path, error=UsageError), str(path))


def check_plan(plan: SweepPlan, where: str = "plan") -> SweepPlan:
    """Return a plan that can be run as it is written. Raises UsageError, one line, for one that cannot."""
    if not plan.models and not plan.endpoint:
        raise UsageError(
            f"{where}: neither models nor an endpoint; name a model, such as models = ['smollm2-135m']"
        )
    lists = {
        name: getattr(plan, name)
        for name in ("models", "policies", "threads", "cpus", "flash_attn", "contexts")
    }
    for name, values in lists.items():
        if len(set(values)) != len(values):
            raise UsageError(f"{where}: {name} has a value twice; give each once")
    if plan.models and not (plan.policies and plan.cpus and plan.flash_attn and plan.ctx):
        raise UsageError(f"{where}: policies, cpus, flash_attn and ctx each need at least one value")
    for entry in plan.cpus if plan.probe is None else (*plan.cpus, plan.probe.cpus):
        if entry not in NAMES:
            parse_cores(entry)
    texts = [canonical(text) + ("" if split(text)[1] else "@no-transform") for text in plan.policies]
    stray = [name for name in plan.transforms if name not in plan.models]
    if stray:
        raise UsageError(f"{where}: [transforms] names {stray[0]!r}, which is not a model of the plan")
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: the policy {twice} is given twice; give each once")
    odd = [depth for depth in plan.measure.depths if depth % plan.measure.n_prompt]
    if odd:
        raise UsageError(
            f"{where}: depth {odd[0]} is not a multiple of n_prompt ({plan.measure.n_prompt}); prefill is "
            f"timed batch "
            "by batch"
        )
    least = plan.measure.n_prompt + plan.measure.n_gen
    short = [n_ctx for n_ctx in plan.contexts if n_ctx < least + min(plan.measure.depths, default=0)]
    if short and plan.models:
        raise UsageError(
            f"{where}: a context of {short[0]} has no room for n_prompt + n_gen ({least}) at the first "
            f"depth; "
            "give a longer one"
        )
    if plan.probe is not None and tokens(plan.probe.max_ctx) < tokens(plan.probe.start):
        raise UsageError(f"{where}: [probe] max_ctx is below its start; raise it")
    names = [*plan.models, *(entry.name for entry in plan.endpoint)]
    if len(set(names)) != len(names):
        raise UsageError(f"{where}: two models or endpoints have the same name; rename an endpoint")
    _ = plan.reserve_n_bytes, [parse_n_bytes(size) for size in plan.ram]
    return plan


def tokens(entry: str | int) -> int:
    """Read a number of tokens. Raises UsageError."""
    return entry if isinstance(entry, int) else parse_n_tokens(entry)


def canonical(text: str) -> str:
    """Return the canonical text of a policy that llama.cpp can run, without variation. Raises PolicyError."""
    return str(parse_policy(split(text)[0], CACHE_TYPES))


def split(text: str) -> tuple[str, bool]:
    """Return a policy without its variation, and whether it gets a transform. Raises UsageError."""
    varied = split_variations(text)
    if not varied.rotation:
        raise UsageError(f"policy {text}: a sweep measures what is served; @no-rotation is for divergence")
    return varied.policy, varied.transform


def policy_label(text: str) -> str:
    """Return a policy as people write it: a preset's name, else its text without the selector of every
    layer.
    """
    word = split(text)[0].strip().lower()
    return word if preset_text(word) is not None else canonical(text).removeprefix("*:")


def policy_digest(text: str) -> str:
    """Return what names a policy beside its model: SHA-256 of the canonical text, 16 digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tasks(plan: SweepPlan) -> list[Task]:
    """Return everything a plan asks for, in order.

    The policies of one model, threads, cores, flash attention and context follow each other, so that what is
    compared is measured within minutes; every second round goes backwards through everything, so that a board
    that steadily warms up slows all alike. Probes come last.
    """
    blocks = [*_blocks(plan), *_endpoint_blocks(plan)]
    found: list[Task] = []
    for index in range(plan.rounds):
        numbered = list(enumerate(blocks))
        for number, settings in numbered if index % 2 == 0 else reversed(numbered):
            block = index * len(blocks) + number
            ordered: Iterable[Setting] = settings if index % 2 == 0 else reversed(settings)
            found += [Task("cell", setting, index, block) for setting in ordered]
    first = plan.rounds * len(blocks)
    return found + [Task("probe", setting, 0, first + i) for i, setting in enumerate(_probes(plan))]


def _blocks(plan: SweepPlan) -> Iterator[Sequence[Setting]]:
    threads: tuple[int | None, ...] = plan.threads or (None,)
    for model, n_ctx, flash, cpus, n_threads in product(
        plan.models, plan.contexts, plan.flash_attn, plan.cpus, threads
    ):
        yield [_setting(plan, model, policy, n_threads, cpus, flash, n_ctx) for policy in plan.policies]


def _setting(
    plan: SweepPlan, model: str, policy: str, n_threads: int | None, cpus: str, flash: str, n_ctx: int
) -> Setting:
    transform = plan.transforms.get(model) if split(policy)[1] else None
    return Setting(model, canonical(policy), n_threads, cpus, flash, n_ctx, transform=transform)


def _endpoint_blocks(plan: SweepPlan) -> Iterator[Sequence[Setting]]:
    for entry in plan.endpoint:
        for n_ctx in plan.contexts:
            yield [Setting(entry.name, None, None, ALL_CPUS, "?", n_ctx, entry.base_url)]


def _probes(plan: SweepPlan) -> Iterator[Setting]:
    probe = plan.probe
    if probe is None:
        return
    for model, policy in product(plan.models, plan.policies):
        limit = tokens(probe.max_ctx)
        yield _setting(plan, model, policy, probe.threads, probe.cpus, probe.flash_attn, limit)


_LIST = re.compile(r"\s*,\s*")


def listed(text: str) -> tuple[str, ...]:
    """Return the entries of a comma-separated list of an option. Raises UsageError for an empty one."""
    entries = tuple(_LIST.split(text.strip()))
    if not all(entries):
        raise UsageError(f"{text!r} has an empty entry; write a list such as 2,4")
    return entries


def counts(text: str, option: str) -> tuple[int, ...]:
    """Return the whole numbers of such a list."""
    entries = listed(text)
    if not all(entry.isascii() and entry.isdigit() and int(entry) > 0 for entry in entries):
        raise UsageError(f"{option} {text!r}: write whole numbers such as 2,4")
    return tuple(map(int, entries))
