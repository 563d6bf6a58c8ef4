"""Says in words how a series fits a tree: the lines of ``kvquant patch check``, and the text of an issue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvquant.llama.patching.plan import Outcome, Plan, ReadFile
from kvquant.llama.patching.recipe import Series
from kvquant.llama.patching.surroundings import Surroundings, changes_around
from kvquant.llama.pin import Pin, is_tag


@dataclass(frozen=True)
class Explainer:
    """What is known beside the plan: the tree's files, and, of a series that comes with them, its pin and
    the last tree that fits.

    ``tree`` is what the tree is called upstream: a tag, a commit, or None when unknown.
    """

    read: ReadFile
    tree: str | None
    pin: Pin | None
    known: Surroundings | None

    def outcome_lines(self, series: Series, outcome: Outcome) -> list[str]:
        """Patch, edit, file:line and verdict; under an edit that fails its purpose and what changed there."""
        places = ", ".join(f"{outcome.file}:{line}" for line in outcome.lines) or outcome.file
        verdict = f"{outcome.status} ({outcome.reason})" if outcome.reason else outcome.status
        lines = [f"{outcome.patch} {outcome.id}  {places}  {verdict}"]
        if outcome.status == "fails":
            lines += [f"    {line}" for line in self._failure_lines(series, outcome)]
        return lines

    def range_line(self) -> str | None:
        """Which upstream trees the series is held to, and where this one lies; None when nothing says."""
        if self.pin is None:
            return None
        tags = self.pin.range
        line = f"the series fits llama.cpp {tags.oldest} to {tags.newest} (last walked {tags.walked})"
        if self.tree is None:
            return line
        if not is_tag(self.tree):
            return f"{line}; this tree is {self.tree}"
        return f"{line}; this tree is {self.tree}, {'inside' if self.tree in tags else 'outside'} that range"

    def issue(self, plan: Plan, version: str) -> str:
        """A Markdown text, ready to be filed, that has every fact a maintainer needs."""
        failures = plan.failures
        title = f"{len(failures)} of {len(plan.outcomes)} edits do not fit {self.tree or 'a llama.cpp tree'}"
        facts = [
            f"kvquant {version}, series {plan.series.digest[:12]}",
            f"llama.cpp tree: {self.tree or 'unknown (neither fetched by kvquant nor a git checkout)'}",
            *filter(None, [self.range_line()]),
        ]
        parts = [f"# {title}", "\n".join(f"- {fact}" for fact in facts)]
        for outcome in failures:
            lines = self._failure_lines(plan.series, outcome)
            places = ", ".join(f"{outcome.file}:{line}" for line in outcome.lines) or outcome.file
            head = f"## {outcome.patch} {outcome.id}\n\n{places}: {outcome.reason}"
            parts.append("\n".join([head, "", "```diff", *lines, "```"]) if lines else head)
        return "\n\n".join(parts) + "\n"

    def _failure_lines(self, series: Series, outcome: Outcome) -> list[str]:
        lines = [f"why: {why}" for why in _purposes(series, outcome)]
        for candidate in outcome.candidates:
            first, *rest = candidate.text.split("\n")
            more = f"  (+{len(rest)} lines)" if rest else ""
            place = f"{outcome.file}:{candidate.line}"
            lines.append(f"nearest, {candidate.ratio:.0%} alike: {place}: {first}{more}")
        content = self.read(outcome.file)
        if self.known is not None and content is not None:
            lines += changes_around(outcome, self.known, content)
        return lines


def _purposes(series: Series, outcome: Outcome) -> Sequence[str]:
    return [
        edit.why
        for patch in series.patches
        if patch.name == outcome.patch
        for edit in patch.edits
        if edit.id == outcome.id
    ]
