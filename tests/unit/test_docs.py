"""The documentation's commands are ones that the program takes, and its Python names what there is. Nothing is run:
that is for tests/e2e/test_tutorial.py."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from limbeck.config import flags
from limbeck.config.commands import ALIASES, COMMANDS
from limbeck.config.completion import SHELLS
from limbeck.config.flags import all_flags

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
# A line that is a command, in a fenced block or an indented one, or a command's flags between backticks.
LINE = re.compile(r"^ *(?:torchrun .*? -m limbeck\.cli\.main|limbeck) +(?=[a-z])(.*)$", re.MULTILINE)
INLINE = re.compile(r"`limbeck +(?=[a-z])([^`]*)`")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN = "model: student\nteacher_model: teacher\ndataset: [rows.jsonl]\nteacher_cache: store\ngkd_logits_topk: 64\n"


def commands() -> list[tuple[str, str, bool]]:
    """(page, what follows `limbeck`, whether it stands alone on its line) of every command in the documentation."""
    found = []
    for page in PAGES:
        text, name = page.read_text(), str(page.relative_to(ROOT))
        found += [(name, line, True) for line in LINE.findall(text)]
        found += [(name, " ".join(line.split()), False) for line in INLINE.findall(text)]
    return found


def split(line: str) -> tuple[str, list[str], bool]:
    """The command's name, its words, and whether the page leaves some of them to the reader (`...`)."""
    words = shlex.split(line, comments=True)
    name = ALIASES.get(words[0], words[0])
    rest = words[1:]
    if f"{name} {rest[0] if rest else ''}" in COMMANDS:
        name = f"{name} {rest.pop(0)}"
    return name, [word for word in rest if word != "..."], "..." in rest


def test_there_are_commands() -> None:
    """The patterns above find what they are for."""
    found = {split(line)[0] for _, line, _ in commands()}
    assert set(COMMANDS) <= found
    assert sum(alone for *_, alone in commands()) > 30


@pytest.mark.parametrize(("page", "line", "alone"), commands())
def test_a_command(page: str, line: str, alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole one is parsed and may be remarked on in nothing; of one with dots, or in a sentence, each flag exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    name, words, open_ = split(line)
    if name == "completion":
        assert words[0] in SHELLS
        return
    assert name in COMMANDS or name in {key.split()[0] for key in COMMANDS}, f"{page}: limbeck {line}"
    if not alone or open_:
        used = [word.partition("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")]
        assert set(used) <= {*all_flags(), "help", "help_all", "debug", "config"}, f"{page}: limbeck {line}"
    else:
        parsed = flags.read(name, words)
        assert parsed.notes == [], f"{page}: limbeck {line}"


def python_blocks() -> list[tuple[str, str]]:
    return [(str(page.relative_to(ROOT)), block) for page in PAGES for block in PYTHON.findall(page.read_text())]


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_python(page: str, block: str) -> None:
    """It parses, and what it takes from Limbeck is there."""
    for node in ast.walk(ast.parse(block, filename=page)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "limbeck":
            module = importlib.import_module(node.module or "")
            assert {alias.name for alias in node.names} <= set(dir(module)), page
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "limbeck":
            assert hasattr(importlib.import_module("limbeck"), node.attr), f"{page}: limbeck.{node.attr}"
