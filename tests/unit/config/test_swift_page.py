"""The page is made from the table: `python -m limbeck.config.helptext > docs/coming-from-ms-swift.md`."""

from __future__ import annotations

from pathlib import Path

from limbeck.config.helptext import swift_page

PAGE = Path(__file__).parents[3] / "docs" / "coming-from-ms-swift.md"


def test_the_page_is_that_of_the_table() -> None:
    assert PAGE.read_text() == swift_page()
