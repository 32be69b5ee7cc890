"""What every public loss promises: inputs are left alone, equal sides give exactly zero, no negative value, no NaN."""

from __future__ import annotations

import loss_reference as ref
import pytest
import torch

from limbeck.losses import (
    Head,
    divergence,
    linear_divergence,
    linear_policy_loss,
    linear_token_logprobs,
    linear_topk,
    linear_topk_divergence,
    opd_advantage,
    teacher_logratio,
    topk_divergence,
)

BETAS = (0.0, 1e-4, 0.3, 0.5, 1.0)
N, V, H, K = 12, 40, 6, 5


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    logprobs, ids = torch.log_softmax(3 * randn(N, V), -1).topk(K, -1)
    logprobs[2, 3:] = -torch.inf
    found = {
        "hidden": randn(N, H), "weight": randn(V + 3, H), "bias": randn(V + 3), "teacher_hidden": randn(N, H),
        "teacher_weight": randn(V + 5, H), "teacher_bias": randn(V + 5), "logits": randn(N, V),
        "teacher_logits": randn(N, V + 2), "logprobs": logprobs, "log_tail": torch.log1p(-logprobs.exp().sum(-1)),
        "weights": torch.rand(N, generator=generator).masked_fill_(torch.arange(N) % 3 == 0, 0),
    }  # fmt: skip
    found = {name: x.to(dtype) for name, x in found.items()}
    found["bias"][7] = found["teacher_bias"][7] = found["logits"][3, 8] = found["teacher_logits"][3, 8] = -torch.inf
    found["ids"], found["index"] = ids, torch.arange(N).flip(0)
    found["tokens"] = torch.randint(0, 7, (N,), generator=generator)
    return found


def head(x):
    return Head(x["weight"], x["bias"], valid=V)


def capped(x):
    return Head(x["weight"], softcap=5.0, scale=0.5, valid=V)


def teacher(x):
    return Head(x["teacher_weight"], x["teacher_bias"], valid=V)


def text(x):
    return {"weights": x["weights"], "ce_ids": x["tokens"], "ce_weights": 1 - x["weights"], "return_stats": True}


def signal(x, mode):
    return {"mode": mode, "teacher_log_tail": x["log_tail"]}


