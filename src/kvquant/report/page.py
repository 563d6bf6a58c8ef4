"""An analysis as one self-contained page: no scripts, no network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from shlex import quote

from kvquant.analysis import Analysis
from kvquant.files import write_atomic
from kvquant.report.figures import DARK, LIGHT, FigureSize, css_variables, front_svg, layers_svg
from kvquant.report.tables import share, small
from kvquant.report.text import layer_cells, note_lines, rival_cells
from kvquant.units import format_n_bytes

_LONG_POLICY = 48
"""Characters from which a policy is written smaller, as the heading of a page."""

_STYLE = """
:root { color-scheme: light dark; LIGHT --panel: #f4f6f9; }
@media (prefers-color-scheme: dark) { :root { DARK --panel: #1c222c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 4rem; background: var(--background);
  color: var(--text); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
h1.long { font-size: 1rem; line-height: 1.45; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; }
p, ul { margin: .5rem 0; }
code { font: .92em ui-monospace, monospace; }
.subject { color: var(--rival); margin: .35rem 0 1.25rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 0; }
.tiles div { background: var(--panel); border-radius: .6rem; padding: .8rem 1rem; }
.tiles dt { color: var(--rival); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.45rem; font-weight: 650; line-height: 1.3; }
.tiles small { display: block; font-size: .82rem; font-weight: 400; color: var(--rival); }
.verdict { border-left: .3rem solid var(--policy); background: var(--panel); border-radius: 0 .6rem .6rem 0;
  padding: .8rem 1.1rem; margin: 1rem 0 0; }
.verdict ul { padding-left: 1.1rem; margin: .35rem 0 0; }
.verdict p { margin: 0; font-weight: 600; }
figure { margin: 0; }
figcaption { color: var(--rival); font-size: .9rem; margin-top: .3rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.narrow { display: none; }
@media (max-width: 40rem) {
  .narrow { display: block; } .wide { display: none; } body { padding: 1rem .9rem 3rem; }
}
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--policy); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
caption { text-align: left; color: var(--rival); padding-bottom: .4rem; white-space: normal; }
th, td { text-align: right; padding: .32rem .7rem; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; }
tbody th { text-align: left; position: sticky; left: 0; background: var(--background); }
thead th:first-child, td.word, th.word { text-align: left; }
tr.policy > * { color: var(--policy); font-weight: 650; }
summary { cursor: pointer; font-weight: 600; margin-bottom: .5rem; }
dl.provenance { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.1rem; margin: 0; }
.provenance dt { color: var(--rival); } .provenance dd { margin: 0; }
@media (max-width: 40rem) {
  dl.provenance { grid-template-columns: 1fr; } .provenance dd { margin-bottom: .5rem; }
}
@media print { details { display: block; } }
"""


def write_page(analysis: Analysis, path: str | Path) -> None:
    """Write the page to ``path``, whole or not at all. Raises KVQuantError when it cannot be written."""
    write_atomic(path, analysis_page(analysis))


def analysis_page(analysis: Analysis) -> str:
    """Return the page as HTML text."""
    title = f"{analysis.policy} on {analysis.model}"
    style = _STYLE.replace("LIGHT", css_variables(LIGHT)).replace("DARK", css_variables(DARK))
    body = "\n".join(
        (
            _heading(analysis.policy),
            f'<p class="subject">KV cache of {escape(analysis.model)}, {len(analysis.layers)} layers with a '
            f"cache, bytes at {analysis.n_ctx} tokens</p>",
            _tiles(analysis),
            _verdict(analysis.verdict),
            _warnings(analysis.warnings),
            _layers_figure(analysis),
            _front_figure(analysis),
            _rivals(analysis),
            _layers(analysis),
            _notes(analysis),
            _provenance(analysis),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def command_line(analysis: Analysis) -> str:
    """Return a command that repeats the analysis, as far as options name it."""
    source = analysis.source
    words = ["kvquant", "analyze", "--layers", quote(analysis.policy), "--ctx", str(analysis.n_ctx)]
    if (analysis.default_k, analysis.default_v) != ("f16", "f16"):
        words += ["--default", f"k={analysis.default_k}/v={analysis.default_v}"]
    words += [f"--{source.kind}", quote(source.name)]
    if source.seed is not None:
        words += ["--seed", str(source.seed)]
    words += ["--rotation", analysis.rotation]
    return " ".join(words)


def _heading(policy: str) -> str:
    # Lines break after commas, where one rule ends.
    rules = escape(policy).replace(",", ",<wbr>")
    return f"<h1{_class('long', len(policy) > _LONG_POLICY)}><code>{rules}</code></h1>"


def _tiles(analysis: Analysis) -> str:
    total = analysis.total
    tiles = (
        ("size", f"{total.ratio_vs_f16:.2f}x", "of an f16 cache"),
        ("bytes", format_n_bytes(total.kv_bytes), f"instead of {format_n_bytes(total.kv_bytes_f16)}"),
        ("attention output", f"{share(total.errors.attn_output_rel_error)} %", "relative error"),
        ("attention distribution", small(total.errors.attn_kl), "KL divergence, nats"),
    )
    items = (
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(unit)}</small></dd></div>"
        for name, value, unit in tiles
    )
    return f'<dl class="tiles">{"".join(items)}</dl>'


def _verdict(verdict: str) -> str:
    first, *others = verdict.rstrip(".").split("; ")
    points = "".join(f"<li>{escape(part[0].upper() + part[1:])}.</li>" for part in others)
    return f'<section class="verdict" aria-label="Verdict"><p>{escape(first)}.</p><ul>{points}</ul></section>'


def _warnings(warnings: Sequence[str]) -> str:
    return "".join(f"<p><strong>Warning:</strong> {escape(warning)}</p>" for warning in warnings)


def _figure(heading: str, wide: str, narrow: str, description: str, caption: str) -> str:
    return (
        f'<h2>{heading}</h2>\n<figure role="img" aria-label="{escape(description)}">\n'
        f'<div class="wide">{wide}</div>\n<div class="narrow">{narrow}</div>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


def _layers_figure(analysis: Analysis) -> str:
    known = [(error, i) for i, error in enumerate(analysis.total.layer_errors) if error is not None]
    worst = (
        f"the largest error is {share(max(known)[0])} % in layer {analysis.layers[max(known)[1]].layer}"
        if known
        else ""
    )
    return _figure(
        "Layer by layer",
        layers_svg(analysis, FigureSize(10, 5), "lw"),
        layers_svg(analysis, FigureSize(4.4, 5), "ln"),
        f"Attention-output error and bytes of each layer; {worst}. The table below has the numbers.",
        "Above: relative error of the attention output under this policy (dots) and with all layers in one "
        "type (lines). Below: bytes of K and V.",
    )


def _front_figure(analysis: Analysis) -> str:
    return _figure(
        "Error against size",
        front_svg(analysis, FigureSize(10, 5), "fw"),
        front_svg(analysis, FigureSize(4.4, 4.6), "fn"),
        "Attention-output error against size for this policy and all others. The next table has the numbers.",
        "Lower left is better. Above the line something that llama.cpp can run is smaller and more accurate.",
    )


def _rivals(analysis: Analysis) -> str:
    head, rows = rival_cells(analysis)
    table = _table(head, rows, "Over all layers", words=(), marked=(0,))
    return f"<h2>Beside other policies</h2>\n{table}"


def _layers(analysis: Analysis) -> str:
    head, rows = layer_cells(analysis)
    table = _table(head, rows, "Every layer that keeps a cache", words=(2, 3), marked=())
    return (
        f"<h2>All layers</h2>\n<details><summary>Show the {len(rows)} layers</summary>\n{table}\n</details>"
    )


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    words: Sequence[int],
    marked: Sequence[int],
) -> str:
    def line(row: Sequence[str], marked: bool) -> str:
        cells = "".join(f"<td{_class('word', i in words)}>{escape(row[i])}</td>" for i in range(1, len(row)))
        return f'<tr{_class("policy", marked)}><th scope="row">{escape(row[0])}</th>{cells}</tr>'

    header = "".join(
        f'<th scope="col"{_class("word", i in words)}>{escape(name)}</th>' for i, name in enumerate(head)
    )
    lines = "\n".join(line(row, i in marked) for i, row in enumerate(rows))
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{header}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    )


def _class(name: str, applies: bool) -> str:
    return f' class="{name}"' if applies else ""


def _notes(analysis: Analysis) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in note_lines(analysis))
    return f"<h2>How to read the numbers</h2>\n<ul>{items}</ul>"


def _provenance(analysis: Analysis) -> str:
    source = analysis.source
    entries = (
        ("Data", f"{source.kind} <code>{escape(source.name)}</code>: {escape(source.description)}"),
        (
            "Sampled per layer",
            f"{source.n_tokens} tokens, {source.n_query} {source.queries} queries, "
            f"{source.n_head_kv} KV heads, {source.n_head} query heads",
        ),
        ("Command", f"<code>{escape(command_line(analysis))}</code>"),
        ("Written by", f"kvquant {escape(version('kvquant'))}"),
    )
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in entries)
    return f'<h2>Where this comes from</h2>\n<dl class="provenance">{items}</dl>'
