"""Sampled tokens and supports from hidden states and a head: log-probabilities, policy losses, a teacher's top-k."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from .chunks import HeadPass
from .divergence import block_rows, log_softmax
from .head import Head, as_head, compute_dtype
from .reduce import active_rows, check_weights, outside
from .support import complement_

_LOG_ZERO = -1e30

Objective = Callable[[Tensor, Tensor], Tensor]


def linear_token_logprobs(
    hidden: Tensor,
    head: Head | Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    return_entropy: bool = False,
    chunk_rows: int | None = None,
) -> Any:
    """log q(y) at each row, [N, H], Head, [N] int64 -> [N] float32, and the entropies [N] on request.

    Differentiable in hidden and the head's tensors: the backward computes the chunk's logits again, nothing of size
    [N, V] is kept. Raises ValueError for ids outside the head's valid ones and a temperature that is not positive.
    """
    head = as_head(head)
    _check(hidden, head, token_ids, temperature)
    options = (head, token_ids, temperature, return_entropy, chunk_rows)
    logp, entropy = cast(
        tuple[Tensor, Tensor],
        _TokenLogprobs.apply(options, hidden, head.weight, head.bias),  # pyright: ignore
    )
    return (logp, entropy) if return_entropy else logp


def linear_policy_loss(
    hidden: Tensor,
    head: Head | Tensor,
    token_ids: Tensor,
    objective: Objective,
    *,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    return_stats: bool = False,
    chunk_rows: int | None = None,
) -> Any:
    """sum_t weights_t objective(logp, index)_t, a scalar in float32, differentiable in hidden and the head's tensors.

    objective(logp [n], index [n]) -> [n]: the per-token loss of the rows `index` of the N, a function of each row's own
    log-probability (and of what it picks by index: advantages, old log-probabilities). It is differentiated inside the
    chunk. Rows of weight 0 are never computed. With return_stats also a dict of detached [N]: loss, logp, entropy.
    """
    head = as_head(head)
    weights = check_weights(weights, hidden.shape[0], "weights")
    if weights is not None:
        token_ids = torch.where(weights != 0, token_ids, 0)
    _check(hidden, head, token_ids, temperature)
    count, dtype = hidden.shape[0], compute_dtype(hidden, head.weight)
    walk = HeadPass(hidden, head, head.vocab, dtype=dtype, chunk_rows=chunk_rows)
    rows = active_rows(weights)
    every = torch.arange(count, device=hidden.device) if rows is None else rows
    stats = {name: torch.zeros(count, dtype=dtype, device=hidden.device) for name in ("loss", "logp", "entropy")}

    def rule(logits: Tensor, at: slice) -> None:
        index = every[at]
        ids = token_ids[index]
        logp, entropy = _to_logprobs_(logits, ids, temperature, entropy=return_stats)
        weight = None if weights is None else weights[index].to(dtype)
        loss, slope = _differentiate(objective, logp, index, weight, walk.grads)
        for name, values in (("loss", loss), ("logp", logp), ("entropy", entropy)):
            stats[name][index] = values
        if walk.grads:
            _policy_grad_(logits, ids, slope / temperature)

    walk.run(rows, rule)
    loss = stats["loss"] if weights is None else stats["loss"] * weights.to(dtype)
    value = walk.attach(loss.sum())
    return (value, stats) if return_stats else value


def linear_topk(
    hidden: Tensor, head: Head | Tensor, k: int, *, temperature: float = 1.0, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A teacher's signal: [N, H] -> log-probabilities [N, k], ids [N, k] int64, log of the remaining mass [N].

    Normalised over all valid ids at the temperature, likeliest first, float32; the remaining mass is a sum over the
    other ids (-inf when k names all of them). Not differentiable. Raises ValueError for a k outside 1..valid.
    """
    head = as_head(head)
    if not 1 <= k <= head.vocab:
        raise ValueError(f"k must lie in 1..{head.vocab}, got {k}")
    nothing = torch.empty(hidden.shape[0], 0, dtype=torch.int64, device=hidden.device)
    return linear_named(hidden, head, nothing, temperature=temperature, k=k, chunk_rows=chunk_rows)


