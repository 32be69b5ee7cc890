"""The teacher as a per-token advantage (OPD-RL)."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import DataError


def teacher_logratio(teacher_logp: Tensor, student_logp: Tensor, mask: Tensor, *, clip: float | None = None) -> Tensor:
    """d_t = log pi_T(y_t) - log pi_S(y_t), detached, zero where masked; [...] each -> [...] float32.

    With the prefix fixed, ratio 1 and no clip, d_t as advantage gives the gradient of minus the per-token reverse KL.
    mask: bool, True = active; what stands at masked positions (NaN and inf included) has no influence.
    clip: cuts d_t to [-clip, clip].

    Raises DataError for a NaN on an active token, and for an infinite d_t when there is no clip.
    """
    mask = mask.bool()
    dtype = torch.promote_types(torch.float32, torch.promote_types(teacher_logp.dtype, student_logp.dtype))
    zero = torch.zeros((), dtype=dtype, device=teacher_logp.device)
    ratio = torch.where(mask, teacher_logp.detach().to(dtype), zero) - torch.where(
        mask, student_logp.detach().to(dtype), zero
    )
    if bool(ratio.isnan().any()):
        raise DataError(f"{int(ratio.isnan().sum())} active tokens have a log-probability ratio that is not a number")
    if clip is not None:
        return ratio.clamp(-clip, clip)
    if bool(ratio.isinf().any()):
        raise DataError(
            f"{int(ratio.isinf().sum())} active tokens have probability zero under one of teacher and student",
            fix="set --teacher_logratio_clip, or sample without top_k, top_p and min_p",
        )
    return ratio


def opd_advantage(base: Tensor, logratio: Tensor, mask: Tensor, *, coef: float = 1.0) -> Tensor:
    """A_t = base + coef * d_t, zero where masked; [B] or [B, T], [B, T], [B, T] -> [B, T], detached.

    base: advantage of the task rewards AFTER their group normalisation, zeros without rewards.
    """
    base = base.detach()
    if base.ndim == logratio.ndim - 1:
        base = base.unsqueeze(-1)
    return torch.where(mask.bool(), base + coef * logratio.detach(), 0.0)
