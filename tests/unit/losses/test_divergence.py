"""Dense divergences: values, gradients, exactness, and the peers' definitions."""

from __future__ import annotations

import math

import loss_reference as ref
import pytest
import torch
import torch.nn.functional as F

from limbeck.losses import divergence

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def pair(*shape: int, seed: int = 0, spread: float = 3.0, dtype=torch.float64, wider: int = 0):
    generator = torch.Generator().manual_seed(seed)
    student = spread * torch.randn(*shape, generator=generator, dtype=dtype)
    teacher = spread * torch.randn(*shape[:-1], shape[-1] + wider, generator=generator, dtype=dtype)
    return student, teacher


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", (1.0, 0.7, 2.5))
@pytest.mark.parametrize("normalize", (False, True))
@pytest.mark.parametrize("wider", (0, 3, -3))
def test_value_and_gradient_against_autograd_of_the_definition(beta, temperature, normalize, wider):
    student, teacher = pair(2, 5, 11, wider=wider)
    student.requires_grad_()
    upstream = torch.rand(2, 5, dtype=torch.float64)
    ours = divergence(student, teacher, beta=beta, temperature=temperature, normalize=normalize)
    wanted = ref.dense(student, teacher, beta, temperature, normalize)
    assert ours.shape == (2, 5)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        ref.grads((ours * upstream).sum(), student),
        ref.grads((wanted * upstream).sum(), student),
        rtol=1e-10,
        atol=1e-14,
    )


@pytest.mark.parametrize("beta", BETAS)
def test_gradcheck(beta):
    student, teacher = pair(3, 7)
    assert torch.autograd.gradcheck(lambda s: divergence(s, teacher, beta=beta), student.requires_grad_())


def test_closed_forms_of_two_coins():
    """Teacher (3/4, 1/4), student (1/2, 1/2)."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2.0)
    middle = 0.5 * (0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375)) + 0.5 * (
        0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375)
    )
    for beta, wanted in ((0.0, forward), (1.0, reverse), (0.5, middle)):
        assert divergence(student, teacher, beta=beta).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_equal_inputs_give_exactly_zero_value_and_gradient(beta):
    logits = 20 * torch.randn(40, 501, generator=torch.Generator().manual_seed(1))
    logits[3, 7] = logits[5, :] = -300.0
    logits[9, 100:] = -torch.inf
    student = logits.clone().requires_grad_()
    value = divergence(student, logits, beta=beta, temperature=0.9)
    (grad,) = ref.grads(value.sum(), student)
    assert (value == 0).all()
    assert (grad == 0).all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("noise", (1e-6, 1e-4, 1e-2))
def test_nearly_equal_inputs_are_not_negative_and_accurate(beta, noise):
    teacher = 5 * torch.randn(64, 1000, generator=torch.Generator().manual_seed(2))
    student = teacher + noise * torch.randn(64, 1000, generator=torch.Generator().manual_seed(3))
    value = divergence(student, teacher, beta=beta)
    assert value.min() >= -1e-9
    torch.testing.assert_close(
        value.double(), ref.dense(student, teacher, beta), rtol=2e-2 if noise < 1e-3 else 1e-3, atol=2e-12
    )


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("gap", (28.0, 100.0, 1000.0))
def test_peaked_distributions_in_float32(beta, gap):
    """1 - 1e-12 on one id (a gap of 28), and worse, on different and on equal ids."""
    student, teacher = torch.zeros(3, 9), torch.zeros(3, 9)
    student[0, 1] = teacher[0, 2] = student[1, 1] = teacher[1, 1] = teacher[2, 4] = gap
    student.requires_grad_()
    value = divergence(student, teacher, beta=beta)
    wide = student.detach().double().requires_grad_()
    wanted = ref.dense(wide, teacher, beta)
    assert value.isfinite().all()
    torch.testing.assert_close(value.double(), wanted, rtol=5e-6, atol=1e-12)
    (ours,), (theirs,) = ref.grads(value.sum(), student), ref.grads(wanted.sum(), wide)
    torch.testing.assert_close(ours.double(), theirs.nan_to_num(0.0), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("beta", BETAS)
def test_ids_masked_on_both_sides_count_for_nothing(beta):
    student, teacher = pair(4, 12)
    masked_s, masked_t = student.clone(), teacher.clone()
    masked_s[:, 8:] = masked_t[:, 8:] = -torch.inf
    masked_s.requires_grad_()
    value = divergence(masked_s, masked_t, beta=beta)
    torch.testing.assert_close(value, divergence(student[:, :8], teacher[:, :8], beta=beta))
    (grad,) = ref.grads(value.sum(), masked_s)
    assert grad.isfinite().all() and (grad[:, 8:] == 0).all()


def test_ids_masked_on_one_side():
    student, teacher = pair(3, 6)
    no_student, no_teacher = student.clone(), teacher.clone()
    no_student[0, 2] = no_teacher[1, 3] = -torch.inf
    for beta, infinite in ((0.0, [True, False, False]), (1.0, [False, True, False]), (0.5, [False] * 3)):
        leaf = no_student.clone().requires_grad_()
        value = divergence(leaf, no_teacher, beta=beta)
        assert value.isinf().tolist() == infinite
        (grad,) = ref.grads(value[~value.isinf()].sum(), leaf)
        assert grad.isfinite().all()
        finite = ~torch.tensor(infinite)
        torch.testing.assert_close(value[finite], ref.dense(no_student, no_teacher, beta)[finite])


def test_normalised_jsd_is_continuous_with_the_kls():
    student, teacher = pair(5, 8, spread=1.0)
    for end, near in ((0.0, 1e-7), (1.0, 1 - 1e-7)):
        torch.testing.assert_close(
            divergence(student, teacher, beta=near, normalize=True),
            divergence(student, teacher, beta=end),
            rtol=1e-5,
            atol=1e-7,
        )


@pytest.mark.parametrize("beta", (1e-6, 1e-4, 1e-2, 0.99, 1 - 1e-4))
def test_a_beta_near_its_ends_is_accurate_in_float32(beta):
    """The log-ratio of the heavier side to the mixture is of the order of the lighter's weight: relative accuracy."""
    student, teacher = pair(20, 200, spread=4.0, dtype=torch.float32)
    student.requires_grad_()
    value = divergence(student, teacher, beta=beta, normalize=True)
    wide = student.detach().double().requires_grad_()
    wanted = ref.dense(wide, teacher, beta, normalize=True)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-7)
    (ours,), (theirs,) = ref.grads(value.sum(), student), ref.grads(wanted.sum(), wide)
    assert (ours.double() - theirs).norm() <= 1e-5 * theirs.norm()


