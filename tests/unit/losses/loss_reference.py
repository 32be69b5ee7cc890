"""Independent references: float64, dense, autograd; written from the definitions, not from the code under test."""

from __future__ import annotations

import torch
from torch import Tensor


def xlogy_ratio(a: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """sum a (log a - log b) over the last dimension, 0 log 0 = 0."""
    gap = torch.where(a > 0, log_a - log_b, torch.zeros_like(log_a))
    return (a * gap).sum(-1)


def dense(student: Tensor, teacher: Tensor, beta: float, temperature: float = 1.0, normalize: bool = False) -> Tensor:
    """Divergence of logits from the textbook definition, in float64, differentiable."""
    vocab = min(student.shape[-1], teacher.shape[-1])
    lq = torch.log_softmax(student[..., :vocab].double() / temperature, -1)
    lp = torch.log_softmax(teacher[..., :vocab].double() / temperature, -1)
    return of_logprobs(lq, lp, beta, normalize)


def of_logprobs(lq: Tensor, lp: Tensor, beta: float, normalize: bool = False) -> Tensor:
    p, q = lp.exp(), lq.exp()
    if beta == 0:
        return xlogy_ratio(p, lp, lq)
    if beta == 1:
        return xlogy_ratio(q, lq, lp)
    log_m = torch.log(beta * p + (1 - beta) * q)
    value = beta * xlogy_ratio(p, lp, log_m) + (1 - beta) * xlogy_ratio(q, lq, log_m)
    return value / (beta * (1 - beta)) if normalize else value


def topk(student: Tensor, logprobs: Tensor, ids: Tensor, beta: float, mode: str, temperature: float = 1.0) -> Tensor:
    """Top-k divergence by buckets: probabilities outside the support are summed one by one. No absent entries."""
    lq = torch.log_softmax(student.double() / temperature, -1)
    q_k, p_k = lq.gather(-1, ids), logprobs.double()
    if mode == "renorm":
        return of_logprobs(q_k - q_k.logsumexp(-1, keepdim=True), p_k - p_k.logsumexp(-1, keepdim=True), beta)
    rest = torch.ones_like(lq, dtype=torch.bool).scatter(-1, ids, False)
    q_tail = (lq.exp() * rest).sum(-1, keepdim=True)
    p_tail = 1 - p_k.exp().sum(-1, keepdim=True)
    return of_logprobs(torch.cat([q_k, q_tail.log()], -1), torch.cat([p_k, p_tail.log()], -1), beta)


def head_logits(hidden: Tensor, weight: Tensor, bias=None, softcap=None, scale=1.0, valid=None) -> Tensor:
    raw = hidden.double() @ weight.double().T
    if bias is not None:
        raw = raw + bias.double()
    raw = raw * scale
    if softcap is not None:
        raw = softcap * torch.tanh(raw / softcap)
    return raw if valid is None else raw[..., :valid]


def grads(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]
