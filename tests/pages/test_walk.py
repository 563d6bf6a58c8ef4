"""Each command on the pages is run, in the order in which a reader types them (desk.py says with what)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evals.fake_endpoint import fake_endpoint
from kvquant.llama.programs import built_programs
from llama.proof import PATCHED, needs_patched
from pages.desk import GIVEN, NOT_RUN, REPLACED, SMALL, Desk, NotRun, reason_not_to_run, write_kvquant
from pages.typed import PAGES, ROOT, page_name, python_blocks, typed_lines
from sweep.fake_router import fake_router

SOURCE = os.environ.get("KVQUANT_LLAMA_SOURCE")

needs_source = pytest.mark.skipif(not SOURCE, reason="KVQUANT_LLAMA_SOURCE names no tree of llama.cpp")
needs_build = pytest.mark.skipif(
    PATCHED is None or built_programs() != PATCHED, reason="kvquant llama serve would build llama.cpp"
)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    programs, folder = tmp_path / "programs", tmp_path / "desk"
    programs.mkdir()
    folder.mkdir()
    write_kvquant(programs)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    with (
        fake_endpoint(models=("qwen2.5:0.5b",)) as endpoint,
        fake_router({"smollm2-135m": "unloaded"}) as (_, router),
    ):
        port = int(router.rpartition(":")[2])
        made = Desk(folder, endpoint.server_port, port, Path(SOURCE or ""))
        try:
            yield made
        finally:
            made.close()


def lines_to_run(page: Path) -> list[str]:
    """Return what is run of a page; of the command reference, what no other page has."""
    lines = [line for line in typed_lines(page.read_text()) if reason_not_to_run(line) is None]
    if page.name == "cli.md":
        others = {line for other in PAGES if other != page for line in typed_lines(other.read_text())}
        lines = [line for line in dict.fromkeys(lines) if line not in others]
    return lines


WALKED = [page for page in PAGES if lines_to_run(page)]


@needs_patched
@needs_build
@needs_source
@pytest.mark.parametrize("page", WALKED, ids=page_name)
def test_each_line_of_a_page_runs(page: Path, desk: Desk) -> None:
    for line in lines_to_run(page):
        output = desk.type(line)
        if line.startswith("curl "):
            assert "content" in json.loads(output)["choices"][0]["message"], output


def test_the_tutorial_is_run_from_the_model_to_the_answer() -> None:
    """The walk above types these lines, and reads the answer."""
    lines = lines_to_run(ROOT / "docs/tutorial.md")
    steps = [
        "doctor",
        "memory",
        "divergence",
        "calibrate",
        "llama",
        "llama",
        "v1/chat/completions",
        "validate",
        "report",
    ]
    assert [step for step, line in zip(steps, lines, strict=True) if step not in line.split("--")[0]] == []


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_python_of_a_page_runs(page: str, desk: Desk) -> None:
    (desk.folder / "model.gguf").symlink_to(ROOT / "eval/reference-model/kvquant-reference-f16.gguf")
    for block in python_blocks((ROOT / page).read_text()):
        exec(compile(block, page, "exec"), {"x": np.ones((2, 128), np.float32)})


# ---- the tables ----

LINES = [line for page in PAGES for line in typed_lines(page.read_text())]


def test_most_lines_are_run() -> None:
    left = [line for line in LINES if reason_not_to_run(line)]
    assert len(left) < len(LINES) / 4, left


@pytest.mark.parametrize("one", NOT_RUN, ids=lambda one: one.pattern)
def test_no_reason_is_left_over(one: NotRun) -> None:
    assert any(reason_not_to_run(line) == one.reason for line in LINES)


def test_no_replacement_is_left_over() -> None:
    assert [pattern for pattern, _ in REPLACED if not any(re.search(pattern, line) for line in LINES)] == []
    assert [name for name in SMALL if not any(line.startswith(f"kvquant {name}") for line in LINES)] == []
    used = [*LINES, *(line for line in map(str, (REPLACED, SMALL)))]
    assert [name for name in GIVEN if not any(name in line for line in used)] == []


def test_a_wrong_line_is_seen(desk: Desk) -> None:
    for line in (
        "kvquant memory --shape no-such --ctx 1k",
        "kvquant formats > no-such-folder/a.txt",
        "kvquant policy import no-such.yaml | cat",
        "no-such-program",
    ):
        with pytest.raises(AssertionError, match="exit code"):
            desk.type(line)
    assert desk.type("kvquant policy k8v4 > policy.txt") == ""
    assert (desk.folder / "policy.txt").read_text() == "*:k=q8_0/v=q4_0\n"
