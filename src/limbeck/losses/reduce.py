"""The one denominator: per-token values are summed with weights and divided once by a number of the whole step.

The weights are local to a sequence; `denominator` is local to a micro-batch and adds up over micro-batches and ranks:
loss = sum over everything of (weights * values) / sum over everything of the denominators.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["tokens", "sequences", "fixed"]


def token_weights(mask: Tensor, reduction: Reduction = "tokens") -> Tensor:
    """[B, T] bool, True = active -> [B, T] float32, zero where inactive.

    tokens, fixed: 1 a token. sequences: 1 / length of the sequence (GRPO: mean over sequences of token means).
    """
    active = mask.to(torch.float32)
    return active / active.sum(-1, keepdim=True).clamp(min=1) if reduction == "sequences" else active


def denominator(mask: Tensor, reduction: Reduction = "tokens", *, fixed_length: int = 0) -> int:
    """[B, T] bool -> what this micro-batch adds to the step's denominator.

    tokens:    active tokens (divergences; dapo, bnpo, cispo).
    sequences: sequences with an active token (grpo, sapo).
    fixed:     sequences times `fixed_length` (dr_grpo).
    """
    if reduction == "tokens":
        return int(mask.sum())
    count = int(mask.any(-1).sum())
    return count * fixed_length if reduction == "fixed" else count


def check_weights(weights: Tensor | None, rows: int, name: str) -> Tensor | None:
    """float or bool [N] or None; ValueError for another shape."""
    if weights is not None and weights.shape != (rows,):
        raise ValueError(f"{name} must be [{rows}], got shape {tuple(weights.shape)}")
    return None if weights is None else weights.detach()


def active_rows(weights: Tensor | None) -> Tensor | None:
    """Indices of the rows of non-zero weight, int64; None when these are all rows."""
    if weights is None:
        return None
    rows = (weights != 0).nonzero().squeeze(-1)
    return None if rows.numel() == weights.numel() else rows


def outside(ids: Tensor, vocab: int) -> bool:
    """Whether any id lies outside 0..vocab-1."""
    return bool(((ids < 0) | (ids >= vocab)).any())
