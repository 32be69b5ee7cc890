"""Forward KL, reverse KL and the generalized JSD of two next-token distributions, with their gradients.

P is the teacher, Q the student, u the student's logits divided by the temperature, d = log p - log q.

    beta = 0   KL(P || Q)                                        d/du = q - p
    beta = 1   KL(Q || P)                                        d/du = q (log q - log p - KL)
    between    beta KL(P || M) + (1 - beta) KL(Q || M)           d/du = (1 - beta) q (log q - log m - KL(Q || M))
               M = beta P + (1 - beta) Q

The generalized JSD is that of Agarwal et al., arXiv 2306.13649, equation 1. Every sum runs over terms that cannot be
negative, and every gradient is a product with a difference that is exactly zero where the inputs are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .head import compute_dtype

# Below exp(-80) a probability counts for nothing beside its larger partner, and expm1 of the difference is finite.
_FLOOR = -80.0
# Stands for log 0: finite, so that two masked ids differ by 0 and not by NaN; its exponential is exactly 0.
_LOG_ZERO = -1e30
_LOG2_E = 1 / math.log(2)
# Elements of a block of rows per thread: a handful of such buffers stay in a core's cache.
_BLOCK_ELEMENTS = 1 << 18
_BLOCK_ELEMENTS_CUDA = 1 << 25


@dataclass(frozen=True, slots=True)
class Measure:
    """How the difference of two distributions is measured, per token.

    beta:        0 forward KL, 1 reverse KL, between the generalized JSD.
    temperature: divides both sides' logits; no factor of temperature squared.
    normalize:   divides the JSD by beta (1 - beta), which makes it continuous with the two KLs.
    clip:        per-token values above it are cut to it, and give no gradient.

    Raises ValueError for a beta outside [0, 1], a temperature or a clip that is not positive.
    """

    beta: float
    temperature: float = 1.0
    normalize: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta must lie in [0, 1], got {self.beta}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"token_clip must be positive, got {self.clip}")


def divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, beta: float, temperature: float = 1.0, normalize: bool = False
) -> Tensor:
    """Per-token divergence over the first min(V_s, V_t) ids; differentiable in the student's logits only.

    [..., V_s], [..., V_t] -> [...], float32 (float64 where an input is). Logits of -inf are ids out of the
    distribution: out on both sides they count for nothing; where the true divergence is infinite, so is the value (its
    gradient stays finite: q - p for the forward KL, zero for the reverse KL).
    """
    measure = Measure(beta, temperature, normalize)
    vocab = min(student_logits.shape[-1], teacher_logits.shape[-1])
    if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(f"shapes differ: student {tuple(student_logits.shape)}, teacher {tuple(teacher_logits.shape)}")
    dtype = compute_dtype(student_logits, teacher_logits)
    teacher = teacher_logits.detach()[..., :vocab].reshape(-1, vocab)

    def block(logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor]:
        lq = log_softmax(logits, temperature)
        lp = log_softmax(teacher[at].to(dtype), temperature)
        value, factor = compare_(lq, lp, measure, masked=True, grad=grad)
        return value, lq.mul_((factor / temperature).unsqueeze(-1)) if grad else lq

    return per_token(student_logits, vocab, dtype, block)


def per_token(student_logits: Tensor, vocab: int, dtype: torch.dtype, block: Any) -> Tensor:
    """Run `block(logits [b, V], rows, whether a gradient is wanted) -> (value [b], gradient [b, V])` over logits."""
    flat = student_logits.detach()[..., :vocab].reshape(-1, vocab)
    rows = flat.shape[0]
    wanted = torch.is_grad_enabled() and student_logits.requires_grad
    value = torch.empty(rows, dtype=dtype, device=flat.device)
    full_shape = (rows, student_logits.shape[-1])
    grad = student_logits.new_zeros(full_shape) if wanted else None
    with torch.no_grad(), torch.autocast(flat.device.type, enabled=False):
        for at in blocks(rows, vocab, flat.device):
            logits = flat[at].to(dtype).contiguous()
            value[at], du = block(logits, at, wanted)
            if grad is not None:
                grad[at, :vocab] = du
    shaped = value.reshape(student_logits.shape[:-1])
    if grad is None:
        return shaped
    return _PerToken.apply(shaped, student_logits, grad.reshape(student_logits.shape))  # pyright: ignore


class _PerToken(torch.autograd.Function):
    """A per-token value whose gradient with respect to the logits is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (grad,) = ctx.saved_tensors
        return None, (grad * upstream[0].unsqueeze(-1)).to(grad.dtype), None


