"""Path B: however the batch is cut the same update, the gradient by the plain formula, and a resume in its middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from limbeck.cli.main import main
from limbeck.losses import PolicyLoss
from limbeck.models import valid_ids
from limbeck.rewards import RewardTable
from limbeck.rollouts import sample_dataset
from limbeck.signal import Ask, Sample
from limbeck.teachers import LocalTeacher
from limbeck.train.objective import AdvantageLoss, DivergenceLoss
from limbeck.train.policy import Judge
from limbeck.train.shard import unsharded
from limbeck.train.step import Parts, Plan, train_step
from limbeck.train.student import StudentStep
from tests.invariants.test_micro_batches import ROWS, rows
from tests.invariants.test_resume import kill_at
from tests.support import limbeck, make_model, make_tokenizer, metrics, without_times

TOKENIZER = make_tokenizer()
VALID = valid_ids(TOKENIZER)
TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
SAMPLER, LOSS = 0.9, 1.1  # temperatures


def rewards(samples: Any) -> RewardTable:
    values = torch.tensor([[float(len(s.tokens.response_ids) % 5)] for s in samples], dtype=torch.float64)
    return RewardTable(("x",), torch.ones(1, dtype=torch.float64), values, torch.zeros(values.shape, dtype=bool), {})


def models() -> tuple[Any, Any]:
    student = make_model(TOKENIZER, seed=1).double()
    return student, make_model(TOKENIZER, seed=2, layers=3, surplus=5, hidden=48, tied=False).double()


def steps(
    loss: PolicyLoss,
    size: int,
    *,
    coef: float = 0.7,
    reward: Any = rewards,
    iterations: int = 2,
    opd: str = "sampled",
    drawn: Any = lambda samples: samples,
    **options: Any,
) -> tuple[list[float], list[float], Tensor]:
    """Both steps on one generation batch -> losses, gradient norms, the weights afterwards."""
    student, teacher = models()
    beside = None if opd == "sampled" else DivergenceLoss(beta=1.0, temperature=LOSS)
    step = StudentStep(student, AdvantageLoss(loss, SAMPLER, LOSS, beside, coef), VALID)
    weights = [p for p in step.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.05)
    ask = {"sampled": Ask("sampled", 0, LOSS), "full": Ask("hidden", 0, LOSS), "topk": Ask("topk", 7, LOSS)}[opd]
    group = 4
    judge = Judge(
        loss, group, coef, SAMPLER, LOSS, 24, 0, iterations > 1, sampled=opd == "sampled", reward=reward, **options
    )
    made = [row for row in rows()[: ROWS // group] for _ in range(group)]
    mixed = [(example, other[1]) for (example, _), other in zip(made, rows(), strict=True)]
    parts = Parts(
        Plan(1.0, size, ROWS, 1, group, iterations, None, 0.0, seed=0, data_seed=0, shuffle=False),
        Accelerator(cpu=True),
        made[::group],
        {"student": lambda rows, *, seed, done=None: drawn(sample_dataset(mixed))},
        LocalTeacher(teacher, name="teacher", valid=VALID, pad_id=0, ask=ask),
        step,
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        pad_id=0,
        whole=unsharded(step),
        judge=judge,
    )
    generation, found = None, []
    for _ in range(iterations):
        generation, result = train_step(parts, generation, stats=True)
        found.append(result)
    return (
        [r.loss for r in found],
        [r.grad_norm for r in found],
        torch.cat([p.detach().flatten() for p in weights]),
    )


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", TYPES)
def test_the_update_does_not_depend_on_the_cut(loss_type: Any, level: Any) -> None:
    loss = PolicyLoss(loss_type, level, epsilon=0.01, epsilon_high=0.02)
    options = {"top_entropy": 0.6, "overlong_filter": True}
    whole = steps(loss, ROWS, **options)
    assert whole[1][0] > 1e-3
    assert whole[0][1] != pytest.approx(whole[0][0], rel=1e-6)  # the ratio has left 1
    for size in (1, 3):
        cut = steps(loss, size, **options)
        assert cut[0] == pytest.approx(whole[0], rel=1e-9)
        assert cut[1] == pytest.approx(whole[1], rel=1e-9)
        torch.testing.assert_close(cut[2], whole[2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("opd", ["full", "topk"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "cispo"])
def test_the_low_variance_update_does_not_depend_on_the_cut(loss_type: Any, opd: str) -> None:
    """The teacher's reverse KL beside the policy loss of the rewards: sequences, a fixed length, tokens as D."""
    loss = PolicyLoss(loss_type, epsilon=0.01, epsilon_high=0.02)
    options = {"opd": opd, "top_entropy": 0.6}
    whole = steps(loss, ROWS, **options)
    assert whole[1][0] > 1e-3
    for other in (steps(loss, ROWS, opd=opd, coef=0.0), steps(loss, ROWS, opd=opd, reward=None)):
        assert whole[1][0] != pytest.approx(other[1][0], rel=1e-3)  # both parts are in it
    for size in (1, 3):
        cut = steps(loss, size, **options)
        assert cut[0] == pytest.approx(whole[0], rel=1e-9)
        assert cut[1] == pytest.approx(whole[1], rel=1e-9)
        torch.testing.assert_close(cut[2], whole[2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("opd", ["sampled", "full"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_position_weights_do_not_depend_on_the_cut(loss_type: Any, opd: str) -> None:
    loss = PolicyLoss(loss_type, epsilon=0.01, epsilon_high=0.02)
    options = {"opd": opd, "position": (0.1, 0.4, 0.15), "overlong_filter": True}
    whole = steps(loss, ROWS, **options)
    assert whole[1][0] != pytest.approx(steps(loss, ROWS, opd=opd)[1][0], rel=1e-3)
    for size in (1, 3):
        cut = steps(loss, size, **options)
        assert cut[0] == pytest.approx(whole[0], rel=1e-9)
        assert cut[1] == pytest.approx(whole[1], rel=1e-9)
        torch.testing.assert_close(cut[2], whole[2], rtol=0, atol=1e-9)


def logprobs(model: Any, s: Sample, temperature: float) -> Tensor:
    ids = torch.tensor([s.tokens.prompt_ids + s.tokens.response_ids])
    start = len(s.tokens.prompt_ids)
    logits = model(input_ids=ids).logits[0, start - 1 : -1, :VALID] / temperature
    return logits.log_softmax(-1)


@pytest.mark.parametrize("ramp", [(), (0.1, 0.4, 0.15)], ids=["alike", "late"])
@pytest.mark.parametrize("loss_type", TYPES)
def test_the_first_update_by_the_plain_formula(loss_type: Any, ramp: tuple[float, ...]) -> None:
    """Autograd on full logits: sum over sequences and tokens of w A_t d log pi, A_t = group advantage + alpha d_t."""
    coef = 0.7
    losses, norms, _ = steps(PolicyLoss(loss_type), ROWS, coef=coef, iterations=1, position=ramp)
    student, teacher = models()
    samples = [Sample(tokens, "student", example) for example, tokens in rows()]
    values = rewards(samples).total.view(2, 4)
    base = ((values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True) + 1e-4)).flatten()
    total = torch.zeros((), dtype=torch.float64)

    def placed(n: int) -> Tensor:
        places = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return ramp[0] + (1 - ramp[0]) / (1 + (-(places - ramp[1]) / ramp[2]).exp()) if ramp else torch.ones(n).double()

    count = float(sum(placed(len(s.tokens.response_ids)).sum() for s in samples))
    for s, own in zip(samples, base, strict=True):
        ids = torch.tensor(s.tokens.response_ids)[:, None]
        mine = logprobs(student, s, SAMPLER).gather(-1, ids)[:, 0]
        with torch.no_grad():
            d = (logprobs(teacher, s, LOSS) - logprobs(student, s, LOSS)).gather(-1, ids)[:, 0]
        advantage = own + coef * d
        if loss_type in ("grpo", "sapo"):
            weight = placed(len(ids)) / placed(len(ids)).sum() / len(samples)
        elif loss_type == "dr_grpo":
            weight = placed(len(ids)) / (len(samples) * 24)
        else:
            weight = placed(len(ids)) / count
        if loss_type == "cispo":
            each = -advantage * mine
        elif loss_type == "sapo":  # at ratio 1 the gate is sigmoid(0) 4 / tau, of slope 1
            tau = torch.tensor([1.0 if a > 0 else 1.05 for a in advantage], dtype=torch.float64)
            each = -advantage * (2 / tau + mine - mine.detach())
        else:
            each = -advantage * (mine - mine.detach()).exp()
        total = total + (weight * each).sum()
    total.backward()
    norm = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]).norm()
    assert losses[0] == pytest.approx(float(total.detach()), rel=1e-9, abs=1e-12)
    assert norms[0] == pytest.approx(float(norm), rel=1e-7)  # Llama's norms round to float32 in a float64 model too


def test_the_whole_vocabulary_is_the_mean_of_the_sampled_token() -> None:
    """The gradient of --opd_signal full is that of alpha times the per-token reverse KL, by the weights of the type."""
    coef = 0.7
    _, norms, _ = steps(PolicyLoss("grpo"), ROWS, coef=coef, iterations=1, opd="full", reward=None)
    student, teacher = models()
    total = torch.zeros((), dtype=torch.float64)
    for _, tokens in rows():
        s = Sample(tokens, "student", rows()[0][0])
        q = logprobs(student, s, LOSS)
        with torch.no_grad():
            p = logprobs(teacher, s, LOSS)
        total = total + coef * (q.exp() * (q - p)).sum() / len(tokens.response_ids) / ROWS
    total.backward()
    norm = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]).norm()
    assert norms[0] == pytest.approx(float(norm), rel=1e-7)


