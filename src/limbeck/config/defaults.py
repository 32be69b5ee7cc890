"""Automatic choices: every `None` that can be decided before models and data are seen, with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.config.room import room_of
from limbeck.config.schema import Config

TOTAL_BATCH = 16  # ms-swift's
ROLLOUT_BATCH = 32  # sequences a call of `generate`
# losses/advantage.py's, which the tests compare: how each estimator's own paper scales
OWN_SCALE = {"grpo": "group", "rloo": "none", "reinforce_plus_plus": "batch"}


@dataclass(frozen=True, slots=True)
class Choice:
    """A value that was chosen for the user."""

    flag: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"--{self.flag} {self.value}: {self.reason}"


def resolve_defaults(config: Config, *, world_size: int) -> tuple[Config, list[Choice]]:
    """Fills in what was left open. world_size: processes that train side by side.

    What stays None depends on the data (`max_length`), on the models (`limbeck.train.chosen`) or means "off".
    """
    choices = list(_choices(config, world_size))
    rooms: dict[str, dict[str, Any]] = {}
    for choice in choices:
        rooms.setdefault(room_of(type(config), choice.flag), {})[choice.flag] = choice.value
    update = {name: getattr(config, name).model_copy(update=values) for name, values in rooms.items()}
    return config.model_copy(update=update), choices


def _choices(config: Config, world_size: int) -> Iterator[Choice]:
    yield from _loss_choices(config)
    yield from _policy_choices(config)
    yield from _batch_choices(config, world_size)
    yield from _run_choices(config)


def _loss_choices(config: Config) -> Iterator[Choice]:
    method, model = config.method, config.model
    grpo = method.rlhf_type == "grpo"
    if method.beta is None and method.rlhf_type is not None:
        reason = "no KL to a reference model" if grpo else "the middle between forward and reverse KL"
        yield Choice("beta", 0.0 if grpo else 0.5, f"{reason}, the default of {method.rlhf_type}")
    if grpo and "lmbda" not in method.model_fields_set:
        yield Choice("lmbda", 1.0, "grpo learns from the student's own tokens only")
    if config.rollout.num_generations is None and method.rlhf_type is not None:
        n = _generations(config)
        reason = "a group of responses to compare by reward" if n > 1 else "no rewards, so no groups to compare"
        yield Choice("num_generations", n, reason)
    if config.optim.learning_rate is None:
        lora = model.tuner_type == "lora"
        yield Choice("learning_rate", 1e-4 if lora else 1e-5, f"the default for --tuner_type {model.tuner_type}")


def _policy_choices(config: Config) -> Iterator[Choice]:
    policy, reward, longest = config.policy, config.reward, config.rollout.max_completion_length
    if config.method.rlhf_type != "grpo":
        return
    if policy.epsilon_high is None:
        yield Choice("epsilon_high", policy.epsilon, "as --epsilon")
    if policy.scale_rewards is None and reward.reward_funcs:
        scale = OWN_SCALE[policy.advantage_estimator]
        yield Choice("scale_rewards", scale, f"as the paper of --advantage_estimator {policy.advantage_estimator} does")
    for name, flag in (("cosine", "cosine_max_len"), ("soft_overlong", "soft_max_length")):
        if name in reward.reward_funcs and getattr(reward, flag) is None:
            yield Choice(flag, longest, "--max_completion_length")


def _generations(config: Config) -> int:
    """Responses a prompt: those that were asked for, else a group where rewards are compared."""
    rewards = config.method.rlhf_type == "grpo" and bool(config.reward.reward_funcs)
    return config.rollout.num_generations or (8 if rewards else 1)


def _batch_choices(config: Config, world_size: int) -> Iterator[Choice]:
    optim, accumulation = config.optim, config.optim.gradient_accumulation_steps
    if accumulation is None and config.method.rlhf_type == "grpo":
        n, together = _generations(config), optim.per_device_train_batch_size * world_size
        accumulation = n // math.gcd(n, together) if config.rollout.steps_per_generation is None else 1
        reason = "the default of grpo" if accumulation == 1 else f"so that a step holds whole groups of {n} responses"
        yield Choice("gradient_accumulation_steps", accumulation, reason)
    elif accumulation is None:
        together = optim.per_device_train_batch_size * world_size
        accumulation = math.ceil(TOTAL_BATCH / together)
        parts = f"{accumulation} x {optim.per_device_train_batch_size} rows x {world_size} processes"
        yield Choice("gradient_accumulation_steps", accumulation, f"{parts} make a step of {accumulation * together}")
    if config.rollout.steps_per_generation is None and config.method.rlhf_type is not None:
        yield Choice("steps_per_generation", accumulation, "every optimizer step learns from samples of its own")
    if config.rollout.rollout_batch_size is None and config.method.rlhf_type is not None:
        yield Choice("rollout_batch_size", ROLLOUT_BATCH, "the default; fewer need less memory")
    if optim.per_device_eval_batch_size is None:
        yield Choice("per_device_eval_batch_size", optim.per_device_train_batch_size, "as in training")


def _policy_measure(config: Config) -> tuple[str, str]:
    """What path B makes better, of the held-out rows, and why."""
    if config.reward.reward_funcs:
        return "eval_on_policy_reward", "the rewards are what grpo learns for"
    name = "teacher_kl" if config.policy.opd_signal == "sampled" else "loss"
    return f"eval_on_policy_{name}", "the reverse KL to the teacher, on the student's own answers"


def _run_choices(config: Config) -> Iterator[Choice]:
    run, data = config.run, config.data
    if data.data_seed is None:
        yield Choice("data_seed", run.seed, "the run's seed")
    held_out = bool(data.val_dataset) or data.split_dataset_ratio > 0
    if run.eval_strategy is None:
        reason = "there are held-out rows" if held_out else "there are no held-out rows"
        yield Choice("eval_strategy", "steps" if held_out else "no", reason)
    best, fresh = run.metric_for_best_model, run.eval_on_policy
    if config.method.rlhf_type == "grpo" and held_out and run.eval_strategy != "no":
        if fresh is None:
            fresh = True
            yield Choice("eval_on_policy", True, "grpo learns from the student's own answers, so they are judged")
        if fresh and "metric_for_best_model" not in run.model_fields_set:
            best, reason = _policy_measure(config)
            yield Choice("metric_for_best_model", best, reason)
    if run.eval_steps is None:
        yield Choice("eval_steps", run.save_steps, "as often as checkpoints are written")
    if run.greater_is_better is None:
        grows = any(word in best for word in ("agreement", "accuracy", "reward"))
        reason = f"{best} is {'a score' if grows else 'a loss'}"
        yield Choice("greater_is_better", grows, reason)
    folder = run.output_dir
    if folder is None:
        name = Path(config.model.model).name.removesuffix(".gguf") or "model"
        folder = Path("output") / f"{name}-{config.method.rlhf_type or 'sft'}"
        yield Choice("output_dir", folder, "named after the model and the method")
    if config.report.run_name is None:
        yield Choice("run_name", folder.name, "the run folder's name")
    if config.hub.push_to_hub and config.hub.hub_model_id is None:
        yield Choice("hub_model_id", folder.name, "the run folder's name")
