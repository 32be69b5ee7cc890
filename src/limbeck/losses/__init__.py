"""Distillation losses as plain tensor functions. See docs/losses.md for the maths."""

from __future__ import annotations

from .advantage import group_advantages, groups_without_spread, k3_estimate, opd_advantage, teacher_logratio
from .along import TokenTerm
from .divergence import divergence
from .head import Head
from .linear import linear_divergence, linear_topk_divergence
from .policy import (
    PolicyLoss,
    clip_shares,
    drop_truncated,
    entropy_threshold,
    policy_objective,
    rollout_metrics,
    rollout_weights,
    sequence_logratio,
    top_entropy_mask,
)
from .reduce import denominator, pad_tokens, position_weights, token_mask, token_weights
from .support import topk_divergence
from .tokens import linear_named, linear_policy_loss, linear_token_logprobs, linear_topk

__all__ = [
    "Head",
    "PolicyLoss",
    "TokenTerm",
    "clip_shares",
    "denominator",
    "divergence",
    "drop_truncated",
    "entropy_threshold",
    "group_advantages",
    "groups_without_spread",
    "k3_estimate",
    "linear_divergence",
    "linear_named",
    "linear_policy_loss",
    "linear_token_logprobs",
    "linear_topk",
    "linear_topk_divergence",
    "opd_advantage",
    "pad_tokens",
    "policy_objective",
    "position_weights",
    "rollout_metrics",
    "rollout_weights",
    "sequence_logratio",
    "teacher_logratio",
    "token_mask",
    "token_weights",
    "top_entropy_mask",
    "topk_divergence",
]
