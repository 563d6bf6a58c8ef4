"""Files of Hugging Face: through its own client, held to the pinned hash, whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from assets.local_hub import COMMIT, FILE, REPOSITORY, Hub, served_hub
from kvquant.assets.hub import download_from_hub, parse_reference
from kvquant.assets.registry import HubFile, Model
from kvquant.documents import to_json
from kvquant.errors import AssetError
from local_index import sha256, write_model

CONTENT = b"GGUF" + bytes(range(256)) * 40_000

#: Fetches the model whose JSON is its argument from the hub, in a process of its own: the client reads its
#: settings once, when it is imported.
FETCH = (
    "import sys\n"
    "from kvquant.assets.fetch_model import fetch_model\n"
    "from kvquant.assets.registry import Model\n"
    "from kvquant.documents import from_json\n"
    "from kvquant.errors import KVQuantError\n"
    "try:\n"
    "    print(fetch_model(from_json(Model, sys.argv[1], 'argument'), sources=('hub',)))\n"
    "except KVQuantError as error:\n"
    "    sys.exit(str(error))\n"
)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with served_hub(CONTENT) as running:
        yield running


def settings(url: str, folder: Path) -> Mapping[str, str]:
    """The hub client's own settings, as a user has them in the environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": url, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **own, "no_proxy": "127.0.0.1", "KVQUANT_CACHE": str(folder / "cache")}


def kvquant(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return run("-m", "kvquant", *arguments, env=env)


def run(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def model_of(folder: Path, content: bytes = CONTENT) -> Model:
    """A model that the hub has, at a revision of its own."""
    model = write_model(folder / "wheels")
    wanted = HubFile(REPOSITORY, COMMIT, FILE)
    return dataclasses.replace(model, hub=wanted, n_bytes=len(content), sha256=sha256(content))


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed."""
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("name", "revision"), [("", "main"), ("@v2", "v2")])
def test_a_reference_is_fetched_and_its_path_printed(
    hub: Hub, tmp_path: Path, name: str, revision: str
) -> None:
    reference = f"hf:{REPOSITORY}{name}/{FILE}"
    done = kvquant("models", "get", reference, env=settings(hub.url, tmp_path))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.removesuffix("\n")).read_bytes() == CONTENT
    assert hub.paths[0] == f"/{REPOSITORY}/resolve/{revision}/{FILE}"
    # It stays in the client's own cache: the bytes are not asked for again.
    assert kvquant("models", "get", reference, env=settings(hub.url, tmp_path)).stdout == done.stdout
    assert hub.starts == [0]


def test_a_reference_stands_for_a_model(hub: Hub, tmp_path: Path) -> None:
    """Any command that takes --model takes it; this one says what is wrong with such a file."""
    done = kvquant("shape", "--model", f"hf:{REPOSITORY}/{FILE}", env=settings(hub.url, tmp_path))
    assert FILE in error_of(done)
    assert hub.starts == [0]


def test_a_model_of_the_registry_comes_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    done = run("-c", FETCH, to_json(model_of(tmp_path)), env=settings(hub.url, tmp_path))
    assert done.returncode == 0, done.stderr
    place = Path(done.stdout.strip())
    assert place == tmp_path / "cache/models/tiny/tiny.gguf"
    assert place.read_bytes() == CONTENT
    assert list(place.parent.iterdir()) == [place]


def test_another_hash_than_the_pinned_one_is_refused(hub: Hub, tmp_path: Path) -> None:
    model = dataclasses.replace(model_of(tmp_path), sha256="0" * 64)
    done = run("-c", FETCH, to_json(model), env=settings(hub.url, tmp_path))
    assert f"{FILE} has SHA-256 {sha256(CONTENT)}, wanted 000" in error_of(done)
    assert not list((tmp_path / "cache").rglob(f"*/{FILE}"))


def test_a_killed_download_leaves_nothing_beside_the_next(tmp_path: Path) -> None:
    content = CONTENT * 3  # the client writes pieces of 10 MiB
    with served_hub(content) as hub:
        hub.cut_at = len(content) // 2
        argv = [sys.executable, "-c", FETCH, to_json(model_of(tmp_path, content))]
        env = settings(hub.url, tmp_path)
        folder = tmp_path / "cache/models/tiny"
        with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            assert hub.stalled.wait(60)
            while not any(path.stat().st_size for path in folder.rglob("*.incomplete")):
                assert running.poll() is None
                time.sleep(0.02)
            running.send_signal(signal.SIGKILL)
        assert not (folder / "tiny.gguf").exists()
        hub.cut_at = None
        done = run(*argv[1:], env=env)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).read_bytes() == content
        assert [path.name for path in folder.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("reference", [f"hf:{REPOSITORY}/other.gguf", f"hf:someone/else/{FILE}"])
def test_what_the_hub_does_not_have_is_one_line(hub: Hub, tmp_path: Path, reference: str) -> None:
    message = error_of(kvquant("models", "get", reference, env=settings(hub.url, tmp_path)))
    wanted = parse_reference(reference)
    assert message.startswith(f"kvquant: error: cannot get {wanted.file} of {wanted.repository} at main: 404")


def test_an_endpoint_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with served_hub(CONTENT) as gone:
        pass
    done = kvquant("models", "get", f"hf:{REPOSITORY}/{FILE}", env=settings(gone.url, tmp_path))
    assert f"cannot get {FILE} of {REPOSITORY} at main: " in error_of(done)


def test_without_the_hubs_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(AssetError, match=r"need huggingface_hub; run: pip install 'kvquant-llama\[hf\]'"):
        download_from_hub(HubFile(REPOSITORY, "main", FILE))
