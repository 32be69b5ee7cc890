"""One batch is one batch, however it is cut: the loss and the gradient change by rounding only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from limbeck.data.collate import collate
from limbeck.data.formats import Example
from limbeck.data.render import Rendered
from limbeck.models import add_lora, valid_ids
from limbeck.rollouts import sample_dataset
from limbeck.signal import Ask, Sample
from limbeck.teachers import LocalTeacher
from limbeck.train.evaluate import evaluate
from limbeck.train.objective import DivergenceLoss
from limbeck.train.shard import unsharded
from limbeck.train.step import Parts, Plan, micro_batches, shares, train_step
from limbeck.train.student import StudentStep
from tests.support import make_model, make_tokenizer

ROWS = 8
OBJECTIVES = {
    "forward": (DivergenceLoss(beta=0.0), None),
    "jsd": (DivergenceLoss(beta=0.5, temperature=0.7), None),
    "reverse + ce": (DivergenceLoss(beta=1.0, sft_alpha=0.3), None),
    "normalised, clipped": (DivergenceLoss(beta=0.2, normalize=True, token_clip=2.0), None),
    "top-k tail": (DivergenceLoss(beta=0.5), 7),
    "top-k renorm": (DivergenceLoss(beta=1.0, topk_mode="renorm"), 7),
    "late tokens + ce": (DivergenceLoss(beta=0.5, sft_alpha=0.3, position=(0.1, 0.4, 0.15)), None),
    "early tokens only, top-k": (DivergenceLoss(beta=0.0, position=(0.0, 0.5, -1e-4)), 7),
    "reference": (DivergenceLoss(beta=0.5, impl="reference", sft_alpha=0.3), None),
}


def rows(seed: int = 0) -> list[tuple[Example, Rendered]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(ROWS):
        p, r = (int(torch.randint(1, 20, (), generator=generator)) for _ in range(2))
        ids = torch.randint(3, 250, (p + r,), generator=generator).tolist()
        tokens = Rendered(tuple(ids[:p]), tuple(ids[p:]), (True,) * r)
        made.append((Example("x", "y", {}, f"row:{i}"), tokens))
    return made


def one_step(
    objective: DivergenceLoss, topk: int | None, size: int, dtype: torch.dtype, teacher: bool = True, lora: bool = False
):
    """-> (loss, gradient norm, the weights after one update)."""
    tokenizer = make_tokenizer()
    model: nn.Module = make_model(tokenizer, seed=1, tied=not lora).to(dtype)
    if lora:
        model = add_lora(model, rank=4, alpha=8, dropout=0.0, target_modules=["all-linear"], seed=0)
    student = StudentStep(model, objective, valid_ids(tokenizer))
    weights = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    accelerator = Accelerator(cpu=True)
    local = LocalTeacher(
        make_model(tokenizer, seed=2, layers=3, surplus=5, hidden=48, tied=False).to(dtype),
        name="teacher",
        valid=valid_ids(tokenizer),
        pad_id=0,
        ask=Ask("topk" if topk else "hidden", topk or 0, objective.temperature),
    )
    plan = Plan(0.0, size, ROWS, 1, 1, 1, ROWS, 0.0, seed=0, data_seed=0, shuffle=False)
    made: Sequence = rows()
    parts = Parts(
        plan,
        accelerator,
        made,
        {"dataset": sample_dataset},
        local if teacher else None,
        student,
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        pad_id=0,
        whole=unsharded(student),
    )
    _, result = train_step(parts, None, stats=False)
    return result.loss, result.grad_norm, torch.cat([p.detach().flatten() for p in weights])


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_loss_and_gradient_do_not_depend_on_the_cut(name: str, dtype: torch.dtype, tolerance: float) -> None:
    objective, topk = OBJECTIVES[name]
    whole = one_step(objective, topk, ROWS, dtype)
    assert whole[0] > 1e-3
    assert whole[1] > 1e-3
    for size in (1, 2, 4):
        cut = one_step(objective, topk, size, dtype)
        assert cut[0] == pytest.approx(whole[0], rel=tolerance)
        assert cut[1] == pytest.approx(whole[1], rel=tolerance)
        torch.testing.assert_close(cut[2], whole[2], rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("ramp", [(0.1, 0.4, 0.15), (0.0, 0.5, -1e-4)], ids=["late", "early only"])
def test_position_weights_by_the_plain_formula(ramp: tuple[float, ...]) -> None:
    """Autograd on full logits in float64: sum of w (KL + alpha CE) over the sum of w, all of the step's."""
    tokenizer, alpha = make_tokenizer(), 0.3
    valid = valid_ids(tokenizer)
    student = make_model(tokenizer, seed=1).double()
    teacher = make_model(tokenizer, seed=2, layers=3, surplus=5, hidden=48, tied=False).double()
    total, amount = torch.zeros((), dtype=torch.float64), 0.0
    for _, tokens in rows():
        ids, start, n = torch.tensor([tokens.prompt_ids + tokens.response_ids]), len(tokens.prompt_ids), tokens.targets
        q, p = (m(input_ids=ids).logits[0, start - 1 : -1, :valid].log_softmax(-1) for m in (student, teacher))
        ce = -q.gather(-1, torch.tensor(n)[:, None])[:, 0]
        low, middle, width = ramp
        at = [((t + 0.5) / len(n) - middle) / width for t in range(len(n))]
        weights = [low + (1 - low) * (1 + math.tanh(x / 2)) / 2 for x in at]
        values = (p.exp() * (p - q)).sum(-1) + alpha * ce
        total = total + (torch.tensor(weights, dtype=torch.float64) * values).sum()
        amount += sum(weights)
    (total / amount).backward()
    norm = torch.cat([w.grad.flatten() for w in student.parameters() if w.grad is not None]).norm()
    for impl in ("linear", "reference"):
        objective = DivergenceLoss(beta=0.0, sft_alpha=alpha, impl=impl, position=ramp)
        for size in (1, ROWS):
            loss, grad_norm, _ = one_step(objective, None, size, torch.float64)
            assert loss == pytest.approx(float(total.detach()) / amount, rel=1e-9)
            assert grad_norm == pytest.approx(float(norm), rel=1e-7)
            step = StudentStep(student, objective, valid)
            local = LocalTeacher(teacher, name="teacher", valid=valid, pad_id=0, ask=Ask("hidden"))
            samples = [Sample(tokens, "dataset", example) for example, tokens in rows()]
            found = evaluate(Accelerator(cpu=True), step, local, samples, batch_size=size, pad_id=0)
            assert found["loss"] == pytest.approx(loss, rel=1e-9)


