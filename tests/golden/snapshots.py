"""Texts that are kept word for word in a file: `== name`, the text, an empty line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from limbeck.cli.main import main

WRITES = "LIMBECK_WRITE_GOLDEN"  # set it to write the files anew, and read the diff


def load(file: Path) -> dict[str, str]:
    """The texts by name; empty where this run is to write them."""
    if os.environ.get(WRITES):
        return {}
    parts = re.split(r"^== (.*)\n", file.read_text(), flags=re.MULTILINE)[1:]
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def check(file: Path, name: str, text: str, golden: dict[str, str]) -> None:
    if os.environ.get(WRITES):
        golden[name] = text
        file.write_text("".join(f"== {name}\n{text}\n\n" for name, text in golden.items()).rstrip() + "\n")
    assert text == golden[name]


def error_of(argv: Sequence[object], places: Mapping[str, Path], capsys) -> tuple[int, str]:
    """The exit status of a command line that must fail, and its error without what is this machine's."""
    capsys.readouterr()
    status = main(list(map(str, argv)))
    seen = capsys.readouterr()
    assert status in (1, 2), seen.out
    assert "Traceback" not in seen.err
    error = seen.err[seen.err.index("error: ") :].rstrip()
    for name, path in {**places, "HERE": Path.cwd()}.items():
        error = error.replace(str(path), name)
    error = re.sub(r"127\.0\.0\.1:\d{4,5}|--port \d+|port \d{4,5}", "ADDRESS", error)
    error = re.sub(r"\[enforce fail at [^\]]*\]|alloc_cpu\.cpp:\d+", "[...]", error)
    error = re.sub(r"/[^\s]*site-packages", "SITE", error)
    return status, "\n".join(line.rstrip() for line in error.splitlines())


def three_lines(text: str) -> bool:
    """What, where and fix, each once; the last may go on over further lines."""
    return [line[:9] for line in text.splitlines() if not line.startswith(" " * 9)] == [
        text[:9],
        "  where: ",
        "  fix:   ",
    ] and text.startswith("error: ")
