"""llama-perplexity's account of the same tokens: its file of log probabilities and the table it prints."""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvquant.processes.background import clean_environment

Float64Array = npt.NDArray[np.float64]

_ROW = re.compile(
    r"^ *(\d+) +([\d.]+) ± .*?([-\d.]+) ± +[\d.]+ +([\d.]+) ± +[\d.]+ % +([\d.]+) ±", re.MULTILINE
)


@dataclass(frozen=True)
class SavedLogProbs:
    """What ``--kl-divergence-base`` writes: natural log probabilities of the second half of each chunk.

    log_probs: (n_chunk, n_scored, n_vocab). following: the tokens to predict, (n_chunk, n_scored). Values are
    stored in steps: error is half a step, and lowest what everything less likely was raised to, 16 nats below
    the most likely token; both (n_chunk, n_scored).
    """

    log_probs: Float64Array
    following: npt.NDArray[np.int32]
    error: Float64Array
    lowest: Float64Array

    def clipped(self) -> npt.NDArray[np.bool_]:
        """Which values were raised, (n_chunk, n_scored, n_vocab)."""
        return self.log_probs <= self.lowest[..., None]

    def nll(self) -> Float64Array:
        """Negative log probabilities of the tokens to predict, (n_chunk, n_scored)."""
        return -np.take_along_axis(self.log_probs, self.following[..., None], axis=-1)[..., 0]


@dataclass(frozen=True)
class TableRow:
    """A line of ``--kl-divergence``, over the chunks up to this one. delta_p_rms and same_top are shares."""

    n_chunks: int
    ppl: float
    kl: float
    delta_p_rms: float
    same_top: float


def run_perplexity(programs: Path, model: Path, text: Path, n_ctx: int, *arguments: str) -> str:
    """Run it with one sequence a batch; what it printed."""
    argv = [programs / "llama-perplexity", "-m", model, "-f", text, "-t", "1"]
    for name in ("-c", "-b", "-ub"):
        argv += [name, str(n_ctx)]
    done = subprocess.run(
        [*map(str, argv), *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout + done.stderr


def read_log_probs(path: Path) -> SavedLogProbs:
    """Read the file (tools/perplexity/perplexity.cpp: perplexity() writes it, log_softmax() fills a row)."""
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    n_ctx, n_vocab, n_chunk = struct.unpack_from("<iii", data, 8)
    tokens = np.frombuffer(data, "<i4", n_chunk * n_ctx, offset=20).reshape(n_chunk, n_ctx)
    width = 2 * ((n_vocab + 1) // 2) + 4
    rows = np.frombuffer(data, "<u2", offset=20 + tokens.nbytes).reshape(
        n_chunk, n_ctx - 1 - n_ctx // 2, width
    )
    scale, lowest = np.moveaxis(np.ascontiguousarray(rows[..., :4]).view("<f4").astype(np.float64), -1, 0)
    log_probs = rows[..., 4 : 4 + n_vocab] * scale[..., None] + lowest[..., None]
    return SavedLogProbs(log_probs, tokens[:, n_ctx // 2 + 1 :], scale / 2, lowest)


def read_table(printed: str) -> list[TableRow]:
    """The rows it printed; it can end before its log has written the last ones."""
    return [
        TableRow(int(m[1]), float(m[2]), float(m[3]), float(m[4]) / 100, float(m[5]) / 100)
        for m in _ROW.finditer(printed)
    ]