def test_cross_entropy_alone_does_not_depend_on_the_cut() -> None:
    objective = DivergenceLoss(beta=0.0)
    whole = one_step(objective, None, ROWS, torch.float64, teacher=False)
    for size in (1, 2, 4):
        assert one_step(objective, None, size, torch.float64, teacher=False)[:2] == pytest.approx(whole[:2], rel=1e-9)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("sft_alpha", [0.0, 0.2])
@pytest.mark.parametrize(("topk", "mode"), [(None, "tail"), (7, "tail"), (7, "renorm")])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_linear_and_the_reference_path_agree(
    beta: float, topk: int | None, mode: str, sft_alpha: float, lora: bool
) -> None:
    losses = [
        DivergenceLoss(beta=beta, topk_mode=mode, sft_alpha=sft_alpha, impl=impl) for impl in ("linear", "reference")
    ]
    linear, reference = (one_step(loss, topk, 4, torch.float64, lora=lora) for loss in losses)
    assert reference[1] > 1e-3
    assert linear[:2] == pytest.approx(reference[:2], rel=1e-7)
    torch.testing.assert_close(linear[2], reference[2], rtol=0, atol=1e-7)


def test_shares_by_hand() -> None:
    """Prompts of 3 tokens that are alike, responses of 2 and 3; the last token of a sequence predicts nothing."""
    made = [Rendered((5, 6, 7), (8, 9), (True, True)), Rendered((5, 6, 7), (10, 11, 12), (True, True, True))]
    batch = collate(made, pad_id=0)
    assert shares(batch, packs=False) == {"useful_positions": (11, 12), "active_share": (5, 11)}
    assert shares(batch, packs=True) == {"useful_positions": (11, 3 + 1 + 2), "active_share": (5, 11)}


def test_samples_of_a_prompt_stand_together() -> None:
    prompts = [(1, 2), (3, 4), (1, 2), (3, 4)]
    lengths = [5, 9, 8, 2]
    samples = [
        Sample(Rendered(p, tuple(range(n)), (True,) * n), "dataset", Example("x", "y", {}, str(i)))
        for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    order = [[s.example.origin for s in batch] for batch in micro_batches(samples, 2, together=True)]
    assert order == [["1", "3"], ["2", "0"]]
    assert [[s.example.origin for s in batch] for batch in micro_batches(samples, 2)] == [["1", "2"], ["0", "3"]]
