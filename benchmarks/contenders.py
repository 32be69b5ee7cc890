"""The ways to compute one loss, forward and backward, that `losses.py` compares; each returns the loss.

`full_*`: the logits as two models return them (they stay alive, as a trainer's outputs do), then the textbook formula
and autograd; the divergence is that of TRL's and ms-swift's `generalized_jsd_loss`. `checkpointed`: the same in chunks
of 256 rows that the backward computes again. `liger`: Liger-Kernel's chunked loss, from its package, not compiled.
`matmuls`: only the products that no implementation can leave out, in chunks of 256 rows.
"""

from __future__ import annotations

import importlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.losses import (
    TokenTerm,
    linear_divergence,
    linear_policy_loss,
    linear_token_logprobs,
    linear_topk,
    linear_topk_divergence,
)

LIGER = "liger-kernel==0.8.5"
ROOT = Path(__file__).parent.parent
LIGER_FOLDER = ROOT / ".cache" / LIGER.replace("==", "-")


@dataclass(frozen=True)
class Load:
    """One workload: sizes, and what is asked of the loss."""

    vocab: int
    student: int  # hidden sizes
    teacher: int
    tokens: int
    beta: float = 0.5
    k: int = 0
    frozen: bool = False  # no gradient for the student's head
    active: float = 1.0  # share of the tokens that count
    chunk_rows: int | None = None
    dtype: str = "float32"

    def __str__(self) -> str:
        sizes = f"V {self.vocab:,} H {self.student}/{self.teacher} N {self.tokens:,}"
        more = [f"k {self.k}"] if self.k else []
        more += ["frozen"] if self.frozen else []
        more += [f"{self.active:.0%} active"] if self.active < 1 else []
        more += [f"chunk {self.chunk_rows}"] if self.chunk_rows else []
        more += [self.dtype] if self.dtype != "float32" else []
        return ", ".join([sizes, f"beta {self.beta:g}", *more])


class Inputs:
    """Random hidden states [N, H] and heads [V, H], logits of standard deviation 2; the same in every process."""

    def __init__(self, o: Load, device: str = "cpu") -> None:
        torch.manual_seed(0)
        dtype = getattr(torch, o.dtype)

        def uniform(rows: int, width: int, deviation: float) -> Tensor:
            edge = deviation * 3**0.5
            return torch.empty(rows, width, device=device).uniform_(-edge, edge).to(dtype)

        self.ws, self.wt = (uniform(o.vocab, width, 2 * width**-0.5) for width in (o.student, o.teacher))
        self.hs, self.ht = (uniform(o.tokens, width, 1.0) for width in (o.student, o.teacher))
        self.ids = torch.randint(0, o.vocab, (o.tokens,), device=device)
        self.advantage, self.old = torch.randn(2, o.tokens, device=device)
        self.old.mul_(0.1).sub_(9.5)
        self.mask = torch.arange(o.tokens, device=device) % round(1 / o.active) == 0
        self.signal = linear_topk(self.ht, self.wt, o.k) if o.k else ()
        self.hs.requires_grad_()
        self.ws.requires_grad_(not o.frozen)


def ours(o: Load, x: Inputs) -> Tensor:
    weights = None if o.active == 1 else x.mask
    loss = linear_divergence(x.hs, x.ws, x.ht, x.wt, beta=o.beta, weights=weights, chunk_rows=o.chunk_rows)
    loss.backward()
    return loss


def ours_with_statistics(o: Load, x: Inputs) -> Tensor:
    loss, _ = linear_divergence(x.hs, x.ws, x.ht, x.wt, beta=o.beta, return_stats=True)
    loss.backward()
    return loss


def full(o: Load, x: Inputs) -> Tensor:
    z = (x.hs @ x.ws.t()).float()
    with torch.no_grad():
        t = (x.ht @ x.wt.t()).float()
    per_id = jsd(z, t, o.beta)
    loss = (per_id if o.active == 1 else per_id[x.mask]).sum()
    loss.backward()
    return loss


