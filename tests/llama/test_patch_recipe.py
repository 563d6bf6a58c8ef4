"""Recipes: what is read, and that every broken rule is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvquant.errors import PatchError
from kvquant.llama.patching.recipe import Anchor, Condition, load_series
from kvquant.shipped import patches_folder
from llama.patch_trees import LAYERS_H, RECIPE, make_series

MINIMAL = """
purpose = "p"
[[edit]]
id = "a"
why = "w"
file = "src/a.cpp"
find = "x"
action = "replace"
text = "y"
"""


def test_reads_edits_and_whole_files(tmp_path: Path) -> None:
    (patch,) = make_series(tmp_path).patches
    assert [edit.id for edit in patch.edits] == ["include", "second-return", "types"]
    assert patch.edits[0].anchors == (
        Anchor('#include "llama-impl.h"\n', 1, "insert-after", '#include "layers.h"\n', None),
    )
    assert [(file.path, file.content) for file in patch.new_files] == [("src/layers/layers.h", LAYERS_H)]


def test_variants_take_what_they_do_not_name_from_their_edit(tmp_path: Path) -> None:
    recipe = """
purpose = "p"
[[edit]]
id = "a"
why = "w"
file = "src/a.cpp"
action = "replace"
text = "new"
count = 2
when = { file = "src/b.h", has = "B", lacks = "C" }
[[edit.variant]]
find = "old"
[[edit.variant]]
find = "older"
text = "newer"
count = 1
"""
    (edit,) = make_series(tmp_path, recipe).patches[0].edits
    assert edit.anchors == (
        Anchor("old", 2, "replace", "new", None),
        Anchor("older", 1, "replace", "newer", None),
    )
    assert edit.when == Condition("src/b.h", "B", "C")


def test_a_find_beside_variants_is_one_more(tmp_path: Path) -> None:
    (edit,) = make_series(tmp_path, f'{MINIMAL}[[edit.variant]]\nfind = "z"\n').patches[0].edits
    assert [anchor.find for anchor in edit.anchors] == ["x", "z"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('purpose = "p"', "", "the recipe: purpose is missing"),
        ('purpose = "p"', 'purpose = "p"\nprograms = "all"', "programs must be an array of names"),
        ('purpose = "p"', 'purpose = "p"\nprograms = ["-t evil"]', "programs must be an array of names"),
        ('id = "a"', 'id = "A b"', "an id is lower-case"),
        ('file = "src/a.cpp"', 'file = "../a.cpp"', "not a plain path inside the tree"),
        ('file = "src/a.cpp"', 'file = "/etc/passwd"', "not a plain path inside the tree"),
        ('file = "src/a.cpp"', 'file = "src//a.cpp"', "not a plain path inside the tree"),
        ('file = "src/a.cpp"', 'file = ".git/config"', "which no patch may touch"),
        ('file = "src/a.cpp"', 'file = ".kvquant/state.json"', "which no patch may touch"),
        ('find = "x"', "", "find is missing"),
        ('find = "x"', 'find = ""', "find must be a non-empty string"),
        ('find = "x"', 'find = "y"', "text equals find"),
        ('action = "replace"', 'action = "append"', "unknown action 'append'; known actions: insert-before"),
        (
            'action = "replace"',
            'action = "insert-after"\ncount = 0',
            "count must be a whole number of at least 1",
        ),
        ('action = "replace"', 'action = "insert-after"\ncount = true', "count must be a whole number"),
        ('text = "y"', 'text = ""\naction2 = 1', "unknown key 'action2'"),
        ('action = "replace"\ntext = "y"', 'action = "insert-after"\ntext = ""', "text must be a string"),
        ('text = "y"', 'text = "y"\nwhen = "always"', "when must be a table"),
        ('text = "y"', 'text = "y"\nvariant = 1', "variant must be an array of tables"),
        ('text = "y"', "text = ", "is not valid TOML"),
    ],
)
def test_a_broken_rule_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    with pytest.raises(PatchError, match=r"recipe\.toml") as caught:
        make_series(tmp_path, MINIMAL.replace(old, new))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_edit_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="edit ids must be unique, repeated: a"):
        make_series(tmp_path, MINIMAL + MINIMAL.partition('"p"')[2])


def test_series_and_folders_agree(tmp_path: Path) -> None:
    make_series(tmp_path)
    (tmp_path / "0002-more").mkdir()
    (tmp_path / "0002-more/recipe.toml").write_text(MINIMAL)
    with pytest.raises(PatchError, match="does not name 0002-more"):
        load_series(tmp_path)
    for text, message in [
        ("0002-more\n0001-layers\n", "ascending"),
        ("0001-layers\n0001-layers\n", "unique"),
        ("0001-layers\n0002-more\n0003-gone\n", "cannot read"),
        ("../0001-layers\n", "bad patch name"),
    ]:
        (tmp_path / "series").write_text(text)
        with pytest.raises(PatchError, match=message):
            load_series(tmp_path)


def test_a_new_file_must_not_be_a_link(tmp_path: Path) -> None:
    make_series(tmp_path)
    (tmp_path / "0001-layers/files/src/link.h").symlink_to("/etc/passwd")
    with pytest.raises(PatchError, match="is a link"):
        load_series(tmp_path)


def test_the_digest_covers_recipes_and_new_files(tmp_path: Path) -> None:
    digests = {
        make_series(tmp_path / "a").digest,
        make_series(tmp_path / "b", RECIPE + "# a comment\n").digest,
        make_series(tmp_path / "c", files={"src/layers.h": LAYERS_H}).digest,
        make_series(tmp_path / "d", files={"src/layers.h": LAYERS_H + b"\n"}).digest,
    }
    assert len(digests) == 4
    assert make_series(tmp_path / "e").digest == make_series(tmp_path / "a").digest


def test_the_committed_series_is_well_formed() -> None:
    series = load_series(patches_folder())
    assert series.patches
    assert all((patch.edits or patch.new_files) and patch.purpose.strip() for patch in series.patches)