SHARED = {"beta": 0.5, "temperature": 0.8}
CALLS = {
    **{
        f"divergence {beta}": lambda x, beta=beta: divergence(
            x["logits"], x["teacher_logits"], beta=beta, temperature=0.8
        )
        for beta in (0.0, 0.3, 0.5, 1.0)
    },
    **{
        f"divergence at 1, {beta}": lambda x, beta=beta: divergence(x["logits"], x["teacher_logits"], beta=beta)
        for beta in (0.0, 0.5, 1.0)
    },
    **{
        f"topk {mode} {known}": lambda x, mode=mode, known=known: topk_divergence(
            x["logits"], x["logprobs"], x["ids"], beta=0.5, mode=mode, teacher_log_tail=x["log_tail"] if known else None
        )
        for mode in ("tail", "renorm")
        for known in (True, False)
    },
    "linear": lambda x: linear_divergence(
        x["hidden"], head(x), x["teacher_hidden"], teacher(x), teacher_index=x["index"], **SHARED, **text(x)
    )[0],
    "linear, soft-cap": lambda x: linear_divergence(
        x["hidden"], capped(x), x["teacher_hidden"], x["teacher_weight"], beta=1.0
    ),
    **{
        f"linear topk {mode}": lambda x, mode=mode: linear_topk_divergence(
            x["hidden"], head(x), x["logprobs"], x["ids"], **SHARED, **signal(x, mode), **text(x)
        )[0]
        for mode in ("tail", "renorm")
    },
    "linear topk gathered": lambda x: linear_topk_divergence(
        x["hidden"], capped(x), x["logprobs"], x["ids"], beta=1.0, mode="renorm", return_stats=True
    )[0],
    "token logprobs": lambda x: sum(
        linear_token_logprobs(x["hidden"], head(x), x["tokens"], temperature=0.8, return_entropy=True)
    ),
    "policy": lambda x: linear_policy_loss(
        x["hidden"], head(x), x["tokens"], lambda logp, _: -logp, weights=x["weights"], return_stats=True
    )[0],
    "linear topk signal": lambda x: linear_topk(x["teacher_hidden"], teacher(x), K, temperature=0.8)[0],
    "log-ratio": lambda x: teacher_logratio(x["logprobs"][:, 0], x["logits"][:, 0], x["weights"] != 0, clip=3.0),
    "advantage": lambda x: opd_advantage(x["logits"][:, 0], x["logits"][:, :4], x["weights"][:, None] != 0),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("grad", (False, True))
def test_inputs_are_never_modified(name, dtype, grad):
    x = inputs(dtype)
    before = {key: t.clone() for key, t in x.items()}
    if grad:
        for key in ("hidden", "weight", "bias", "logits"):
            x[key].requires_grad_()
    result = CALLS[name](x)
    if result.requires_grad:
        result.sum().backward()
    for key, t in before.items():
        assert torch.equal(x[key].detach(), t), key


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("normalize", (False, True))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
def test_equal_models_give_exactly_zero_value_and_gradient(beta, normalize, dtype):
    generator = torch.Generator().manual_seed(1)
    hidden = (3 * torch.randn(37, 64, generator=generator)).to(dtype)
    weight = torch.randn(701, 64, generator=generator).to(dtype)
    student, ours = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    options = {"beta": beta, "temperature": 0.7, "normalize": normalize}
    losses = [linear_divergence(student, ours, hidden, weight, **options)]
    for k in (1, 20, 701):
        logprobs, ids, tail = linear_topk(hidden, weight, k, temperature=0.7)
        for mode in ("tail", "renorm"):
            for log_tail in (tail, None):
                more = {"mode": mode, "teacher_log_tail": log_tail, **options}
                losses.append(linear_topk_divergence(student, ours, logprobs, ids, **more))
    logits = (10 * torch.randn(9, 333, generator=generator)).to(dtype)
    leaf = logits.clone().requires_grad_()
    assert all(loss.item() == 0 for loss in losses)
    assert all((g == 0).all() for loss in losses for g in ref.grads(loss, student, ours))
    value = divergence(leaf, logits, **options)
    assert (value == 0).all() and (ref.grads(value.sum(), leaf)[0] == 0).all()


@pytest.mark.parametrize("beta", (0.0, 1e-6, 1e-4, 0.3, 0.5, 1 - 1e-4, 1.0))
@pytest.mark.parametrize("normalize", (False, True))
def test_no_value_is_negative_and_none_is_nan(beta, normalize):
    generator = torch.Generator().manual_seed(2)
    for spread in (1e-3, 1.0, 30.0, 3000.0):
        for noise in (1e-5, 1e-2, 1.0, 50.0):
            teacher_logits = spread * torch.randn(30, 500, generator=generator)
            student = (teacher_logits + noise * torch.randn(30, 500, generator=generator)).requires_grad_()
            logprobs, ids = torch.log_softmax(teacher_logits, -1).topk(8, -1)
            for value in (
                divergence(student, teacher_logits, beta=beta, normalize=normalize),
                topk_divergence(student, logprobs, ids, beta=beta, normalize=normalize),
                topk_divergence(student, logprobs, ids, beta=beta, normalize=normalize, mode="renorm"),
            ):
                assert value.min() >= -1e-6, (spread, noise)
                assert ref.grads(value.sum(), student)[0].isfinite().all()


def test_a_normalised_small_beta_is_close_to_the_kls_in_float32():
    generator = torch.Generator().manual_seed(3)
    student, teacher_logits = torch.randn(2, 50, 300, generator=generator)
    for near, end in ((1e-4, 0.0), (1 - 1e-4, 1.0)):
        student = student.detach().requires_grad_()
        value = divergence(student, teacher_logits, beta=near, normalize=True)
        wanted = divergence(student, teacher_logits, beta=end)
        torch.testing.assert_close(value, wanted, rtol=2e-3, atol=0)
        (ours,), (theirs,) = ref.grads(value.sum(), student), ref.grads(wanted.sum(), student)
        assert (ours - theirs).norm() <= 3e-3 * theirs.norm()


@pytest.mark.parametrize("beta", (0.0, 0.5, 1.0))
def test_the_support_of_all_ids_equals_the_full_vocabulary(beta):
    x = inputs(torch.float64)
    hidden, weight = x["hidden"].requires_grad_(), x["weight"].requires_grad_()
    options = {"beta": beta, "temperature": 0.8}
    logprobs, ids, tail = linear_topk(x["teacher_hidden"], Head(x["teacher_weight"], valid=V), V, temperature=0.8)
    ours = Head(weight, valid=V)
    full = linear_divergence(hidden, ours, x["teacher_hidden"], x["teacher_weight"][:V], **options)
    for mode in ("tail", "renorm"):
        support = linear_topk_divergence(hidden, ours, logprobs, ids, mode=mode, teacher_log_tail=tail, **options)
        torch.testing.assert_close(support, full)
        torch.testing.assert_close(ref.grads(support, hidden, weight), retained(full, hidden, weight))


def retained(loss, *leaves):
    return list(torch.autograd.grad(loss, leaves, retain_graph=True))


@pytest.mark.parametrize("mode", ("tail", "renorm"))
@pytest.mark.parametrize("grad", (False, True))
def test_logits_of_any_memory_layout(mode, grad):
    x = inputs(torch.float64)
    laid_out = x["logits"].t().contiguous().t().requires_grad_(grad)
    plain = x["logits"].clone().requires_grad_(grad)
    assert not laid_out.is_contiguous()
    for call in (
        lambda z: topk_divergence(z, x["logprobs"], x["ids"], beta=0.5, mode=mode),
        lambda z: divergence(z, x["teacher_logits"], beta=0.5),
    ):
        ours, wanted = call(laid_out), call(plain)
        torch.testing.assert_close(ours, wanted)
        if grad:
            torch.testing.assert_close(ref.grads(ours.sum(), laid_out), ref.grads(wanted.sum(), plain))


def test_the_plain_logits_of_a_head_are_float32_under_autocast():
    hidden, weight = torch.randn(4, 64), torch.randn(50, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Head(weight).logits(hidden)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, hidden @ weight.T)


@pytest.mark.parametrize("bad", (torch.inf, torch.nan))
def test_a_student_that_has_overflowed_is_seen(bad):
    """Not a number in, not a number out, where the row counts; never a loss that looks healthy."""
    x = inputs()
    x["hidden"][1, 0] = bad
    losses = [linear_divergence(x["hidden"], x["weight"], x["teacher_hidden"], x["teacher_weight"], beta=0.5)]
    for mode in ("tail", "renorm"):
        losses.append(linear_topk_divergence(x["hidden"], x["weight"], x["logprobs"], x["ids"], beta=0.5, mode=mode))
    assert all(loss.isnan() for loss in losses)


@pytest.mark.parametrize("rows", (0, N))
def test_the_statistics_have_all_their_names_without_an_active_row(rows):
    x = inputs()
    weights = torch.zeros(rows)
    args = (x["hidden"][:rows], x["weight"])
    _, some = linear_divergence(*args, x["teacher_hidden"][:rows], x["teacher_weight"], beta=0.5, weights=weights,
                                return_stats=True)  # fmt: skip
    names = {"divergence", "forward_kl", "reverse_kl", "student_entropy", "teacher_entropy", "top1_agreement"}
    assert some.keys() == names
    for mode in ("tail", "renorm"):
        _, found = linear_topk_divergence(*args, x["logprobs"][:rows], x["ids"][:rows], beta=0.5, mode=mode,
                                          weights=weights, return_stats=True)  # fmt: skip
        assert found.keys() == names | {"student_mass", "teacher_mass"}
        assert all(s.shape == (rows,) and (s == 0).all() for s in (*some.values(), *found.values()))


def test_the_statistics_are_infinite_where_the_kl_is():
    x = inputs(torch.float64)
    bias = torch.zeros(V + 5, dtype=torch.float64)
    bias[4] = -torch.inf
    args = (x["teacher_hidden"], Head(x["teacher_weight"], bias, valid=V))
    _, stats = linear_divergence(x["hidden"], Head(x["weight"], valid=V), *args, beta=0.5, return_stats=True)
    assert stats["reverse_kl"].isinf().all() and stats["forward_kl"].isfinite().all()
    assert stats["divergence"].isfinite().all() and stats["teacher_entropy"].isfinite().all()


def test_an_index_of_the_teachers_rows_must_name_one_for_every_student_row():
    x = inputs()
    with pytest.raises(ValueError, match="teacher_index"):
        linear_divergence(
            x["hidden"], x["weight"], x["teacher_hidden"], x["teacher_weight"], beta=0.5, teacher_index=x["index"][:3]
        )