def jsd(z: Tensor, t: Tensor, beta: float) -> Tensor:
    """[N, V] of student and teacher -> [N, V], with F.kl_div(a, b) = KL(b || a)."""
    lq, lp = torch.log_softmax(z, -1), torch.log_softmax(t, -1)
    if beta == 0:
        return F.kl_div(lq, lp, reduction="none", log_target=True)
    if beta == 1:
        return F.kl_div(lp, lq, reduction="none", log_target=True)
    weight = torch.tensor(beta)
    log_m = torch.logsumexp(torch.stack([lq + torch.log1p(-weight), lp + torch.log(weight)]), 0)
    of_teacher = F.kl_div(log_m, lp, reduction="none", log_target=True)
    of_student = F.kl_div(log_m, lq, reduction="none", log_target=True)
    return weight * of_teacher + (1 - weight) * of_student


def checkpointed(o: Load, x: Inputs) -> Tensor:
    def chunk(hs: Tensor, ht: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            t = (ht @ x.wt.t()).float()
        return (jsd((hs @ x.ws.t()).float(), t, o.beta) * mask.unsqueeze(-1)).sum()

    parts = zip(x.hs.split(256), x.ht.split(256), x.mask.float().split(256), strict=True)
    loss = torch.stack([checkpoint(chunk, *part, use_reentrant=False) for part in parts]).sum()
    loss.backward()
    return loss


def liger(o: Load, x: Inputs) -> Tensor:
    loss_class = liger_class()
    targets = torch.where(x.mask, x.ids, -100)
    module = loss_class(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=o.beta, compiled=False)
    loss = module(x.hs, x.ws, x.ht, x.wt, targets) * int(x.mask.sum())  # it divides by the number of tokens
    loss.backward()
    return loss


def liger_class() -> Any:
    """LigerFusedLinearJSDLoss without the package's own imports, which need Triton; the chunked losses do not."""
    for name in ("liger_kernel", "liger_kernel.chunked_loss"):
        package = types.ModuleType(name)
        package.__path__ = [str(LIGER_FOLDER / name.replace(".", "/"))]
        sys.modules[name] = package
    return importlib.import_module("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDLoss


@torch.no_grad()
def matmuls(o: Load, x: Inputs) -> None:
    d_hidden, d_weight = torch.zeros_like(x.hs), None if o.frozen else torch.zeros_like(x.ws)
    z, t = (torch.empty(256, o.vocab, dtype=x.hs.dtype, device=x.hs.device) for _ in range(2))
    for start in range(0, o.tokens, 256):
        rows = slice(start, min(start + 256, o.tokens))
        h, n = x.hs[rows], rows.stop - start
        torch.mm(h, x.ws.t(), out=z[:n])
        torch.mm(x.ht[rows], x.wt.t(), out=t[:n])
        torch.mm(z[:n], x.ws, out=d_hidden[rows])
        if d_weight is not None:
            d_weight.addmm_(z[:n].t(), h)


def ours_topk(mode: str) -> Any:
    def run(o: Load, x: Inputs) -> Tensor:
        logprobs, ids, tail = x.signal
        loss = linear_topk_divergence(x.hs, x.ws, logprobs, ids, beta=o.beta, mode=mode, teacher_log_tail=tail)
        loss.backward()
        return loss

    return run


def full_topk(mode: str) -> Any:
    """The tail's mass as one minus the sum: the cheapest that a plain implementation can do."""

    def run(o: Load, x: Inputs) -> Tensor:
        logprobs, ids, tail = x.signal
        z = (x.hs @ x.ws.t()).float()
        if mode == "renorm":
            loss = jsd(z.gather(-1, ids), logprobs, o.beta).sum()
        else:
            lq = torch.log_softmax(z, -1).gather(-1, ids)
            rest = torch.log1p(-lq.exp().sum(-1, keepdim=True))
            buckets = torch.cat([lq, rest], -1), torch.cat([logprobs, tail.unsqueeze(-1)], -1)
            loss = jsd(*buckets, o.beta).sum()
        loss.backward()
        return loss

    return run


def ppo(logp: Tensor, advantage: Tensor, old: Tensor) -> Tensor:
    """The clipped objective, per token (arXiv 1707.06347, equation 7)."""
    ratio = (logp - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


def ours_policy(o: Load, x: Inputs) -> Tensor:
    loss = linear_policy_loss(x.hs, x.ws, x.ids, lambda logp, i: ppo(logp, x.advantage[i], x.old[i]))
    loss.backward()
    return loss


def ours_both(o: Load, x: Inputs) -> Tensor:
    """Reverse KL and the policy's loss in one pass over the head (`--opd_signal topk | full` with rewards)."""
    term = TokenTerm(x.ids, objective=lambda logp, i: ppo(logp, x.advantage[i], x.old[i]))
    loss = _teacher_term(o, x, along=term)
    loss.backward()
    return loss


def two_passes(o: Load, x: Inputs) -> Tensor:
    loss = _teacher_term(o, x)
    loss = loss + linear_policy_loss(x.hs, x.ws, x.ids, lambda logp, i: ppo(logp, x.advantage[i], x.old[i]))
    loss.backward()
    return loss


def _teacher_term(o: Load, x: Inputs, **more: Any) -> Tensor:
    if not o.k:
        return linear_divergence(x.hs, x.ws, x.ht, x.wt, beta=o.beta, **more)
    logprobs, ids, tail = x.signal
    return linear_topk_divergence(x.hs, x.ws, logprobs, ids, beta=o.beta, teacher_log_tail=tail, **more)


@torch.no_grad()
def policy_matmuls(o: Load, x: Inputs) -> None:
    d_hidden, d_weight = torch.zeros_like(x.hs), None if o.frozen else torch.zeros_like(x.ws)
    z = torch.empty(256, o.vocab, dtype=x.hs.dtype, device=x.hs.device)
    for start in range(0, o.tokens, 256):
        rows = slice(start, min(start + 256, o.tokens))
        torch.mm(x.hs[rows], x.ws.t(), out=z[: rows.stop - start])
        torch.mm(z[: rows.stop - start], x.ws, out=d_hidden[rows])
        if d_weight is not None:
            d_weight.addmm_(z[: rows.stop - start].t(), x.hs[rows])


def ours_logprobs(o: Load, x: Inputs) -> Tensor:
    """The same through log-probabilities: with a frozen head from stored unit gradients, else by recomputation."""
    loss = ppo(linear_token_logprobs(x.hs, x.ws, x.ids), x.advantage, x.old).sum()
    loss.backward()
    return loss


def full_policy(o: Load, x: Inputs) -> Tensor:
    z = (x.hs @ x.ws.t()).float()
    logp = torch.log_softmax(z, -1).gather(-1, x.ids.unsqueeze(-1)).squeeze(-1)
    loss = ppo(logp, x.advantage, x.old).sum()
    loss.backward()
    return loss


@torch.no_grad()
def ours_scoring(o: Load, x: Inputs) -> Tensor:
    return linear_token_logprobs(x.hs, x.ws, x.ids).sum()


@torch.no_grad()
def full_scoring(o: Load, x: Inputs) -> Tensor:
    z = (x.hs @ x.ws.t()).float()
    return torch.log_softmax(z, -1).gather(-1, x.ids.unsqueeze(-1)).sum()


RUNS = {
    "ours": ours,
    "ours, with statistics": ours_with_statistics,
    "full logits": full,
    "checkpoint": checkpointed,
    "liger": liger,
    "matmuls": matmuls,
    "ours, tail": ours_topk("tail"),
    "full logits, tail": full_topk("tail"),
    "ours, renorm": ours_topk("renorm"),
    "full logits, renorm": full_topk("renorm"),
    "ours, policy": ours_policy,
    "ours, log-probabilities": ours_logprobs,
    "full logits, policy": full_policy,
    "matmuls, policy": policy_matmuls,
    "ours, both": ours_both,
    "two passes, both": two_passes,
    "ours, scoring": ours_scoring,
    "full logits, scoring": full_scoring,
}
