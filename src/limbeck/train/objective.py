"""How the signal reaches the student. Path A: a divergence, and cross-entropy, as the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.data.collate import Batch
from limbeck.losses import (
    Head,
    divergence,
    linear_divergence,
    linear_policy_loss,
    linear_token_logprobs,
    linear_topk_divergence,
    topk_divergence,
)
from limbeck.signal import Hidden, Part, Signal, TopK

Stats = dict[str, Tensor]
OVER_SUPPORT = ("forward_kl", "reverse_kl", "student_entropy", "teacher_entropy")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward of the student learns from. `parts`: the teachers' signals, none for plain cross-entropy;
    `on_dataset` [N] bool says which active tokens are the dataset's. N = 0 is legal: a rank that has run out of rows
    goes through the motions."""

    batch: Batch
    parts: list[Part]
    on_dataset: Tensor


@dataclass(frozen=True, slots=True)
class DivergenceLoss:
    """sum over active tokens of D(teacher, student), plus sft_alpha * cross-entropy on the dataset's tokens
    (GKD, arXiv 2306.13649, section 3). Without a signal: cross-entropy alone, which is forward KL to the data.

    Called inside the student's forward. Returns the sum (float32, or float64 for float64 models) and, when asked, a
    dict of detached per-token [N] statistics. The caller divides by the one denominator of the step.
    """

    beta: float
    temperature: float = 1.0
    normalize: bool = False
    topk_mode: str = "tail"
    token_clip: float | None = None
    sft_alpha: float = 0.0
    impl: str = "linear"

    def __call__(self, hidden: Tensor, head: Head, micro: MicroBatch, *, stats: bool) -> tuple[Tensor, Stats]:
        if micro.on_dataset.numel() == 0:
            return hidden.sum() * 0.0 + head.weight.sum() * 0.0, {}
        if not micro.parts:
            return self._cross_entropy(hidden, head, micro.batch.targets, stats)
        one = self._reference if self.impl == "reference" else self._divergence
        total, found = hidden.new_zeros(()), {}
        for part in micro.parts:
            at = slice(None) if part.index is None else part.index
            targets, on_dataset = micro.batch.targets[at], micro.on_dataset[at]
            loss, values = one(hidden[at], head, part.signal, targets, on_dataset, stats=stats)
            total = loss if len(micro.parts) == 1 else total + loss
            for name, per_token in values.items():
                if part.index is None:
                    found[name] = per_token
                else:
                    whole = found.setdefault(name, per_token.new_full(micro.on_dataset.shape, torch.nan))
                    whole[part.index] = per_token
        return total, found

    def _divergence(
        self, hidden: Tensor, head: Head, s: Signal, targets: Tensor, on_dataset: Tensor, *, stats: bool
    ) -> tuple[Tensor, Stats]:
        shared = {
            "beta": self.beta,
            "temperature": self.temperature,
            "normalize": self.normalize,
            "token_clip": self.token_clip,
            "return_stats": stats,
        }
        if self.sft_alpha > 0 and bool(on_dataset.any()):
            shared |= {"ce_ids": targets, "ce_weights": on_dataset.to(hidden.dtype) * self.sft_alpha}
        if isinstance(s, Hidden):
            out = linear_divergence(hidden, head, s.hidden, s.head, **shared)
        else:
            tail = {"mode": self.topk_mode, "teacher_log_tail": s.log_tail}
            out = linear_topk_divergence(hidden, head, s.logprobs, s.ids, **tail, **shared)
        if not stats:
            return out, {}
        loss, found = out
        if isinstance(s, TopK):  # over the buckets, and so not to be compared with those of the whole vocabulary
            found = {f"topk_{name}" if name in OVER_SUPPORT else name: value for name, value in found.items()}
        if not torch.is_grad_enabled():  # an evaluation: one more pass through the head is cheap there
            found["ce"] = -linear_token_logprobs(hidden, head, targets)
        return loss, found

    def _cross_entropy(self, hidden: Tensor, head: Head, targets: Tensor, stats: bool) -> tuple[Tensor, Stats]:
        def nll(logp: Tensor, index: Tensor) -> Tensor:
            return -logp

        out = linear_policy_loss(hidden, head, targets, nll, return_stats=stats)
        if not stats:
            return out, {}
        loss, found = out
        more = {} if torch.is_grad_enabled() else {"ce": found["loss"]}  # in training it is the loss
        return loss, {"student_entropy": found["entropy"], **more}

    def _reference(
        self, hidden: Tensor, head: Head, s: Signal, targets: Tensor, on_dataset: Tensor, *, stats: bool
    ) -> tuple[Tensor, Stats]:
        """The plain formula on full [N, V] logits with autograd, for comparison: same value, more memory."""
        logits = head.logits(hidden)
        shared = {"beta": self.beta, "temperature": self.temperature, "normalize": self.normalize}
        if isinstance(s, Hidden):
            with torch.no_grad():
                teacher_logits = s.head.logits(s.hidden)
            per_token = divergence(logits, teacher_logits, **shared)
        else:
            tail = {"mode": self.topk_mode, "teacher_log_tail": s.log_tail}
            per_token = topk_divergence(logits, s.logprobs, s.ids, **tail, **shared)
        if self.token_clip is not None:
            per_token = per_token.clamp(max=self.token_clip)
        loss = per_token.sum()
        if self.sft_alpha > 0:
            nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            loss = loss + self.sft_alpha * (nll * on_dataset).sum()
        return loss, {"divergence": per_token.detach()}
