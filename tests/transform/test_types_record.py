"""The figure of the series' own types shows their records, and what docs/transform.md says of them holds."""

from __future__ import annotations

from benchmark_scripts import load_benchmark

types_figure, tables = load_benchmark("types_figure"), load_benchmark("transform_tables")


def test_the_figure_is_what_the_records_say() -> None:
    assert types_figure.FIGURE.read_text() == types_figure.figure(types_figure.records())


def kl(text: str) -> dict[str, dict[tuple[str, bool], float]]:
    """KL by the model's title, then by policy and whether it had the transform."""
    found: dict[str, dict[tuple[str, bool], float]] = {}
    for model, title in tables.REAL_MODELS.items():
        result = tables.divergences().get(f"{model}.512.types.{text}")
        for one in () if result is None else result.policies:
            assert one.kl_mean is not None
            found.setdefault(title, {})[one.policy.removeprefix("*:"), one.transform is not None] = (
                one.kl_mean
            )
    return found


def test_what_was_asked_of_small_types_on_the_model_that_four_bits_break() -> None:
    for text in ("prose", "code"):
        of = kl(text)["Qwen2.5-Coder-0.5B"]
        assert of["k=q4_0/v=tq3", True] <= 0.045
        assert of["k=k4x2/v=tq3", True] <= 0.07
        assert of["k=k5x3/v=q4_0", True] <= 0.018
        assert max(of["k=q4_0/v=tq3", True], of["k=k4x2/v=tq3", True]) < of["q5_0", False]


def test_split_keys_beat_q4_0_in_the_same_bytes_on_prose() -> None:
    """With the same transform on both."""
    for title, of in kl("prose").items():
        assert of["k=k5x3/v=q4_0", True] < of["q4_0", True], title


def test_split_keys_beat_q4_0_elsewhere_but_where_the_page_says() -> None:
    lost = {
        (v, title, text)
        for text in ("prose", "code")
        for title, of in kl(text).items()
        for v in ("q4_0", "tq3")
        if of[f"k=k5x3/v={v}", True] >= of["q4_0" if v == "q4_0" else f"k=q4_0/v={v}", True]
    }
    assert lost == {("q4_0", "Gemma-3-270M", "code"), ("tq3", "Qwen2.5-Coder-1.5B", "prose")}
    result = tables.divergences()["qwen2.5-coder-1.5b.512.types.prose"]
    split, four = (
        next(one for one in result.policies if one.policy == f"*:k={k}/v=tq3" and one.transform is not None)
        for k in ("k5x3", "q4_0")
    )
    assert split.kl_low < four.kl_high and four.kl_low < split.kl_high


def test_what_three_bits_for_values_cost() -> None:
    times = {
        (title, text): of["k=q8_0/v=tq3", True] / of["k=q8_0/v=q4_0", True]
        for text in ("prose", "code")
        for title, of in kl(text).items()
    }
    page = " ".join(tables.PAGE.read_text().split())
    assert f"tq3 loses {min(times.values()):.1f} to {max(times.values()):.1f} times what q4_0 loses" in page
    least = sorted(times, key=lambda one: times[one])[:2]
    assert {title for title, _ in least} == {"Qwen2.5-Coder-1.5B"}


def test_the_page_quotes_the_records() -> None:
    of = kl("prose")["Qwen2.5-Coder-0.5B"]
    small, smaller, split = (
        tables.digits(of[policy, True]) for policy in ("k=q4_0/v=tq3", "k=k4x2/v=tq3", "k=k5x3/v=q4_0")
    )
    page = " ".join(tables.PAGE.read_text().split())
    assert f"loses {small} with `k=q4_0/v=tq3`, {smaller} with `k=k4x2/v=tq3` and {split} with" in page
    assert f"loses {tables.digits(of['q5_0', False])} without a transform" in page


def test_a_transform_of_k_does_little_for_v() -> None:
    for text in ("prose", "code"):
        for title, of in kl(text).items():
            share = of["k=q8_0/v=tq3", True] / of["k=q8_0/v=tq3", False]
            assert 0.7 < share < 1.15, (title, text)
            assert kl("code")[title]["k=q8_0/v=tq3", True] > kl("prose")[title]["k=q8_0/v=tq3", True]
            assert of["k=q8_0/v=tq2", True] > of["k=k5x3/v=tq3", True], (title, text)


def test_readme_quotes_the_records() -> None:
    prose, small = kl("prose"), ("k=k4x2/v=tq3", True)
    of_f16 = {
        one.of_f16
        for name, result in tables.divergences().items()
        if name.startswith("qwen") and tables.of_own_types(name)
        for one in result.policies
        if one.policy == f"*:{small[0]}"
    }
    assert len(of_f16) == 1
    smaller, larger = prose["Qwen2.5-Coder-0.5B"], prose["Qwen2.5-Coder-1.5B"]
    said = (
        f"`{small[0]}`, {of_f16.pop():.3f} of f16, loses {tables.digits(smaller[small])} on that "
        f"model and prose and {tables.digits(larger[small])} on the 1.5B, which q4_0 breaks "
        f"({tables.digits(larger['q4_0', False])})."
    )
    assert said in " ".join((tables.ROOT / "README.md").read_text().split())


def test_the_page_quotes_the_records_of_the_larger_model() -> None:
    judged = tables.calibrations()["qwen2.5-coder-1.5b.512.types"].judgement
    page = " ".join(tables.PAGE.read_text().split())
    assert f"goes from {tables.digits(judged.kl_without)} nats, a broken model, to" in page
    assert f"to {tables.digits(judged.kl_with)} on the part of the text that its calibration judged" in page
    prose, code = (kl(text) for text in ("prose", "code"))
    broken, small = ("q5_0", False), ("k=k4x2/v=tq3", True)
    title = "Qwen2.5-Coder-1.5B"
    for policy, words in ((broken, "({} nats on prose, {} on code)"), (small, "loses {}, on code {},")):
        assert words.format(*(tables.digits(of[title][policy]) for of in (prose, code))) in page
    for of in (prose, code):
        assert min(of, key=lambda one: of[one][small]) == title
        assert all(
            kl > 1 for (policy, with_it), kl in of[title].items() if not with_it and "q8_0" not in policy
        )
