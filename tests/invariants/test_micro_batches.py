"""One batch is one batch, however it is cut: the loss and the gradient change by rounding only."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator

from limbeck.data.formats import Example
from limbeck.data.render import Rendered
from limbeck.models import valid_ids
from limbeck.rollouts import sample_dataset
from limbeck.signal import Ask
from limbeck.teachers import LocalTeacher
from limbeck.train.objective import DivergenceLoss
from limbeck.train.step import Parts, Plan, train_step
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


def one_step(objective: DivergenceLoss, topk: int | None, size: int, dtype: torch.dtype, teacher: bool = True):
    """-> (loss, gradient norm, the weights after one update)."""
    tokenizer = make_tokenizer()
    student = StudentStep(make_model(tokenizer, seed=1).to(dtype), objective, valid_ids(tokenizer))
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


def test_cross_entropy_alone_does_not_depend_on_the_cut() -> None:
    objective = DivergenceLoss(beta=0.0)
    whole = one_step(objective, None, ROWS, torch.float64, teacher=False)
    for size in (1, 2, 4):
        assert one_step(objective, None, size, torch.float64, teacher=False)[:2] == pytest.approx(whole[:2], rel=1e-9)


def test_the_linear_and_the_reference_path_agree() -> None:
    for topk in (None, 7):
        linear = one_step(DivergenceLoss(beta=0.3, sft_alpha=0.2), topk, 4, torch.float64)
        reference = one_step(DivergenceLoss(beta=0.3, sft_alpha=0.2, impl="reference"), topk, 4, torch.float64)
        assert linear[:2] == pytest.approx(reference[:2], rel=1e-9)
        torch.testing.assert_close(linear[2], reference[2], rtol=0, atol=1e-9)
