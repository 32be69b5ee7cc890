"""The peers' definitions, written again from their sources, and our losses equal to them to rounding.

TRL 1.16.0, trl/experimental/gkd/gkd_trainer.py, `GKDTrainer.generalized_jsd_loss`;
ms-swift (commit 06f4936), swift/rlhf_trainers/gkd_trainer.py, `GKDTrainer.generalized_jsd_loss`.

Both mean the same by beta: it is the teacher's weight in the mixture, 0 is KL(teacher || student), 1 is KL(student ||
teacher). F.kl_div(a, b) is KL(b || a). ms-swift's GKD page (docs/source/Instruction/GKD.md) writes "forward KL" as
KL(student || teacher); its code at beta 0, and the table of its Megatron page, do what we and TRL do. Both divide both
sides' logits by one temperature and take a mean over tokens; ms-swift's top-k renormalises both sides over the k ids.
"""

from __future__ import annotations

import loss_reference as ref
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.losses import divergence, linear_divergence, linear_topk, linear_topk_divergence, topk_divergence

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
N, V, H_S, H_T, K = 13, 29, 5, 7, 6


def peers(lq: Tensor, lp: Tensor, beta: float) -> Tensor:
    """Log-probabilities [N, V] of student and teacher -> the peers' loss, a mean over tokens."""
    if beta == 0:
        per_id = F.kl_div(lq, lp, reduction="none", log_target=True)
    elif beta == 1:
        per_id = F.kl_div(lp, lq, reduction="none", log_target=True)
    else:
        weight = torch.tensor(beta, dtype=lq.dtype)
        log_m = torch.logsumexp(torch.stack([lq + torch.log1p(-weight), lp + torch.log(weight)]), dim=0)
        of_teacher = F.kl_div(log_m, lp, reduction="none", log_target=True)
        of_student = F.kl_div(log_m, lq, reduction="none", log_target=True)
        per_id = weight * of_teacher + (1 - weight) * of_student
    return per_id.sum() / lq.shape[0]


def parts(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((N, H_S), (V, H_S), (N, H_T), (V, H_T))
    hs, ws, ht, wt = (torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return hs.requires_grad_(), ws.requires_grad_(), ht, wt


def assert_equal(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(ref.grads(ours, *inputs), ref.grads(theirs, *inputs), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", (1.0, 0.9))
def test_full_vocabulary(beta, temperature):
    hs, ws, ht, wt = parts()
    teacher = ht @ wt.T

    def theirs():
        return peers(F.log_softmax(hs @ ws.T / temperature, -1), F.log_softmax(teacher / temperature, -1), beta)

    options = {"beta": beta, "temperature": temperature}
    assert_equal(linear_divergence(hs, ws, ht, wt, **options) / N, theirs(), hs, ws)
    assert_equal(divergence(hs @ ws.T, teacher, **options).mean(), theirs(), hs, ws)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", (1.0, 0.9))
@pytest.mark.parametrize("server", (False, True))
def test_topk_of_ms_swift(beta, temperature, server):
    """A local teacher: its k largest logits over the temperature. A server: its log-probabilities at temperature 1,
    over the temperature, which after the softmax over k ids is the same."""
    hs, ws, ht, wt = parts()
    teacher = ht @ wt.T
    top, ids = (F.log_softmax(teacher, -1) if server else teacher).topk(K, -1)

    def theirs():
        student = (hs @ ws.T).gather(-1, ids)
        return peers(F.log_softmax(student / temperature, -1), F.log_softmax(top / temperature, -1), beta)

    logprobs, our_ids, tail = linear_topk(ht, wt, K, temperature=temperature)
    assert (our_ids == ids).all()
    options = {"beta": beta, "temperature": temperature, "mode": "renorm", "teacher_log_tail": tail}
    assert_equal(linear_topk_divergence(hs, ws, logprobs, ids, **options) / N, theirs(), hs, ws)
    assert_equal(topk_divergence(hs @ ws.T, logprobs, ids, **options).mean(), theirs(), hs, ws)


def test_a_wider_teacher_is_cut_where_ms_swift_copies_its_logits_into_the_student():
    """`_align_vocab_size` there fills the student's missing ids with the teacher's logits: another distribution, which
    ours must not equal."""
    hs, ws, ht, wt = parts()
    student, teacher = (hs @ ws.T)[:, : V - 4], ht @ wt.T
    filled = torch.cat([student, teacher[:, V - 4 :]], -1)
    theirs = peers(F.log_softmax(filled, -1), F.log_softmax(teacher, -1), 0.0)
    cut = peers(F.log_softmax(student, -1), F.log_softmax(teacher[:, : V - 4], -1), 0.0)
    ours = divergence(student, teacher, beta=0.0).mean()
    torch.testing.assert_close(ours, cut)
    assert (ours - theirs).abs() > 1e-2
