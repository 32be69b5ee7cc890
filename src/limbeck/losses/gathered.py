"""Renormalised top-k: the student's logits at K ids need K rows of the head and no matmul over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .chunks import HeadPass, cap_slope, chunks, head_logits
from .divergence import Measure, compare_, pair_stats
from .head import Head
from .support import Support, normalise

# Elements of the gathered rows [c, K, H] of one chunk.
_GATHER_ELEMENTS = 1 << 22


def gathered_renorm(
    walk: HeadPass,
    support: Support,
    measure: Measure,
    weights: Tensor | None,
    rows: Tensor | None,
    put: Callable[[str, slice | Tensor, Tensor], None],
    stats: bool,
) -> None:
    """Per-token values to put("divergence", rows, values), gradients to the walk; `rows` None: all of them.

    The statistics need the student's mass on the support: one pass over the full head, without gradient.
    """
    walk.found()  # the head's gradient is added to row by row: it starts at zero
    width = support.ids.shape[1]
    count = walk.hidden.shape[0] if rows is None else rows.shape[0]
    size = max(1, min(walk.size, _GATHER_ELEMENTS // max(1, width * walk.hidden.shape[1])))
    with torch.no_grad(), torch.autocast(walk.hidden.device.type, enabled=False):
        for at in chunks(count, size):
            index = at if rows is None else rows[at]
            part = support.rows(index)
            hidden = walk.hidden[index].to(walk.dtype)
            named = walk.head.weight[part.ids].to(walk.dtype)
            logits = gathered_logits(hidden, named, walk.head, part.ids)
            slope = cap_slope(logits, walk.head) if walk.grads else None
            coef = None
            if walk.grads:
                coef = torch.ones_like(hidden[:, 0]) if weights is None else weights[index].to(walk.dtype)
                coef = coef / measure.temperature
            absent = ~part.present
            lq = normalise((logits / measure.temperature).masked_fill(absent, -torch.inf))
            lp = normalise(part.logprobs)
            settle_(lq, lp, rounding(hidden, named, walk.head, measure.temperature))
            if stats:
                work = (torch.empty_like(lq), torch.empty_like(lq), torch.empty_like(lq))
                for name, values in pair_stats(lq, lp, masked=True, work=work).items():
                    put(name, index, values)
            value, factor = compare_(lq, lp, measure, masked=True, grad=walk.grads)
            put("divergence", index, value)
            if coef is not None:
                lq.mul_((factor * coef).unsqueeze(-1))
                _collect(walk, lq if slope is None else lq * slope, named, hidden, part.ids, index)
    if stats:
        _masses(walk, support, measure, rows, put)


def gathered_logits(hidden: Tensor, named: Tensor, head: Head, ids: Tensor) -> Tensor:
    """[c, H], [c, K, H] -> [c, K]."""
    logits = torch.bmm(named, hidden.unsqueeze(-1)).squeeze(-1)
    if head.bias is not None:
        logits.add_(head.bias[ids].to(logits.dtype))
    logits.mul_(head.scale)
    return logits if head.softcap is None else logits.div_(head.softcap).tanh_().mul_(head.softcap)


def rounding(hidden: Tensor, named: Tensor, head: Head, temperature: float) -> Tensor:
    """Rounding error of a row's logits, [c, 1]: eps |h| max |w|, the statistical bound of a dot product."""
    size = hidden.square().sum(-1).sqrt() * named.square().sum(-1).amax(-1).sqrt()
    return (size * (torch.finfo(hidden.dtype).eps * abs(head.scale) / temperature)).unsqueeze(-1)


def settle_(lq: Tensor, lp: Tensor, bound: Tensor) -> None:
    """Rows whose sides differ by no more than the rounding of the logits are equal: no noise becomes a gradient.

    The teacher's log-probabilities came from another matmul than the gathered logits, so that equal models differ here
    in the last bits, which everywhere else are equal too.
    """
    apart = (lq - lp).masked_fill_(lq == lp, 0).abs_().amax(-1, keepdim=True)  # -inf on both sides is no difference
    lq.copy_(torch.where(apart <= bound, lp, lq))


def _collect(walk: HeadPass, grad: Tensor, named: Tensor, hidden: Tensor, ids: Tensor, index: slice | Tensor) -> None:
    """Take a chunk's gradient [c, K] to the hidden states and to the named rows of the head."""
    grad = grad * walk.head.scale
    if walk.d_hidden is not None:
        walk.d_hidden[index] = torch.bmm(grad.unsqueeze(1), named).squeeze(1).to(walk.d_hidden.dtype)
    if walk.d_weight is not None:
        named = torch.mul(grad.unsqueeze(-1), hidden.unsqueeze(1), out=named)
        walk.d_weight.index_add_(0, ids.reshape(-1), named.reshape(-1, named.shape[-1]))
    if walk.d_bias is not None:
        walk.d_bias.index_add_(0, ids.reshape(-1), grad.reshape(-1))


def _masses(
    walk: HeadPass,
    support: Support,
    measure: Measure,
    rows: Tensor | None,
    put: Callable[[str, slice | Tensor, Tensor], None],
) -> None:
    count = walk.hidden.shape[0] if rows is None else rows.shape[0]
    with torch.no_grad(), torch.autocast(walk.hidden.device.type, enabled=False):
        for at in chunks(count, walk.size):
            index = at if rows is None else rows[at]
            part = support.rows(index)
            hidden = walk.hidden[index]
            logits = hidden.new_empty(hidden.shape[0], walk.vocab, dtype=walk.dtype)
            head_logits(hidden, walk.head, out=logits)
            top = part.ids.gather(-1, part.logprobs.argmax(-1, keepdim=True))
            agree = logits.gather(-1, top).squeeze(-1) == logits.amax(-1)
            whole = (logits / measure.temperature).logsumexp(-1)
            kept = (logits.gather(-1, part.ids) / measure.temperature).masked_fill(~part.present, -torch.inf)
            put("top1_agreement", index, agree.to(walk.dtype))
            put("student_mass", index, (kept.logsumexp(-1) - whole).exp())
            put("teacher_mass", index, part.logprobs.logsumexp(-1).exp())