def log_softmax(logits: Tensor, temperature: float, *, work: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """[..., V] -> log-probabilities at the temperature; `logits` is left as it is."""
    if temperature != 1.0:
        logits = torch.div(logits, temperature, out=work)
    if out is None:
        return torch.log_softmax(logits, -1)
    return torch.log_softmax(logits, -1, out=out)  # pyright: ignore


def blocks(rows: int, vocab: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows whose elements fit a core's cache: the elementwise passes run on these."""
    step = block_rows(vocab, device)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def block_rows(vocab: int, device: torch.device) -> int:
    elements = _BLOCK_ELEMENTS * torch.get_num_threads() if device.type == "cpu" else _BLOCK_ELEMENTS_CUDA
    return max(1, elements // vocab)


def exp(x: Tensor, *, out: Tensor) -> Tensor:
    """e^x; on a CPU as 2^(x log2 e), since exp goes through a library there that is slow on some (docs/losses.md)."""
    return torch.mul(x, _LOG2_E, out=out).exp2_() if x.device.type == "cpu" else torch.exp(x, out=out)


def compare_(
    lq: Tensor,
    lp: Tensor,
    measure: Measure,
    *,
    masked: bool,
    grad: bool,
    work: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Divergence of each row, [b, V] log-probabilities on both sides -> [b], factor [b]; both inputs are used up.

    With `grad`, factor times `out` (default: lq) [b, V] is the gradient with respect to u.
    masked: entries of -inf may occur on either side.
    work:   two scratch buffers of lq's shape.
    """
    infinite = _mask_(lq, lp, measure.beta) if masked else None
    work = work or (torch.empty_like(lq), torch.empty_like(lq))
    beta, target = measure.beta, (lq if out is None else out) if grad else None
    if beta == 0.0:
        value, number = _forward_kl_(lq, lp, work, target), 1.0
    elif beta == 1.0:
        value, number = _reverse_kl_(lq, lp, work, target), -1.0
    else:
        value, number = _jsd_(lq, lp, beta, work, target), beta - 1
        if measure.normalize:
            value, number = value / (beta * (1 - beta)), -1 / beta
    factor = torch.full_like(value, number)
    if infinite is not None:
        value = value.masked_fill(infinite, torch.inf)
        if beta == 1.0:
            factor.masked_fill_(infinite, 0)
    if measure.clip is not None:
        factor.masked_fill_(value > measure.clip, 0)
        value = value.clamp(max=measure.clip)
    return value, factor


def _mask_(lq: Tensor, lp: Tensor, beta: float) -> Tensor | None:
    """Make every entry finite; return the rows whose divergence is infinite, [b] bool."""
    infinite = None
    if beta == 0.0:
        infinite = _off(lp, lq)
    elif beta == 1.0:
        infinite = _off(lq, lp)
    lq.clamp_(min=_LOG_ZERO)
    lp.clamp_(min=_LOG_ZERO)
    return infinite


def _off(of: Tensor, to: Tensor) -> Tensor:
    """Rows where KL(of || to) is infinite: mass of the one on an id that the other has not, [b] bool."""
    return (torch.isneginf(to) & (of.exp() > 0)).any(-1)


def _forward_kl_(lq: Tensor, lp: Tensor, work: tuple[Tensor, Tensor], out: Tensor | None) -> Tensor:
    """KL(P || Q) = sum p (d + expm1(-d)); out becomes q - p, as p expm1(-d)."""
    x, f = work
    _ratio_(lp, lq, x)
    torch.expm1(x, out=f)
    p = exp(lp, out=lp)
    if out is not None:
        torch.mul(p, f, out=out)
    return f.sub_(x).mul_(p).sum(-1)


def _reverse_kl_(lq: Tensor, lp: Tensor, work: tuple[Tensor, Tensor], out: Tensor | None) -> Tensor:
    """KL(Q || P) = sum q (-d + expm1(d)); out becomes q (d + KL), minus the gradient."""
    x, f = work
    _ratio_(lq, lp, x)
    torch.expm1(x, out=f).sub_(x)
    q = exp(lq, out=lq)
    value = f.mul_(q).sum(-1)
    if out is not None:
        torch.mul(q, x.add_(value.unsqueeze(-1)), out=out)
    return value


def _ratio_(of: Tensor, to: Tensor, out: Tensor) -> None:
    """out = to - of; where it is large enough for expm1 of it to overflow, `of` is raised to no less than exp(-80)."""
    torch.sub(to, of, out=out)
    if bool(out.amax() > -_FLOOR / 2):
        torch.maximum(of, torch.clamp(to, max=_FLOOR, out=out), out=of)
        torch.sub(to, of, out=out)


def _jsd_(lq: Tensor, lp: Tensor, beta: float, work: tuple[Tensor, Tensor], out: Tensor | None) -> Tensor:
    """beta KL(P || M) + (1 - beta) KL(Q || M); out becomes q (log m - log q + KL(Q || M)).

    With e the log-ratio of the lighter component (P for beta <= 1/2) to the heavier and b the lighter's weight,
    L = log1p(b expm1(e)) is log m over the heavier and e - L the lighter over m. b e <= L <= e where e > 0 and |L| <=
    b |e| elsewhere, so that neither is a difference of large numbers for a small b. Past e = 80, e - L is -log b.
    """
    e, heavy_to_m = work
    light, heavy = (lp, lq) if beta <= 0.5 else (lq, lp)
    torch.sub(light, heavy, out=e).clamp_(max=-_FLOOR)
    torch.expm1(e, out=heavy_to_m).mul_(min(beta, 1 - beta)).log1p_()
    light_to_m = torch.sub(heavy_to_m, e, out=e)
    p_to_m, q_to_m = (light_to_m, heavy_to_m) if beta <= 0.5 else (heavy_to_m, light_to_m)  # log m - log p, - log q
    p, q = exp(lp, out=lp), exp(lq, out=lq)
    kl_p = 0 - p_to_m.mul_(p).sum(-1)  # not a bare minus: zero stays +0
    kl_q = 0 - torch.mul(q_to_m, q, out=p).sum(-1)
    if out is not None:
        torch.mul(q, q_to_m.add_(kl_q.unsqueeze(-1)), out=out)
    return beta * kl_p + (1 - beta) * kl_q


def pair_stats(lq: Tensor, lp: Tensor, *, masked: bool, work: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """Per-row statistics of two distributions, [b, V] -> [b] each; the inputs are left as they are."""
    x, p, q = work
    infinite: dict[str, Tensor] = {}
    if masked:
        infinite = {"forward_kl": _off(lp, lq), "reverse_kl": _off(lq, lp)}
        lq, lp = lq.clamp(min=_LOG_ZERO), lp.clamp(min=_LOG_ZERO)
    exp(lp, out=p)
    exp(lq, out=q)
    excess = p.sum(-1) - q.sum(-1)
    stats = {
        "student_entropy": -torch.mul(q, lq, out=x).sum(-1),
        "teacher_entropy": -torch.mul(p, lp, out=x).sum(-1),
    }
    d = torch.sub(lp, lq, out=x)
    stats["forward_kl"] = (p.mul_(d).sum(-1) - excess).clamp_(min=0)
    stats["reverse_kl"] = (excess - q.mul_(d).sum(-1)).clamp_(min=0)
    for name, rows in infinite.items():
        stats[name].masked_fill_(rows, torch.inf)
    # The two share a likeliest id where the largest sum is the sum of the largest (to rounding; argmax is slow).
    best = torch.add(lq, lp, out=p).amax(-1)
    stats["top1_agreement"] = (best == lq.amax(-1) + lp.amax(-1)).to(lq.dtype)
    return stats
