"""The teacher's k likeliest ids as support: one more bucket for the rest (`tail`), or the k ids alone (`renorm`).

A support with buckets is a coarse-grained distribution, so the divergence and its gradient with respect to the bucket's
log-mass are those of the full vocabulary (`divergence.compare_`). The tail bucket's gradient g reaches each id outside
the support in proportion to its share of the student's tail mass: du_v = g q_v / q_tail.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .divergence import Measure, compare_, log_softmax, pair_stats, per_token
from .head import compute_dtype
from .reduce import outside

Mode = Literal["tail", "renorm"]


@dataclass(frozen=True, slots=True)
class Support:
    """A teacher's top-k signal for n rows.

    logprobs: [n, K], normalised over all valid ids; -inf is an absent entry.
    ids:      [n, K] int64, distinct among the present entries of a row.
    log_tail: [n] log of the mass outside the support, or None where the teacher did not send it.
    mode:     "tail" or "renorm".
    slack:    rounding bound of the sum of the probabilities as they were sent.
    """

    logprobs: Tensor
    ids: Tensor
    log_tail: Tensor | None
    mode: Mode
    slack: float

    @staticmethod
    def make(
        logprobs: Tensor, ids: Tensor, log_tail: Tensor | None, mode: str, *, vocab: int, dtype: torch.dtype
    ) -> Support:
        """Check the shapes and the ids of the present entries (ValueError), flatten the leading dimensions."""
        if mode not in ("tail", "renorm"):
            raise ValueError(f"topk mode must be 'tail' or 'renorm', got {mode!r}")
        if logprobs.shape != ids.shape:
            raise ValueError(f"shapes differ: logprobs {tuple(logprobs.shape)}, ids {tuple(ids.shape)}")
        if log_tail is not None and log_tail.shape != logprobs.shape[:-1]:
            raise ValueError(f"log_tail must be {tuple(logprobs.shape[:-1])}, got {tuple(log_tail.shape)}")
        width = logprobs.shape[-1]
        logprobs = logprobs.detach().reshape(-1, width)
        absent = torch.isneginf(logprobs)
        ids = ids.reshape(-1, width).masked_fill(absent, 0)
        if outside(ids, vocab):
            raise ValueError(f"teacher ids must lie below {vocab}, the number of ids of the student's head")
        log_tail = None if log_tail is None else log_tail.detach().reshape(-1).to(dtype)
        slack = (width + 16) * torch.finfo(compute_dtype(logprobs)).eps
        return Support(logprobs.to(dtype), ids, log_tail, mode, slack)

    def rows(self, at: slice | Tensor) -> Support:
        log_tail = None if self.log_tail is None else self.log_tail[at]
        return replace(self, logprobs=self.logprobs[at], ids=self.ids[at], log_tail=log_tail)

    @property
    def present(self) -> Tensor:
        return ~torch.isneginf(self.logprobs)


def topk_divergence(
    student_logits: Tensor,
    teacher_logprobs: Tensor,
    teacher_ids: Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    mode: str = "tail",
    teacher_log_tail: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """Per-token divergence on the teacher's support; differentiable in the student's logits.

    [..., V_s], [..., K] (normalised over all valid ids, at that temperature), [..., K] int64 -> [...]. An entry of -inf
    is absent. Without `teacher_log_tail` [...] the mass outside is one minus the sum, floored at its rounding bound.
    """
    measure = Measure(beta, temperature, normalize)
    if student_logits.shape[:-1] != teacher_logprobs.shape[:-1]:
        raise ValueError(
            f"shapes differ: student {tuple(student_logits.shape)}, teacher {tuple(teacher_logprobs.shape)}"
        )
    vocab = student_logits.shape[-1]
    dtype = compute_dtype(student_logits, teacher_logprobs)
    support = Support.make(teacher_logprobs, teacher_ids, teacher_log_tail, mode, vocab=vocab, dtype=dtype)

    def block(logits: Tensor, at: slice, wanted: bool) -> tuple[Tensor, Tensor]:
        coef = torch.full_like(logits[:, 0], 1 / temperature) if wanted else None
        lq, grad = log_softmax(logits, temperature), torch.empty_like(logits)  # the caller's logits stay as they are
        value, _ = support_block_(lq, support.rows(at), measure, coef, out=grad)
        return value, grad

    return per_token(student_logits, vocab, dtype, block)


def support_block_(
    lq: Tensor, support: Support, measure: Measure, coef: Tensor | None, *, out: Tensor, stats: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divergence on the support, [b, V] log-probabilities of the student -> [b], and statistics where asked.

    lq is used up; with `coef` [b] the gradient with respect to u times coef is written to `out` [b, V].
    """
    found: dict[str, Tensor] = {}
    if stats:
        top = support.logprobs.argmax(-1, keepdim=True)
        top_id = support.ids.gather(-1, top)
        found["top1_agreement"] = (lq.gather(-1, top_id).squeeze(-1) == lq.amax(-1)).to(lq.dtype)
    on_support = take(lq, support)
    tail, parts = complement_(lq, support.ids, support.present) if support.mode == "tail" else (None, None)
    value, g, more = buckets(on_support, tail, support, measure, coef, stats=stats)
    if coef is not None:
        if parts is None:
            out.zero_()
        else:
            torch.mul(lq, g[:, -1:] / parts.unsqueeze(-1).clamp(min=1), out=out)  # no id left: 0 of 0
        present = support.present
        out.view(-1)[cells(support.ids, lq.shape[-1])[present]] = g[:, : support.ids.shape[1]][present]
    return value, found | more


