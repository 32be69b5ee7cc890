"""What a run and a data set leave out is counted and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest
from tests.e2e.test_command_line import gkd, run

from limbeck.data import load_examples


def test_lines_after_the_checkpoint_that_is_gone_on_from(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    argv = gkd(tiny, folder, "--max_steps", 3, "--save_steps", 1, "--lmbda", 0)
    assert run(*argv) == 0
    for step in (2, 3):
        shutil.rmtree(folder / f"checkpoint-{step}")
    capsys.readouterr()
    assert run(*argv, "--resume_from_checkpoint", "auto") == 0
    said = capsys.readouterr().out
    for file in ("metrics", "completions", "histograms"):
        assert f"2 lines of {file}.jsonl are of steps after 1, and were taken out" in said


def test_held_out_rows_without_a_response(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = json.dumps({"messages": [{"role": "user", "content": "a cat"}]}) + "\n"
    (tmp_path / "held.jsonl").write_text((tiny / "held_out.jsonl").read_text() + prompt)
    argv = gkd(tiny, tmp_path / "run", "--val_dataset", tmp_path / "held.jsonl", "--eval_on_policy", "true")
    assert run("plan", *argv[1:]) == 0
    assert "note: 1 of 7 held-out rows have no response: fresh samples of them are" in capsys.readouterr().out


def test_other_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}])
    datasets.DatasetDict({"train": rows, "test": rows, "dev": rows}).save_to_disk(str(tmp_path / "saved"))
    examples, dropped = load_examples([str(tmp_path / "saved")], seed=0)
    assert len(examples) == 1
    assert dropped.notes == [f"{tmp_path / 'saved'}: the split train is read, and not test, dev"]
