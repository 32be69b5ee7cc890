"""How the signal reaches the student. Path A: a divergence, and cross-entropy, as the loss. Path B: an advantage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limbeck.data.collate import Batch
from limbeck.losses import (
    Head,
    PolicyLoss,
    TokenTerm,
    clip_shares,
    divergence,
    k3_estimate,
    linear_divergence,
    linear_policy_loss,
    linear_token_logprobs,
    linear_topk_divergence,
    pad_tokens,
    policy_objective,
    position_weights,
    sequence_logratio,
    token_mask,
    topk_divergence,
)
from limbeck.signal import Hidden, Part, Policy, Signal, TopK

Stats = dict[str, Tensor]
OVER_SUPPORT = ("forward_kl", "reverse_kl", "student_entropy", "teacher_entropy")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward of the student learns from. `parts`: the teachers' signals, none for plain cross-entropy;
    `on_dataset` [N] bool says which active tokens are the dataset's. N = 0 is legal: a rank that has run out of rows
    goes through the motions. `policy`: what the tokens are worth on path B, of all samples, [N]."""

    batch: Batch
    parts: list[Part]
    on_dataset: Tensor
    policy: Policy | None = None


@dataclass(frozen=True, slots=True)
class DivergenceLoss:
    """sum over active tokens of D(teacher, student), plus sft_alpha * cross-entropy on the dataset's tokens
    (GKD, arXiv 2306.13649, section 3). Without a signal: cross-entropy alone, which is forward KL to the data.

    Called inside the student's forward. Returns the sum (float32, or float64 for float64 models) and, when asked, a
    dict of detached per-token [N] statistics, NaN where the weight is 0. The caller divides by the one denominator of
    the step, the sum of `amount`.

    position: (low, middle, width) of `position_weights`, by which each token counts in the sum and in the denominator.
    """

    beta: float
    temperature: float = 1.0
    normalize: bool = False
    topk_mode: str = "tail"
    token_clip: float | None = None
    sft_alpha: float = 0.0
    impl: str = "linear"
    position: tuple[float, ...] = ()

    def amount(self, counts: Sequence[int]) -> float:
        """What sequences of counts[i] active tokens add to the step's denominator."""
        return float(position_weights(counts, self.position).sum()) if self.position else sum(counts)

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        micro: MicroBatch,
        *,
        stats: bool,
        weights: Tensor | None = None,
        along: TokenTerm | None = None,
    ) -> tuple[Tensor, Stats]:
        """weights [N]: of the divergence of each token, where None by its position. along: taken along in the same head
        pass."""
        if micro.on_dataset.numel() == 0:
            return no_tokens(hidden, head), {}
        if weights is None and self.position:
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            weights = position_weights(micro.batch.counts, self.position).to(hidden.device, dtype)
            loss, found = self(hidden, head, micro, stats=stats, weights=weights, along=along)
            return loss, {name: value.where(weights != 0, torch.nan) for name, value in found.items()}
        if not micro.parts:
            return cross_entropy(hidden, head, micro.batch.targets, stats=stats, weights=weights)
        one = self._reference if self.impl == "reference" else self._divergence
        total, found = hidden.new_zeros(()), {}
        for part in micro.parts:
            at = slice(None) if part.index is None else part.index
            targets, on_dataset = micro.batch.targets[at], micro.on_dataset[at]
            own = None if weights is None else weights[at]
            term = along if along is None or part.index is None else _rows(along, part.index)
            options = {"stats": stats, "weights": own, "along": term}
            loss, values = one(hidden[at], head, part.signal, targets, on_dataset, **options)
            total = loss if len(micro.parts) == 1 else total + loss
            for name, per_token in values.items():
                if part.index is None:
                    found[name] = per_token
                else:
                    whole = found.setdefault(name, per_token.new_full(micro.on_dataset.shape, torch.nan))
                    whole[part.index] = per_token
        return total, found

    def _divergence(
        self,
        hidden: Tensor,
        head: Head,
        s: Signal,
        targets: Tensor,
        on_dataset: Tensor,
        *,
        stats: bool,
        weights: Tensor | None,
        along: TokenTerm | None,
    ) -> tuple[Tensor, Stats]:
        shared = {
            "weights": weights,
            "along": along,
            "beta": self.beta,
            "temperature": self.temperature,
            "normalize": self.normalize,
            "token_clip": self.token_clip,
            "return_stats": stats,
        }
        if along is None and self.sft_alpha > 0 and bool(on_dataset.any()):
            ce_weights = on_dataset.to(torch.promote_types(hidden.dtype, torch.float32)) * self.sft_alpha
            shared |= {"ce_ids": targets, "ce_weights": ce_weights if weights is None else weights * ce_weights}
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

    def _reference(
        self,
        hidden: Tensor,
        head: Head,
        s: Signal,
        targets: Tensor,
        on_dataset: Tensor,
        *,
        stats: bool,
        weights: Tensor | None,
        along: TokenTerm | None,
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
        loss = per_token.sum() if weights is None else (weights * per_token).sum()
        if self.sft_alpha > 0:
            nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            loss = loss + self.sft_alpha * (nll * on_dataset * (1 if weights is None else weights)).sum()
        found = {"divergence": per_token.detach()}
        if along is None:
            return loss, found
        more, values = token_term(hidden, head, along, stats=stats)
        return loss + more, found | values


def token_term(hidden: Tensor, head: Head, term: TokenTerm, *, stats: bool) -> tuple[Tensor, Stats]:
    """A term with an objective by a head pass of its own, and its statistics where they are asked for."""
    assert term.objective is not None
    options = {"temperature": term.temperature, "weights": term.weights, "return_stats": stats}
    out = linear_policy_loss(hidden, head, term.ids, term.objective, **options)
    return out if stats else (out, {})


def _rows(term: TokenTerm, rows: Tensor) -> TokenTerm:
    """The same term of some of its rows [n]."""
    objective, weights = term.objective, term.weights
    assert objective is not None
    return replace(
        term,
        ids=term.ids[rows],
        weights=None if weights is None else weights[rows],
        objective=lambda logp, index: objective(logp, rows[index]),
    )


@dataclass(frozen=True, slots=True)
class AdvantageLoss:
    """The policy loss of the sampled tokens (losses/policy.py), and with `distil` the teacher's reverse KL as a loss
    next to it: coef times the divergence of the same tokens, by the same weights. With `--opd_signal full` that is in
    the mean the gradient that the teacher's log-ratio gives as an advantage, without its sampling noise; `topk` is a
    lower bound of the divergence, and in the mean another gradient where the student's mass is off the support.

    temperature: the sampler's, and the ratio's; loss_temperature: of the teacher's log-ratio. Without a `policy` in the
    micro-batch, in an evaluation, it is the cross-entropy of the given responses.
    """

    loss: PolicyLoss
    temperature: float
    loss_temperature: float = 1.0
    distil: DivergenceLoss | None = None
    coef: float = 1.0
    rewarded: bool = True

    def amount(self, counts: Sequence[int]) -> float:
        """Of an evaluation; in training the `Policy` of each sample has its own."""
        return sum(counts)

    def __call__(self, hidden: Tensor, head: Head, micro: MicroBatch, *, stats: bool) -> tuple[Tensor, Stats]:
        if micro.on_dataset.numel() == 0:
            return no_tokens(hidden, head), {}
        if micro.policy is None:
            if self.distil is not None and micro.parts:
                return self.distil(hidden, head, micro, stats=stats)
            loss, found = cross_entropy(hidden, head, micro.batch.targets, stats=stats)
            return loss, found | (self._teacher_kl(hidden, head, micro) if stats else {})
        policy = micro.policy
        distil = self.distil if self.coef > 0 else None
        has_policy = distil is None or self.rewarded or self.loss.beta > 0
        term = self._term(hidden, head, micro, policy) if has_policy else None
        if distil is not None:  # one pass over the head for both
            weights = self.coef * policy.weight
            loss, found = distil(hidden, head, micro, stats=stats, weights=weights, along=term)
        else:
            assert term is not None
            loss, found = token_term(hidden, head, term, stats=stats)
        if not stats:
            return loss, {}
        found |= {} if term is None else self._found(found, micro, policy)
        found = {name: value for name, value in found.items() if name not in ("loss", "entropy")}
        return loss, {name: value.where(policy.weight != 0, torch.nan) for name, value in found.items()}

    def _teacher_kl(self, hidden: Tensor, head: Head, micro: MicroBatch) -> Stats:
        """The k3 estimate at given tokens; on the student's own its mean is the reverse KL."""
        whole = torch.full_like(micro.on_dataset, torch.nan, dtype=torch.float32)
        own = linear_token_logprobs(hidden, head, micro.batch.targets, temperature=self.loss_temperature)
        for part in micro.parts:
            at = slice(None) if part.index is None else part.index
            assert isinstance(part.signal, TopK)
            whole[at] = k3_estimate(part.signal.logprobs[:, 0] - own[at]).float()
        return {"teacher_kl": whole} if micro.parts else {}

    def _term(self, hidden: Tensor, head: Head, micro: MicroBatch, policy: Policy) -> TokenTerm:
        """The policy loss of each token's log-probability."""
        objective = policy_objective(
            self.loss,
            policy.advantage,
            old_logp=policy.old_logp,
            seq_logratio=self._sequence(hidden, head, micro, policy),
            ref_logp=policy.ref_logp,
            keep=policy.keep,
        )
        return TokenTerm(micro.batch.targets, policy.weight, self.temperature, objective)

    def _sequence(self, hidden: Tensor, head: Head, micro: MicroBatch, policy: Policy) -> Tensor | None:
        """The sequences' log-ratios at their tokens, [N], where they are the loss's."""
        if policy.old_logp is None or self.loss.level != "sequence":
            return None
        # s_i belongs to the whole sequence: it must be known before the first chunk's gradient
        with torch.no_grad():
            now = linear_token_logprobs(hidden, head, micro.batch.targets, temperature=self.temperature)
        return sequence_ratios(now, policy.old_logp, micro.batch.counts)

    def _found(self, values: Stats, micro: MicroBatch, policy: Policy) -> Stats:
        """The policy's statistics [N], from those of its term."""
        logp = values["logp"]
        found = {"student_entropy": values["entropy"]}
        if policy.old_logp is not None:
            ratio = logp - policy.old_logp
            if self.loss.level == "sequence":
                ratio = sequence_ratios(logp, policy.old_logp, micro.batch.counts)
            found |= clip_shares(self.loss, ratio, policy.advantage) | {"ratio": ratio.exp()}
        if policy.ref_logp is not None:
            found["reference_kl"] = k3_estimate(policy.ref_logp - logp)
        return found


def sequence_ratios(logp: Tensor, old_logp: Tensor, counts: Sequence[int]) -> Tensor:
    """GSPO's log-ratio of the sequence at each of its tokens, [N] each -> [N]."""
    mask = token_mask(counts, device=logp.device)
    return sequence_logratio(pad_tokens(logp, counts), pad_tokens(old_logp, counts), mask)[mask]


def no_tokens(hidden: Tensor, head: Head) -> Tensor:
    """A zero that reaches every parameter, for a rank that has nothing to learn from."""
    return hidden.sum() * 0.0 + head.weight.sum() * 0.0


def cross_entropy(
    hidden: Tensor, head: Head, targets: Tensor, *, stats: bool, weights: Tensor | None = None
) -> tuple[Tensor, Stats]:
    def nll(logp: Tensor, index: Tensor) -> Tensor:
        return -logp

    out = linear_policy_loss(hidden, head, targets, nll, weights=weights, return_stats=stats)
    if not stats:
        return out, {}
    loss, found = out
    more = {} if torch.is_grad_enabled() else {"ce": found["loss"]}  # in training it is the loss
    return loss, {"student_entropy": found["entropy"], **more}
