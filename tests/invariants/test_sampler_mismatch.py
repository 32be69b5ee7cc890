"""Weights of the sampler against the trainer: by the plain formula, however the batch is cut, 1 where both agree."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.cli.main import main
from limbeck.losses import PolicyLoss
from limbeck.signal import Sample
from tests.invariants.test_micro_batches import ROWS, rows
from tests.invariants.test_policy_path import SAMPLER, logprobs, models, rewards, steps
from tests.support import metrics

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
THRESHOLD = 1.3


def gap(sample: Sample) -> torch.Tensor:
    """log pi_train - log pi_sampler of each token: some ratios above the threshold, of tokens and of sequences."""
    generator = torch.Generator().manual_seed(sum(sample.tokens.response_ids))
    noise = torch.randn(sample.n_active, generator=generator, dtype=torch.float64) * 0.4
    return noise + (0.6 if sample.n_active % 2 else -0.2)


def drawn(samples: list[Sample]) -> list[Sample]:
    student = models()[0]
    found = []
    for s in samples:
        ids = torch.tensor(s.tokens.response_ids)[:, None]
        with torch.no_grad():
            logp = logprobs(student, s, SAMPLER).gather(-1, ids)[:, 0]
        found.append(replace(s, sampler_logp=tuple((logp - gap(s)).tolist())))
    return found


def weights(mode: str, sample: Sample) -> torch.Tensor:
    ratio = gap(sample).exp()
    if mode.startswith("sequence"):
        ratio = torch.full_like(ratio, math.exp(float(gap(sample).mean())))
    return ratio.clamp(max=THRESHOLD) if mode.endswith("truncate") else ratio.where(ratio <= THRESHOLD, 0.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_the_update_by_the_plain_formula(loss_type: Any, mode: Any) -> None:
    """sum over tokens of w * weight * -A * d log pi, the denominator as without w."""
    options = {"rollout_mode": mode, "rollout_threshold": THRESHOLD, "drawn": drawn}
    losses, norms, _ = steps(PolicyLoss(loss_type), ROWS, coef=0.0, iterations=1, **options)
    student, _ = models()
    samples = [Sample(tokens, "student", example) for example, tokens in rows()]
    values = rewards(samples).total.view(2, 4)
    base = ((values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True) + 1e-4)).flatten()
    count = sum(s.n_active for s in samples)
    per = {"grpo": lambda n: 1 / n / ROWS, "dapo": lambda n: 1 / count, "dr_grpo": lambda n: 1 / (ROWS * 24)}[loss_type]
    total, cut = torch.zeros((), dtype=torch.float64), 0
    for s, advantage in zip(samples, base, strict=True):
        ids = torch.tensor(s.tokens.response_ids)[:, None]
        logp = logprobs(student, s, SAMPLER).gather(-1, ids)[:, 0]
        w = weights(mode, s)
        cut += int((w != gap(s).exp()).sum())
        total = total - per(s.n_active) * (w * advantage * (logp - logp.detach()).exp()).sum()
    total.backward()
    norm = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]).norm()
    assert 0 < cut < count or mode.startswith("sequence")
    assert losses[0] == pytest.approx(float(total.detach()), rel=1e-9, abs=1e-12)
    assert norms[0] == pytest.approx(float(norm), rel=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_the_update_does_not_depend_on_the_cut(mode: Any) -> None:
    options = {"rollout_mode": mode, "rollout_threshold": THRESHOLD, "drawn": drawn}
    whole = steps(PolicyLoss(), ROWS, **options)
    for size in (1, 3):
        cut = steps(PolicyLoss(), size, **options)
        assert cut[0] == pytest.approx(whole[0], rel=1e-9)
        assert cut[1] == pytest.approx(whole[1], rel=1e-9)
        torch.testing.assert_close(cut[2], whole[2], rtol=0, atol=1e-9)


def test_a_sampler_that_is_the_trainer_has_weights_of_one(tiny: Path, tmp_path: Path) -> None:
    """Through the command line: transformers' generate with its cache against the packed forward of the training."""
    common = ("rlhf", "--rlhf_type", "grpo", "--model", tiny / "student", "--teacher_model", tiny / "teacher")
    more = (
        *("--dataset", tiny / "rows.jsonl", "--max_completion_length", 8, "--max_steps", 2, "--logging_steps", 1),
        *("--per_device_train_batch_size", 4, "--use_cpu", "--preflight", "false", "--save_strategy", "no"),
        *("--learning_rate", 1e-3, "--steps_per_generation", 2),
    )
    found = {}
    for name, flags in {
        "without": ("--log_rollout_offpolicy_metrics",),
        "with": ("--rollout_importance_sampling_mode", "token_truncate"),
        "filtered": ("--log_rollout_offpolicy_metrics", "--top_p", 0.7),
    }.items():
        argv = [*common, *more, "--output_dir", tmp_path / name, *flags]
        assert main([str(word) for word in argv]) == 0
        found[name] = metrics(tmp_path / name)
    first, weighed, filtered = (found[name][0] for name in ("without", "with", "filtered"))
    assert first["rollout_correction/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert first["rollout_correction/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert first["rollout_correction/k3_kl"] < 1e-8
    assert first["rollout_correction/training_ppl"] == pytest.approx(first["rollout_correction/rollout_ppl"], rel=1e-4)
    assert "rollout_correction/is_weight_mean" not in first
    assert weighed["rollout_correction/is_weight_mean"] == pytest.approx(1, abs=1e-5)
    assert weighed["rollout_correction/ess"] == pytest.approx(1, abs=1e-6)
    assert weighed["rollout_correction/clipped_frac"] == 0
    for a, b in zip(found["without"], found["with"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4, abs=1e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    # what is drawn from the top 0.7 of the mass has there 1 / (0.7 .. 1) of its probability
    assert 0.65 < filtered["rollout_correction/ratio_mean"] < 0.95
