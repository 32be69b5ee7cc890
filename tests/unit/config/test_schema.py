"""The rooms: defaults, constraints, help, and names that cannot clash."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from limbeck.config import Config, Data, Method, Model, Optim, Report, Rollout, Run, Teacher
from limbeck.config.commands import COMMANDS
from limbeck.config.flags import rooms_of

# The design's section 3, written out by hand.
DESIGN = {
    Model: {
        "tuner_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": ["all-linear"],
        "torch_dtype": "auto",
        "trust_remote_code": False,
    },
    Data: {
        "split_dataset_ratio": 0,
        "truncation_strategy": "delete",
        "loss_scale": "last_round",
        "max_length": None,
        "dataset_shuffle": True,
    },
    Method: {
        "rlhf_type": "gkd",
        "beta": None,
        "lmbda": 0.5,
        "sft_alpha": 0,
        "gkd_logits_topk": None,
        "topk_mode": "tail",
        "loss_temperature": 1.0,
        "jsd_normalize": False,
        "token_loss_clip": None,
        "teacher_kl_coef": 1.0,
        "teacher_logratio_clip": None,
    },
    Teacher: {"teacher_source": "auto", "teacher_tag_key": "dataset", "offload_teacher_model": False},
    Rollout: {
        "temperature": 0.9,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0,
        "repetition_penalty": 1.0,
        "max_completion_length": 512,
        "num_generations": None,
    },
    Optim: {
        "learning_rate": None,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "num_train_epochs": 3,
        "max_steps": -1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": None,
        "mixed_precision": "auto",
    },
    Run: {"seed": 42, "save_strategy": "steps", "save_steps": 500, "logging_steps": 5, "save_total_limit": None},
    Report: {"report_to": [], "log_completions": True, "report_html": True},
}


@pytest.mark.parametrize("room", DESIGN, ids=lambda room: room.__name__)
def test_defaults_are_the_designs(room):
    made = room(model="m") if room is Model else room()
    assert {name: getattr(made, name) for name in DESIGN[room]} == DESIGN[room]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_field_names_are_unique_over_the_rooms(command):
    names = Counter(name for room in rooms_of(command.config).values() for name in room.model_fields)
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_every_field_has_help(command):
    for room in rooms_of(command.config).values():
        assert room.__doc__
        assert [name for name, field in room.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_a_command_names_fields_that_exist(command):
    rooms = rooms_of(command.config)
    for room, names in command.fields.items():
        assert [name for name in names if name != "*" and name not in rooms[room].model_fields] == []
    flags = {name for room in rooms.values() for name in room.model_fields}
    assert set(command.required) | set(command.presets) | set(command.aliases.values()) <= flags


@pytest.mark.parametrize(
    ("room", "field", "value"),
    [
        (Method, "lmbda", 1.1),
        (Method, "beta", -0.1),
        (Method, "beta", float("nan")),
        (Method, "loss_temperature", 0),
        (Data, "split_dataset_ratio", 1),
        (Data, "max_length", 0),
        (Rollout, "top_p", 0),
        (Rollout, "max_completion_length", 0),
        (Optim, "learning_rate", float("inf")),
        (Optim, "max_steps", -2),
        (Optim, "adam_beta2", 1.0),
        (Run, "max_time", "soon"),
        (Run, "max_time", 0),
        (Report, "report_to", ["nowhere"]),
        (Run, "unknown", 1),
    ],
)
def test_a_wrong_value_cannot_be_held(room, field, value):
    with pytest.raises(ValidationError):
        room(**{field: value})


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h30m", 9000), ("45s", 45), ("1d", 86400), ("1d1h1m1s", 90061), ("90", 90), (1.5, 1.5)]
)
def test_max_time_reads_hours_and_minutes(text, seconds):
    assert Run(max_time=text).max_time == seconds


def test_a_single_value_is_a_list_of_one_and_none_is_empty():
    assert Data(dataset="a").dataset == ["a"]
    assert Report(report_to="tensorboard").report_to == ["tensorboard"]
    assert Report(report_to="none").report_to == []
    assert Report(report_to=["none"]).report_to == []


def test_a_configuration_does_not_change():
    config = Config(model=Model(model="m"))
    with pytest.raises(ValidationError):
        config.method.lmbda = 1.0
