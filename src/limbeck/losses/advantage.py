"""Advantages: of task rewards by comparison inside a group, and of the teacher token by token (OPD-RL).

See docs/policy-losses.md for the formulas and where they come from.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from limbeck.errors import DataError

Estimator = Literal["grpo", "rloo", "reinforce_plus_plus"]
Scale = Literal["group", "batch", "none"]

OWN_SCALE: dict[Estimator, Scale] = {"grpo": "group", "rloo": "none", "reinforce_plus_plus": "batch"}
MAX_LOG = 20.0  # e^20 = 5e8: beyond it a ratio is cut, so that none overflows and 0 * inf never becomes NaN


def group_advantages(
    rewards: Tensor,
    groups: int | Tensor,
    *,
    estimator: Estimator = "grpo",
    scale: Scale | None = None,
    eps: float = 1e-4,
) -> Tensor:
    """Rewards [B] of a whole step, all ranks -> advantages [B], float32 (float64 for float64 rewards), detached.

    groups: samples a prompt, in order, or the prompt's number of each row [B] int64, in any order.
    grpo: r minus the group's mean. rloo: r minus the mean of the group's others. reinforce_plus_plus: r minus the
    group's mean or, where every group has one sample, minus the batch's mean.
    scale: divided by (standard deviation + eps), n - 1 in the deviation: of the group's rewards; of the batch's
    (reinforce_plus_plus: of the centred ones); not at all. None: what the estimator's paper does, in this order.

    A reward of NaN is missing: left out of every statistic, advantage 0. Groups without spread get exactly 0.
    Raises ValueError for infinite rewards, groups that do not fit, and groups of one where only others could be a
    baseline.
    """
    rewards, index, n_groups = _grouped(rewards, groups)
    scale = OWN_SCALE[estimator] if scale is None else scale
    alone = index.numel() == n_groups
    if alone and n_groups > 0 and (estimator != "reinforce_plus_plus" or scale == "group"):
        raise ValueError(f"{estimator} with scale {scale} needs at least 2 samples a prompt, got 1")
    pool = torch.zeros_like(index) if alone else index  # whose mean is the baseline
    known = ~rewards.isnan()
    values = rewards.masked_fill(~known, 0)
    count, total = _sums(known.to(values.dtype), pool), _sums(values, pool)
    centred = (values - (total / count.clamp(min=1))[pool]).masked_fill(~known, 0)
    if scale == "group":
        deviation = (_sums(centred.square(), pool) / (count - 1).clamp(min=1)).sqrt()[pool]
    elif scale == "batch":
        # rewards differ between prompts too; the centred ones, whose mean is 0, only inside them
        base = centred if estimator == "reinforce_plus_plus" else values - values.sum() / count.sum().clamp(min=1)
        deviation = (base.masked_fill(~known, 0).square().sum() / (count.sum() - 1).clamp(min=1)).sqrt()
    else:
        deviation = None
    if estimator == "rloo":  # r - mean of the others = (r - mean) n / (n - 1)
        centred = centred * (count / (count - 1).clamp(min=1))[pool]
    advantages = centred if deviation is None else centred / (deviation + eps)
    # a group of equals says nothing; the rounding of its mean, divided by eps, would
    return advantages.masked_fill(~known | _flat(rewards, pool)[pool], 0)


def groups_without_spread(rewards: Tensor, groups: int | Tensor) -> tuple[Tensor, Tensor]:
    """-> ([G] bool: the group's known rewards are all equal, or fewer than two), ([B] int64: the group of each row).

    `flat.float().mean()` is the metric, `~flat[index]` the rows that dynamic sampling keeps (DAPO, arXiv 2503.14476,
    section 3.2). Arguments and errors as in `group_advantages`; ids are numbered in ascending order.
    """
    rewards, index, _ = _grouped(rewards, groups)
    return _flat(rewards, index), index


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


def k3_estimate(logratio: Tensor) -> Tensor:
    """e^d - d - 1 with d = log p - log q, never negative: over samples of q its mean is KL(q || p).

    With `teacher_logratio` (already zero where masked) it is the metric `teacher_kl`. A metric, and GRPO's penalty, but
    no stand-in for reverse KL as a loss: on samples taken as given its mean gradient is that of KL(p || q).
    """
    d = logratio.clamp(max=MAX_LOG)
    return torch.expm1(d) - d


def _grouped(rewards: Tensor, groups: int | Tensor) -> tuple[Tensor, Tensor, int]:
    """Rewards as floats, the group of each row [B], and the number of groups."""
    if rewards.ndim != 1:
        raise ValueError(f"rewards must be [B], got shape {tuple(rewards.shape)}")
    rewards = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    if bool(rewards.isinf().any()):
        raise ValueError(f"{int(rewards.isinf().sum())} rewards are infinite")
    rows = rewards.shape[0]
    if isinstance(groups, int):
        if groups < 1 or rows % groups:
            raise ValueError(f"{rows} rewards do not make whole groups of {groups}")
        return rewards, torch.arange(rows, device=rewards.device) // groups, rows // groups
    if groups.shape != rewards.shape:
        raise ValueError(f"groups must be [{rows}], got shape {tuple(groups.shape)}")
    found = torch.unique(groups.to(rewards.device), return_inverse=True)  # pyright: ignore
    ids, index = cast(tuple[Tensor, Tensor], found)
    return rewards, index, ids.shape[0]


def _sums(values: Tensor, index: Tensor) -> Tensor:
    """[B], group of each row -> sums by group."""
    return values.new_zeros(int(index.max()) + 1 if index.numel() else 0).index_add(0, index, values)


def _flat(rewards: Tensor, index: Tensor) -> Tensor:
    """By group: whether its known rewards are all equal, or fewer than two. Exact: a deviation has rounding in it."""
    start = rewards.new_full((int(index.max()) + 1 if index.numel() else 0,), torch.inf)
    missing = rewards.isnan()
    lowest = start.scatter_reduce(0, index, rewards.masked_fill(missing, torch.inf), "amin")
    highest = (-start).scatter_reduce(0, index, rewards.masked_fill(missing, -torch.inf), "amax")
    return highest <= lowest