SHORT = (
    *("--max_completion_length", 6, "--max_steps", 4, "--learning_rate", 1e-3, "--logging_steps", 1, "--use_cpu"),
    *("--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 2, "--lora_dropout", 0),
)


def test_low_variance_opd_rl_is_gkd_with_reverse_kl(tiny: Path, tmp_path: Path) -> None:
    common = (
        "--model",
        tiny / "student",
        "--teacher_model",
        tiny / "teacher",
        "--dataset",
        tiny / "rows.jsonl",
        *SHORT,
    )
    gkd = ("--rlhf_type", "gkd", "--lmbda", 1, "--beta", 1)
    opd = ("--rlhf_type", "grpo", "--opd_signal", "full", "--loss_type", "dapo")
    found = []
    for name, more in (("gkd", gkd), ("opd", opd)):
        argv = ["rlhf", *common, "--output_dir", tmp_path / name, *more]
        assert main([str(word) for word in argv]) == 0
        found.append([(row["loss"], row["grad_norm"]) for row in metrics(tmp_path / name)])
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize(
    ("tuner", "more"),
    [
        (
            "full",
            (
                *("--teacher_model", "TEACHER", "--reward_funcs", "repetition", "--num_generations", 3),
                *("--dynamic_sample", "true", "--rollout_importance_sampling_mode", "token_mask"),
            ),
        ),
        ("lora", ("--teacher_model", "TEACHER", "--beta", 0.1, "--importance_sampling_level", "sequence")),
        ("full", ("--teacher_model", "TEACHER", "--opd_signal", "topk", "--gkd_logits_topk", 8)),
    ],
    ids=["rewards, resampled, weighed", "reference, sequence", "top-k"],
)
def test_a_killed_run_goes_on_with_its_advantages(tiny: Path, tmp_path: Path, tuner: str, more: tuple) -> None:
    more = tuple(tiny / "teacher" if word == "TEACHER" else word for word in more)

    def flags(folder: Path) -> list[object]:
        return [
            *("rlhf", "--rlhf_type", "grpo", "--model", tiny / "student", "--dataset", tiny / "rows.jsonl", *SHORT),
            *("--output_dir", folder, "--steps_per_generation", 4, "--num_iterations", 2, "--save_steps", 1),
            *("--max_steps", 7, "--tuner_type", tuner, *more),
        ]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    limbeck(*flags(whole))
    kill_at(3, flags(killed), killed)
    limbeck(*flags(killed), "--resume_from_checkpoint", killed / "checkpoint-3")
    assert without_times(metrics(killed)) == without_times(metrics(whole))
    name = "model.safetensors" if tuner == "full" else "adapter_model.safetensors"
    ours, theirs = (load_file(folder / "last" / name) for folder in (killed, whole))
    assert all(ours[k].equal(theirs[k]) for k in theirs)
