"""Automatic choices: their values, their reasons, and that nothing given is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.config import resolve_defaults
from limbeck.config.flat import from_flat, to_flat


def chosen(world_size=1, **flags):
    config = from_flat({"model": "hub/student", "teacher_model": "t", "dataset": ["d"], **flags})
    resolved, choices = resolve_defaults(config, world_size=world_size)
    flat = to_flat(resolved)
    assert all(choice.reason for choice in choices)
    values = {c.flag: str(c.value) if isinstance(c.value, Path) else c.value for c in choices}
    assert all(flat[flag] == value for flag, value in values.items())
    changed = {flag for flag, value in to_flat(config).items() if flat[flag] != value}
    assert changed <= set(values)  # nothing moves without being told
    return values


def test_gkd():
    assert chosen() == {
        "beta": 0.5,
        "num_generations": 1,
        "learning_rate": 1e-4,
        "gradient_accumulation_steps": 16,
        "steps_per_generation": 16,
        "rollout_batch_size": 32,
        "per_device_eval_batch_size": 1,
        "data_seed": 42,
        "eval_strategy": "no",
        "eval_steps": 500,
        "greater_is_better": False,
        "output_dir": "output/student-gkd",
        "run_name": "student-gkd",
    }


@pytest.mark.parametrize(
    ("flags", "world_size", "expected"),
    [
        ({"tuner_type": "full"}, 1, {"learning_rate": 1e-5}),
        ({"rlhf_type": "grpo"}, 1, {"beta": 0.0, "lmbda": 1.0, "gradient_accumulation_steps": 1, "num_generations": 1}),
        (
            {"rlhf_type": "grpo", "reward_funcs": ["accuracy"]},
            1,
            {"num_generations": 8, "gradient_accumulation_steps": 8, "scale_rewards": "group", "epsilon_high": 0.2},
        ),
        (
            {"rlhf_type": "grpo", "reward_funcs": ["cosine"], "advantage_estimator": "rloo", "epsilon": 0.1},
            1,
            {"scale_rewards": "none", "epsilon_high": 0.1, "cosine_max_len": 512},
        ),
        ({"push_to_hub": True, "output_dir": "runs/mine"}, 1, {"hub_model_id": "mine"}),
        # whole groups of 6 from 4 sequences at a time: 12, and nothing where the batch is named otherwise
        (
            {"rlhf_type": "grpo", "num_generations": 6, "per_device_train_batch_size": 2},
            2,
            {"gradient_accumulation_steps": 3},
        ),
        (
            {"rlhf_type": "grpo", "num_generations": 8, "steps_per_generation": 8},
            1,
            {"gradient_accumulation_steps": 1},
        ),
        ({"per_device_train_batch_size": 4}, 2, {"gradient_accumulation_steps": 2, "per_device_eval_batch_size": 4}),
        ({"per_device_train_batch_size": 3}, 1, {"gradient_accumulation_steps": 6}),
        ({"per_device_train_batch_size": 64}, 8, {"gradient_accumulation_steps": 1}),
        ({"gradient_accumulation_steps": 3}, 1, {"steps_per_generation": 3}),
        ({"val_dataset": ["v"], "save_steps": 50}, 1, {"eval_strategy": "steps", "eval_steps": 50}),
        ({"split_dataset_ratio": 0.1}, 1, {"eval_strategy": "steps"}),
        ({"seed": 7}, 1, {"data_seed": 7}),
        ({"metric_for_best_model": "eval_top1_agreement"}, 1, {"greater_is_better": True}),
        # path B is measured on the student's own answers, by what it learns for
        (
            {"rlhf_type": "grpo", "val_dataset": ["v"], "reward_funcs": ["format"]},
            1,
            {"eval_on_policy": True, "metric_for_best_model": "eval_on_policy_reward", "greater_is_better": True},
        ),
        (
            {"rlhf_type": "grpo", "val_dataset": ["v"]},
            1,
            {"eval_on_policy": True, "metric_for_best_model": "eval_on_policy_teacher_kl", "greater_is_better": False},
        ),
        (
            {"rlhf_type": "grpo", "split_dataset_ratio": 0.1, "opd_signal": "full", "eval_on_policy": True},
            1,
            {"metric_for_best_model": "eval_on_policy_loss"},
        ),
        ({"output_dir": "a/b"}, 1, {"run_name": "b"}),
        ({"model": "x/y.gguf", "rlhf_type": None, "teacher_model": None}, 1, {"output_dir": "output/y-sft"}),
    ],
)
def test_choices_follow_what_was_given(flags, world_size, expected):
    values = chosen(world_size, **flags)
    assert {flag: values[flag] for flag in expected} == expected


def test_what_was_given_is_no_choice():
    given = {"beta": 1.0, "learning_rate": 3e-4, "gradient_accumulation_steps": 2, "eval_steps": 9, "lmbda": 0.3}
    assert not set(given) & set(chosen(**given, rlhf_type="grpo"))


@pytest.mark.parametrize(
    "flags",
    [
        {"rlhf_type": "gkd", "val_dataset": ["v"]},
        {"val_dataset": ["v"], "eval_on_policy": False},
        {"val_dataset": ["v"], "eval_strategy": "no"},
        {},
    ],
)
def test_nobody_else_is_measured_on_fresh_answers(flags):
    assert not {"eval_on_policy", "metric_for_best_model"} & set(chosen(**{"rlhf_type": "grpo", **flags}))


@pytest.mark.parametrize("more", [{}, {"val_dataset": ["v"], "reward_funcs": ["format"]}])
def test_resolving_again_changes_nothing(more):
    config = from_flat({"model": "m", "rlhf_type": "grpo", **more})
    once, choices = resolve_defaults(config, world_size=1)
    assert choices
    assert resolve_defaults(once, world_size=1) == (once, [])


def test_a_choice_prints_with_its_reason():
    config = from_flat({"model": "m"})
    _, choices = resolve_defaults(config, world_size=2)
    assert "--gradient_accumulation_steps 8: 8 x 1 rows x 2 processes make a step of 16" in map(str, choices)
