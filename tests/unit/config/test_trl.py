"""TRL's names: each is ours, or says what to do instead; none of the table is stale."""

from __future__ import annotations

import pytest

from limbeck.config import parse, swift, trl
from limbeck.config.flags import all_flags
from limbeck.config.swift import Renamed
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
