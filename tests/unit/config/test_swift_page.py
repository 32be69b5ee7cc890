"""The page is made from the table: `python -m limbeck.config.helptext > docs/coming-from-ms-swift.md`."""

from __future__ import annotations

from pathlib import Path

from limbeck.config.flags import all_flags
from limbeck.config.helptext import flags_page, swift_page, trl_page

PAGE = Path(__file__).parents[3] / "docs" / "coming-from-ms-swift.md"


def test_the_page_is_that_of_the_table() -> None:
    assert PAGE.read_text() == swift_page()


def test_the_page_of_trl_is_that_of_its_table() -> None:
    assert (PAGE.parent / "coming-from-trl.md").read_text() == trl_page()  # python -m limbeck.config.helptext trl > ...


def test_the_page_of_flags_is_that_of_the_models() -> None:
    text = (PAGE.parent / "flags.md").read_text()
    assert text == flags_page()  # python -m limbeck.config.helptext flags > docs/flags.md
    assert all(f"`--{name}" in text for name in all_flags() if name not in ("debug",))
