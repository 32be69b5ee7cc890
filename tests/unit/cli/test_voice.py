"""One style, once, and of several processes the first: also for what modules log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from limbeck.cli import voice


@pytest.fixture(autouse=True)
def ours() -> Iterator[logging.Logger]:
    logger = logging.getLogger("limbeck")
    kept, logger.handlers = logger.handlers, []
    yield logger
    logger.handlers = kept


def test_the_first_process_speaks(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        voice.warn("rows were dropped")
        voice.note("--flag has no effect")
    assert tuple(capsys.readouterr()) == ("warning: rows were dropped\n", "note: --flag has no effect\n")


def test_what_is_logged_is_said_once(
    ours: logging.Logger, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    voice.listen()
    voice.listen()
    for _ in range(2):
        ours.getChild("models.gguf").warning("%s: may be wrong", "a.gguf")
    assert capsys.readouterr().err == "warning: a.gguf: may be wrong\n"
    monkeypatch.setenv("RANK", "1")
    ours.warning("another")
    ours.error("a fault of the second process")
    assert capsys.readouterr().err == "error: a fault of the second process\n"