def linear_named(
    hidden: Tensor,
    head: Head | Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    k: int = 0,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the ids that the asker names, after the k likeliest, and the log of the remaining mass.

    hidden [N, H], ids [N, K] int64 -> logprobs [N, k + K], ids [N, k + K] int64, log_tail [N]; normalised over the
    valid ids at the temperature, in float32 (float64 where an input is). A negative id is absent, and so is a named id
    that its row has already: among the k likeliest, or named before. An absent entry has log-probability -inf and id 0,
    and so has one of probability zero. log_tail is a sum over the other ids, -inf when none is left; no gradients.

    Raises ValueError for ids that are not valid, a k outside 0..valid and a temperature that is not positive.
    """
    head = as_head(head)
    _check_named(hidden, head, ids, temperature, k)
    dtype = compute_dtype(hidden, head.weight)
    likeliest = torch.zeros(ids.shape[0], k, dtype=torch.int64, device=ids.device)
    found = torch.cat([likeliest, ids], -1)
    logprobs = torch.empty(found.shape, dtype=dtype, device=hidden.device)
    tail = torch.empty(found.shape[0], dtype=dtype, device=hidden.device)
    step = block_rows(head.vocab, hidden.device)

    def rule(logits: Tensor, at: slice) -> None:
        for start in range(0, logits.shape[0], step):
            block = logits[start : start + step]
            rows = slice(at.start + start, at.start + start + block.shape[0])
            lp = log_softmax(block, temperature)
            if k:
                found[rows, :k] = lp.topk(k, -1).indices
            absent = (found[rows] < 0) | _repeated(found[rows])
            values = lp.gather(-1, found[rows].masked_fill_(absent, 0)).masked_fill_(absent, -torch.inf)
            present = ~torch.isneginf(values)
            logprobs[rows] = values
            found[rows].masked_fill_(~present, 0)
            tail[rows] = complement_(lp, found[rows], present)

    with torch.no_grad():
        HeadPass(hidden, head, head.vocab, dtype=dtype, chunk_rows=chunk_rows).run(None, rule)
    return logprobs, found, tail


def _repeated(ids: Tensor) -> Tensor:
    """Which entries of [n, K] stand further left in their row too, [n, K] bool."""
    ordered, order = ids.sort(dim=-1, stable=True)
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter_(-1, order, again)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, options: tuple[Any, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        head, token_ids, temperature, wants_entropy, chunk_rows = options
        ctx.options = (head.softcap, head.scale, head.valid, temperature, chunk_rows)
        ctx.save_for_backward(hidden, weight, bias, token_ids)
        dtype = compute_dtype(hidden, weight)
        logp = torch.empty(hidden.shape[0], dtype=dtype, device=hidden.device)
        entropy = torch.zeros_like(logp)

        def rule(logits: Tensor, at: slice) -> None:
            logp[at], entropy[at] = _to_logprobs_(logits, token_ids[at], temperature, entropy=wants_entropy, keep=False)

        HeadPass(hidden, head, head.vocab, dtype=dtype, chunk_rows=chunk_rows).run(None, rule)
        return logp, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        hidden, weight, bias, token_ids = ctx.saved_tensors
        softcap, scale, valid, temperature, chunk_rows = ctx.options
        d_logp, d_entropy = upstream
        wants_entropy = bool((d_entropy != 0).any())
        needs = ctx.needs_input_grad[1:]
        hidden, weight = (t.detach().requires_grad_(n) for t, n in zip((hidden, weight), needs, strict=False))
        bias = None if bias is None else bias.detach().requires_grad_(needs[2])
        head = Head(weight, bias, softcap, scale, valid)
        with torch.enable_grad():
            walk = HeadPass(hidden, head, head.vocab, dtype=d_logp.dtype, chunk_rows=chunk_rows)

        rows = active_rows((d_logp != 0) | (d_entropy != 0))

        def rule(logits: Tensor, at: slice) -> None:
            index = at if rows is None else rows[at]
            ids, slope = token_ids[index], d_logp[index] / temperature
            _, entropy = _to_logprobs_(logits, ids, temperature, entropy=wants_entropy)
            _policy_grad_(logits, ids, slope, (d_entropy[index] / temperature, entropy) if wants_entropy else None)

        walk.run(rows, rule)
        found = (walk.d_hidden, walk.d_weight, walk.d_bias)
        inputs = (hidden, weight, bias)
        grads = (None if g is None or x is None else g.to(x.dtype) for g, x in zip(found, inputs, strict=True))
        return (None, *grads)


def _to_logprobs_(
    logits: Tensor, ids: Tensor, temperature: float, *, entropy: bool, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits [c, V] become log-probabilities; returns those of the ids, [c], and the entropies (zeros if not asked)."""
    step = block_rows(logits.shape[-1], logits.device)
    logp, spread = torch.empty_like(logits[:, 0]), torch.zeros_like(logits[:, 0])
    work = torch.empty_like(logits[:step])
    for start in range(0, logits.shape[0], step):
        block = slice(start, start + step)
        z = logits[block]
        lq = work[: z.shape[0]]
        log_softmax(z, temperature, work=z if temperature != 1.0 else None, out=lq)
        logp[block] = lq.gather(-1, ids[block].unsqueeze(-1)).squeeze(-1)
        if keep:
            z.copy_(lq)
        if entropy:
            lq.clamp_(min=_LOG_ZERO)
            spread[block] = -lq.mul_(lq.exp()).sum(-1)
    return logp, spread


def _policy_grad_(lq: Tensor, ids: Tensor, slope: Tensor, spread: tuple[Tensor, Tensor] | None = None) -> None:
    """Log-probabilities become slope (1[v = y] - q_v), and - c q_v (log q_v + entropy) with spread = (c, entropy)."""
    step = block_rows(lq.shape[-1], lq.device)
    for start in range(0, lq.shape[0], step):
        block = slice(start, start + step)
        z, c = lq[block], slope[block].unsqueeze(-1)
        if spread is None:
            z.exp_().mul_(-c)
        else:
            weight, entropy = spread[0][block].unsqueeze(-1), spread[1][block].unsqueeze(-1)
            factor = z.clamp(min=_LOG_ZERO).add_(entropy).mul_(-weight).sub_(c)
            z.exp_().mul_(factor)
        z.scatter_add_(-1, ids[block].unsqueeze(-1), c)


def _differentiate(
    objective: Objective, logp: Tensor, index: Tensor, weight: Tensor | None, grads: bool
) -> tuple[Tensor, Tensor]:
    """Per-token losses [n], detached, and the derivative of their weighted sum with respect to logp [n]."""
    with torch.set_grad_enabled(grads):
        leaf = logp.detach().requires_grad_(grads)
        loss = objective(leaf, index)
        if loss.shape != logp.shape:
            raise ValueError(f"objective must return {tuple(logp.shape)}, got shape {tuple(loss.shape)}")
        if not loss.requires_grad:
            return loss.detach(), torch.zeros_like(logp)
        total = loss.sum() if weight is None else (loss * weight).sum()
        (slope,) = torch.autograd.grad(total, leaf, allow_unused=True, materialize_grads=True)
    return loss.detach(), slope


def _check(hidden: Tensor, head: Head, token_ids: Tensor, temperature: float) -> None:
    if token_ids.shape != hidden.shape[:1]:
        raise ValueError(f"token_ids must be [{hidden.shape[0]}], got shape {tuple(token_ids.shape)}")
    if outside(token_ids, head.vocab):
        raise ValueError(f"token_ids must lie below {head.vocab}, the number of valid ids")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _check_named(hidden: Tensor, head: Head, ids: Tensor, temperature: float, k: int) -> None:
    if ids.ndim != 2 or ids.shape[0] != hidden.shape[0]:
        raise ValueError(f"ids must be [{hidden.shape[0]}, K], got shape {tuple(ids.shape)}")
    if bool((ids >= head.vocab).any()):
        raise ValueError(f"ids must lie below {head.vocab}, the number of valid ids")
    if not 0 <= k <= head.vocab:
        raise ValueError(f"k must lie in 0..{head.vocab}, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
