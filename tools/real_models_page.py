"""What the records of real_models.py come to: their page, README's table and the figure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import relpath
from typing import TYPE_CHECKING

import real_speed
import real_tasks
from kvquant.assets.registry import models
from kvquant.cli.divergence import divergence_text
from kvquant.documents import read_json
from kvquant.files import write_atomic
from kvquant.report.drawing import (
    PLACEHOLDERS,
    FigureSize,
    decade_axis,
    open_figure,
    place_labels,
    standalone_svg,
    style_axes,
    themed_svg,
)
from kvquant.results.divergence import DivergenceResult, PolicyDivergence
from kvquant.results.search import SearchResult
from kvquant.units import format_n_bytes
from marked_page import filled
from real_models import EDGES, HYBRID, MIRROR, PLAN, ROOT, UNIFORM, Setting, policies_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = ROOT / "eval/results/real/README.md"
README = ROOT / "README.md"
FIGURE = ROOT / "docs/figures/real-models.svg"
FIRST = ("smollm2-135m", ("q8_0", "k8v4", "q4_0"))
"""The model and policies of README's first result."""

TITLES = {"smollm2-135m": "SmolLM2-135M-Instruct", "gemma3-270m": "Gemma 3 270M"}
TITLES |= {f"qwen2.5-coder-{size}b": f"Qwen2.5-Coder-{size}B-Instruct" for size in ("0.5", "1.5")}

TRANSFORMS = ROOT / "benchmarks/results/transform"
SEARCHES = ROOT / "eval/results/search"

Found = Sequence[tuple[Setting, DivergenceResult]]
"""Settings with their records, in the order of the plan."""


@dataclass(frozen=True)
class Pair:
    """Two measurements on the same text, as (share of f16, KL): what is compared with, and what is better.

    kind: transform, a policy without and with a change of K; or search, the best simple rule and what
    `kvquant search` found, on the held-out text of the search.
    """

    kind: str
    before: tuple[float, float]
    after: tuple[float, float]


Pairs = Mapping[str, Sequence[Pair]]
"""Pairs by the SHA-256 of their model."""


def read_pairs(found: Found) -> Pairs:
    """Return the pairs of all records of searches, and of transforms measured on a panel's text."""
    pairs: dict[str, list[Pair]] = {}
    panels = {result.start.model.sha256: result for result in at(found, 512, "prefill").values()}
    for path in sorted(TRANSFORMS.glob("*.json")):
        of_small_types = ".types." in path.name
        if path.name.endswith(".calibration.json") or (
            of_small_types and path.with_name(path.name.replace(".types.", ".")).exists()
        ):
            continue  # of a file; and of a calibration for small types, which have a figure of their own
        record = read_json(DivergenceResult, path)
        panel = panels.get(record.start.model.sha256)
        if panel is not None and _setting(panel) == _setting(record):
            only = {policy.policy for policy in panel.policies} if of_small_types else None
            pairs.setdefault(record.start.model.sha256, []).extend(_transform_pairs(record, only))
    for path in sorted(SEARCHES.glob("*.json")):
        search = read_json(SearchResult, path)
        if search.start.model.sha256 in panels and search.start.transform is None:
            pairs.setdefault(search.start.model.sha256, []).extend(_search_pairs(search))
    return pairs


def _setting(result: DivergenceResult) -> tuple[object, ...]:
    start = result.start
    return start.n_ctx, start.path, tuple(text.sha256 for text in start.texts)


def _transform_pairs(record: DivergenceResult, only: Collection[str] | None) -> Iterator[Pair]:
    """Pairs of a record; only: of these policies, None for all."""
    plain = {
        policy.policy: policy
        for policy in record.policies
        if policy.transform is None and (only is None or policy.policy in only)
    }
    for policy in record.policies:
        before = plain.get(policy.policy)
        if policy.transform is not None and before is not None and before.kl_mean and policy.kl_mean:
            yield Pair("transform", (before.of_f16, before.kl_mean), (policy.of_f16, policy.kl_mean))


