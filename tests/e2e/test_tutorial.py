"""docs/tutorial.md, command by command, with a tiny teacher: what a reader types is what runs here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from limbeck.cli.main import main
from tests.support import make_folder

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "teacher", layers=20)
    (tmp_path / "prompts.jsonl").write_text(blocks("json")[0])
    commands = [line for block in blocks("console") for line in block.strip().splitlines()]
    assert [command.split()[1] for command in commands] == [
        *("shrink", "generate", "plan", "rlhf", "rlhf", "eval", "infer", "export"),
    ]
    for command in commands:
        name, *argv = shlex.split(command)
        assert name == "limbeck"
        assert main(argv) == 0, f"{command}\n{capsys.readouterr().err}"
    assert (tmp_path / "runs" / "own" / "report.html").is_file()
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert len((tmp_path / "own.jsonl").read_text().splitlines()) == 4
