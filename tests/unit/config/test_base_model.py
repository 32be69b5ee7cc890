"""--adapters without --model: the base is what the adapter's own file names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.config.flags import read
from limbeck.errors import ConfigError

MORE = {
    "deploy": [],
    "infer": [],
    "generate": ["--dataset", "d", "--result_path", "a.jsonl"],
    "eval": ["--dataset", "d"],
    "export": ["--output_dir", "o"],
    "rlhf": ["--dataset", "d"],
    "sft": ["--dataset", "d"],
    "plan": ["--dataset", "d"],
}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    return folder


@pytest.mark.parametrize("command", MORE)
def test_the_base_is_found_and_said(command: str, adapter: Path) -> None:
    for flag in ("--adapters", "--model"):
        parsed = read(command, [flag, str(adapter), *MORE[command]])
        assert (parsed.config.model.model, parsed.config.model.adapters) == ("org/base", [str(adapter)])
        assert f"--model is org/base: {adapter}/adapter_config.json names it as the adapter's base" in parsed.notes


def test_a_named_base_wins_in_silence(adapter: Path) -> None:
    parsed = read("deploy", ["--model", "mine", "--adapters", str(adapter)])
    assert (parsed.config.model.model, parsed.notes) == ("mine", [])


def test_a_name_before_the_folder_is_what_is_served(adapter: Path) -> None:
    parsed = read("deploy", ["--adapters", f"poet={adapter}"])
    assert (parsed.config.model.adapters, parsed.config.serve.served_model_name) == ([str(adapter)], "poet")
    assert "--adapters poet=... is --served_model_name poet here" in parsed.notes
    given = read("deploy", ["--adapters", f"poet={adapter}", "--served_model_name", "mine"])
    assert given.config.serve.served_model_name == "mine"


def test_several_names_are_refused(adapter: Path) -> None:
    with pytest.raises(ConfigError, match="cannot have names of their own"):
        read("deploy", ["--adapters", f"a={adapter}", f"b={adapter}"])


@pytest.mark.parametrize("text", ["{}", "no JSON", "[]", None])
def test_an_adapter_that_does_not_say_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read("deploy", ["--adapters", str(tmp_path)])
    assert "does not say which model it is an adapter of" in caught.value.what
    assert caught.value.where == f"--adapters {tmp_path}"
