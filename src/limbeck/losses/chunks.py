"""The pass over an output head, chunk by chunk: value and gradient together, nothing of size [tokens, vocab] kept.

A rule turns a chunk of logits into per-token values and, in place, into the gradient with respect to these logits; the
pass multiplies that gradient into the hidden states and the head's tensors and forgets the chunk. What the autograd
graph keeps are these finished gradients, so that the backward is a scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import psutil
import torch
from torch import Tensor

from .head import Head

# Logits [c, vocab] and their place among the rows. They become the gradient with respect to themselves, but for the
# factor a row, [c], that is returned (None: 1): it costs less on the hidden states than on the logits.
Rule = Callable[[Tensor, slice], Tensor | None]

# Rows of a chunk on a CPU: enough for the matmuls' full speed.
_CHUNK_ROWS = 256
# Bounds on a GPU, and the elements of one logits buffer there.
_CHUNK_ROWS_CUDA = (256, 2048)
_CHUNK_ELEMENTS_CUDA = 1 << 28
# The two logits buffers of a chunk, the student's and the teacher's, may take this share of the free memory.
_FREE_SHARE = 1 / 8
_LEAST_ROWS = 16
# Ids of one vocabulary block when the weight has to be upcast on its way into a matmul.
_UPCAST_IDS = 4096


@lru_cache(maxsize=64)
def chunk_choice(vocab: int, dtype: torch.dtype, device: torch.device | str) -> tuple[int, str]:
    """Rows of a chunk of logits [rows, vocab] in `dtype` on the device, and why: a line for a log.

    256 on a CPU; on a GPU the largest power of two between 256 and 2,048 whose logits have at most 2^28 elements.
    Halved while the two buffers of a chunk take more than an eighth of the free memory, down to 16. Chosen once a
    process, so that a step's rounding does not depend on what else runs.
    """
    device = torch.device(device)
    rows, reason = _CHUNK_ROWS, "full speed of the matmuls on a CPU"
    if device.type != "cpu":
        rows, most = _CHUNK_ROWS_CUDA
        while rows < most and 2 * rows * vocab <= _CHUNK_ELEMENTS_CUDA:
            rows *= 2
        reason = f"the most that keeps {vocab:,} logits a row within {_CHUNK_ELEMENTS_CUDA:,} elements"
    free, row = _free_memory(device), 2 * vocab * dtype.itemsize
    while rows > _LEAST_ROWS and rows * row > _FREE_SHARE * free:
        rows //= 2
        reason = f"what {_FREE_SHARE:.0%} of the {free / 1e9:.1f} GB of free memory hold"
    return rows, f"{rows} rows of {vocab:,} ids a chunk, {rows * row / 1e6:.0f} MB in two buffers: {reason}"


def _free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


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
        size = chunk_choice(vocab, dtype, hidden.device)[0] if chunk_rows is None else max(1, chunk_rows)
        self.size = min(size, max(1, hidden.shape[0]))
        enabled = torch.is_grad_enabled()
        self.inputs = (hidden, head.weight, head.bias)
        wanted = [enabled and t is not None and t.requires_grad for t in self.inputs]
        self.grads = any(wanted)
        self.d_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
        self.d_weight = torch.empty(head.weight.shape, dtype=dtype, device=hidden.device) if wanted[1] else None
        bias = head.bias if wanted[2] else None
        self.d_bias = None if bias is None else torch.zeros(bias.shape, dtype=dtype, device=hidden.device)
        self.written = False  # whether d_weight holds anything: the first chunk's product is stored, not added
        self.logits = torch.empty(0, dtype=dtype, device=hidden.device)

    def run(self, rows: Tensor | None, rule: Rule) -> None:
        """Walk over the rows (None: all of them) with a rule."""
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
                factor = rule(logits, at)
                if self.grads:
                    self._collect(logits if slope is None else logits.mul_(slope), factor, hidden, index)

    def _collect(self, grad: Tensor, factor: Tensor | None, hidden: Tensor, index: slice | Tensor) -> None:
        """Take a chunk's gradient, factor [c] times grad [c, vocab], to the hidden states and the head."""
        weight, scale = self.head.weight, self.head.scale
        if factor is not None and weight.dtype != grad.dtype:  # hidden states that stay exact in a narrow product
            grad, factor = grad.mul_(factor.unsqueeze(-1)), None
        if self.d_hidden is not None:
            found = into_hidden(grad, weight[: self.vocab])
            self.d_hidden[index] = _scaled(found, factor, scale).to(self.d_hidden.dtype)
        if self.d_bias is not None:
            self.d_bias[: self.vocab] += scale * (grad.sum(0) if factor is None else torch.mv(grad.t(), factor))
        if self.d_weight is not None:
            into_weight_(self.d_weight[: self.vocab], grad, _scaled(hidden, factor), weight, scale, add=self.written)
            if not self.written:
                self.d_weight[self.vocab :].zero_()
                self.written = True

    def found(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of hidden states, weight and bias that the walk has found."""
        if self.d_weight is not None and not self.written:
            self.d_weight.zero_()
            self.written = True
        return self.d_hidden, self.d_weight, self.d_bias

    def attach(self, value: Tensor) -> Tensor:
        """The scalar, tied to the inputs by the gradients that the walk has found."""
        self.logits = self.logits.new_empty(0)
        if not self.grads:
            return value
        return _Attached.apply(value, *self.inputs, *self.found())  # pyright: ignore


def _scaled(rows: Tensor, factor: Tensor | None, scale: float = 1.0) -> Tensor:
    """[c, H] times a factor a row and a number; as it is where both are 1."""
    if factor is not None:
        rows = rows * factor.unsqueeze(-1)
    return rows if scale == 1.0 else rows * scale


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


def into_weight_(
    total: Tensor, grad: Tensor, hidden: Tensor, weight: Tensor, scale: float = 1.0, *, add: bool = True
) -> None:
    """total [V, H] (+)= scale grad [c, V]^T hidden [c, H], accumulated in total's dtype; products in the weight's."""
    if weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16) and grad.dtype == torch.float32:
        found = torch.mm(grad.to(weight.dtype).t(), hidden.to(weight.dtype), out_dtype=torch.float32)
        total.copy_(found.mul_(scale)) if not add else total.add_(found, alpha=scale)
        return
    with products_in_bfloat16(hidden, weight):
        # A beta of 0 ignores what `total` holds, NaN too.
        total.addmm_(grad.t(), hidden.to(total.dtype), beta=1 if add else 0, alpha=scale)


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
