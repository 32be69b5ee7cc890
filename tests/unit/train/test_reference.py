"""`--loss_impl reference`, the plain formula on full logits with autograd, and the linear losses: the same value and
gradients, over all that a run may ask for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from limbeck.losses import Head, PolicyLoss
from limbeck.signal import Ask, Part, Policy, signal_of
from limbeck.train.objective import AdvantageLoss, DivergenceLoss, MicroBatch

N, V, H = 9, 23, 6
ASKS = {
    "full": Ask("hidden"),
    "teacher's top-k": Ask("topk", 5),
    "student's top-k": Ask("named", 0, 1.0, 5),
    "union": Ask("union", 5, 1.0, 5),
    "all ids": Ask("topk", V - 2),
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"normalize": True, "temperature": 1.7},
    {"token_clip": 0.2},
    {"sft_alpha": 0.7, "temperature": 0.8},
)


def setting(ask: Ask, temperature: float) -> tuple[torch.Tensor, Head, MicroBatch]:
    """A student's hidden states and head, and what it learns from; the heads are wider than the valid ids."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    head, other = Head(draw(V, H), bias=draw(V), valid=V - 2), Head(draw(V + 3, H + 2), softcap=5.0, valid=V - 2)
    hidden, targets = draw(N, H), torch.randint(V - 2, (N,), generator=g)
    names = head.logits(hidden).topk(max(ask.named_k, 1), -1).indices if ask.names else None
    signal = signal_of(replace(ask, temperature=temperature), draw(N, H + 2), other, names)
    on_dataset = torch.arange(N) % 3 != 0
    return hidden, head, MicroBatch(SimpleNamespace(targets=targets, counts=(4, 5)), [Part(None, signal)], on_dataset)  # type: ignore


def both(loss: Any, hidden: torch.Tensor, head: Head, micro: MicroBatch) -> list[tuple[torch.Tensor, ...]]:
    found = []
    for one in (loss("linear"), loss("reference")):
        own, weight = hidden.clone().requires_grad_(), head.weight.clone().requires_grad_()
        assert head.bias is not None
        bias = head.bias.clone().requires_grad_()
        value, _ = one(own, replace(head, weight=weight, bias=bias), micro, stats=False)
        found.append((value, *torch.autograd.grad(value, (own, weight, bias))))
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "plain")
@pytest.mark.parametrize("mode", ["tail", "renorm"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ask", ASKS)
def test_of_divergences(ask: str, beta: float, mode: str, options: dict[str, Any]) -> None:
    setup = setting(ASKS[ask], options.get("temperature", 1.0))
    linear, reference = both(lambda impl: DivergenceLoss(beta=beta, topk_mode=mode, impl=impl, **options), *setup)
    for a, b in zip(linear, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert float(linear[0]) > 0.1


@pytest.mark.parametrize("ask", ["full", "teacher's top-k"])
@pytest.mark.parametrize("coef", [0.0, 1.3])
def test_beside_a_policy(ask: str, coef: float) -> None:
    hidden, head, micro = setting(ASKS[ask], 1.0)
    g = torch.Generator().manual_seed(1)
    micro = replace(
        micro,
        policy=Policy(
            advantage=torch.randn(N, generator=g, dtype=torch.float64),
            weight=torch.rand(N, generator=g, dtype=torch.float64),
            amount=1.0,
        ),
    )
    linear, reference = both(
        lambda impl: AdvantageLoss(PolicyLoss("dapo"), 0.9, 1.0, DivergenceLoss(beta=1.0, impl=impl), coef),
        *(hidden, head, micro),
    )
    for a, b in zip(linear, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
