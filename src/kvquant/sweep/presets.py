"""What was chosen, as files: presets for llama-server in router mode, and a systemd unit that serves them.

The format is common/preset.cpp's at the pin: keys are options without their dashes; a value ends where a
blank is followed by ; or #, and cannot hold either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvquant.assets.find import model_path
from kvquant.errors import UsageError
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import open_model
from kvquant.policy import parse_policy
from kvquant.results.sweep import ALL_CPUS, Board, DecisionRow, SweepResult, leading_rows
from kvquant.sweep.cores import parse_cores, resolve_cores
from kvquant.sweep.plan import canonical, split

BEST = "best"
"""The word that means: for each model of the sweep the row that leads its table."""

_NOT_IN_A_VALUE = re.compile(r"[;#\r\n\0]")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Draft:
    """A draft model and the types of its cache: llama-server takes one for K and one for V (-ctkd, -ctvd)."""

    model: Path
    k_type: str
    v_type: str


@dataclass(frozen=True)
class Preset:
    """A model as a router offers it. cores: as taskset takes them, None for all. n_ctx: of its one slot."""

    name: str
    model: Path
    policy: str
    n_threads: int | None
    cores: str | None
    flash_attn: str
    n_ctx: int
    draft: Draft | None = None
    transform: Path | None = None

    def options(self) -> dict[str, str]:
        """Return the options of its server, by name."""
        found = {
            "model": str(self.model.absolute()),
            "kv-layers": self.policy,
            "ctx-size": str(self.n_ctx),
            "parallel": "1",
            "flash-attn": self.flash_attn,
        }
        if self.transform is not None:
            found["kv-transform"] = str(self.transform.absolute())
        if self.n_threads is not None:
            found["threads"] = str(self.n_threads)
        if self.cores is not None:
            mask = sum(1 << core for core in parse_cores(self.cores))
            found |= {"cpu-mask": f"{mask:x}", "cpu-strict": "1"}
        if self.draft is not None:
            found |= {
                "spec-type": "draft-simple",
                "model-draft": str(self.draft.model.absolute()),
                "cache-type-k-draft": self.draft.k_type,
                "cache-type-v-draft": self.draft.v_type,
            }
        return found


def choose(result: SweepResult, wanted: Sequence[str]) -> list[DecisionRow]:
    """Return the rows that words mean: `best`, or MODEL=POLICY. Raises UsageError for what was not
    measured.
    """
    own = [row for row in result.rows if row.source is None and row.flash_attn not in (None, "?")]
    found: dict[str, DecisionRow] = {}
    for word in wanted:
        if word == BEST:
            best = leading_rows(own)
            found |= {row.model: row for row in best if row.model not in found}
            continue
        model, _, policy = word.partition("=")
        text = canonical(policy) if policy else None
        plain = bool(policy) and not split(policy)[1]
        rows = [row for row in own if row.model == model and row.policy == text]
        rows = [row for row in rows if not plain or row.transform is None]
        rows.sort(key=lambda row: row.transform is None)
        if not rows:
            known = ", ".join(f"{row.model}={row.label}" for row in own) or "nothing"
            raise UsageError(f"--apply {word}: give {BEST} or MODEL=POLICY; measured: {known}")
        found[model] = rows[0]
    if not found:
        raise UsageError("--apply best: the sweep has measured no model yet")
    return list(found.values())


def preset_of(row: DecisionRow, boards: Sequence[Board], draft: Draft | None = None) -> Preset:
    """Return a row as a preset, with its stable context where that is known, else the one it was
    measured at.
    """
    board = next(board for board in boards if board.name == row.board)
    return Preset(
        name=_name(row.model),
        model=model_path(row.model),
        policy=row.policy,
        n_threads=row.n_threads,
        cores=resolve_cores(row.cpus or ALL_CPUS, board.cores),
        flash_attn=row.flash_attn or "on",
        n_ctx=row.stable_ctx or row.n_ctx or 4096,
        draft=draft,
        transform=None if row.transform is None else Path(row.transform),
    )


def draft_of(model: Path, policy: str) -> Draft:
    """Return a draft model with its own policy. Raises UsageError where that is not one type for K and
    one for V.
    """
    opened = open_model(model)
    resolved = parse_policy(canonical(policy)).resolve(shape_of(opened))
    k_types = {layer.k_type for layer in resolved.layers}
    v_types = {layer.v_type for layer in resolved.layers}
    if len(k_types) != 1 or len(v_types) != 1:
        raise UsageError(
            f"--draft-policy {policy}: llama-server takes one type for K and one for V of a draft model; "
            "give, for example, q8_0 or k8v4"
        )
    return Draft(model, k_types.pop(), v_types.pop())


def preset_text(presets: Sequence[Preset]) -> str:
    """Return the file for --models-preset. Raises UsageError for a value that the format cannot hold."""
    blocks = ["; Written by kvquant sweep --apply. llama-server --models-preset THIS-FILE\nversion = 1\n"]
    names: set[str] = set()
    for preset in presets:
        if preset.name in names:
            raise UsageError(f"two models would be called {preset.name!r}; apply one at a time")
        names.add(preset.name)
        lines = [f"{key} = {_value(value)}" for key, value in preset.options().items()]
        blocks.append("\n".join([f"[{preset.name}]", *lines]) + "\n")
    return "\n".join(blocks)


def parse_presets(text: str) -> Mapping[str, Mapping[str, str]]:
    """Read what `preset_text` writes: options by section."""
    found: dict[str, dict[str, str]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            found[section] = {}
        elif section and "=" in line:
            key, _, value = line.partition(" = ")
            found[section][key] = value
    return found


def unit_text(programs: Path, preset_file: Path, presets: Sequence[Preset], port: int) -> str:
    """Return a systemd unit that serves a preset file on this machine's own address, one model at a time.

    Where all presets have the same cores, the unit keeps the whole service on them.
    """
    server = [str((programs / "llama-server").absolute()), "--models-preset", str(preset_file.absolute())]
    server += ["--models-max", "1", "--host", "127.0.0.1", "--port", str(port)]
    server += ["--cache-ram", "0"]
    cores = {preset.cores for preset in presets}
    bound = cores.pop() if len(cores) == 1 else None
    affinity = "" if bound is None else f"CPUAffinity={' '.join(map(str, parse_cores(bound)))}\n"
    return (
        "[Unit]\n"
        "Description=llama-server with the models that kvquant sweep chose\n"
        "After=network.target\n\n"
        "[Service]\n"
        f"ExecStart={' '.join(map(_unit_word, server))}\n"
        f"{affinity}"
        "# The kernel ends this service before anything else when memory runs out.\n"
        "OOMScoreAdjust=1000\n"
        "Restart=on-failure\n"
        "RestartSec=5\n"
        "NoNewPrivileges=yes\n\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def with_draft(presets: Sequence[Preset], draft: Draft | None) -> list[Preset]:
    """Give every preset a draft model, except the one that is it."""
    return [
        preset if draft is None or preset.model == draft.model else replace(preset, draft=draft)
        for preset in presets
    ]


def _name(model: str) -> str:
    """A section's name: a registered model's, or a file's without its ending."""
    stem = Path(model).name.removesuffix(".gguf")
    return _NOT_IN_A_NAME.sub("-", stem).strip("-") or "model"


def _value(value: str) -> str:
    if _NOT_IN_A_VALUE.search(value) or value != value.strip():
        raise UsageError(
            f"{value!r} cannot be in a preset file, because of a ; or # or line break; rename the file"
        )
    return value


def _unit_word(word: str) -> str:
    """A word of ExecStart (systemd.service(5)): quoted, with specifiers and variables escaped."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return plain if re.fullmatch(r"[\w@%+=:,./-]+", plain) else f'"{plain}"'
