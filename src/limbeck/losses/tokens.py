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

    Differentiable in hidden and the head's tensors; nothing of size [N, V] is kept. With a head that takes no gradient
    the forward keeps the gradient of each log q(y) with respect to its hidden state, [N, H]; else, and for a gradient
    of the entropies, the backward computes the chunk's logits again (`linear_policy_loss` has both in one pass).

    Raises ValueError for ids outside the head's valid ones and a temperature that is not positive.
    """
    head = as_head(head)
    _check(hidden, head, token_ids, temperature)
    options = (head, token_ids, temperature, return_entropy, chunk_rows, torch.is_grad_enabled())
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

    def rule(logits: Tensor, at: slice) -> Tensor:
        index = every[at]
        ids = token_ids[index]
        logp, entropy = _to_probs_(logits, ids, temperature, entropy=return_stats)
        weight = None if weights is None else weights[index].to(dtype)
        loss, slope = differentiate(objective, logp, index, weight, walk.grads)
        for name, values in (("loss", loss), ("logp", logp), ("entropy", entropy)):
            stats[name][index] = values
        return _off_target_(logits, ids, slope / -temperature)

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
            tail[rows], _ = complement_(lp, found[rows], present)

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
    """Log-probabilities and entropies [N]. With a head that takes no gradient the forward finishes the hidden states'
    gradient of log q(y), (w_y - E_q[w]) / T, and the backward scales its rows; otherwise the backward recomputes."""

    @staticmethod
    def forward(
        ctx: Any, options: tuple[Any, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        head, token_ids, temperature, wants_entropy, chunk_rows, grads = options
        ctx.options = (head.softcap, head.scale, head.valid, temperature, chunk_rows)
        dtype = compute_dtype(hidden, weight)
        logp = torch.empty(hidden.shape[0], dtype=dtype, device=hidden.device)
        entropy = torch.zeros_like(logp)
        frozen = grads and ctx.needs_input_grad[1:] == (True, False, False)
        walk = _token_walk(head, hidden, (frozen, False, False), dtype, chunk_rows)

        def rule(logits: Tensor, at: slice) -> Tensor | None:
            ids = token_ids[at]
            logp[at], entropy[at] = _to_probs_(logits, ids, temperature, entropy=wants_entropy)
            return _off_target_(logits, ids, torch.full_like(logp[at], -1 / temperature)) if frozen else None

        walk.run(None, rule)
        again = (hidden, weight, bias, token_ids) if wants_entropy or not frozen else (None,) * 4
        ctx.save_for_backward(walk.d_hidden, *again)
        return logp, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        unit, hidden, weight, bias, token_ids = ctx.saved_tensors
        softcap, scale, valid, temperature, chunk_rows = ctx.options
        d_logp, d_entropy = upstream
        wants_entropy = bool((d_entropy != 0).any())
        if unit is not None and not wants_entropy:
            rows = d_logp.unsqueeze(-1)
            return None, torch.where(rows != 0, unit * rows, 0).to(unit.dtype), None, None
        head = Head(weight, bias, softcap, scale, valid)
        walk = _token_walk(head, hidden, ctx.needs_input_grad[1:], d_logp.dtype, chunk_rows)
        rows = active_rows((d_logp != 0) | (d_entropy != 0))

        def rule(logits: Tensor, at: slice) -> Tensor | None:
            index = at if rows is None else rows[at]
            ids, slope = token_ids[index], d_logp[index] / -temperature
            _, entropy = _to_probs_(logits, ids, temperature, entropy=wants_entropy)
            if not wants_entropy:
                return _off_target_(logits, ids, slope)
            _entropy_grad_(logits, ids, slope, d_entropy[index] / -temperature, entropy)

        walk.run(rows, rule)
        inputs = (hidden, weight, bias)
        grads = (None if g is None else g.to(x.dtype) for g, x in zip(walk.found(), inputs, strict=True))
        return (None, *grads)


def _token_walk(
    head: Head, hidden: Tensor, needs: tuple[bool, ...], dtype: torch.dtype, chunk_rows: int | None
) -> HeadPass:
    """A walk from inside an autograd function, where nothing requires a gradient, that takes those in `needs`."""
    inputs = (hidden, head.weight, head.bias)
    leaves = [None if x is None else x.detach().requires_grad_(n) for x, n in zip(inputs, needs, strict=True)]
    own = Head(cast(Tensor, leaves[1]), leaves[2], head.softcap, head.scale, head.valid)
    with torch.enable_grad():
        return HeadPass(cast(Tensor, leaves[0]), own, own.vocab, dtype=dtype, chunk_rows=chunk_rows)


def _to_probs_(logits: Tensor, ids: Tensor, temperature: float, *, entropy: bool) -> tuple[Tensor, Tensor]:
    """Logits [c, V] become probabilities; returns log q of the ids, [c], and the entropies (zeros if not asked).

    The log of the normaliser is the largest logit minus the log of its probability: a softmax and two maxima are all.
    """
    step = block_rows(logits.shape[-1], logits.device)
    logp, spread = torch.empty_like(logits[:, 0]), torch.zeros_like(logits[:, 0])
    work = torch.empty_like(logits[:step]) if entropy else logits
    for start in range(0, logits.shape[0], step):
        block = slice(start, start + step)
        z = logits[block]
        z = z if temperature == 1.0 else z.div_(temperature)
        top = z.amax(-1)
        picked = z.gather(-1, ids[block].unsqueeze(-1)).squeeze(-1)
        q = torch.softmax(z, -1, out=work[: z.shape[0]] if entropy else z)  # pyright: ignore
        norm = top - q.amax(-1).log()
        logp[block] = picked - norm
        if entropy:
            lq = z.sub_(norm.unsqueeze(-1)).clamp_(min=_LOG_ZERO)
            spread[block] = -lq.mul_(q).sum(-1)
            z.copy_(q)
    return logp, spread


def _off_target_(q: Tensor, ids: Tensor, factor: Tensor) -> Tensor:
    """Probabilities [c, V] become q - 1[v = y], minus the gradient of log q(y); the factor is handed on."""
    q.scatter_add_(-1, ids.unsqueeze(-1), torch.full_like(factor, -1).unsqueeze(-1))
    return factor


def _entropy_grad_(q: Tensor, ids: Tensor, slope: Tensor, spread: Tensor, entropy: Tensor) -> None:
    """Probabilities become slope (q_v - 1[v = y]) + spread q_v (log q_v + entropy)."""
    step = block_rows(q.shape[-1], q.device)
    for start in range(0, q.shape[0], step):
        block = slice(start, start + step)
        z, c = q[block], slope[block].unsqueeze(-1)
        lq = z.log().clamp_(min=_LOG_ZERO)
        z.mul_(lq.add_(entropy[block].unsqueeze(-1)).mul_(spread[block].unsqueeze(-1)).add_(c))
        z.scatter_add_(-1, ids[block].unsqueeze(-1), -c)


def differentiate(
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
