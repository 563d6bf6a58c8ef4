"""The decision table: medians, ratios in the same round, the Pareto front, jobs under memory, CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import KVQuantError, UsageError
from kvquant.results.sweep import Buffers, DecisionRow, Ending, Quality, SpeedAt, SweepResult, leading_rows
from kvquant.sweep.csv_table import COLUMNS, read_published, write_csv
from kvquant.sweep.decide import choices, decide, on_front
from kvquant.sweep.quality import ByModel, read_quality
from sweep.small_sweeps import MODEL_M, cell, journal_of, probe

ROOT = Path(__file__).parents[2]
SHA = MODEL_M.sha256
KNOWN: ByModel = {
    (SHA, "*:f16"): Quality(rate=0.8, kl=0.0, composite=6.0),
    (SHA, "*:q8_0"): Quality(rate=0.8, kl=0.002, tool_rate=0.5),
}


def rows(*records: object, known: ByModel | None = None, **plan: object) -> dict[str, DecisionRow]:
    result = decide(journal_of(*records, **plan), KNOWN if known is None else known)  # type: ignore[arg-type]
    return {row.label: row for row in result.rows}


def test_a_row_has_medians_over_rounds_and_ratios_within_them() -> None:
    # The machine slows to a half in round 1: the ratios do not see it.
    found = rows(
        cell("*:f16", 10.0, 0), cell("*:q8_0", 12.0, 0), cell("*:q8_0", 6.0, 1), cell("*:f16", 5.0, 1)
    )
    row = found["q8_0"]
    assert (row.decode_deep, row.decode_0, row.depth) == (9.0, 18.0, 64)
    assert row.decode_ratio == pytest.approx(1.2)
    assert found["f16"].decode_ratio == 1.0
    assert (row.model_bytes, row.kv_bytes, row.compute_bytes, row.host_bytes) == (100, 40, 25, 165)
    assert (row.file_bytes, row.bits_per_weight, row.n_cells) == (1000, 4.5, 2)


def test_the_fastest_setting_wins_and_fewer_threads_where_it_hardly_matters() -> None:
    one, two = cell(decode=10.0), cell(decode=10.2, n_threads=2)
    assert rows(one, two)["f16"].n_threads == 1
    assert rows(one, replace(two, points=(SpeedAt(64, 64, 1.0, 5, 11.0, 0.5),)))["f16"].n_threads == 2


def test_deep_is_where_every_policy_was_measured() -> None:
    deeper = replace(cell("*:f16"), points=(*cell().points, SpeedAt(128, 64, 1.0, 5, 1.0, 0.5)))
    assert rows(deeper, cell("*:q8_0"))["f16"].depth == 64
    assert rows(deeper)["f16"].depth == 128


def test_what_was_not_measured_is_counted_not_zero() -> None:
    found = rows(cell("*:f16", None, ending=Ending.CRASHED), cell("*:q8_0"))
    assert found["f16"].problems == {"crashed": 1}
    assert (found["f16"].decode_deep, found["f16"].host_bytes, found["f16"].pareto) == (None, None, None)


def test_context_comes_from_the_probe() -> None:
    row = rows(cell(), probe(stable=1024))["f16"]
    assert (row.loaded_ctx, row.answered_ctx, row.stable_ctx, row.predicted_ctx) == (4096, 2048, 1024, 8192)


SMALL = Buffers(50, 20, None, 20, 5)


def test_quality_is_joined_by_model_and_policy() -> None:
    found = rows(cell("*:f16"), cell("*:q8_0"))
    assert found["q8_0"].quality.tool_rate == 0.5
    assert rows(cell(), known={("1" * 64, "*:f16"): Quality(rate=1.0)})["f16"].quality == Quality()


def test_a_transform_makes_a_row_of_its_own() -> None:
    found = rows(cell("*:q8_0"), cell("*:q8_0", 12.0, transform="t.gguf"))
    plain, changed = found["q8_0"], found["q8_0 with transform"]
    assert (plain.decode_deep, changed.decode_deep) == (10.0, 12.0)
    assert plain.quality.kl == 0.002 and changed.quality == Quality()


number = st.integers(0, 3).map(float)
row_values = st.tuples(number, number, number)


def row(decode: float | None, host: float | None, rate: float | None) -> DecisionRow:
    blank = DecisionRow("b", "m", "*:f16", "f16", SHA)
    return replace(
        blank, decode_deep=decode, host_bytes=None if host is None else int(host), quality=Quality(rate=rate)
    )


def wrong_marks(of_rows: list[DecisionRow], marks: list[bool | None]) -> list[int]:
    """The rows whose mark is not what the definition says, pair by pair."""
    wrong = []
    for i, one in enumerate(of_rows):
        beaten = False
        for j, other in enumerate(of_rows):
            ours = (one.decode_deep or 0, -(one.host_bytes or 0), one.quality.rate or 0)
            theirs = (other.decode_deep or 0, -(other.host_bytes or 0), other.quality.rate or 0)
            at_least = all(b >= a for a, b in zip(ours, theirs, strict=True))
            beaten |= i != j and at_least and theirs != ours
        if marks[i] is not (not beaten):
            wrong.append(i)
    return wrong


@given(st.lists(row_values, min_size=1, max_size=6))
def test_the_front_is_what_nothing_beats(values: list[tuple[float, float, float]]) -> None:
    of_rows = [row(*entry) for entry in values]
    assert wrong_marks(of_rows, [on_front(one, of_rows) for one in of_rows]) == []


def test_a_wrong_front_would_be_seen() -> None:
    of_rows = [row(1, 1, 1), row(2, 1, 1)]
    assert wrong_marks(of_rows, [False, True]) == []
    assert wrong_marks(of_rows, [True, True]) == [0]
    assert wrong_marks(of_rows, [False, False]) == [1]


def test_what_cannot_be_compared_is_not_marked() -> None:
    unknown, known = row(2, 1, None), row(1, 2, 0.5)
    assert on_front(unknown, [unknown, known]) is None
    assert on_front(known, [unknown, known]) is True


def test_jobs_under_memory() -> None:
    journal = journal_of(
        cell("*:f16", 10.0), cell("*:q8_0", 8.0, buffers=SMALL), probe("*:f16", 2048), probe("*:q8_0", 4096),
        ram=("100", "200"),
    )  # fmt: skip
    found = {(choice.job, choice.ram_bytes): choice for choice in decide(journal, KNOWN).choices}
    assert found["fast answers", 100].policy == "q8_0"
    assert found["fast answers", 200].policy == "f16"
    assert found["tool calls", 200].policy == "q8_0"
    assert found["long texts", 200].why == "answers at 4096 tokens, every time"
    # 140 bytes at the stable context and 25 of compute do not fit 100.
    assert found["long texts", 100].why == "nothing fits: the smallest takes 165 B"
    assert found["quality and speed", 200].policy == "f16"
    assert {choice.why for choice in decide(journal, {}).choices if choice.ram_bytes is None} == {
        "not measured"
    }


def test_a_broken_policy_is_recommended_for_nothing() -> None:
    bad = replace(row(9, 1, 1.0), quality=Quality(rate=1.0, kl=0.6))
    found = choices([bad, row(1, 1, 0.5)], [10], [])
    assert all(choice.why != "decodes 9 tokens/s at depth" for choice in found)


def test_the_leading_row_of_each_model() -> None:
    slow, fast = replace(row(1, 1, None), stable_ctx=2048), row(2, 1, None)
    assert leading_rows([slow, fast]) == [slow]
    assert leading_rows([row(None, 1, None), replace(fast, source="x")]) == []


# ---- CSV ----


def read_back(of_rows: list[DecisionRow], folder: Path) -> list[DecisionRow]:
    """Write rows, cut what only a sweep has, read them as a published table."""
    text = write_csv(of_rows)
    lines = list(csv.DictReader(io.StringIO(text)))
    kept = [name for name in COLUMNS if name not in ("problems", "pareto", "n_cells")]
    out = io.StringIO()
    writer = csv.DictWriter(out, kept, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    path = folder / "table.csv"
    path.write_text(out.getvalue())
    return list(read_published(path))


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 2**40), st.floats(0, 1)), max_size=4))
def test_csv_keeps_every_digit(values: list[tuple[float, int, float]]) -> None:
    import tempfile

    of_rows = [replace(row(decode, host, rate), source="s") for decode, host, rate in values]
    with tempfile.TemporaryDirectory() as folder:
        assert read_back(of_rows, Path(folder)) == of_rows


def test_csv_has_a_column_for_each_number_of_the_table() -> None:
    assert {field.name for field in fields(DecisionRow)} - {"quality"} <= set(COLUMNS)
    line = next(csv.DictReader(io.StringIO(write_csv([row(None, None, None)]))))
    assert line["decode_deep"] == "" and line["quality_rate"] == ""
    problems = replace(row(1, 1, 1), problems={"crashed": 1, "refused": 2})
    assert next(csv.DictReader(io.StringIO(write_csv([problems]))))["problems"] == "crashed=1 refused=2"


HEAD = "board,model,policy,decode_0,n_threads\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model,policy\na,b\n", "no column 'board'"),
        ("board,model,policy,tps\n", "unknown column 'tps'; known: board"),
        (HEAD + "a,b,c,fast,1\n", "row 1.decode_0: expected"),
        (HEAD + "a,b,c,1,1\nx,y,z,1,1.5\n", "row 2.n_threads: expected"),
        (HEAD + "a,b,c,1,1,2\n", "row 1: more or fewer cells"),
        (HEAD + "a,b\n", "row 1: more or fewer cells"),
        (HEAD + 'a,"b,c\n', "is not CSV"),
        ("", "no column 'board'"),
    ],
)
def test_a_bad_table_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_published(path)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_published(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_published(tmp_path / "t.csv")


def test_the_committed_published_table_is_read() -> None:
    found = read_published(ROOT / "eval/sweep/published-rk3588.csv")
    assert [one.kv_bytes for one in found] == [140 * 2**20, 176 * 2**20]
    assert all(one.source == "RK3588 write-up" and one.decode_0 is None for one in found)


# ---- quality ----


def test_quality_is_read_from_the_committed_folders() -> None:
    known = read_quality(
        [ROOT / "eval/results/standard", ROOT / "eval/results/real/divergence/smollm2-135m.512.prefill.json"]
    )
    reference = next(sha for sha, policy in known if policy == "*:q4_0" and known[sha, policy].suite)
    of_q8_0 = known[reference, "*:q8_0"]
    assert of_q8_0.suite == "standard" and of_q8_0.n and of_q8_0.n > 100
    assert of_q8_0.rate is not None and of_q8_0.tool_rate is not None and of_q8_0.composite is not None
    assert of_q8_0.kl is not None and of_q8_0.kl < 0.01
    smol = next(sha for sha, policy in known if policy == "*:q8_0" and sha != reference)
    assert known[smol, "*:f16"].kl == 0.0
    of_smol = known[smol, "*:q8_0"].kl
    assert of_smol is not None and 0 < of_smol < 0.05
    assert known[smol, "*:q8_0"].rate is None


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="contains no validation, run or divergence"):
        read_quality([tmp_path])
    (tmp_path / "divergence.json").write_text("{}")
    with pytest.raises(KVQuantError):
        read_quality([tmp_path])


def test_the_result_is_a_value() -> None:
    result = decide(journal_of(cell(), probe()), KNOWN)
    assert isinstance(result, SweepResult) and result.schema_version == 1
