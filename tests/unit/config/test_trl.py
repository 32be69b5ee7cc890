"""TRL's names: each is ours, or says what to do instead; none of the table is stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tests.unit.config.trl_scripts import COMMANDS, FILES

from limbeck.cli.main import main
from limbeck.config import parse, swift, trl
from limbeck.config.flags import all_flags
from limbeck.config.swift import NotNeeded, Refused, Renamed
from limbeck.errors import ConfigError

NAMES = {cls: names.split() for cls, (_, names) in trl.CLASSES.items()}
ALL = {name for names in NAMES.values() for name in names}


def test_every_name_is_ours_or_in_a_table() -> None:
    assert not [name for name in ALL if name not in trl.FLAGS and name not in all_flags() and not swift.lookup(name)]


def test_the_table_holds_names_of_trl_only_and_none_of_ours() -> None:
    assert not trl.FLAGS.keys() - ALL
    assert not trl.FLAGS.keys() & all_flags().keys()
    assert not trl.FLAGS.keys() & swift.FLAGS.keys()
    for cls, names in trl.OTHERWISE.items():
        assert not names.keys() - set(NAMES[cls])


def test_renamed_flags_and_their_values_are_there() -> None:
    flags = all_flags()
    for entry in trl.FLAGS.values():
        if isinstance(entry, Renamed):
            assert entry.to in flags
            choices = flags[entry.to].choices
            assert not choices or all(value in choices for value in entry.values.values() if value)


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("--model_name_or_path m", "write --model"),
        ("--use_peft true", "write --tuner_type (true is lora, false is full)"),
        ("--teacher_model_name_or_path t", "write --teacher_model"),
        ("--completion_only_loss", "leave it out: prompts are never trained"),
        ("--dataset_config main", "write it after the name: --dataset NAME:SUBSET"),
    ],
)
def test_an_unknown_flag_of_trl_says_what_it_is_called_here(words: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("rlhf", words.split())
    assert caught.value.what == f"{words.split()[0]} is a name of TRL's that Limbeck has not"
    assert caught.value.fix == fix


def advised(name: str, value: str) -> list[tuple[str, str]]:
    """The flag as a reader of the advice writes it."""
    match trl.FLAGS.get(name) or (None if name in all_flags() else swift.lookup(name)):
        case None:
            return [(name, value)]
        case Renamed(to=to, values=values):
            return [(to, values.get(value or "true", value))]
        case _:
            return []


def told(error: ConfigError) -> set[str]:
    """The names in `--a, --b are flags of ms-swift that ...; --c is a name of TRL's that ...`."""
    return set(re.findall(r"--(\w+)", error.what))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_trl_is_answered_at_once_and_its_advice_runs(name: str) -> None:
    command, line, ours = COMMANDS[name]
    flags = [(words[0], " ".join(words[1:])) for part in line.split("--")[1:] if (words := part.split())]
    noted = {flag for flag, _ in flags if isinstance(swift.FLAGS.get(flag), NotNeeded | Renamed)}
    with pytest.raises(ConfigError) as caught:
        parse(command, line.split())
    assert told(caught.value) == {flag for flag, _ in flags} - set(ours.split()) - noted
    assert all(f"--{flag}" in caught.value.fix for flag in told(caught.value)) or "\n" not in caught.value.fix
    followed = [pair for flag, value in flags for pair in advised(flag, value)]
    parse(command, " ".join(f"--{flag} {value}" for flag, value in followed).split())


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_trl_is_answered_at_once(name: str, tmp_path: Path) -> None:
    command, text, ours = FILES[name]
    file = tmp_path / "config.yaml"
    file.write_text(text)
    settings = yaml.safe_load(text)
    with pytest.raises(ConfigError) as caught:
        parse(command, ["--config", str(file)])
    lacking = set(settings) - set(ours.split())
    off = {key for key in lacking if isinstance(e := swift.FLAGS.get(key), Refused) and settings[key] in e.off}
    assert told(caught.value) == lacking - off
    assert str(file) in caught.value.where


def test_commands_of_trl(capsys: pytest.CaptureFixture) -> None:
    for name, instead in trl.COMMANDS.items():
        assert main([name, "--model", "m"]) == 2
        said = f"error: {name} is a script of TRL that Limbeck has not\n  where: limbeck {name}\n  fix:   {instead}\n"
        assert capsys.readouterr().err == said
