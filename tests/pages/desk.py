"""A reader's desk: a folder in which the lines of one page are typed, one after the other.

Lines run as typed, except for what these tables say. `REPLACED` puts models, texts and servers that are here
in the place of those that a reader would fetch or have running. `SMALL` appends options that shorten a
measurement: the last of two wins. `GIVEN` makes the files that a page takes for granted. `NOT_RUN` lists what
is only parsed, with the reason.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from evals.small_runs import RULES
from kvquant.cli.main import kvquant
from kvquant.errors import KVQuantError
from kvquant.reference.tasks import Size, Split, held_out_documents
from kvquant.shipped import reference_model
from pages.typed import ROOT
from write_random_gguf import RandomModel, write_random_gguf

REPLACED: tuple[tuple[str, str], ...] = (
    # Searches and sweeps run a model some hundred times: two layers of random weights.
    (r"(kvquant (?:search|sweep) .*)(--model|--draft) \S+", r"\1\2 tiny.gguf"),
    # What is fetched by name: the reference model, which ships with the project, and one of its texts.
    (r"(--model|-m) (smollm2-135m|qwen2\.5-coder-0\.5b)(?= |$)", r"\1 model.gguf"),
    (r"--text (prose|code)(:\w+)?(?= |$)", "--text book.txt"),
    # A server at its usual port: one of this process, or the one that the page has started.
    (r"127\.0\.0\.1:(8080|11434)", "127.0.0.1:PORT"),
    # What the endpoint of this process calls its model.
    (r"--model qwen(?= |$)", "--model qwen2.5:0.5b"),
    # Names that stand for a reader's own: his tree, his file, the model of his sweep.
    (r"--source (DIR|~/llama\.cpp)", "--source llama.cpp"),
    (r"--out FILE", "--out merged.patch"),
    (r"qwen3=k8v4", "tiny.gguf=k8v4"),
    # A program of the clone, which is not the folder in which lines are typed.
    (r"^tests/support/write_random_gguf", f"{sys.executable} {ROOT}/tests/support/write_random_gguf"),
)

SMALL: dict[str, str] = {
    "analyze": "--tokens 64 --queries 8 --heads 1",
    "calibrate": "--ctx 64 --tokens 64 --chunks 1 --rounds 0 --anyway --threads 1",
    "capture": "--ctx 64 --threads 1",
    "divergence": "--ctx 64 --tokens 64 --threads 1",
    "eval": "--suite small.toml --n 1",
    "llama serve": "--threads 1 --port PORT",
    "search --model": (
        "--held-out chats.txt --chunk 172 --tokens 128 --random 0 --types q8_0,q4_0 --threads 1"
    ),
    "validate": "--suite small.toml --n 1 --threads 1",
}

EXIT_CODES: dict[str, tuple[int, ...]] = {
    "kvquant calibrate": (0, 3),  # the reference model's keys have no offsets to gain from
    "kvquant doctor": (0, 3),  # it judges the machine that runs the tests
    "kvquant policy 0-10:q8_0,11-31:q40": (2,),  # shows what an error looks like
}


@dataclass(frozen=True)
class NotRun:
    """Lines that are only parsed. pattern: a regular expression that the start of a line matches."""

    pattern: str
    reason: str


NOT_RUN: tuple[NotRun, ...] = (
    NotRun(r"git clone", "the address is for the reader to fill in"),
    NotRun(r"make", "installs, builds or measures, for minutes to hours; test_docs.py knows its target"),
    NotRun(
        r"(python )?(tools|benchmarks|tests/support/write_golden)",
        "builds or measures for long, or writes records; test_docs.py knows its options",
    ),
    NotRun(r"build/", "runs on the board"),
    NotRun(r"dask", "stays in the foreground; tests/sweep/test_cluster.py starts a scheduler and workers"),
    NotRun(r"kvquant sweep .*--hosts", "needs that scheduler; tests/sweep/test_cluster.py has one"),
    NotRun(r"kvquant llama (build|fetch)", "downloads and compiles; test_build.py has a small tree"),
    NotRun(r"kvquant (models|texts) get", "downloads; tests/assets has an index of its own"),
    NotRun(r"eval .*zsh|kvquant completion fish", "needs zsh or fish; tests/cli/test_habits.py reads both"),
)


def reason_not_to_run(line: str) -> str | None:
    """Return why a typed line is only parsed; None for one that is run."""
    return next((one.reason for one in NOT_RUN if re.match(one.pattern, line)), None)


# ---- what a page takes for granted ----

Make = Callable[["Desk", Path], object]


def _text(seed: int) -> Make:
    def write(_: Desk, path: Path) -> None:
        documents = held_out_documents(seed, Split.TEST, 16, Size(n_tokens=200, most_pairs=16))
        path.write_text("".join(document.text for document in documents))

    return write


def _written(content: str) -> Make:
    return lambda _, path: path.write_text(content)


def _typed(line: str) -> Make:
    """What a line of another page leaves. PATH in it is the file or folder that is wanted."""
    return lambda desk, path: desk.type(line.replace("PATH", path.as_posix()))


_SUITE = f"""
[suite]
name = "small"
about = "for tests"
n = 1
max_tokens = 16
[server]
n_ctx = 512
[kld]
text = "reference"
n_documents = 2
n_tokens = 48
n_ctx = 48
paths = ["prefill"]
[memory]
{RULES}[[test]]
task = "calculator"
category = "tools"
weight = 1.0
"""

_PLAN = """
models = ["tiny.gguf"]
policies = ["f16", "k8v4"]
threads = [1]
ctx = [128]
rounds = 1
ram = ["1GiB"]
[measure]
depths = [0]
n_prompt = 32
n_gen = 2
warmup = 1
"""

_KVTUNER = "".join(f"{layer}: {{nbits_key: 8, nbits_value: 4}}\n" for layer in range(28))
_EVAL = "kvquant eval --base-url http://127.0.0.1:8080/v1 --out PATH"

GIVEN: dict[str, Make] = {
    "model.gguf": lambda _, path: path.symlink_to(reference_model()),
    "tiny.gguf": lambda _, path: write_random_gguf(path, RandomModel(arch="llama", n_layer=2)),
    "book.txt": _text(1),
    "chats.txt": _text(2),
    "prompt.txt": _text(3),
    "small.toml": _written(_SUITE),
    "plan.toml": lambda desk, path: (desk.give("tiny.gguf"), path.write_text(_PLAN)),
    "KVTuner.yaml": _written(_KVTUNER),
    "Qwen2.5-7B-Instruct_KVTuner6_0.yaml": _written(_KVTUNER),
    "kv.npz": _typed("kvquant capture --model model.gguf --text prompt.txt -o PATH"),
    "model.kvt.gguf": _typed("kvquant calibrate --model model.gguf --text book.txt -o PATH"),
    "runs/f16": _typed(_EVAL),
    "runs/f16-again": _typed(_EVAL),
    "runs/q8_0": _typed(_EVAL),
    "runs/q4_0": _typed(_EVAL),
    "runs/today": _typed("kvquant validate --policy f16 --policy q8_0 --out PATH"),
    "runs/standard": _typed("kvquant validate --policy f16 --policy q8_0 --out PATH"),
    "runs/board": _typed("kvquant sweep plan.toml --out PATH"),
    "docs/figures": lambda _, path: path.mkdir(),
    "llama.cpp": lambda desk, path: desk.copy_of_llama_cpp(path),
}

MADE = re.compile(r"(?:-o|--out|--dest|>) (\S+)")
"""What a line makes, which is therefore not given."""


# ---- typing ----


@dataclass
class Desk:
    """folder: where lines are typed, the current folder of this process.

    port: of the endpoint that answers until the page starts a server; router: of the router. source: a tree
    of llama.cpp, None without one. ran: the lines as they were run.
    """

    folder: Path
    port: int
    router: int
    source: Path | None
    server: subprocess.Popen[bytes] | None = None
    ran: list[str] = field(default_factory=list)

    def type(self, line: str) -> str:
        """Run a line to its end, or until its server answers; return what it printed on stdout."""
        line = self._prepared(line)
        name = _command(line)
        self.ran.append(line)
        if name == "llama serve":
            return self._serve(line)
        code, output, errors = _in_bash(line) if _is_for_a_shell(line) else _in_this_process(line)
        allowed = next((codes for start, codes in EXIT_CODES.items() if line.startswith(start)), (0,))
        assert code in allowed, f"{line}\nexit code {code}: {output[-1000:]}{errors[-1000:]}"
        return output

    def _prepared(self, line: str) -> str:
        """Return the line as it is run, with the files it needs made."""
        line = " ".join(_without_comment(line).split())
        for pattern, replacement in REPLACED:
            line = re.sub(pattern, replacement, line)
        for name, options in SMALL.items():
            if re.match(rf"kvquant {name}\b", line):
                line = f"{line} {options}"
        made = set(MADE.findall(line))
        for name in GIVEN:
            if re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w.-])", line) and name not in made:
                self.give(name)
        return line.replace("PORT", str(self._port(line)))

    def give(self, name: str) -> None:
        """Make what a page takes for granted, unless it is there."""
        path = Path(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            GIVEN[name](self, path)

    def _port(self, line: str) -> int:
        if _command(line) == "llama serve":
            self.close()
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                self.port = found.getsockname()[1]
        return self.router if _command(line).startswith("router") else self.port

    def _serve(self, line: str) -> str:
        """Start a server and wait until it answers."""
        log = self.folder / "server.log"
        with log.open("wb") as file:
            self.server = subprocess.Popen(["bash", "-c", f"exec {line}"], stdout=file, stderr=file)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return log.read_text(errors="replace")
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise AssertionError(f"{line}\n{log.read_text(errors='replace')[-2000:]}")

    def copy_of_llama_cpp(self, path: Path) -> None:
        """Copy the tree without its models and papers, which are most of it."""
        assert self.source is not None
        left_out = {str(self.source): {"models", "docs", "media", "benches"}}
        shutil.copytree(
            self.source, path, ignore=lambda folder, _: left_out.get(folder, set()), symlinks=True
        )

    def close(self) -> None:
        """End the server that the page has started."""
        if self.server is not None:
            self.server.terminate()
            self.server.wait(30)
            self.server = None


def _without_comment(line: str) -> str:
    return re.sub(r"\s#.*", "", line)


def _command(line: str) -> str:
    """Return the name of kvquant's command, such as divergence or "llama serve"; what is typed for others."""
    words = line.split()
    if words[0] != "kvquant" or len(words) < 2:
        return words[0]
    return " ".join(words[1:3]) if words[1] in {"llama", "router", "patch"} else words[1]


def _is_for_a_shell(line: str) -> bool:
    return not line.startswith("kvquant ") or bool(re.search(r"[|<>$;&*]", re.sub(r"'[^']*'", "", line)))


def _in_bash(line: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["bash", "-c", f"set -e -o pipefail; {line}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def _in_this_process(line: str) -> tuple[int, str, str]:
    """Run a kvquant command without the second that a new process takes to import what it needs."""
    done = CliRunner().invoke(kvquant, shlex.split(line)[1:], prog_name="kvquant")
    error = done.exception
    if isinstance(error, KVQuantError):
        return error.exit_code, done.stdout, f"{done.stderr}\n{error}"
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return done.exit_code, done.stdout, done.stderr


def write_kvquant(folder: Path) -> None:
    """Put a `kvquant` that runs this one into a folder, for lines that a shell runs."""
    program = folder / "kvquant"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m kvquant "$@"\n')
    program.chmod(0o755)
