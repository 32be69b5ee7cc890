"""The losses from hidden states and heads: matmul, value and gradient in one walk over the tokens.

Every function keeps nothing of size [N, V], never multiplies a row of weight zero, runs the teacher's head inside the
chunk, and works in float32 (float64 where an input is) under autocast too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .along import TokenTerm, term_of
from .chunks import HeadPass, head_logits
from .divergence import Measure, block_rows, compare_, exp, log_softmax, pair_stats
from .gathered import gathered_renorm
from .head import Head, as_head, compute_dtype
from .reduce import active_rows, check_weights
from .support import Support, support_block_

Stats = dict[str, Tensor]
# Values [b], the factor of the gradient [b] (None: 1), statistics.
Compared = tuple[Tensor, Tensor | None, Stats]

_STATS = ("divergence", "forward_kl", "reverse_kl", "student_entropy", "teacher_entropy", "top1_agreement")
_SUPPORT_STATS = (*_STATS, "student_mass", "teacher_mass")


@dataclass
class Tally:
    """Per-token results of one call, [N] each, zero where nothing was computed."""

    rows: int
    dtype: torch.dtype
    device: torch.device
    found: Stats = field(default_factory=dict[str, Tensor])

    def put(self, name: str, index: slice | Tensor, values: Tensor) -> None:
        if name not in self.found:
            self.found[name] = torch.zeros(self.rows, dtype=self.dtype, device=self.device)
        self.found[name][index] = values

    def get(self, name: str) -> Tensor:
        return self.found.get(name, torch.zeros(self.rows, dtype=self.dtype, device=self.device))


def linear_divergence(  # noqa: PLR0913 - the public signature
    student_hidden: Tensor,
    student_head: Head | Tensor,
    teacher_hidden: Tensor,
    teacher_head: Head | Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    token_clip: float | None = None,
    normalize: bool = False,
    ce_ids: Tensor | None = None,
    ce_weights: Tensor | None = None,
    along: TokenTerm | None = None,
    teacher_index: Tensor | None = None,
    return_stats: bool = False,
    chunk_rows: int | None = None,
) -> Any:
    """sum_t weights_t D_t + sum_t ce_weights_t CE_t, a scalar in float32, over the full vocabulary.

    student_hidden [N, H_s], teacher_hidden [N, H_t] ([M, H_t] with teacher_index [N] int64: the teacher's row of each
    student row); weights float or bool [N]; ids above the narrower head's valid ones are cut on both sides.
    token_clip cuts each D_t, which gives no gradient there. along: in the place of the cross-entropy another term of
    each token's log-probability, such as a policy loss, and its statistics. Differentiable in student_hidden and the
    student head's tensors. With return_stats (scalar, dict of detached [N] tensors): divergence, forward_kl,
    reverse_kl, student_entropy, teacher_entropy, top1_agreement at the loss's temperature, and ce.
    """
    measure = Measure(beta, temperature, normalize, token_clip)
    student, teacher = as_head(student_head), as_head(teacher_head)
    vocab = min(student.vocab, teacher.vocab)
    count = student_hidden.shape[0]
    if teacher_index is None and teacher_hidden.shape[0] != count:
        raise ValueError(f"{count} student rows but {teacher_hidden.shape[0]} teacher rows, and no teacher_index")
    if teacher_index is not None and teacher_index.shape != (count,):
        raise ValueError(f"teacher_index must be [{count}], got shape {tuple(teacher_index.shape)}")
    dtype = compute_dtype(student_hidden, student.weight, teacher_hidden, teacher.weight)
    walk = HeadPass(student_hidden, student, vocab, dtype=dtype, chunk_rows=chunk_rows)
    masked = student.masks(vocab) or teacher.masks(vocab)
    teacher_logits = torch.empty(0, dtype=dtype, device=student_hidden.device)

    def prepare(index: Tensor | slice, chunk: int) -> Tensor:
        nonlocal teacher_logits
        if teacher_logits.numel() == 0:
            teacher_logits = torch.empty(walk.size, vocab, dtype=dtype, device=student_hidden.device)
        source = index if teacher_index is None else teacher_index[index]
        logits = teacher_logits[:chunk]
        head_logits(teacher_hidden[source], teacher, out=logits)
        return logits

    def compare(lq: Tensor, theirs: Any, at: slice, coef: Tensor, out: Tensor, work: Any) -> Compared:
        lp, x, y, *more = work
        log_softmax(theirs[at], temperature, work=x, out=lp)
        stats = pair_stats(lq, lp, masked=masked, work=(x, y, *more)) if return_stats else {}
        value, factor = compare_(lq, lp, measure, masked=masked, grad=walk.grads, work=(x, y), out=out)
        return value, factor * coef, stats

    term = term_of(along, ce_ids, ce_weights, rows=count, vocab=vocab, dtype=dtype)
    tally = _walk(walk, measure, weights, term, prepare, compare, buffers=5 if return_stats else 4, stats=return_stats)
    return _finish(walk, tally, weights, term, _STATS if return_stats else ())


def linear_topk_divergence(  # noqa: PLR0913 - the public signature
    student_hidden: Tensor,
    student_head: Head | Tensor,
    teacher_logprobs: Tensor,
    teacher_ids: Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    mode: str = "tail",
    teacher_log_tail: Tensor | None = None,
    weights: Tensor | None = None,
    token_clip: float | None = None,
    normalize: bool = False,
    ce_ids: Tensor | None = None,
    ce_weights: Tensor | None = None,
    along: TokenTerm | None = None,
    return_stats: bool = False,
    chunk_rows: int | None = None,
) -> Any:
    """The same on the teacher's top-k support; arguments as in `topk_divergence` and `linear_divergence`.

    teacher_logprobs [N, K], teacher_ids [N, K] int64, teacher_log_tail [N] or None. `renorm` without cross-entropy
    multiplies only the K named rows of the head. The statistics are over the buckets, with student_mass and
    teacher_mass (on the support) besides.
    """
    measure = Measure(beta, temperature, normalize, token_clip)
    student = as_head(student_head)
    vocab, count = student.vocab, student_hidden.shape[0]
    if teacher_logprobs.ndim != 2 or teacher_logprobs.shape[0] != count:
        raise ValueError(f"teacher_logprobs must be [{count}, K], got shape {tuple(teacher_logprobs.shape)}")
    dtype = compute_dtype(student_hidden, student.weight)
    weights = check_weights(weights, count, "weights")
    if weights is not None:  # what stands in rows of weight zero is never read
        teacher_logprobs = teacher_logprobs.masked_fill((weights == 0).unsqueeze(-1), -torch.inf)
    support = Support.make(teacher_logprobs, teacher_ids, teacher_log_tail, mode, vocab=vocab, dtype=dtype)
    term = term_of(along, ce_ids, ce_weights, rows=count, vocab=vocab, dtype=dtype)
    walk = HeadPass(student_hidden, student, vocab, dtype=dtype, chunk_rows=chunk_rows)
    if mode == "renorm" and term is None and not student.masks(vocab):
        tally = Tally(count, dtype, student_hidden.device)
        gathered_renorm(walk, support, measure, weights, active_rows(weights), tally.put, return_stats)
        return _finish(walk, tally, weights, None, _SUPPORT_STATS if return_stats else ())

    def prepare(index: Tensor | slice, chunk: int) -> Support:
        return support.rows(index)

    def compare(lq: Tensor, theirs: Any, at: slice, coef: Tensor, out: Tensor, work: Any) -> Compared:
        part = coef if walk.grads else None
        value, stats = support_block_(lq, theirs.rows(at), measure, part, out=out, stats=return_stats)
        return value, None, stats

    tally = _walk(walk, measure, weights, term, prepare, compare, buffers=2, stats=return_stats)
    return _finish(walk, tally, weights, term, _SUPPORT_STATS if return_stats else ())


def _walk(
    walk: HeadPass,
    measure: Measure,
    weights: Tensor | None,
    term: TokenTerm | None,
    prepare: Any,
    compare: Any,
    *,
    buffers: int,
    stats: bool,
) -> Tally:
    """Two passes: the rows that the divergence weighs (the term along), then those that only the latter does.

    prepare(row indices, count) gives the teacher's side of a chunk; compare(lq, it, rows, coef, out, work) compares a
    block of it with the student's log-probabilities and writes the gradient, but for a factor a row, to out. buffers:
    how many of a block's size are needed, lq included.
    """
    count, device = walk.hidden.shape[0], walk.hidden.device
    tally = Tally(count, walk.dtype, device)
    weights = check_weights(weights, count, "weights")
    rows = active_rows(weights)
    coefs = torch.ones(count, dtype=walk.dtype, device=device) if weights is None else weights.to(walk.dtype)
    coefs = coefs / measure.temperature
    step = min(walk.size, block_rows(walk.vocab, device))
    work = torch.empty(0, dtype=walk.dtype, device=device)

    def rule(logits: Tensor, at: slice) -> Tensor | None:
        nonlocal work
        index = at if rows is None else rows[at]
        size, coef = logits.shape[0], coefs[index]
        if work.numel() == 0:
            work = torch.empty(buffers + (term is not None), step, walk.vocab, dtype=walk.dtype, device=device)
        theirs = prepare(index, size)
        factors = None
        for start in range(0, size, step):
            block = slice(start, min(start + step, size))
            at_rows = slice(at.start + block.start, at.start + block.stop)
            index = at_rows if rows is None else rows[at_rows]
            z = logits[block]
            lq, *scratch = [w[: z.shape[0]] for w in work]
            log_softmax(z, measure.temperature, work=scratch[0], out=lq)
            along = None
            if term is not None:
                room, same = scratch.pop(), term.temperature == measure.temperature
                own = lq if same else log_softmax(z, term.temperature, work=room, out=room)
                along = _term(own, term, index, tally, room, walk.grads, stats)
            value, factor, found = compare(lq, theirs, block, coef[block], z, scratch)
            tally.put("divergence", index, value)
            for name, values in found.items():
                tally.put(name, index, values)
            if along is not None:
                z = z if factor is None else z.mul_(factor.unsqueeze(-1))
                z.add_(along)
            elif factor is not None:
                factors = torch.empty_like(coef) if factors is None else factors
                factors[block] = factor
        return factors

    walk.run(rows, rule)
    if term is not None and weights is not None:
        _term_pass(walk, term, term.beside(weights), tally, stats)
    return tally


def _term_pass(walk: HeadPass, term: TokenTerm, rows: Tensor, tally: Tally, stats: bool) -> None:
    """Rows without a divergence: the term alone."""
    step = block_rows(walk.vocab, walk.hidden.device)

    def rule(logits: Tensor, at: slice) -> None:
        for start in range(0, logits.shape[0], step):
            z = logits[start : start + step]
            index = rows[at.start + start : at.start + start + z.shape[0]]
            lq = log_softmax(z, term.temperature, work=z, out=z)
            _term(lq, term, index, tally, z, walk.grads, stats)

    walk.run(rows, rule)


def _term(
    lq: Tensor, term: TokenTerm, index: slice | Tensor, tally: Tally, out: Tensor, grads: bool, stats: bool
) -> Tensor | None:
    """The term of a block of log-probabilities at its temperature; its weighted gradient, c (q - onehot), in `out`."""
    value, slope, found = term.at(lq, index, grads=grads, stats=stats)
    for name, values in (found | {term.name: value}).items():
        tally.put(name, index, values)
    if not grads:
        return None
    slope = slope.unsqueeze(-1) / -term.temperature
    return exp(lq, out=out).mul_(slope).scatter_add_(-1, term.ids[index].unsqueeze(-1), -slope)


def _finish(
    walk: HeadPass, tally: Tally, weights: Tensor | None, term: TokenTerm | None, names: tuple[str, ...]
) -> Tensor | tuple[Tensor, Stats]:
    """The loss, and the statistics of these names where any is given; all of them, with no active row too."""
    value = _weighted(tally.get("divergence"), weights)
    if term is not None:
        value = value + _weighted(tally.get(term.name), term.weights)
    loss = walk.attach(value)
    if not names:
        return loss
    return loss, {name: tally.get(name) for name in (*names, *(() if term is None else term.stats))}


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """sum of weights * values; a row of weight zero was never computed and stands at zero."""
    return values.sum() if weights is None else (values * weights.to(values.dtype)).sum()
