"""The pieces that pages are made of: one style, figures, tables, tiles, lists. Everything given is escaped
unless it is called markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from kvquant.report.drawing import DARK, LIGHT, css_variables
from kvquant.report.tables import printable

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


def escape(text: str) -> str:
    """Return ``text`` as markup that shows it, whatever is in it."""
    return html.escape(printable(text))


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


def class_attribute(name: str, applies: bool = True) -> str:
    """Return the attribute, or nothing where it does not apply."""
    return f' class="{name}"' if applies else ""


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


def cards(
    head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, tones: Sequence[str | None]
) -> str:
    """Return a table whose rows become cards on a phone.

    tones: how the second column of each row is coloured: good, caution, bad, or not.
    """

    def line(row: Sequence[str], tone: str | None) -> str:
        kinds = {1: class_attribute(tone or "", tone is not None)}
        cells = "".join(
            f'<td data-name="{escape(head[i])}"{class_attribute("word", i == 1)}>'
            f"<span{kinds.get(i, '')}>{_two_lines(row[i])}</span></td>"
            for i in range(1, len(row))
        )
        return f'<tr><th scope="row">{_two_lines(row[0])}</th>{cells}</tr>'

    lines = "\n".join(line(row, tone) for row, tone in zip(rows, tones, strict=True))
    return _table(head, lines, caption, words=(1,), kind=' class="cards"')


def _two_lines(cell: str) -> str:
    """What stands in brackets at the end, such as an interval, in smaller print beside or below the rest."""
    value, bracket, interval = cell.removesuffix(")").partition(" (")
    return f"{escape(value)}<small>{escape(interval)}</small>" if bracket else escape(cell)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    words: Sequence[int] = (),
    marked: Sequence[int] = (),
) -> str:
    """Return a table that scrolls by itself where it is wider than the page.

    words: columns that are no numbers, beside the first. marked: rows to stress.
    """

    def line(row: Sequence[str], marked: bool) -> str:
        cells = "".join(
            f"<td{class_attribute('word', i in words)}>{_two_lines(row[i])}</td>" for i in range(1, len(row))
        )
        return f'<tr{class_attribute("policy", marked)}><th scope="row">{escape(row[0])}</th>{cells}</tr>'

    lines = "\n".join(line(row, i in marked) for i, row in enumerate(rows))
    return _table(head, lines, caption, words)


def _table(head: Sequence[str], lines: str, caption: str, words: Sequence[int], kind: str = "") -> str:
    header = "".join(
        f'<th scope="col"{class_attribute("word", i in words)}>{escape(name)}</th>'
        for i, name in enumerate(head)
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table{kind}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{header}</tr></thead>\n"
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )
