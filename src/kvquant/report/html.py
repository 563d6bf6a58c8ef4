"""The pieces that pages are made of: one style, figures, tiles, lists (tables: `kvquant.tables`). Everything
given is escaped unless it is called markup.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvquant.report.drawing import DARK, LIGHT, css_variables
from kvquant.tables import escape_html as escape

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
.scroll { overflow-x: auto; margin-top: 1rem; }
details { margin-top: .6rem; }
.scroll:focus-visible { outline: 2px solid var(--policy); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
caption { text-align: left; color: var(--rival); padding-bottom: .4rem; white-space: normal; }
th, td { vertical-align: top; text-align: right; padding: .32rem .7rem;
  border-bottom: 1px solid var(--grid); }
th { font-weight: 600; }
tbody th { text-align: left; position: sticky; left: 0; background: var(--background); }
thead th:first-child, td.word, th.word { text-align: left; }
tr.policy > * { color: var(--policy); font-weight: 650; }
.good { color: var(--good); } .caution { color: var(--caution); } .bad { color: var(--bad); }
.good, .caution, .bad { font-weight: 650; }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; list-style: none; padding: 0; margin: 0 0 .5rem; }
.key li::before { content: ""; display: inline-block; width: 1.5rem; margin-right: .45rem;
  vertical-align: .25em; border-top: 3px var(--dash) var(--ink); }
pre { background: var(--panel); border-radius: .6rem; padding: .8rem 1rem; overflow-x: auto;
  font: .8rem/1.45 ui-monospace, monospace; }
.cards { width: 100%; }
.cards thead th, .cards tbody th { white-space: normal; overflow-wrap: break-word; max-width: 14rem; }
td small, th small { display: block; color: var(--rival); font-size: .92em; font-weight: 400; }
@media (max-width: 40rem) {
  .cards, .cards caption, .cards tbody, .cards tr, .cards td, .cards tbody th { display: block; }
  .cards thead { display: none; }
  .cards tr { background: var(--panel); border-radius: .6rem; padding: .6rem .9rem; margin-bottom: .7rem; }
  .cards tbody th { max-width: none; margin-bottom: .2rem; }
  .cards td, .cards tbody th { border: 0; padding: .1rem 0; background: none; position: static; }
  .cards td { display: flex; justify-content: space-between; gap: 1rem; }
  .cards small { display: inline; margin-left: .4rem; }
  .cards td::before { content: attr(data-name); color: var(--rival); font-weight: 400; }
}
summary { cursor: pointer; font-weight: 600; margin-bottom: .5rem; }
dl.provenance { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.1rem; margin: 0; }
.provenance dt { color: var(--rival); } .provenance dd { margin: 0; }
@media (max-width: 40rem) {
  dl.provenance { grid-template-columns: 1fr; } .provenance dd { margin-bottom: .5rem; }
}
@media print { details { display: block; } }
"""


def whole_page(title: str, body: Iterable[str]) -> str:
    """Return a page that needs nothing beside itself; ``body`` is markup."""
    style = _STYLE.replace("LIGHT", css_variables(LIGHT)).replace("DARK", css_variables(DARK))
    sections = "\n".join(part for part in body if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n<main>\n{sections}\n</main>\n</body>\n</html>\n"
    )


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Return (name, value, unit) entries as large numbers side by side."""
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(unit)}</small></dd></div>"
        for name, value, unit in entries
    )
    return f'<dl class="tiles">{"".join(items)}</dl>'


def bullets(lines: Iterable[str]) -> str:
    """Return a list, nothing without lines."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def pairs(entries: Iterable[tuple[str, str]]) -> str:
    """Return (name, markup) entries as a list of terms."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in entries)
    return f'<dl class="provenance">{items}</dl>'


def folded(summary: str, markup: str) -> str:
    """Return what is shown on demand only."""
    return f"<details><summary>{escape(summary)}</summary>\n{markup}\n</details>"


def figure(heading: str, wide: str, narrow: str, description: str, caption: str) -> str:
    """Return a section with a figure, one SVG for screens and one for phones.

    description: what the figure shows, for who cannot see it. caption: markup.
    """
    return (
        f'<h2>{escape(heading)}</h2>\n<figure role="img" aria-label="{escape(description)}">\n'
        f'<div class="wide">{wide}</div>\n<div class="narrow">{narrow}</div>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


def key(entries: Iterable[tuple[str, str, str]]) -> str:
    """Return (name, role of the colour, CSS border style) entries as the key of a figure."""
    items = "".join(
        f'<li style="--ink: var(--{role}); --dash: {dash}">{escape(name)}</li>'
        for name, role, dash in entries
    )
    return f'<ul class="key">{items}</ul>'
