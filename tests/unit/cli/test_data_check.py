"""`limbeck data check`: what a data set is read as, without a model and with one."""

from __future__ import annotations

import json

import pytest

from limbeck.cli.main import main

TALK = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sees", "loss": False},
    {"role": "user", "content": "and then"},
    {"role": "assistant", "content": "runs"},
]
PLUGIN = """
import limbeck

@limbeck.register_dataset("checked")
def checked(row):
    return None if row.get("skip") else row
"""


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"messages": TALK}, {"question": "a dog", "answer": "a tree"}, {"prompt": ""}]
    (tmp_path / "checked.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nno json\n")
    return tmp_path


COLUMNS = ["--columns", '{"question": "query", "answer": "response"}']


def test_without_a_model(rows, capsys):
    assert main(["data", "check", "checked.jsonl", *COLUMNS]) == 0
    out = capsys.readouterr().out
    assert "1 rows of checked.jsonl: messages\n1 rows of checked.jsonl: query + response\n" in out
    assert "1 dropped: empty prompt (checked.jsonl:3); give the prompt some text" in out
    assert "1 dropped: not JSON (checked.jsonl:4); write one JSON object a line" in out
    # 7 + 4 + 8 + 4 characters, and 5 + 6
    assert "characters: 17 on average, 23 at most" in out
    assert out.count("█" * 40) == 2


def test_with_a_model(rows, tiny, capsys):
    argv = ["data", "check", "checked.jsonl", *COLUMNS, "--model", str(tiny / "student")]
    assert main([*argv, "--loss_scale", "default", "--max_length", "400"]) == 0
    out = capsys.readouterr().out
    assert "⟦runs<|im_end|>⟧" in out
    assert "sees<|im_end|>" in out
    assert "⟦sees" not in out
    assert "⟦a tree<|im_end|>⟧" in out
    assert main([*argv, "--max_length", "3", "--show_rows", "0"]) == 0
    assert "2 dropped: longer than max_length 3 (checked.jsonl:1, checked.jsonl:2)" in capsys.readouterr().out


def test_a_preprocessor_of_a_plugin(rows, capsys, monkeypatch):
    monkeypatch.setattr("limbeck.rewards.registry._plugins", {})
    monkeypatch.setattr("limbeck.data.preprocess.registered", registered := {})
    monkeypatch.setattr("limbeck.data.sources.registered", registered)
    (rows / "plugin.py").write_text(PLUGIN)
    (rows / "checked.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "skip": true}\n')
    assert main(["data", "check", "checked.jsonl", "--external_plugins", "plugin.py"]) == 0
    out = capsys.readouterr().out
    assert "1 rows of checked.jsonl: prompt, after the preprocessor of checked" in out
    assert "1 dropped: left out by the preprocessor of checked (checked.jsonl:2)" in out
