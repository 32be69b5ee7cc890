"""The output head as the losses see it: from a hidden state to the logits of the valid ids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """logits = softcap * tanh(scale * (h W^T + b) / softcap), or scale * (h W^T + b) without a soft-cap.

    weight:  [V, H]; may be a leaf, a tied embedding, or the effective weight of an adapter (gradients flow through it).
    bias:    [V] or None; without a soft-cap an entry of -inf takes its id out of the distribution.
    softcap: positive, or None (Gemma 2: arXiv 2408.00118, section 2).
    scale:   multiplies the raw logits (Cohere's logit_scale, one over Granite's logits_scaling).
    valid:   number of valid ids, a prefix of the rows; the surplus (padded embeddings) is cut before any softmax.

    Raises ValueError where the shapes do not fit.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    valid: int | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise ValueError(f"Head.weight must be [V, H], got shape {tuple(self.weight.shape)}")
        rows = self.weight.shape[0]
        if self.bias is not None and self.bias.shape != (rows,):
            raise ValueError(f"Head.bias must be [{rows}], got shape {tuple(self.bias.shape)}")
        if self.valid is not None and not 0 < self.valid <= rows:
            raise ValueError(f"Head.valid must lie in 1..{rows}, got {self.valid}")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"Head.softcap must be positive, got {self.softcap}")

    @property
    def vocab(self) -> int:
        """Number of valid ids."""
        return self.weight.shape[0] if self.valid is None else self.valid

    def masks(self, vocab: int) -> bool:
        """Whether the bias takes one of the first `vocab` ids out."""
        return self.bias is not None and bool(torch.isneginf(self.bias[:vocab]).any())

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., valid], plain and differentiable, in float32 (float64 where an input is): the reference."""
        dtype = compute_dtype(hidden, self.weight)
        with torch.autocast(hidden.device.type, enabled=False):
            raw = hidden.to(dtype) @ self.weight[: self.vocab].to(dtype).t()
        if self.bias is not None:
            raw = raw + self.bias[: self.vocab].to(dtype)
        raw = raw * self.scale
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)


def as_head(head: Head | Tensor) -> Head:
    """A plain weight tensor is a head without bias, soft-cap and scale."""
    return head if isinstance(head, Head) else Head(head)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where any input is float64, float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
