"""The pass over an output head, chunk by chunk: value and gradient together, nothing of size [tokens, vocab] kept.

A rule turns a chunk of logits into per-token values and, in place, into the gradient with respect to these logits; the
pass multiplies that gradient into the hidden states and the head's tensors and forgets the chunk. What the autograd
graph keeps are these finished gradients, so that the backward is a scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .head import Head

Rule = Callable[[Tensor, slice], None]

# Rows of a chunk: enough for the matmuls' full speed, and twice their logits is the memory that the loss needs.
_CHUNK_ROWS = 256
_CHUNK_ROWS_CUDA = 1024
# Ids of one vocabulary block when the weight has to be upcast on its way into a matmul.
_UPCAST_IDS = 4096


def chunk_size(device: torch.device, chunk_rows: int | None) -> int:
    if chunk_rows is not None:
        return max(1, chunk_rows)
    return _CHUNK_ROWS if device.type == "cpu" else _CHUNK_ROWS_CUDA


def chunks(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class HeadPass:
    """One call's walk over hidden states [N, H] and a head; owns the logits buffer and the gradients.

    vocab: the logits are cut to the first `vocab` ids.
    grads: whether to take gradients at all; each is taken only for what requires one.
    """

    def __init__(self, hidden: Tensor, head: Head, vocab: int, *, dtype: torch.dtype, chunk_rows: int | None) -> None:
        if hidden.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
            raise ValueError(f"hidden must be [N, {head.weight.shape[1]}], got shape {tuple(hidden.shape)}")
        self.hidden, self.head, self.vocab, self.dtype = hidden, head, vocab, dtype
        self.size = min(chunk_size(hidden.device, chunk_rows), max(1, hidden.shape[0]))
        enabled = torch.is_grad_enabled()
        self.inputs = (hidden, head.weight, head.bias)
        wanted = [enabled and t is not None and t.requires_grad for t in self.inputs]
        self.grads = any(wanted)
        self.d_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
        self.d_weight = self._zeros(head.weight) if wanted[1] else None
        self.d_bias = self._zeros(head.bias) if wanted[2] and head.bias is not None else None
        self.logits = torch.empty(0, dtype=dtype, device=hidden.device)

    def _zeros(self, like: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=self.dtype, device=like.device)

    def run(self, rows: Tensor | None, rule: Rule) -> None:
        """Walk over the rows (None: all of them); the rule gets [c, vocab] logits and their place among the rows."""
        count = self.hidden.shape[0] if rows is None else rows.shape[0]
        with torch.no_grad(), torch.autocast(self.hidden.device.type, enabled=False):
            for at in chunks(count, self.size):
                index = at if rows is None else rows[at]
                hidden = self.hidden[index]
                if self.logits.numel() == 0:
                    self.logits = hidden.new_empty(self.size, self.vocab, dtype=self.dtype)
                logits = self.logits[: hidden.shape[0]]
                head_logits(hidden, self.head, out=logits)
                slope = cap_slope(logits, self.head) if self.grads else None
                rule(logits, at)
                if self.grads:
                    self._collect(logits if slope is None else logits.mul_(slope), hidden, index)

    def _collect(self, grad: Tensor, hidden: Tensor, index: slice | Tensor) -> None:
        """Take a chunk's gradient [c, vocab] to the hidden states and the head."""
        if self.head.scale != 1.0:
            grad.mul_(self.head.scale)
        if self.d_hidden is not None:
            self.d_hidden[index] = into_hidden(grad, self.head.weight[: self.vocab]).to(self.d_hidden.dtype)
        if self.d_weight is not None:
            into_weight_(self.d_weight[: self.vocab], grad, hidden, self.head.weight)
        if self.d_bias is not None:
            self.d_bias[: self.vocab] += grad.sum(0)

    def attach(self, value: Tensor) -> Tensor:
        """The scalar, tied to the inputs by the gradients that the walk has found."""
        self.logits = self.logits.new_empty(0)
        if not self.grads:
            return value
        found = (self.d_hidden, self.d_weight, self.d_bias)
        return _Attached.apply(value, *self.inputs, *found)  # pyright: ignore