def test_half_precision_inputs_are_computed_in_float32():
    student, teacher = pair(6, 33, dtype=torch.float32)
    student, teacher = student.bfloat16().requires_grad_(), teacher.bfloat16()
    value = divergence(student, teacher, beta=0.5)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), ref.dense(student, teacher, 0.5), rtol=1e-6, atol=1e-7)
    assert ref.grads(value.sum(), student)[0].dtype == torch.bfloat16


def test_no_rows():
    student = torch.zeros(0, 5, requires_grad=True)
    value = divergence(student, torch.zeros(0, 5), beta=0.5)
    assert value.shape == (0,) and ref.grads(value.sum(), student)[0].shape == (0, 5)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="beta"):
        divergence(torch.zeros(1, 2), torch.zeros(1, 2), beta=1.5)
    with pytest.raises(ValueError, match="temperature"):
        divergence(torch.zeros(1, 2), torch.zeros(1, 2), beta=1.0, temperature=0.0)
    with pytest.raises(ValueError, match="shapes"):
        divergence(torch.zeros(1, 2), torch.zeros(2, 2), beta=1.0)


@pytest.mark.parametrize("beta", (0.0, 0.3, 0.5, 1.0))
def test_equals_the_definition_of_trl(beta):
    """TRL 1.16, `GKDTrainer.generalized_jsd_loss`: mixture by log-sum-exp, KL(P || M) as F.kl_div(log M, log P)."""
    student, teacher = pair(7, 19, seed=4)
    temperature = 0.9
    lq, lp = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)

    def kl(of, to):
        return F.kl_div(to, of, reduction="none", log_target=True).sum(-1)

    if beta in (0.0, 1.0):
        wanted = kl(lp, lq) if beta == 0.0 else kl(lq, lp)
    else:
        log_m = torch.logsumexp(torch.stack([lq + math.log(1 - beta), lp + math.log(beta)]), 0)
        wanted = beta * kl(lp, log_m) + (1 - beta) * kl(lq, log_m)
    torch.testing.assert_close(divergence(student, teacher, beta=beta, temperature=temperature), wanted)


@pytest.mark.parametrize("beta", (0.0, 0.3, 1.0))
def test_equals_trl_itself_where_installed(beta):
    gkd = pytest.importorskip("trl.experimental.gkd")
    student, teacher = pair(2, 4, 19, seed=5)
    wanted = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=0.9, reduction="sum")
    torch.testing.assert_close(divergence(student, teacher, beta=beta, temperature=0.9).sum(), wanted)


@pytest.mark.parametrize("beta", (0.0, 0.3, 1.0))
@pytest.mark.parametrize("spread", (5.0, 25.0, 60.0))
def test_probabilities_that_differ_by_many_orders_of_magnitude(beta, spread):
    """Log-ratios beyond 80, where the naive expm1 overflows, next to moderate ones."""
    generator = torch.Generator().manual_seed(4)
    student, teacher = spread * torch.randn(2, 40, 200, generator=generator)
    student.requires_grad_()
    ours, wanted = divergence(student, teacher, beta=beta), ref.dense(student, teacher, beta)
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)
    (grad,), (wanted_grad,) = ref.grads(ours.sum(), student), ref.grads(wanted.sum(), student)
    assert (grad - wanted_grad).norm() <= 1e-5 * wanted_grad.norm().clamp(min=1)