def _search_pairs(search: SearchResult) -> Iterator[Pair]:
    rival = next((one for one in search.rivals if search.against and one.name == search.against.rival), None)
    if search.kl_held_out is not None and rival is not None and rival.kl_held_out is not None:
        yield Pair("search", (rival.of_f16, rival.kl_held_out.mean), (search.of_f16, search.kl_held_out.mean))


INTRODUCTION = """# Real language models

Mean KL divergence from a float16 cache in nats a token, with its 95 % interval; the share of tokens whose
most likely successor is the same; perplexity of the text; and the bytes of the cache, as llama.cpp allocates
them for one chunk. Rotation is llama.cpp's own. The floor is what the same float16 cache gives when its
tokens are fed the other way, in batches or one by one: smaller numbers show no difference. Each
table is one run of `kvquant divergence`, with its record beside this page. `make real` measures what is
missing; this page is written from the records by `tools/real_models.py page`."""

SHOWN = (*UNIFORM, HYBRID, MIRROR, EDGES)
"""What README's table and the figure have; the page has all."""
UNROTATED_SHOWN = ("q5_0", "q4_0")
"""What README's table has without rotation, too."""


def page(found: Found) -> str:
    """Return the page on all records."""
    lines = [INTRODUCTION, "", f"![KL divergence against bytes]({relpath(FIGURE, PAGE.parent)})"]
    for setting, result in found:
        lines += ["", *_section(setting, result)]
    lines += [*real_tasks.section(), *real_speed.section()]
    measured = {setting.name for setting, _ in found}
    missing = [one for one in PLAN if one.name not in measured]
    if missing:
        lines += ["", "## Not measured yet", ""]
        lines += [
            f"- {TITLES[one.model]}, chunks of {one.n_ctx}, {one.path} ({one.n_tokens} tokens)"
            for one in missing
        ]
    return "\n".join(lines) + "\n"


def _section(setting: Setting, result: DivergenceResult) -> Iterator[str]:
    start, floor = result.start, result.floor
    yield f"## {TITLES[setting.model]}, chunks of {setting.n_ctx}, {setting.path}"
    yield ""
    yield (
        f"{result.n_tokens:,} tokens of {start.texts[0].name} scored; float16 perplexity "
        f"{digits(result.baseline_perplexity)}; floor {digits(floor and floor.kl_mean)}."
    )
    yield f"[Record](divergence/{setting.name}.json), model sha256 `{start.model.sha256[:16]}`."
    yield ""
    yield "| policy | bytes | of f16 | KL | same top | perplexity | KL, not rotated |"
    yield "|---|---|---|---|---|---|---|"
    for name in policies_for(1):
        rotated, plain = find(result, name), find(result, name, rotation=False)
        if rotated is not None:
            yield (
                f"| {name} | {format_n_bytes(rotated.kv_bytes)} | {rotated.of_f16:.3f} | {_kl(rotated)} "
                f"| {_share(rotated.top1)} | {digits(rotated.perplexity)} "
                f"| {'' if plain is None else _kl(plain)} |"
            )


def find(result: DivergenceResult, name: str, *, rotation: bool = True) -> PolicyDivergence | None:
    """Return what a record says of a policy by the plan's name of it, None where it was not measured."""
    (n_layer,) = (m.n_layer for m in models().values() if m.sha256 == result.start.model.sha256)
    text = policies_for(n_layer)[name]
    return next(
        (policy for policy in result.policies if (policy.policy, policy.rotation) == (text, rotation)), None
    )


def at(found: Found, n_ctx: int, path: str) -> dict[str, DivergenceResult]:
    """Return the records of a context and a path by model, in the order of TITLES."""
    by_model = {s.model: result for s, result in found if (s.n_ctx, s.path) == (n_ctx, path)}
    return {model: by_model[model] for model in TITLES if model in by_model}


