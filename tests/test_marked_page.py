"""Parts of a page are replaced whole, and nothing around them."""

from __future__ import annotations

import pytest

from marked_page import filled

PAGE = "# Head\n\n<!-- a -->\nold\n<!-- end -->\nbetween\n<!-- b -->\n<!-- end -->\ntail\n"


def test_only_the_named_parts_change() -> None:
    once = filled(PAGE, {"b": "| new | \\1 |"})
    assert once == PAGE.replace("<!-- b -->\n", "<!-- b -->\n\n| new | \\1 |\n\n")
    assert filled(once, {"b": "| new | \\1 |"}) == once
    assert filled(PAGE, {"a": "x", "b": "y"}) == filled(filled(PAGE, {"b": "y"}), {"a": "x"})


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("nothing", "has <!-- a --> 0 times"),
        (PAGE + PAGE, "has <!-- a --> 2 times"),
        ("<!-- end --> <!-- a --> x", "no <!-- end --> after <!-- a -->"),
    ],
)
def test_a_page_without_the_part_is_refused(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled(page, {"a": "x"})
