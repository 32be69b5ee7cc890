"""The same sequences over one process and over two: the loss and the gradient change by rounding only."""

from __future__ import annotations

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
