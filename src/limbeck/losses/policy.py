"""Path B: what a token's log-probability costs, and which tokens count. See docs/policy-losses.md.

Tensors of a generation batch are [B, T] with a mask, True = active; what enters an objective is [N], its active tokens
in the same order: `values[mask]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .advantage import MAX_LOG, k3_estimate
from .reduce import Reduction

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"]
Level = Literal["token", "sequence"]
RolloutMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

REDUCTIONS: dict[LossType, Reduction] = {
    "grpo": "sequences",
    "sapo": "sequences",
    "bnpo": "tokens",
    "dapo": "tokens",
    "cispo": "tokens",
    "dr_grpo": "fixed",
}


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The settings of a policy loss. Its weights are `token_weights(mask, loss.reduction)`, its part of the one
    denominator `denominator(mask, loss.reduction, fixed_length=max_completion_length)`.

    epsilon, epsilon_high: the ratio is clipped to 1 - epsilon .. 1 + epsilon_high (None: epsilon); cispo: above only.
    delta: the highest ratio with a negative advantage. tau_pos, tau_neg: temperatures of sapo's gate.
    beta: weight of the KL to the reference model; kl: k3 as in GRPO, or k2, whose gradient is reverse KL's.
    Raises ValueError for numbers out of their range.
    """

    loss_type: LossType = "grpo"
    level: Level = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    tau_pos: float = 1.0
    tau_neg: float = 1.05
    beta: float = 0.0
    kl: Literal["k3", "k2"] = "k3"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("loss_type", self.loss_type, REDUCTIONS),
            ("level", self.level, ("token", "sequence")),
            ("kl", self.kl, ("k3", "k2")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value}")
        if not (self.epsilon >= 0 and self.high >= 0 and self.beta >= 0):
            raise ValueError("epsilon, epsilon_high and beta must not be negative")
        if not (self.tau_pos > 0 and self.tau_neg > 0):
            raise ValueError(f"tau_pos and tau_neg must be positive, got {self.tau_pos} and {self.tau_neg}")
        if self.delta is not None and not self.clips:
            raise ValueError(f"delta belongs to the clipped ratio, which {self.loss_type} does not have")
        if self.delta is not None and not self.delta > 1 + self.high:
            raise ValueError(f"delta must be above 1 + epsilon_high = {1 + self.high}, got {self.delta}")

    @property
    def high(self) -> float:
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def reduction(self) -> Reduction:
        return REDUCTIONS[self.loss_type]

    @property
    def clips(self) -> bool:
        """Whether it is PPO's clipped ratio."""
        return self.loss_type not in ("cispo", "sapo")