def table(found: Found) -> str:
    """Return README's table: KL at 512 tokens by policy and model."""
    results = at(found, 512, "prefill")
    lines = [
        f"| policy | of f16 | {' | '.join(TITLES[model] for model in results)} |",
        f"|---|---|{'---|' * len(results)}",
    ]
    for name in SHOWN:
        lines.append(_row(name, results, rotation=True))
        if name in UNROTATED_SHOWN:
            lines.append(_row(name, results, rotation=False))
    base = [
        f"perplexity {digits(result.baseline_perplexity)}, {result.n_tokens} tokens"
        for result in results.values()
    ]
    lines.append(f"| f16 | 1.00 | {' | '.join(base)} |")
    return "\n".join(lines)


def _row(name: str, results: dict[str, DivergenceResult], *, rotation: bool) -> str:
    policies = [find(result, name, rotation=rotation) for result in results.values()]
    shares = sorted({f"{policy.of_f16:.2f}" for policy in policies if policy is not None})
    cells = ["" if policy is None else _cell(policy) for policy in policies]
    label = name if rotation else f"{name}, not rotated"
    return f"| {label} | {'–'.join(dict.fromkeys((shares[0], shares[-1])))} | {' | '.join(cells)} |"


def _cell(policy: PolicyDivergence) -> str:
    return f"{digits(policy.kl_mean)}, {_share(policy.top1, 0)}"


def first_result(found: Found) -> str:
    """Return what the command of README's first result prints, as its record has it."""
    model, names = FIRST
    result = at(found, 512, "prefill")[model]
    policies = [(name, find(result, name)) for name in names]
    # A table's label is the policy as it was asked for.
    named = tuple(replace(policy, label=name) for name, policy in policies if policy is not None)
    shown = replace(result, policies=named)
    return f"```text\n{divergence_text(shown)}\n```"


def readme(found: Found, text: str) -> str:
    """Return README with everything in it that records say."""
    return filled(text, {"real models": table(found), "first result": first_result(found)})