class _Attached(torch.autograd.Function):
    """A scalar whose gradients are known already; the backward scales them, never in place."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor | None) -> Tensor:
        inputs, grads = tensors[:3], tensors[3:]
        ctx.save_for_backward(
            *(None if g is None or x is None else g.to(x.dtype) for x, g in zip(inputs, grads, strict=True))
        )
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        scale = upstream[0]
        grads: tuple[Tensor | None, ...] = ctx.saved_tensors
        if not (scale.device.type == "cpu" and scale == 1):
            grads = tuple(None if g is None else (g * scale).to(g.dtype) for g in grads)
        return (None, *grads, None, None, None)


def head_logits(hidden: Tensor, head: Head, *, out: Tensor) -> None:
    """[c, H] -> [c, vocab] into `out`: the head's logits, soft-cap and scale included."""
    vocab = out.shape[-1]
    weight = head.weight[:vocab]
    if weight.dtype == out.dtype:
        torch.mm(hidden.to(out.dtype), weight.t(), out=out)
    elif weight.is_cuda and out.dtype == torch.float32:
        out.copy_(torch.mm(hidden.to(weight.dtype), weight.t(), out_dtype=torch.float32))
    else:
        with products_in_bfloat16(hidden, weight):
            hidden = hidden.to(out.dtype)
            for ids, block in upcast_blocks(weight, out.dtype):
                torch.mm(hidden, block.t(), out=out[:, ids])
    if head.bias is not None:
        out.add_(head.bias[:vocab].to(out.dtype))
    if head.scale != 1.0:
        out.mul_(head.scale)
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)


def cap_slope(logits: Tensor, head: Head) -> Tensor | None:
    """Derivative of the soft-cap at capped logits: 1 - tanh^2."""
    return None if head.softcap is None else (logits / head.softcap).square_().neg_().add_(1)


def into_hidden(grad: Tensor, weight: Tensor) -> Tensor:
    """[c, V], [V, H] -> [c, H] in grad's dtype."""
    if weight.dtype == grad.dtype:
        return torch.mm(grad, weight)
    if weight.is_cuda and grad.dtype == torch.float32:
        return torch.mm(grad.to(weight.dtype), weight, out_dtype=torch.float32)
    result = grad.new_zeros(grad.shape[0], weight.shape[1])
    with products_in_bfloat16(weight, weight):
        for ids, block in upcast_blocks(weight, grad.dtype):
            result.addmm_(grad[:, ids], block)
    return result


def into_weight_(total: Tensor, grad: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """total [V, H] += grad [c, V]^T hidden [c, H], accumulated in total's dtype; products in the weight's precision."""
    if weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16) and grad.dtype == torch.float32:
        total += torch.mm(grad.to(weight.dtype).t(), hidden.to(weight.dtype), out_dtype=torch.float32)
        return
    with products_in_bfloat16(hidden, weight):
        total.addmm_(grad.t(), hidden.to(total.dtype))


def upcast_blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The weight [V, H] in another dtype, a block of ids at a time in one buffer."""
    buffer = torch.empty(min(_UPCAST_IDS, weight.shape[0]), weight.shape[1], dtype=dtype, device=weight.device)
    for ids in chunks(weight.shape[0], _UPCAST_IDS):
        yield ids, buffer[: ids.stop - ids.start].copy_(weight[ids])


@contextmanager
def products_in_bfloat16(left: Tensor, right: Tensor) -> Generator[None]:
    """Let a CPU with bfloat16 instructions multiply in bfloat16 and add in float32, where both sides are bfloat16.

    The products of the logits stay exact, since their factors are bfloat16 numbers; the gradient with respect to the
    logits is rounded as it is on a GPU. The setting is oneDNN's for the whole process, so it is restored at once.
    """
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    exact = left.dtype == right.dtype == torch.bfloat16 and left.device.type == "cpu"
    if matmul is None or not exact:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
