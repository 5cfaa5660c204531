"""Tables that tasks write into pages (tools.page_table)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.page_table import PageTable


def test_a_table_replaces_the_one_before_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    first = PageTable(tmp_path / "page.md", "some_task")
    second = first._replace(name="other table")
    old = f"before\n{first.begin}old\n{first.end}between\n{second.begin}kept\n{second.end}after\n"
    first.page.write_text(old)
    first.write("new\n")
    assert first.page.read_text() == old.replace("old\n", "\nnew\n\n")
    assert (first.shown(), second.shown()) == ("new\n", "kept\n")
    first.write(first.shown())
    assert first.page.read_text() == old.replace("old\n", "\nnew\n\n")


@pytest.mark.parametrize("times", [0, 2])
def test_a_page_without_one_place_for_it_is_not_written(tmp_path: Path, times: int) -> None:
    place = PageTable(tmp_path / "page.md", "some_task")
    page = times * f"{place.begin}old\n{place.end}"
    place.page.write_text(page)
    with pytest.raises(ValueError, match=r"page\.md has not one place for its table by some_task"):
        place.write("new\n")
    assert place.page.read_text() == page