def figure(found: Found, pairs: Pairs) -> str:
    """Return KL divergence against bytes as SVG, a panel for each model."""
    results = at(found, 512, "prefill")
    shown = {model: pairs.get(result.start.model.sha256, ()) for model, result in results.items()}
    values = [end[1] for some in shown.values() for pair in some for end in (pair.before, pair.after)]
    values += [policy.kl_mean for result in results.values() for policy in result.policies if policy.kl_mean]
    values += [result.floor.kl_mean for result in results.values() if result.floor is not None]
    limits = min(values) / 2, max(values) * 2
    n_columns = min(2, len(results))
    n_rows = -(-len(results) // n_columns)
    with open_figure(FigureSize(10, 4.1 * n_rows + 0.6), PLACEHOLDERS) as drawn:
        for index, (model, result) in enumerate(results.items(), start=1):
            panel = drawn.add_subplot(n_rows, n_columns, index)
            _draw(panel, result, TITLES[model], limits)
            _draw_pairs(panel, shown[model])
        for result, panel in zip(results.values(), drawn.axes, strict=True):
            place_labels(panel, [(_short(name), point, color) for name, point, color in _points(result)])
        _legend(drawn, {pair.kind for some in shown.values() for pair in some})
        return standalone_svg(themed_svg(drawn, "real"))


def _points(result: DivergenceResult) -> list[tuple[str, tuple[float, float], str]]:
    """Name, place and colour of every policy that has a number, with rotation."""
    found = ((name, find(result, name)) for name in SHOWN)
    return [
        (name, (policy.of_f16, policy.kl_mean), _color(name))
        for name, policy in found
        if policy is not None and policy.kl_mean
    ]


def _draw(axes: Axes, result: DivergenceResult, title: str, limits: tuple[float, float]) -> None:
    for name, (x, y), color in _points(result):
        policy, plain = find(result, name), find(result, name, rotation=False)
        if policy is not None and policy.kl_low is not None:
            axes.plot([x, x], [policy.kl_low, policy.kl_high], color=color, linewidth=1.6)
        if plain is not None and plain.kl_mean:
            axes.plot([x], [plain.kl_mean], "o", color=color, markerfacecolor=PLACEHOLDERS.background)
        axes.plot([x], [y], "o", color=color)
    if result.floor is not None:
        axes.axhline(result.floor.kl_mean, color=PLACEHOLDERS.rival, linewidth=1, linestyle="dashed")
    axes.set_yscale("log")
    axes.set_ylim(limits)
    axes.set_xlim(0.23, 0.60)
    decade_axis(axes.yaxis)
    style_axes(axes, PLACEHOLDERS, f"{title}: KL divergence, nats")
    axes.set_xlabel("bytes of the cache, of f16", color=PLACEHOLDERS.text)


_PAIR_COLORS = {"transform": PLACEHOLDERS.series_5, "search": PLACEHOLDERS.bad}
_PAIR_MARKERS = {"transform": ("D", 6), "search": ("*", 11)}
_LEGEND = {
    "plain": "hollow: not rotated",
    "transform": "with a transform of K (hollow: without, on the same tokens)",
    "search": "searched policy (hollow: the best simple rule), on the held-out text of the search",
}


def _legend(drawn: Figure, kinds: Collection[str]) -> None:
    from matplotlib.lines import Line2D

    marks = {"plain": ("o", 6), **_PAIR_MARKERS}
    colors = {"plain": PLACEHOLDERS.series_1, **_PAIR_COLORS}
    wanted = [kind for kind in _LEGEND if kind == "plain" or kind in kinds]
    lines = [
        Line2D([], [], linestyle="none", marker=marks[kind][0], markersize=marks[kind][1], color=colors[kind])
        for kind in wanted
    ]
    drawn.legend(
        lines,
        [_LEGEND[kind] for kind in wanted],
        loc="outside lower center",
        ncols=1,
        frameon=False,
        labelcolor=PLACEHOLDERS.text,
    )


def _draw_pairs(axes: Axes, pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        color, (marker, size) = _PAIR_COLORS[pair.kind], _PAIR_MARKERS[pair.kind]
        axes.plot(*zip(pair.before, pair.after, strict=True), color=color, linewidth=1)
        for (x, y), filled_with in ((pair.before, PLACEHOLDERS.background), (pair.after, color)):
            axes.plot([x], [y], marker, color=color, markerfacecolor=filled_with, markersize=size)


def _color(name: str) -> str:
    roles = {"k8v4": "series_3", HYBRID: "series_2", MIRROR: "series_4", EDGES: "series_6"}
    return str(getattr(PLACEHOLDERS, roles.get(name, "series_1")))


def _short(name: str) -> str:
    return {HYBRID: "hybrid", MIRROR: "mirror", EDGES: "both ends"}.get(name, name)


def write_all(found: Found) -> None:
    """Write the page, README's table and the figure."""
    write_atomic(PAGE, page(found))
    write_atomic(README, readme(found, README.read_text()))
    write_atomic(FIGURE, figure(found, read_pairs(found)))


def _kl(policy: PolicyDivergence) -> str:
    if policy.kl_mean is None:
        return policy.failure or "unknown"
    if policy.kl_low is None or policy.kl_high is None:
        return digits(policy.kl_mean)
    return f"{digits(policy.kl_mean)} ({digits(policy.kl_low)} to {digits(policy.kl_high)})"


def _share(value: float | None, n_decimals: int = 1) -> str:
    return "" if value is None else f"{value:.{n_decimals}%}"


def digits(value: float | None) -> str:
    """Two significant digits, as a plain number."""
    return "unknown" if value is None else f"{value:.2g}" if value < 10 else f"{value:.3g}"