def policy_objective(
    loss: PolicyLoss,
    advantage: Tensor,
    *,
    old_logp: Tensor | None = None,
    seq_logratio: Tensor | None = None,
    ref_logp: Tensor | None = None,
    keep: Tensor | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The objective for `linear_policy_loss`: (logp [n], index [n]) -> loss [n]. All arguments are data, [N] each.

    old_logp: log-probabilities when the sample was scored; None while the weights are still those, ratio 1.
    seq_logratio: from `sequence_logratio`, at level "sequence" wherever old_logp is given.
    ref_logp: the reference model's, where beta > 0. keep: bool or weights of the policy's part alone, the KL is kept.
    Raises ValueError for data that is missing or of another shape.
    """
    sequence = loss.level == "sequence"
    if sequence and old_logp is not None and seq_logratio is None:
        raise ValueError("level sequence needs seq_logratio where there is an old_logp")
    if loss.beta > 0 and ref_logp is None:
        raise ValueError("beta above 0 needs ref_logp")
    data = {"old_logp": old_logp, "seq_logratio": seq_logratio, "ref_logp": ref_logp, "keep": keep}
    for name, values in data.items():
        if values is not None and values.shape != advantage.shape:
            raise ValueError(f"{name} must be {tuple(advantage.shape)}, got shape {tuple(values.shape)}")

    def objective(logp: Tensor, index: Tensor) -> Tensor:
        def at(values: Tensor) -> Tensor:
            return values[index].detach().to(logp.dtype)

        if sequence:
            # GSPO's s_i has gradient s_i / |y_i| through every token of the sequence: with weight 1 / |y_i| a token,
            # that is sum_t sg[s_i] * pi_t / sg[pi_t], each token's share being a function of its own logp alone
            log_ratio = logp - logp.detach()
            log_ratio = log_ratio if seq_logratio is None else log_ratio + at(seq_logratio)
        else:
            log_ratio = logp - (logp.detach() if old_logp is None else at(old_logp))
        value = _surrogate(loss, logp, log_ratio, at(advantage))
        if keep is not None:
            value = value * at(keep)
        if loss.beta > 0 and ref_logp is not None:
            value = value + loss.beta * _reference_kl(loss, at(ref_logp) - logp)
        return value

    return objective


def _surrogate(loss: PolicyLoss, logp: Tensor, log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """Minus what is to be maximised, [n] each."""
    ratio = log_ratio.clamp(max=MAX_LOG).exp()
    if loss.loss_type == "cispo":
        return -ratio.detach().clamp(max=1 + loss.high) * advantage * logp
    if loss.loss_type == "sapo":
        tau = torch.full_like(advantage, loss.tau_neg).masked_fill(advantage > 0, loss.tau_pos)
        return -torch.sigmoid(tau * (ratio - 1)) * (4 / tau) * advantage
    clipped = ratio.clamp(1 - loss.epsilon, 1 + loss.high)
    if loss.delta is not None:
        ratio = ratio.clamp(max=loss.delta)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def _reference_kl(loss: PolicyLoss, logratio: Tensor) -> Tensor:
    """logratio: log pi_ref - log pi. k3 is GRPO's, in value the reverse KL; its gradient on samples of pi is
    (1 - pi_ref / pi) grad log pi, in the mean that of the FORWARD KL(pi_ref || pi). k2 has reverse KL's gradient."""
    return k3_estimate(logratio) if loss.kl == "k3" else 0.5 * logratio.square()


def clip_shares(loss: PolicyLoss, log_ratio: Tensor, advantage: Tensor) -> dict[str, Tensor]:
    """Which tokens the clip takes the gradient from (cispo: whose weight it cuts), 1.0 or 0.0; [N] each, to average.

    log_ratio [N]: detached, at level "sequence" the sequence's. sapo clips nothing: an empty dict.
    """
    ratio = log_ratio.detach().clamp(max=MAX_LOG).exp()
    if loss.loss_type == "sapo":
        return {}
    if loss.loss_type == "cispo":
        return {"clip_high": (ratio > 1 + loss.high).float()}
    low = (ratio < 1 - loss.epsilon) & (advantage < 0)
    high = (ratio > 1 + loss.high) & (advantage > 0)
    found = {"clip_low": low, "clip_high": high, "clip_region": low | high}
    if loss.delta is not None:
        found["clip_delta"] = (ratio > loss.delta) & (advantage < 0)
        found["clip_region"] = found["clip_region"] | found["clip_delta"]
    return {name: values.float() for name, values in found.items()}


def sequence_logratio(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """log s_i of GSPO: the mean of logp - old_logp over a sequence's active tokens, at each of them; 0 elsewhere.

    [B, T] each -> [B, T], detached. logp: of a pass without gradient, with the weights of the coming one.
    """
    return torch.where(mask, _sequence_mean(_masked(logp, mask) - _masked(old_logp, mask), mask).unsqueeze(-1), 0.0)


def rollout_weights(
    train_logp: Tensor, rollout_logp: Tensor, mask: Tensor, *, mode: RolloutMode, threshold: float = 2.0
) -> Tensor:
    """Importance weights w of sampler against trainer, [B, T] each -> [B, T], detached, zero where masked.

    train_logp: the trainer's log-probabilities of the samples before the first update on them; rollout_logp: those that
    the sampler reports, at the same temperature. w = pi_train / pi_rollout, of the token or the geometric mean over the
    sequence; truncate: min(w, threshold); mask: 0 where w is above it. They multiply the loss, the denominator stays.
    Raises ValueError for an unknown mode or a threshold that is not positive.
    """
    ratio, truncate = _rollout_ratio(_masked(train_logp, mask) - _masked(rollout_logp, mask), mask, mode)
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    weights = ratio.clamp(max=threshold) if truncate else ratio.masked_fill(ratio > threshold, 0)
    return torch.where(mask, weights, 0.0)


def rollout_metrics(
    train_logp: Tensor, rollout_logp: Tensor, mask: Tensor, *, mode: RolloutMode | None = None, threshold: float = 2.0
) -> dict[str, float]:
    """How far trainer and sampler are apart, over the values given: all ranks' for the step's. [B, T] each.

    Over tokens: ratio_mean, ratio_max, kl and k3_kl (both estimate KL(rollout || train)), chi2_token. Over sequences:
    training_ppl, rollout_ppl and their logs, log_ppl_diff (mean, abs, max, min), ppl_ratio, chi2_seq. With a mode also
    is_weight_mean, ess (1 = all weights equal) and clipped_frac. Empty without an active token.
    """
    if not bool(mask.any()):
        return {}
    mask = mask.cpu()
    train, rollout = (_masked(x.cpu().double(), mask) for x in (train_logp, rollout_logp))
    log_ratio = train - rollout
    tokens, filled = log_ratio[mask], mask.any(-1)
    ratio = tokens.clamp(max=MAX_LOG).exp()
    log_ppl, rollout_ppl = (-_sequence_mean(x, mask)[filled] for x in (train, rollout))
    gap = log_ppl - rollout_ppl
    found = {
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        "kl": -tokens.mean(),
        "k3_kl": k3_estimate(tokens).mean(),
        "chi2_token": ratio.square().mean() - 1,
        "chi2_seq": (-2 * gap).clamp(max=2 * MAX_LOG).exp().mean() - 1,
        "training_ppl": log_ppl.exp().mean(),
        "training_log_ppl": log_ppl.mean(),
        "rollout_ppl": rollout_ppl.exp().mean(),
        "rollout_log_ppl": rollout_ppl.mean(),
        "log_ppl_diff": gap.mean(),
        "log_ppl_abs_diff": gap.abs().mean(),
        "log_ppl_diff_max": gap.max(),
        "log_ppl_diff_min": gap.min(),
        "ppl_ratio": gap.exp().mean(),
    }
    if mode is not None:
        weights = rollout_weights(train, rollout, mask, mode=mode, threshold=threshold)[mask]
        raw = _rollout_ratio(log_ratio, mask, mode)[0]
        cut = raw[mask] if mode.startswith("token") else raw[filled, :1]
        found["is_weight_mean"] = weights.mean()
        found["ess"] = weights.sum().square() / (len(weights) * weights.square().sum()).clamp(min=1e-300)
        found["clipped_frac"] = (cut > threshold).double().mean()
    return {name: float(value) for name, value in found.items()}


def entropy_threshold(entropies: Tensor, share: float) -> float:
    """The entropy that the `share` of tokens with the highest ones reach; [M], of the whole step, all ranks.

    Raises ValueError for a share outside 0 .. 1 (0 excluded) and for no tokens at all.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of tokens to keep must lie in (0, 1], got {share}")
    count = entropies.numel()
    if count == 0:
        raise ValueError("no tokens to take a share of")
    highest = max(1, round(share * count))
    return float(entropies.flatten().kthvalue(count - highest + 1).values)


def top_entropy_mask(entropy: Tensor, mask: Tensor, share: float, *, threshold: float | None = None) -> Tensor:
    """Active tokens in the `share` of highest entropy (arXiv 2506.01939), ties included; [...] each -> [...] bool.

    threshold: from `entropy_threshold` over all ranks; None: over these values. The mask is for `keep`: the denominator
    counts all active tokens, as in the paper.
    """
    if not bool(mask.any()):
        return mask
    threshold = entropy_threshold(entropy[mask], share) if threshold is None else threshold
    return mask & (entropy >= threshold)


def drop_truncated(mask: Tensor, truncated: Tensor) -> Tensor:
    """Overlong filter (DAPO, arXiv 2503.14476, section 3.4): [B, T] bool without the rows that are cut, [B] bool.

    The filtered tokens leave the denominator, save that of dr_grpo, which is fixed.
    """
    return mask & ~truncated.unsqueeze(-1)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """Detached, in float32 at least, zero where masked whatever stood there."""
    return torch.where(mask, values.detach().to(torch.promote_types(values.dtype, torch.float32)), 0.0)


def _sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Means over the active tokens of values that are zero elsewhere, [B, T] -> [B]; 0 for a row without any."""
    return values.sum(-1) / mask.sum(-1).clamp(min=1)


def _rollout_ratio(log_ratio: Tensor, mask: Tensor, mode: RolloutMode) -> tuple[Tensor, bool]:
    """The ratio that a mode speaks of, [B, T], and whether it truncates."""
    level, _, act = mode.partition("_")
    if level not in ("token", "sequence") or act not in ("truncate", "mask"):
        raise ValueError(f"unknown mode {mode}: token or sequence, then _truncate or _mask")
    if level == "sequence":
        log_ratio = _sequence_mean(log_ratio, mask).unsqueeze(-1).expand_as(log_ratio)
    return log_ratio.clamp(max=MAX_LOG).exp(), act == "truncate"
