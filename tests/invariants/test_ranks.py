"""The same sequences over one process and over two: the loss and the gradient change by rounding only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support import limbeck, metrics

COUNTED = (
    *("loss", "grad_norm", "tokens", "completion_length/mean", "prompt_length/mean"),
    *("useful_positions", "active_share"),
)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--lmbda", 0, "--tuner_type", "full"], id="dataset, full"),
        pytest.param(["--lmbda", 0, "--sft_alpha", 0.3, "--gkd_logits_topk", 8, "--lora_dropout", 0], id="top-k, lora"),
        # greedy: two ranks draw other numbers, but there is nothing to draw
        pytest.param(["--lmbda", 1, "--temperature", 0, "--lora_dropout", 0], id="student, lora"),
    ],
)
def test_two_ranks_are_one(tiny: Path, tmp_path: Path, more: list[object]) -> None:
    runs = []
    for processes in (1, 2):
        run = tmp_path / f"run-{processes}"
        limbeck(
            *("rlhf", "--rlhf_type", "gkd", "--model", tiny / "student", "--teacher_model", tiny / "teacher"),
            *("--dataset", tiny / "rows.jsonl", "--val_dataset", tiny / "held_out.jsonl", "--output_dir", run),
            # 7 rows a step over 2 ranks: shares of 4 and 3, and with micro-batches of 1 another number of forwards
            *("--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 8 // processes, "--use_cpu"),
            *("--num_train_epochs", 0.7, "--max_completion_length", 6, "--logging_steps", 1, "--learning_rate", 1e-3),
            *more,
            processes=processes,
        )
        runs.append(run)
    one, two = (metrics(run) for run in runs)
    assert len(one) == len(two) == 4  # 28 rows in steps of 8: the last step is half empty
    kls = {name for name in one[0] if name.endswith("_kl")}
    assert len(kls) == 2
    for a, b in zip(one, two, strict=True):
        for name in (*COUNTED, *kls):
            assert b[name] == pytest.approx(a[name], rel=2e-4), (a["step"], name)
    (before, after), (before2, after2) = (metrics(run, "eval") for run in runs)
    for name in ("eval_loss", "eval_ce", "eval_tokens", "eval_rows"):
        assert before2[name] == pytest.approx(before[name], rel=1e-5)
        assert after2[name] == pytest.approx(after[name], rel=1e-3)
    file = next((runs[0] / "last").glob("*model.safetensors")).name
    ours, theirs = (load_file(run / "last" / file) for run in runs)
    moved = max(float((ours[k] - theirs[k]).abs().max()) for k in ours)
    assert moved < 1e-3  # Adam makes a full-sized step of 1e-3 out of rounding where a gradient is all but zero


PLUGIN = '''
import limbeck


@limbeck.register_reward("every_other")
def every_other(completions, level, **columns):
    """The samples of a prompt are alike, being the likeliest: it is their place that tells them apart."""
    return [float(i % 2 * value) for i, value in enumerate(level)]
'''
LIKELIEST = ("--top_k", 1)  # two ranks draw other numbers, but there is nothing to draw
REWARDED = ("--reward_funcs", "every_other", "--num_generations", 4, *LIKELIEST)


@pytest.mark.parametrize(
    ("more", "names"),
    [
        pytest.param(
            # the log-probability of a token that was sure to come is 0: the ratio is the trainer's probability
            [
                *(*LIKELIEST, "TEACHER", "--loss_type", "dapo", "--top_entropy_quantile", 0.6),
                *("--rollout_importance_sampling_mode", "sequence_truncate"),
                *("--rollout_importance_sampling_threshold", 0.3, "--position_weights", 0.25, 0.3, 0.1),
            ],
            ("teacher_kl", "advantage/teacher", "rollout_correction/kl", "rollout_correction/ess"),
            id="OPD-RL, late tokens",
        ),
        pytest.param(
            [*REWARDED, "TEACHER", "--scale_rewards", "batch", "--dynamic_sample", "true", "--max_resample_times", 2],
            (
                *("reward", "reward_std", "advantage/task", "advantage/teacher", "reward/groups_without_spread"),
                *("dynamic_sample/replaced_share", "dynamic_sample/tries", "dynamic_sample/prompts"),
            ),
            id="OPD-RL + rewards, resampled",
        ),
        pytest.param(
            # two steps a generation batch
            [
                *(*LIKELIEST, "--reward_funcs", "every_other", "--num_generations", 1),
                *("--advantage_estimator", "reinforce_plus_plus", "--steps_per_generation", "TWICE"),
            ],
            ("reward", "reward_std", "advantage/task"),
            id="GRPO, one sample a prompt",
        ),
    ],
)
def test_two_ranks_are_one_on_path_b(tiny: Path, tmp_path: Path, more: list[object], names: tuple[str, ...]) -> None:
    """12 samples a step: with two ranks 6 each, so that the second of three groups of 4 lies on both."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    rows = [json.loads(line) for line in (tiny / "rows.jsonl").read_text().splitlines()]
    rows = [row | {"level": (0, 1, 2.5, 0)[i % 4]} for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    i = more.index("TEACHER") if "TEACHER" in more else None
    more = more if i is None else [*more[:i], "--teacher_model", tiny / "teacher", *more[i + 1 :]]
    runs = []
    for processes in (1, 2):
        run = tmp_path / f"run-{processes}"
        flags = [24 // processes if word == "TWICE" else word for word in more]
        limbeck(
            *("rlhf", "--rlhf_type", "grpo", "--model", tiny / "student", "--dataset", tmp_path / "rows.jsonl"),
            *("--output_dir", run, "--external_plugins", tmp_path / "plugin.py", "--use_cpu", "--preflight", "false"),
            *("--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 12 // processes),
            *("--max_steps", 3, "--max_completion_length", 6, "--logging_steps", 1, "--learning_rate", 1e-3),
            *("--tuner_type", "full", "--save_strategy", "no", *flags),
            processes=processes,
        )
        runs.append(run)
    one, two = (metrics(run) for run in runs)
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        for name in (*COUNTED, *names):  # a batch that is learnt from again has no rewards of its own
            assert (name in a) == (name in b)
            assert b.get(name, 0) == pytest.approx(a.get(name, 0), rel=5e-4, abs=1e-6), (a["step"], name)
    assert all(any(row.get(name) for row in one) for name in names)  # none of them is idle
    ours, theirs = (load_file(run / "last" / "model.safetensors") for run in runs)
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in ours) < 1e-3
