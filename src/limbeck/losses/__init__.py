"""Distillation losses as plain tensor functions. See docs/losses.md for the maths."""

from __future__ import annotations

from .advantage import opd_advantage, teacher_logratio
from .divergence import divergence
from .head import Head
from .linear import linear_divergence, linear_topk_divergence
from .reduce import denominator, token_weights
from .support import topk_divergence
from .tokens import linear_named, linear_policy_loss, linear_token_logprobs, linear_topk

__all__ = [
    "Head",
    "denominator",
    "divergence",
    "linear_divergence",
    "linear_named",
    "linear_policy_loss",
    "linear_token_logprobs",
    "linear_topk",
    "linear_topk_divergence",
    "opd_advantage",
    "teacher_logratio",
    "token_weights",
    "topk_divergence",
]
