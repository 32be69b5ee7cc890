"""The one denominator: per-token values are summed with weights and divided once by a number of the whole step.

The weights are local to a sequence; `denominator` is local to a micro-batch and adds up over micro-batches and ranks:
loss = sum over everything of (weights * values) / sum over everything of the denominators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["tokens", "sequences", "fixed"]


def position_weights(counts: Sequence[int], ramp: Sequence[float]) -> Tensor:
    """Weights [N] float64 of the active tokens of sequences of counts[i], by their places: ramp = (low, middle, width),

        w(r) = low + (1 - low) sigmoid((r - middle) / width),    r = (place + 1/2) / count, between 0 and 1.

    It rises along the response where width is positive (PW-OPSD, arXiv 2605.21606: 0.25, 0.3, 0.1), falls where it is
    negative, and is a step at middle where it is small.
    """
    low, middle, width = ramp
    each = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in counts]
    places = torch.cat(each) if each else torch.empty(0, dtype=torch.float64)
    return low + (1 - low) * torch.sigmoid((places - middle) / width)


def token_weights(mask: Tensor, reduction: Reduction = "tokens", *, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B, T] bool, True = active, or weights of the tokens, zero where inactive -> [B, T], zero where inactive.

    tokens, fixed: 1 a token. sequences: 1 / length of the sequence (GRPO: mean over sequences of token means). Weights
    of the tokens multiply the 1, and take the length's place by their sum: the mean over a sequence is weighted.
    """
    active = mask.to(dtype)
    if reduction != "sequences":
        return active
    length = active.sum(-1, keepdim=True)
    return active / length.where(length > 0, 1)


def denominator(mask: Tensor, reduction: Reduction = "tokens", *, fixed_length: int = 0) -> float:
    """[B, T] bool, or weights of the tokens -> what this micro-batch adds to the step's denominator.

    tokens:    active tokens, or the sum of their weights (divergences; dapo, bnpo, cispo).
    sequences: sequences with an active token (grpo, sapo).
    fixed:     all B sequences times `fixed_length` (dr_grpo), those without an active token too: a constant that does
               not depend on what was sampled is the point of it. Raises ValueError for a length below 1.
    """
    if reduction == "tokens":
        return mask.sum().item()
    if reduction == "sequences":
        return int(mask.any(-1).sum())
    if fixed_length < 1:
        raise ValueError(f"fixed_length must be at least 1, got {fixed_length}")
    return mask.shape[0] * fixed_length


def token_mask(counts: Sequence[int], *, device: torch.device | None = None) -> Tensor:
    """Active tokens by sequence -> [B, longest] bool, True for the first counts[i] of each row."""
    lengths = torch.tensor(list(counts), dtype=torch.int64, device=device)
    return torch.arange(max(counts, default=0), device=device) < lengths.unsqueeze(-1)


def pad_tokens(values: Tensor, counts: Sequence[int]) -> Tensor:
    """[N], sequence after sequence -> [B, longest], zeros behind; `padded[token_mask(counts)]` is the way back."""
    mask = token_mask(counts, device=values.device)
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


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
