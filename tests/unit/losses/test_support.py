"""Dense top-k divergences: tail and renorm, absent entries, unknown tails, ms-swift's definition."""

from __future__ import annotations

import loss_reference as ref
import pytest
import torch
import torch.nn.functional as F

from limbeck.losses import divergence, topk_divergence

BETAS = (0.0, 0.3, 0.5, 1.0)


def logits(rows=6, vocab=23, seed=0, spread=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(spread * torch.randn(rows, vocab, generator=generator, dtype=dtype) for _ in range(2))


def signal(teacher, k, temperature=1.0):
    """The k likeliest ids, their log-probabilities over all ids, the log of the rest's mass, summed term by term."""
    lp = torch.log_softmax(teacher / temperature, -1)
    top, ids = lp.topk(k, -1)
    return top, ids, lp.scatter(-1, ids, -torch.inf).logsumexp(-1)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("mode", ("tail", "renorm"))
@pytest.mark.parametrize("temperature", (1.0, 0.6))
@pytest.mark.parametrize("known_tail", (True, False))
def test_value_and_gradient_against_buckets_summed_one_by_one(beta, mode, temperature, known_tail):
    student, teacher = logits()
    student.requires_grad_()
    top, ids, tail = signal(teacher, 5, temperature)
    value = topk_divergence(
        student, top, ids, beta=beta, temperature=temperature, mode=mode, teacher_log_tail=tail if known_tail else None
    )
    wanted = ref.topk(student, top, ids, beta, mode, temperature)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    (ours,), (theirs,) = ref.grads(value.sum(), student), ref.grads(wanted.sum(), student)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("mode", ("tail", "renorm"))
def test_gradcheck(beta, mode):
    student, teacher = logits(rows=3, vocab=9)
    top, ids, tail = signal(teacher, 4)
    assert torch.autograd.gradcheck(
        lambda s: topk_divergence(s, top, ids, beta=beta, mode=mode, teacher_log_tail=tail), student.requires_grad_()
    )


def test_leading_dimensions():
    student, teacher = logits()
    top, ids, tail = signal(teacher, 5)
    flat = topk_divergence(student, top, ids, beta=0.5, teacher_log_tail=tail)
    deep = topk_divergence(
        student.view(2, 3, 23), top.view(2, 3, 5), ids.view(2, 3, 5), beta=0.5, teacher_log_tail=tail.view(2, 3)
    )
    torch.testing.assert_close(deep, flat.view(2, 3))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("mode", ("tail", "renorm"))
@pytest.mark.parametrize("known_tail", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_all_ids_equal_the_full_vocabulary(beta, mode, known_tail, dtype):
    student, teacher = logits(dtype=dtype)
    student.requires_grad_()
    top, ids, tail = signal(teacher, 23)
    assert (tail == -torch.inf).all()
    value = topk_divergence(student, top, ids, beta=beta, mode=mode, teacher_log_tail=tail if known_tail else None)
    full = divergence(student, teacher, beta=beta)
    torch.testing.assert_close(value, full)
    torch.testing.assert_close(ref.grads(value.sum(), student), ref.grads(full.sum(), student))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", (1, 3, 11))
def test_tail_is_a_lower_bound_of_the_full_divergence(beta, k):
    student, teacher = logits(rows=50)
    top, ids, tail = signal(teacher, k)
    bound = topk_divergence(student, top, ids, beta=beta, teacher_log_tail=tail)
    full = divergence(student, teacher, beta=beta)
    assert (bound <= full + 1e-12).all() and (bound < full - 1e-3).any()


@pytest.mark.parametrize("beta", BETAS)
def test_renorm_is_zero_at_one_id(beta):
    student, teacher = logits()
    top, ids, _ = signal(teacher, 1)
    assert (topk_divergence(student, top, ids, beta=beta, mode="renorm") == 0).all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("mode", ("tail", "renorm"))
@pytest.mark.parametrize("known_tail", (True, False))
@pytest.mark.parametrize("k", (1, 4, 64, 700))
def test_equal_inputs_give_exactly_zero(beta, mode, known_tail, k):
    same = 6 * torch.randn(30, 701, generator=torch.Generator().manual_seed(k))
    same[3] += 40 * F.one_hot(torch.tensor(5), 701)
    top, ids, tail = signal(same, k, 0.8)
    student = same.clone().requires_grad_()
    value = topk_divergence(
        student, top, ids, beta=beta, temperature=0.8, mode=mode, teacher_log_tail=tail if known_tail else None
    )
    assert (value == 0).all()
    assert (ref.grads(value.sum(), student)[0] == 0).all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("mode", ("tail", "renorm"))
def test_an_absent_entry_counts_for_nothing_whatever_its_id(beta, mode):
    student, teacher = logits()
    top, ids, tail = signal(teacher, 5)
    padded = torch.cat([top, torch.full((6, 3), -torch.inf)], -1)
    junk = torch.cat([ids, ids[:, :1], torch.zeros(6, 1, dtype=torch.int64), torch.full((6, 1), -1)], -1)
    a, b = (student.clone().requires_grad_() for _ in range(2))
    short = topk_divergence(a, top, ids, beta=beta, mode=mode, teacher_log_tail=tail)
    long = topk_divergence(b, padded, junk, beta=beta, mode=mode, teacher_log_tail=tail)
    torch.testing.assert_close(long, short)
    torch.testing.assert_close(ref.grads(long.sum(), b), ref.grads(short.sum(), a))


def test_a_row_without_any_entry_is_zero():
    student = torch.randn(2, 7, requires_grad=True)
    empty, ids = torch.full((2, 3), -torch.inf), torch.zeros(2, 3, dtype=torch.int64)
    for mode in ("tail", "renorm"):
        value = topk_divergence(student, empty, ids, beta=0.5, mode=mode, teacher_log_tail=torch.zeros(2))
        assert (value.abs() < 1e-7).all()
        assert ref.grads(value.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("beta", BETAS)
def test_a_peaked_teacher_in_float32_with_its_tail(beta):
    """All but 1e-12 on one id: one minus the sum would be 0, or 6e-8; the complement is right to the last digits."""
    student, teacher = torch.zeros(1, 50), torch.zeros(1, 50)
    student[0, 0], teacher[0, 0] = 20.0, 31.5
    top, ids, tail = signal(teacher, 1)
    value = topk_divergence(student.requires_grad_(), top, ids, beta=beta, teacher_log_tail=tail)
    exact_top, _, exact_tail = signal(teacher.double(), 1)
    lq, _, q_tail = signal(student.detach().double(), 1)
    wanted = ref.of_logprobs(
        torch.cat([lq, q_tail[:, None]], -1), torch.cat([exact_top, exact_tail[:, None]], -1), beta
    )
    torch.testing.assert_close(value.double(), wanted, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_an_unknown_tail_is_floored_at_the_rounding_of_the_sum(dtype):
    """The teacher's sum rounds to 1 or above: its tail is the bound of the dtype that was sent, (k + 16) eps."""
    student = torch.zeros(1, 50, dtype=torch.float64)
    top = torch.tensor([[3e-8, -20.0]], dtype=dtype)
    value = topk_divergence(student, top, torch.tensor([[0, 1]]), beta=1.0)
    tail = torch.tensor([[18 * torch.finfo(dtype).eps]]).double()
    lq = torch.log(torch.tensor([[1, 1, 48.0]]).double() / 50)
    wanted = ref.of_logprobs(lq, torch.cat([top.double(), tail.log()], -1), 1.0)
    torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)


def test_all_ids_with_coarse_logprobs_have_no_tail():
    """Log-probabilities of all ids in bfloat16 sum to something else than 1: still there is nothing outside."""
    student, teacher = logits(dtype=torch.float32)
    top, ids, _ = signal(teacher, 23)
    value = topk_divergence(student, top.bfloat16(), ids, beta=0.0)
    torch.testing.assert_close(value, divergence(student, teacher, beta=0.0), rtol=0.05, atol=0.02)


def test_a_student_masked_outside_the_support():
    """No id is left to the student outside: an estimated tail is dropped, a tail that was sent is infinitely far."""
    student = torch.tensor([[1.0, 2.0, -torch.inf, -torch.inf]], requires_grad=True)
    top, ids = torch.log(torch.tensor([[0.7, 0.3]])), torch.tensor([[0, 1]])
    value = topk_divergence(student, top, ids, beta=0.0)
    torch.testing.assert_close(value.double(), ref.dense(student[:, :2].detach(), top, 0.0), atol=1e-6, rtol=1e-6)
    assert ref.grads(value.sum(), student)[0].isfinite().all()
    assert topk_divergence(student, top, ids, beta=0.0, teacher_log_tail=torch.tensor([-5.0])).item() == torch.inf


@pytest.mark.parametrize("beta", (0.0, 0.5, 1.0))
@pytest.mark.parametrize("temperature", (1.0, 0.9))
def test_renorm_equals_the_definition_of_ms_swift(beta, temperature):
    """ms-swift, `GKDTrainer.generalized_jsd_loss` with `teacher_topk_logprobs`: both sides gathered at the teacher's
    ids, divided by the temperature, softmax over these k, then the GKD formula (the teacher's entries are at 1)."""
    student, teacher = logits(seed=9)
    top, ids, _ = signal(teacher, 6, 1.0)
    lq = F.log_softmax(student.gather(-1, ids) / temperature, -1)
    lp = F.log_softmax(top / temperature, -1)
    if beta == 0.0:
        wanted = F.kl_div(lq, lp, reduction="none", log_target=True)
    elif beta == 1.0:
        wanted = F.kl_div(lp, lq, reduction="none", log_target=True)
    else:
        log_m = torch.logaddexp(lq + torch.log1p(torch.tensor(-beta)), lp + torch.log(torch.tensor(beta)))
        wanted = beta * F.kl_div(log_m, lp, reduction="none", log_target=True)
        wanted = wanted + (1 - beta) * F.kl_div(log_m, lq, reduction="none", log_target=True)
    at_temperature, _, _ = signal(teacher, 6, temperature)
    ours = topk_divergence(student, at_temperature, ids, beta=beta, temperature=temperature, mode="renorm")
    torch.testing.assert_close(ours, wanted.sum(-1), rtol=1e-6, atol=1e-9)


def test_arguments_are_checked():
    student, teacher = logits()
    top, ids, _ = signal(teacher, 5)
    with pytest.raises(ValueError, match="mode"):
        topk_divergence(student, top, ids, beta=0.5, mode="other")
    with pytest.raises(ValueError, match="below 23"):
        topk_divergence(student, top, ids + 20, beta=0.5)
    with pytest.raises(ValueError, match="shapes"):
        topk_divergence(student, top, ids[:, :3], beta=0.5)
    with pytest.raises(ValueError, match="log_tail"):
        topk_divergence(student, top, ids, beta=0.5, teacher_log_tail=torch.zeros(5))
