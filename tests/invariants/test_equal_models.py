"""A teacher with the student's weights has nothing to teach: no loss, and no weight moves."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support import limbeck, metrics


@pytest.mark.parametrize("topk", [[], ["--gkd_logits_topk", 8], ["--gkd_logits_topk", 8, "--topk_mode", "renorm"]])
@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_teacher_equal_to_student(tiny: Path, tmp_path: Path, beta: float, topk: list[object]) -> None:
    run = tmp_path / "run"
    limbeck(
        *("rlhf", "--rlhf_type", "gkd", "--model", tiny / "student", "--teacher_model", tiny / "student"),
        *("--dataset", tiny / "rows.jsonl", "--output_dir", run, "--beta", beta, *topk, "--lmbda", 0.5),
        *("--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 2, "--max_steps", 4, "--use_cpu"),
        *("--max_completion_length", 6, "--logging_steps", 1, "--tuner_type", "full", "--learning_rate", 0.1),
        *("--weight_decay", 0),
    )
    assert [row["loss"] for row in metrics(run)] == pytest.approx([0.0] * 4, abs=1e-7)
    before, after = load_file(tiny / "student" / "model.safetensors"), load_file(run / "last" / "model.safetensors")
    assert all(after[k].equal(before[k]) for k in before)


def test_the_base_under_a_fresh_adapter_is_the_student(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    limbeck(
        *("rlhf", "--rlhf_type", "gkd", "--model", tiny / "student", "--teacher_model", tiny / "student"),
        *("--dataset", tiny / "rows.jsonl", "--output_dir", run, "--lmbda", 0, "--sft_alpha", 1, "--lora_dropout", 0),
        *("--max_steps", 3, "--logging_steps", 1, "--learning_rate", 1e-2, "--use_cpu"),
    )
    first, *rest = metrics(run)
    assert first["forward_kl"] == 0.0
    assert all(row["forward_kl"] > 1e-6 for row in rest)  # cross-entropy pulls the adapter away from the base
