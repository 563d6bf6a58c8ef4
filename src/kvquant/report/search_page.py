"""A search as one self-contained page: no scripts, no network, light and dark, readable on a phone."""

from __future__ import annotations

from kvquant.report import search_figures as figures
from kvquant.report.html import bullets, figure, folded, pairs, tiles, whole_page
from kvquant.report.search import CHOSEN, comparison_table, kl_words, speed_table, speeds_title
from kvquant.results.search import MeasuredPolicy, SearchResult
from kvquant.shipped import VERSION
from kvquant.tables import NONE, Table, html_table, n_bytes, small
from kvquant.tables import escape_html as escape


def search_page(result: SearchResult) -> str:
    """Return the page as HTML text."""
    title = f"KV-cache policy for {result.start.model.name}"
    return whole_page(
        title,
        (
            f"<h1>{escape(title)}</h1>",
            f'<p class="subject">chosen on {escape(result.start.fit.name)}, compared on '
            f"{escape(result.start.held_out.name)}</p>",
            _tiles(result),
            f'<section class="verdict" aria-label="Summary"><p><code>{escape(result.policy)}</code></p>'
            f"{bullets([result.sentence])}<p><code>{escape(result.command)}</code></p></section>",
            _front(result),
            html_table(
                comparison_table(result), "KL divergence from a float16 cache, nats a token", _marked(result)
            ),
            html_table(speed_table(result), speeds_title(result)) if result.speeds else "",
            _heat(result),
            _additivity(result),
            _how(result),
            _provenance(result),
        ),
    )


def _tiles(result: SearchResult) -> str:
    return tiles(
        (
            (
                "KL, held out",
                small(None if result.kl_held_out is None else result.kl_held_out.mean),
                "nats a token",
            ),
            ("cache", n_bytes(result.kv_bytes), f"at {result.n_ctx} tokens"),
            ("of f16", f"{result.of_f16:.3f}", "of the bytes"),
            ("floor", small(result.floor.mean), "float16 against itself"),
        )
    )


def _marked(result: SearchResult) -> list[int]:
    names = [row[0] for row in comparison_table(result).rows]
    return [names.index(result.simple or CHOSEN)]


def _front(result: SearchResult) -> str:
    return figure(
        "KL against bytes",
        figures.front_svg(result, False, "front"),
        figures.front_svg(result, True, "front-narrow"),
        "KL divergence on the held-out text against the size of the cache: the front of the search, the "
        "chosen policy and every rule. The table below has the numbers.",
        "Lower left is better. The dotted line is the floor, float16 against itself: what lies there cannot "
        "be told from it. The bar spans from the best to the mean of random policies of the same size.",
    )


def _heat(result: SearchResult) -> str:
    measured = sum(entry.kl is not None for entry in result.sides)
    return figure(
        "What each side costs",
        figures.heat_svg(result, False, "heat"),
        figures.heat_svg(result, True, "heat-narrow"),
        "One cell for each type on each side of each layer; darker costs more.",
        escape(
            "Nats that the side in f16 takes off, all others in the coarsest type, on a logarithmic scale."
            if result.costs_from == "reverse"
            else f"Nats above the floor on a logarithmic scale, everything else in f16. {measured} of "
            f"{len(result.sides)} are measured, the others scaled from the coarsest type."
            if result.costs_from == "measurement"
            else "Squared attention-output errors on a capture, scaled to nats: nothing here was measured."
        ),
    )


def _additivity(result: SearchResult) -> str:
    wide = figures.additivity_svg(result, False, "add")
    narrow = figures.additivity_svg(result, True, "add-narrow")
    if wide is None or narrow is None:
        return ""
    found = result.additivity
    said = f"{found.n_policies} policies on the fitting text."
    if found.ratio is not None:
        said += (
            f" The median policy measures {found.ratio:.2f} times the prediction from the sum of its costs."
        )
    if found.rank_correlation is not None:
        said += f" Spearman's rank correlation is {found.rank_correlation:.2f}."
    return figure(
        "Predicted against measured",
        wide,
        narrow,
        "Measured KL of whole policies against the sums of their costs per side.",
        escape(f"On the line costs add up. {said}"),
    )


def _how(result: SearchResult) -> str:
    rows = tuple(
        (entry.name, entry.how, entry.policy, kl_words(entry.kl_fit))
        for entry in (*result.rivals, *result.candidates)
    )
    out = tuple((entry.name, entry.why, NONE, NONE) for entry in result.left_out)
    front = Table(
        ("of f16", "cache", "KL, held out", "predicted", "policy"),
        tuple(_front_row(entry) for entry in result.front),
        words=(4,),
    )
    table = Table(("policy", "built by", "text", "KL, fitted on"), rows + out, words=(1, 2))
    return (
        "<h2>How each policy was built</h2>\n"
        + folded("Rules and candidates", html_table(table, "Every policy, and what is left out"))
        + folded("The front", html_table(front, "The best policies by costs at other sizes"))
    )


def _front_row(entry: MeasuredPolicy) -> tuple[str, ...]:
    return (
        f"{entry.of_f16:.3f}",
        n_bytes(entry.kv_bytes),
        kl_words(entry.kl_held_out),
        small(entry.predicted),
        entry.policy,
    )


def _provenance(result: SearchResult) -> str:
    start = result.start
    build = start.build or (None, None)
    entries = [
        ("command", f"<code>{escape(' '.join(result.provenance.get('argv', ())))}</code>"),
        ("model", f"{escape(start.model.name)}, sha256 <code>{start.model.sha256[:16]}</code>"),
        ("texts", escape(f"{start.fit.name}, {start.held_out.name}")),
        ("transform", escape("none" if start.transform is None else start.transform.name)),
        ("chunks", f"{start.n_ctx} tokens, scored from {start.score_from}"),
        ("llama.cpp", escape(f"{build[0] or '?'}, series {build[1] or '?'}")),
        ("seconds", f"{result.provenance.get('seconds', '?')}"),
        ("kvquant", VERSION),
    ]
    return f"<h2>Provenance</h2>\n{pairs(entries)}"
