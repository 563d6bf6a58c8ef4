"""Plans: what edits match, what they write, and what is said about an anchor that drifted."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kvquant.llama.patching.plan import Outcome, Plan, make_plan
from kvquant.llama.patching.recipe import Anchor, Condition, Edit, NewFile, Patch, Series
from llama.patch_trees import CACHE, CONTEXT, LAYERS_H, make_series


def edit_of(
    find: str, text: str, *, action: str = "replace", count: int = 1, after: str | None = None, **more: object
) -> Edit:
    anchor = Anchor(find, count, action, text, after)  # type: ignore[arg-type]
    return Edit("e", "why", str(more.get("file", "f")), (anchor,), more.get("when"))  # type: ignore[arg-type]


def plan_of(files: dict[str, bytes], *edits: Edit, new: tuple[NewFile, ...] = ()) -> Plan:
    return make_plan(Series((Patch("0001-p", "p", (), new, edits, "d"),), "d"), files.get)


def only(plan: Plan) -> Outcome:
    (outcome,) = plan.outcomes
    return outcome


def test_a_series_is_computed_in_memory(tmp_path: Path) -> None:
    files = {"src/context.cpp": CONTEXT, "src/cache.cpp": CACHE}
    plan = make_plan(make_series(tmp_path), files.get)
    assert not plan.failures
    assert {outcome.id: outcome.lines for outcome in plan.outcomes} == {
        "new-file": (),
        "include": (1,),
        "second-return": (8,),  # of the unpatched file, although the include moved it
        "types": (1, 2),
    }
    after = {change.path: change.after for change in plan.changes}
    assert after["src/layers/layers.h"] == LAYERS_H
    assert after["src/cache.cpp"].count(b"layer_type_") == 2
    assert after["src/context.cpp"].startswith(b'#include "llama-impl.h"\n#include "layers.h"\n')
    assert after["src/context.cpp"].index(b"return 1;") < after["src/context.cpp"].index(b"return layers(2);")


def test_line_drift_does_not_matter(tmp_path: Path) -> None:
    series = make_series(tmp_path)
    moved = {"src/context.cpp": b"\n" * 40 + CONTEXT, "src/cache.cpp": b"// new\n" + CACHE}
    plan = make_plan(series, moved.get)
    assert not plan.failures
    assert [outcome.lines for outcome in plan.outcomes][1:] == [(41,), (48,), (2, 3)]


def test_actions() -> None:
    for action, result in [
        ("insert-before", b"a[N]b c"),
        ("insert-after", b"ab[N] c"),
        ("replace", b"a[N] c"),
    ]:
        plan = plan_of({"f": b"ab c"}, edit_of("b", "[N]", action=action))
        assert plan.changes[0].after == result


def test_a_later_edit_sees_an_earlier_one() -> None:
    plan = plan_of({"f": b"1\n2\n"}, edit_of("1\n", "one\n"), edit_of("one\n2", "both"))
    assert plan.changes[0].after == b"both\n"


def test_an_edit_may_change_a_file_the_series_adds() -> None:
    plan = plan_of({}, edit_of("V 1", "V 2"), new=(NewFile("f", b"V 1\n"),))
    assert not plan.failures
    assert (plan.changes[0].before, plan.changes[0].after) == (None, b"V 2\n")


def test_a_missing_anchor_names_its_nearest_lines() -> None:
    body = b"int a;\n\nstatic int reserve_worst_case(int n_tokens) {\n    return n_tokens;\n}\nint b;\n"
    outcome = only(
        plan_of({"f": body}, edit_of("static int reserve_worst(int n_tokens) {\n    return n;\n", "x"))
    )
    assert outcome.status == "fails"
    assert outcome.reason == "anchor found 0 times, wanted 1"
    assert outcome.candidates[0].line == 3
    assert outcome.candidates[0].text.startswith("static int reserve_worst_case(int n_tokens) {")
    assert outcome.candidates[0].ratio > 0.8


def test_a_part_of_a_line_is_found_in_its_line() -> None:
    long = b"    ggml_tensor * k = has_k ? ggml_new_tensor_3d(context, type_k, n_embd, kv_size) : nullptr;"
    body = b"ggml_type   type_k,\nreturn ggml_view_3d(ctx, layer.k,\n" + long + b"\n"
    outcome = only(plan_of({"f": body}, edit_of("ggml_new_tensor_3d(ctx, type_k, ", "x")))
    assert (outcome.candidates[0].line, outcome.candidates[0].ratio > 0.85) == (3, True)


def test_a_missing_anchor_may_have_no_near_lines() -> None:
    assert (
        only(plan_of({"f": b"\xff\xfe\n0123456789\n"}, edit_of("quite another text", "x"))).candidates == ()
    )


def test_a_duplicate_anchor_names_every_line() -> None:
    outcome = only(plan_of({"f": b"x;\ny;\nx;\n"}, edit_of("x;", "z;")))
    assert (outcome.status, outcome.lines) == ("fails", (1, 3))
    assert outcome.reason == "anchor found 2 times, wanted 1"


def test_after_must_be_there_once() -> None:
    outcome = only(plan_of({"f": b"head\nx\nhead\n"}, edit_of("x", "y", after="head\n")))
    assert outcome.status == "fails"
    assert "after 'head', which was found 2 times, wanted 1" in outcome.reason


def test_a_missing_file_is_said() -> None:
    assert only(plan_of({}, edit_of("a", "b"))).reason == "the tree has no such file"


def test_exactly_one_variant_must_match() -> None:
    anchors = (Anchor("a", 1, "replace", "A", None), Anchor("b", 1, "replace", "B", None))
    edit = Edit("e", "why", "f", anchors, None)
    assert plan_of({"f": b"-b-"}, edit).changes[0].after == b"-B-"
    assert only(plan_of({"f": b"ab"}, edit)).reason == "2 of its 2 variants match; exactly one must"
    reason = "variant 1: anchor found 0 times, wanted 1; variant 2: anchor found 0 times, wanted 1"
    assert only(plan_of({"f": b"--"}, edit)).reason == reason


def test_conditions_ask_the_unpatched_tree() -> None:
    changed = edit_of("x", "no x", file="g")
    for condition, reason in [
        (Condition("g", None, None), ""),
        (Condition("h", None, None), "the tree has no h"),
        (Condition("g", "x", None), ""),
        (Condition("g", "no x", None), "g does not contain 'no x'"),
        (Condition("g", None, "x"), "g contains 'x'"),
        (Condition("g", "x", "no x"), ""),
    ]:
        plan = plan_of({"f": b"a", "g": b"x"}, changed, edit_of("a", "b", when=condition))
        assert (plan.outcomes[1].status, plan.outcomes[1].reason) == (
            "skipped" if reason else "matches",
            reason,
        )


def test_a_tree_patched_by_other_means_is_refused() -> None:
    inserted = edit_of("a\n", "b\n", action="insert-after")
    outcome = only(plan_of({"f": b"a\nb\n"}, inserted))
    assert "already there" in outcome.reason
    before = edit_of("a\n", "b\n", action="insert-before")
    assert "already there" in only(plan_of({"f": b"b\na\n"}, before)).reason
    new = (NewFile("f", b"whole\n"),)
    assert "patched by other means" in only(plan_of({"f": b"whole\n"}, new=new)).reason
    assert only(plan_of({"f": b"else\n"}, new=new)).reason == "the tree already has this file"


def test_crlf_files_keep_their_line_ends() -> None:
    edit = edit_of("a\nb\n", "c\nd\n", action="insert-after", after="0\n")
    assert plan_of({"f": b"0\r\na\r\nb\r\n"}, edit).changes[0].after == b"0\r\na\r\nb\r\nc\r\nd\r\n"
    # Mixed line ends are matched byte for byte, so a multi-line anchor does not fit there.
    assert only(plan_of({"f": b"0\r\na\nb\r\n"}, edit)).status == "fails"


def test_bytes_that_are_no_utf8_survive() -> None:
    plan = plan_of({"f": b"\xff\xfe a \x00\x80"}, edit_of("a", "é"))
    assert plan.changes[0].after == b"\xff\xfe " + "é".encode() + b" \x00\x80"


pieces = st.lists(st.sampled_from([b"a", b"b", b"ab", b"\n", b"\r\n", b"\xff", b""]), max_size=30).map(
    b"".join
)


@given(
    content=pieces,
    count=st.integers(1, 3),
    action=st.sampled_from(["insert-before", "insert-after", "replace"]),
)
def test_what_an_edit_leaves_alone_stays(content: bytes, count: int, action: str) -> None:
    """Taking the inserted text out again, or putting the replaced one back, gives the original bytes."""
    plan = plan_of({"f": content}, edit_of("a", "<N>", action=action, count=count))
    assert bool(plan.changes) == (content.count(b"a") == count)
    for change in plan.changes:
        assert change.after.count(b"<N>") == count
        assert change.after.replace(b"<N>", b"a" if action == "replace" else b"") == content
        lines = [
            content[: index + 1].count(b"\n") + 1 for index, byte in enumerate(content) if byte == ord("a")
        ]
        assert list(plan.outcomes[0].lines) == lines