def take(lq: Tensor, support: Support) -> Tensor:
    """[b, V] -> [b, K], -inf at absent entries."""
    return lq.gather(-1, support.ids).masked_fill_(~support.present, -torch.inf)


def buckets(
    student: Tensor,
    student_tail: Tensor | None,
    support: Support,
    measure: Measure,
    coef: Tensor | None,
    *,
    stats: bool,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Compare the buckets: [b, K] and the tails -> value [b], gradient to the buckets' log-masses, statistics."""
    lp, found = support.logprobs, {}
    if stats:
        found = {"student_mass": student.logsumexp(-1).exp(), "teacher_mass": lp.logsumexp(-1).exp()}
    if student_tail is None:
        lq, lp = normalise(student), normalise(lp)
    else:
        teacher_tail = support.log_tail
        if teacher_tail is None:
            teacher_tail = estimate_tail(lp, student_tail, support.slack)
        lq = torch.cat([student, student_tail.unsqueeze(-1)], -1)
        lp = torch.cat([lp, teacher_tail.unsqueeze(-1)], -1)
    if stats:
        work = (torch.empty_like(lq), torch.empty_like(lq), torch.empty_like(lq))
        found |= {k: v for k, v in pair_stats(lq, lp, masked=True, work=work).items() if k != "top1_agreement"}
    value, factor = compare_(lq, lp, measure, masked=True, grad=coef is not None)
    return value, lq if coef is None else lq.mul_((factor * coef).unsqueeze(-1)), found


def normalise(lp: Tensor) -> Tensor:
    """Log-probabilities renormalised over the support; a row without any entry stays empty."""
    empty = torch.isneginf(lp).all(-1, keepdim=True)
    return torch.log_softmax(lp.masked_fill(empty, 0), -1).masked_fill(empty, -torch.inf)


def estimate_tail(lp: Tensor, student_tail: Tensor, slack: float) -> Tensor:
    """Log of the teacher's mass outside the support where it was not sent, [b, K], [b] -> [b].

    One minus the sum, never below the rounding bound `slack` of that sum. Where the student's tail lies within the
    bound of it, the two cannot be told apart and count as equal (equal inputs: exactly zero); where the student has no
    id left outside the support, the bucket is dropped.
    """
    tail = (1 - lp.exp().sum(-1)).clamp(min=slack)
    alike = (tail - student_tail.exp()).abs() <= slack
    return torch.where(alike | torch.isneginf(student_tail), student_tail, tail.log())


def complement_(lq: Tensor, ids: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the mass outside the present ids of each row, and its parts: [b, V], [b, K], [b, K] bool -> [b], [b].

    A sum over the rest and never one minus the sum. lq becomes each id's share of the rest, in parts: 1 for the
    likeliest id that is left, 0 on the support.
    """
    lq.view(-1).index_fill_(0, cells(ids, lq.shape[-1])[present], -torch.inf)
    highest = lq.amax(-1, keepdim=True)
    parts = lq.sub_(highest.masked_fill(torch.isneginf(highest), 0)).exp_().sum(-1)  # to the bit what logsumexp does
    return highest.squeeze(-1) + parts.log(), parts


def cells(ids: Tensor, vocab: int) -> Tensor:
    """Positions of ids [b, K] in a flattened [b, vocab] tensor."""
    return ids + torch.arange(ids.shape[0], device=ids.device).unsqueeze(-1) * vocab
