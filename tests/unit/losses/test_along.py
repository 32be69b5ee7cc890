"""A policy loss in the divergence's own pass over the head: equal to the sum of the two, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_linear import Case, N, V, check
from torch import Tensor

from limbeck.data.collate import Batch
from limbeck.losses import (
    Head,
    PolicyLoss,
    TokenTerm,
    linear_divergence,
    linear_policy_loss,
    linear_topk_divergence,
    policy_objective,
    topk_divergence,
)
from limbeck.losses import divergence as plain_divergence
from limbeck.signal import Hidden, Part, Policy, TopK
from limbeck.train.objective import AdvantageLoss, DivergenceLoss, MicroBatch

TAU, LOSS_TAU = 0.9, 1.3  # temperatures of the ratio and of the divergence


def policy_of(case: Case, loss: PolicyLoss) -> tuple[Tensor, Tensor, Any]:
    advantage, old = case.randn(N), case.randn(N) - 3
    return advantage, old, policy_objective(loss, advantage, old_logp=old)


def both(case: Case, k: int, mode: str, weights: Tensor | None, **more: Any) -> Any:
    options = {"beta": 1.0, "temperature": LOSS_TAU, "weights": weights, "chunk_rows": 8, **more}
    if not k:
        return linear_divergence(case.hidden, case.head, case.teacher_hidden, case.teacher_weight, **options)
    logprobs, ids, tail = case.signal(k, LOSS_TAU)
    options |= {"mode": mode, "teacher_log_tail": tail}
    return linear_topk_divergence(case.hidden, case.head, logprobs, ids, **options)


@pytest.mark.parametrize("loss_type", ["grpo", "cispo", "sapo"])
@pytest.mark.parametrize(("k", "mode"), [(0, ""), (5, "tail"), (5, "renorm")])
@pytest.mark.parametrize("kind", ["plain", "all"])
@pytest.mark.parametrize("tau", [TAU, LOSS_TAU])
def test_one_pass_is_the_sum_of_two(loss_type: Any, k: int, mode: str, kind: str, tau: float) -> None:
    """Value, gradient and statistics; rows of which only one of the two speaks among them."""
    case = Case(kind)
    _, _, objective = policy_of(case, PolicyLoss(loss_type))
    own = case.ce_weights
    assert bool(((own != 0) & (case.weights == 0)).any()) and bool(((own == 0) & (case.weights != 0)).any())
    options = {"temperature": tau, "weights": own, "return_stats": True}
    divergence, found = both(case, k, mode, case.weights, return_stats=True)
    policy, alone = linear_policy_loss(case.hidden, case.head, case.ce_ids, objective, **options)
    term = TokenTerm(case.ce_ids, own, tau, objective)
    ours, stats = both(case, k, mode, case.weights, along=term, return_stats=True)
    assert set(stats) == set(found) | set(alone)
    check(case, ours, divergence + policy)
    for name, values in {**found, **alone}.items():
        torch.testing.assert_close(stats[name], values, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(both(case, k, mode, case.weights, along=term), ours)  # without statistics


def test_a_row_of_weight_zero_is_never_looked_at() -> None:
    case = Case()
    advantage, old, _ = policy_of(case, PolicyLoss())
    own = case.ce_weights.clone()
    broken = old.masked_fill(own == 0, torch.nan)
    ids = case.ce_ids.masked_fill(own == 0, V + 7)
    for weights in (None, case.weights):
        wanted = both(case, 0, "", weights) + linear_policy_loss(
            case.hidden, case.head, case.ce_ids, policy_objective(PolicyLoss(), advantage, old_logp=old), weights=own
        )
        objective = policy_objective(PolicyLoss(), advantage, old_logp=broken)
        check(case, both(case, 0, "", weights, along=TokenTerm(ids, own, 1.0, objective)), wanted)


def test_refusals() -> None:
    case = Case()
    with pytest.raises(ValueError, match="one term"):
        both(case, 0, "", None, along=TokenTerm(case.ce_ids), ce_ids=case.ce_ids)
    with pytest.raises(ValueError, match=r"along\.ids must be"):
        both(case, 0, "", None, along=TokenTerm(case.ce_ids[1:]))
    with pytest.raises(ValueError, match=r"along\.ids of non-zero weight"):
        both(case, 0, "", None, along=TokenTerm(case.ce_ids + V))
    with pytest.raises(ValueError, match="temperature"):
        both(case, 0, "", None, along=TokenTerm(case.ce_ids, temperature=0.0))


def micro(case: Case, signals: list[Part], policy: Policy) -> MicroBatch:
    empty = torch.zeros(1, 1, dtype=torch.int64)
    batch = Batch(empty, empty[0], empty[0], case.ce_ids, (N,), N)
    return MicroBatch(batch, signals, torch.zeros(N, dtype=torch.bool), policy)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["full", "topk", "two teachers"])
@pytest.mark.parametrize("coef", [0.7, 0.0])
def test_the_objective_by_the_plain_formula(level: Any, kind: str, coef: float) -> None:
    """coef w D + w policy by autograd on dense float64 logits."""
    case = Case()
    loss = PolicyLoss("grpo", level)
    advantage, old = case.randn(N), case.randn(N) - 3
    logprobs, ids, tail = case.signal(5, LOSS_TAU)
    hidden = Hidden(case.teacher_hidden, Head(case.teacher_weight, valid=V))
    topk = TopK(logprobs, ids, tail)
    even, odd = torch.arange(0, N, 2), torch.arange(1, N, 2)
    parts = {
        "full": [Part(None, hidden)],
        "topk": [Part(None, topk)],
        "two teachers": [
            Part(even, Hidden(hidden.hidden[even], hidden.head)),
            Part(odd, TopK(logprobs[odd], ids[odd], tail[odd])),
        ],
    }[kind]
    policy = Policy(advantage, case.weights, 1.0, old_logp=old)
    objective = AdvantageLoss(loss, TAU, LOSS_TAU, DivergenceLoss(beta=1.0, temperature=LOSS_TAU), coef)
    total, found = objective(case.hidden, case.head, micro(case, parts, policy), stats=True)

    logits = case.logits()
    full = plain_divergence(logits, case.teacher_logits(), beta=1.0, temperature=LOSS_TAU)
    few = topk_divergence(logits, logprobs, ids, beta=1.0, temperature=LOSS_TAU, teacher_log_tail=tail)
    values = {"full": full, "topk": few, "two teachers": torch.where(torch.arange(N) % 2 == 0, full, few)}[kind]
    logp = (logits / TAU).log_softmax(-1).gather(-1, case.ce_ids.unsqueeze(-1)).squeeze(-1)
    ratio = (logp - old).exp()
    if level == "sequence":
        ratio = (logp - old).detach().mean().exp() * (logp - logp.detach()).exp()
    per_token = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    check(case, total, (case.weights * (coef * values + per_token)).sum(), rtol=1e-8)
    counts = case.weights != 0
    assert bool(found["logp"][~counts].isnan().all())
    torch.testing.assert_close(found["logp"][counts], logp[counts].detach())
    assert ("divergence" in found) == (coef > 0)


def test_the_clip_of_a_token_beside_the_policy() -> None:
    """--token_loss_clip on path B: the divergence's value is cut and has no gradient there, the policy's part stays."""
    case = Case()
    advantage, old = case.randn(N), case.randn(N) - 3
    part = Part(None, Hidden(case.teacher_hidden, Head(case.teacher_weight, valid=V)))
    values = plain_divergence(case.logits(), case.teacher_logits(), beta=1.0, temperature=LOSS_TAU)
    clip = 1.001 * float(
        values.detach().median()
    )  # between two tokens: at the bound itself a derivative is a convention
    distil = DivergenceLoss(beta=1.0, temperature=LOSS_TAU, token_clip=clip)
    policy = Policy(advantage, case.weights, 1.0, old_logp=old)
    total, found = AdvantageLoss(PolicyLoss(), TAU, LOSS_TAU, distil, 0.7)(
        case.hidden, case.head, micro(case, [part], policy), stats=True
    )
    logp = (case.logits() / TAU).log_softmax(-1).gather(-1, case.ce_ids.unsqueeze(-1)).squeeze(-1)
    ratio = (logp - old).exp()
    per_token = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    check(case, total, (case.weights * (0.7 * values.clamp(max=clip) + per_token)).sum(), rtol=1e-8)
    assert float(found["divergence"].nan_to_num().max()) == pytest.approx(clip)


def test_both_losses_walk_over_the_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.losses import linear, tokens

    walks: list[int] = []

    class Counted(linear.HeadPass):
        def __init__(self, *args: Any, **options: Any) -> None:
            walks.append(1)
            super().__init__(*args, **options)

    monkeypatch.setattr(linear, "HeadPass", Counted)
    monkeypatch.setattr(tokens, "HeadPass", Counted)
    case = Case()
    advantage, old, _ = policy_of(case, PolicyLoss())
    part = Part(None, Hidden(case.teacher_hidden, Head(case.teacher_weight, valid=V)))
    objective = AdvantageLoss(PolicyLoss(), TAU, LOSS_TAU, DivergenceLoss(beta=1.0, temperature=LOSS_TAU))
    objective(case.hidden, case.head, micro(case, [part], Policy(advantage, case.weights, 1.0, old)), stats=True)
    assert len(walks) == 1
