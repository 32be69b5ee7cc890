"""The fused losses: against dense float64 autograd, and what they promise about memory, weights and exactness."""

from __future__ import annotations

import loss_reference as ref
import pytest
import torch
import torch.nn.functional as F

from limbeck.losses import (
    Head,
    divergence,
    linear_divergence,
    linear_topk,
    linear_topk_divergence,
    topk_divergence,
)

BETAS = (0.0, 0.3, 0.5, 1.0)
N, V, H_S, H_T = 21, 37, 6, 9
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 3.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 4.0},
}


class Case:
    """Random student and teacher with heads of different sizes and surplus ids, and the dense float64 answer."""

    def __init__(self, kind="plain", dtype=torch.float64, seed=0, spread=1.0):
        self.generator = torch.Generator().manual_seed(seed)
        self.options = {**HEADS[kind], "valid": V}
        self.hidden = (spread * self.randn(N, H_S)).to(dtype).requires_grad_()
        self.weight = self.randn(V + 3, H_S).to(dtype).requires_grad_()
        self.bias = self.randn(V + 3).to(dtype).requires_grad_() if self.options.pop("bias", False) else None
        self.teacher_hidden = self.randn(N, H_T).to(dtype)
        self.teacher_weight = self.randn(V + 8, H_T).to(dtype)
        self.weights = torch.rand(N, generator=self.generator, dtype=torch.float64)
        self.weights[::4] = 0
        self.ce_ids = torch.randint(0, V, (N,), generator=self.generator)
        self.ce_weights = torch.rand(N, generator=self.generator, dtype=torch.float64)
        self.ce_weights[1::3] = 0

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    @property
    def head(self):
        return Head(self.weight, self.bias, **self.options)

    @property
    def inputs(self):
        return [self.hidden, self.weight] + ([] if self.bias is None else [self.bias])

    def logits(self):
        return ref.head_logits(self.hidden, self.weight, self.bias, **self.options)

    def teacher_logits(self):
        return ref.head_logits(self.teacher_hidden, self.teacher_weight)[:, :V]

    def ce(self):
        return F.cross_entropy(self.logits(), self.ce_ids, reduction="none")

    def signal(self, k=5, temperature=1.0):
        return linear_topk(self.teacher_hidden, Head(self.teacher_weight, valid=V), k, temperature=temperature)


def check(case, ours, wanted, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(ours.double(), wanted, rtol=rtol, atol=atol)
    for ours_grad, wanted_grad in zip(ref.grads(ours, *case.inputs), ref.grads(wanted, *case.inputs), strict=True):
        torch.testing.assert_close(ours_grad.double(), wanted_grad.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("with_ce", (False, True))
def test_full_vocabulary(beta, kind, with_ce):
    case = Case(kind)
    extra = {"ce_ids": case.ce_ids, "ce_weights": case.ce_weights} if with_ce else {}
    ours = linear_divergence(
        case.hidden, case.head, case.teacher_hidden, case.teacher_weight, beta=beta, temperature=0.8,
        weights=case.weights, normalize=True, chunk_rows=8, **extra,
    )  # fmt: skip
    wanted = (case.weights * ref.dense(case.logits(), case.teacher_logits(), beta, 0.8, True)).sum()
    if with_ce:
        wanted = wanted + (case.ce_weights * case.ce()).sum()
    check(case, ours, wanted)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("mode", ("tail", "renorm"))
@pytest.mark.parametrize("kind", ("plain", "all"))
@pytest.mark.parametrize("with_ce", (False, True))
@pytest.mark.parametrize("known_tail", (True, False))
def test_topk(beta, mode, kind, with_ce, known_tail):
    case = Case(kind)
    logprobs, ids, tail = case.signal(temperature=0.8)
    extra = {"ce_ids": case.ce_ids, "ce_weights": case.ce_weights} if with_ce else {}
    ours = linear_topk_divergence(
        case.hidden, case.head, logprobs, ids, beta=beta, temperature=0.8, mode=mode, weights=case.weights,
        teacher_log_tail=tail if known_tail else None, chunk_rows=8, **extra,
    )  # fmt: skip
    wanted = (case.weights * ref.topk(case.logits(), logprobs, ids, beta, mode, 0.8)).sum()
    if with_ce:
        wanted = wanted + (case.ce_weights * case.ce()).sum()
    check(case, ours, wanted, rtol=1e-8)


@pytest.mark.parametrize("kind", ("plain", "all"))
def test_gradcheck(kind):
    case = Case(kind)
    logprobs, ids, tail = case.signal()

    def full(hidden, weight, *bias):
        head = Head(weight, *bias, **case.options)
        return linear_divergence(hidden, head, case.teacher_hidden, case.teacher_weight, beta=0.5, chunk_rows=8)

    def topk(hidden, weight, *bias):
        head = Head(weight, *bias, **case.options)
        return linear_topk_divergence(hidden, head, logprobs, ids, beta=0.5, teacher_log_tail=tail, chunk_rows=8)

    for loss in (full, topk):
        assert torch.autograd.gradcheck(loss, tuple(case.inputs))


@pytest.mark.parametrize("chunk_rows", (1, 4, N, 1000))
def test_the_chunk_does_not_matter(chunk_rows):
    case = Case()
    args = (case.hidden, case.head, case.teacher_hidden, case.teacher_weight)
    check(case, linear_divergence(*args, beta=0.5, chunk_rows=chunk_rows), linear_divergence(*args, beta=0.5))


def test_bool_weights_and_a_row_index_of_the_teacher():
    case = Case()
    order = torch.randperm(N, generator=case.generator)
    mask = case.weights > 0.4
    shuffled = torch.cat([case.teacher_hidden[order], torch.full((3, H_T), torch.nan)])
    index = torch.argsort(order)
    ours = linear_divergence(
        case.hidden, case.head, shuffled, case.teacher_weight, beta=1.0, weights=mask, teacher_index=index
    )
    check(case, ours, ref.dense(case.logits(), case.teacher_logits(), 1.0)[mask].sum())


@pytest.mark.parametrize("beta", BETAS)
def test_token_clip(beta):
    case = Case(spread=2.0)
    per_token = ref.dense(case.logits(), case.teacher_logits(), beta)
    clip = per_token.median().item() + 1e-3
    ours, stats = linear_divergence(
        case.hidden, case.head, case.teacher_hidden, case.teacher_weight, beta=beta, token_clip=clip, return_stats=True
    )
    check(case, ours, per_token.clamp(max=clip).sum())
    torch.testing.assert_close(stats["divergence"], per_token.clamp(max=clip).detach())
    logprobs, ids, tail = case.signal()
    for mode in ("tail", "renorm"):
        reference = ref.topk(case.logits(), logprobs, ids, beta, mode)
        clip = reference.median().item() + 1e-3
        ours = linear_topk_divergence(
            case.hidden, case.head, logprobs, ids, beta=beta, mode=mode, teacher_log_tail=tail, token_clip=clip
        )
        check(case, ours, reference.clamp(max=clip).sum(), rtol=1e-8)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("beta", BETAS)
def test_equal_models_give_exactly_zero(dtype, beta):
    generator = torch.Generator().manual_seed(3)
    hidden = 3 * torch.randn(70, 64, generator=generator, dtype=dtype)
    weight = torch.randn(999, 64, generator=generator, dtype=dtype)
    weights = torch.rand(70, generator=generator)
    weights[::5] = 0
    student, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    options = {"beta": beta, "temperature": 0.7, "chunk_rows": 16}
    losses = [linear_divergence(student, head, hidden, weight, weights=weights, **options)]
    losses.append(linear_divergence(student, Head(head, softcap=20.0), hidden, Head(weight, softcap=20.0), **options))
    logprobs, ids, tail = linear_topk(hidden, weight, 20, temperature=0.7, chunk_rows=16)
    for mode in ("tail", "renorm"):
        for log_tail in (tail, None):
            losses.append(
                linear_topk_divergence(student, head, logprobs, ids, mode=mode, teacher_log_tail=log_tail, **options)
            )
    for loss in losses:
        assert loss.item() == 0
        assert all((g == 0).all() for g in ref.grads(loss, student, head))


def test_rows_of_weight_zero_never_enter():
    """NaN in them on every side, and ids out of range, must not reach the loss, the statistics or any gradient."""
    case, clean = Case(), Case()
    dead = case.weights == 0
    ce_weights = torch.where(dead, 0.0, case.ce_weights)
    case.hidden = case.hidden.detach().masked_fill(dead[:, None], torch.nan).requires_grad_()
    logprobs, ids, tail = case.signal()
    case.teacher_hidden[dead] = torch.nan
    logprobs[dead], tail[dead] = torch.nan, torch.nan
    ids, ce_ids = ids.masked_fill(dead[:, None], -7), case.ce_ids.masked_fill(dead, -100)
    shared = {"beta": 0.5, "weights": case.weights, "return_stats": True}
    text = {"ce_ids": ce_ids, "ce_weights": ce_weights}
    results = [linear_divergence(case.hidden, case.head, case.teacher_hidden, case.teacher_weight, **shared, **text)]
    for mode in ("tail", "renorm"):
        for more in ({}, text):
            results.append(
                linear_topk_divergence(
                    case.hidden, case.head, logprobs, ids, mode=mode, teacher_log_tail=tail, **shared, **more
                )
            )
    for loss, stats in results:
        assert loss.isfinite()
        d_hidden, d_weight = ref.grads(loss, *case.inputs)
        assert d_hidden.isfinite().all() and d_weight.isfinite().all()
        assert (d_hidden[dead] == 0).all()
        assert all(s.isfinite().all() and (s[dead] == 0).all() for s in stats.values())
    check(
        clean,
        linear_divergence(
            clean.hidden, clean.head, clean.teacher_hidden, clean.teacher_weight, beta=0.5, weights=clean.weights
        ),
        (clean.weights * ref.dense(clean.logits(), clean.teacher_logits(), 0.5)).sum(),
    )


def test_rows_with_cross_entropy_alone_are_computed_and_their_teacher_is_not():
    case = Case()
    dead = case.weights == 0
    wanted_ce = case.ce().detach() * (case.ce_weights != 0)
    case.teacher_hidden[dead] = torch.nan
    loss, stats = linear_divergence(
        case.hidden, case.head, case.teacher_hidden, case.teacher_weight, beta=0.5, weights=case.weights,
        ce_ids=case.ce_ids, ce_weights=case.ce_weights, return_stats=True, chunk_rows=4,
    )  # fmt: skip
    assert loss.isfinite() and bool((case.ce_weights[dead] != 0).any())
    torch.testing.assert_close(stats["ce"], wanted_ce)
    assert (stats["divergence"][dead] == 0).all()
    alone = (case.ce_weights * case.ce()).sum()
    only = linear_divergence(
        case.hidden, case.head, case.teacher_hidden, case.teacher_weight, beta=0.5,
        weights=torch.zeros(N), ce_ids=case.ce_ids, ce_weights=case.ce_weights, chunk_rows=4,
    )  # fmt: skip
    check(case, only, alone)


@pytest.mark.parametrize("rows", (0, N))
@pytest.mark.parametrize("topk", (False, True))
def test_no_active_row_is_zero_with_zero_gradients(rows, topk):
    case = Case()
    hidden = case.hidden.detach()[:rows].requires_grad_()
    weights = torch.zeros(rows, dtype=torch.bool)
    if topk:
        logprobs, ids, tail = (t[:rows] for t in case.signal())
        for mode in ("tail", "renorm"):
            loss, _ = linear_topk_divergence(
                hidden, case.head, logprobs, ids, beta=0.5, mode=mode, weights=weights, teacher_log_tail=tail,
                return_stats=True,
            )  # fmt: skip
            assert loss.item() == 0
            assert all((g == 0).all() for g in ref.grads(loss, hidden, case.weight))
        return
    teacher = case.teacher_hidden[:rows]
    loss, stats = linear_divergence(
        hidden, case.head, teacher, case.teacher_weight, beta=0.5, weights=weights, return_stats=True
    )
    assert loss.item() == 0 and loss.shape == ()
    assert all(s.shape == (rows,) for s in stats.values())
    loss.backward()
    assert (hidden.grad == 0).all() and (case.weight.grad == 0).all()


@pytest.mark.parametrize("with_ce", (False, True))
def test_statistics(with_ce):
    case = Case()
    extra = {"ce_ids": case.ce_ids, "ce_weights": case.ce_weights} if with_ce else {}
    temperature = 0.8
    loss, stats = linear_divergence(
        case.hidden, case.head, case.teacher_hidden, case.teacher_weight, beta=0.5, temperature=temperature,
        weights=case.weights, return_stats=True, **extra,
    )  # fmt: skip
    lq = torch.log_softmax(case.logits().detach() / temperature, -1)
    lp = torch.log_softmax(case.teacher_logits() / temperature, -1)
    wanted = {
        "divergence": ref.of_logprobs(lq, lp, 0.5),
        "forward_kl": ref.of_logprobs(lq, lp, 0.0),
        "reverse_kl": ref.of_logprobs(lq, lp, 1.0),
        "student_entropy": -(lq.exp() * lq).sum(-1),
        "teacher_entropy": -(lp.exp() * lp).sum(-1),
        "top1_agreement": (lq.argmax(-1) == lp.argmax(-1)).double(),
    }
    active = case.weights != 0
    for name, values in wanted.items():
        torch.testing.assert_close(stats[name], values * active, msg=name)
        assert not stats[name].requires_grad
    assert ("ce" in stats) == with_ce
    assert loss.requires_grad


@pytest.mark.parametrize("mode", ("tail", "renorm"))
@pytest.mark.parametrize("with_ce", (False, True))
def test_statistics_of_a_support(mode, with_ce):
    case = Case()
    logprobs, ids, tail = case.signal()
    extra = {"ce_ids": case.ce_ids, "ce_weights": case.ce_weights} if with_ce else {}
    _, stats = linear_topk_divergence(
        case.hidden, case.head, logprobs, ids, beta=0.5, mode=mode, teacher_log_tail=tail, return_stats=True, **extra
    )
    logits = case.logits().detach()
    lq = torch.log_softmax(logits, -1)
    wanted = {
        "divergence": ref.topk(logits, logprobs, ids, 0.5, mode),
        "forward_kl": ref.topk(logits, logprobs, ids, 0.0, mode),
        "reverse_kl": ref.topk(logits, logprobs, ids, 1.0, mode),
        "student_mass": lq.exp().gather(-1, ids).sum(-1),
        "teacher_mass": logprobs.exp().sum(-1),
        "top1_agreement": (lq.argmax(-1) == ids[:, 0]).double(),
    }
    for name, values in wanted.items():
        torch.testing.assert_close(stats[name], values, msg=name)
    assert {"student_entropy", "teacher_entropy"} <= stats.keys()
    assert ("ce" in stats) == with_ce


@pytest.mark.parametrize("topk", (False, True))
def test_backward_twice_and_into_accumulated_gradients(topk):
    case = Case()
    if topk:
        logprobs, ids, _ = case.signal()
        loss = linear_topk_divergence(case.hidden, case.head, logprobs, ids, beta=0.5)
    else:
        loss = linear_divergence(case.hidden, case.head, case.teacher_hidden, case.teacher_weight, beta=0.5)
    loss.backward(retain_graph=True)
    first = [x.grad.clone() for x in case.inputs]
    (3 * loss).backward(retain_graph=True)
    loss.backward(retain_graph=True)
    for x, g in zip(case.inputs, first, strict=True):
        torch.testing.assert_close(x.grad, 5 * g)
        x.grad.zero_()
    loss.backward()
    for x, g in zip(case.inputs, first, strict=True):
        torch.testing.assert_close(x.grad, g, rtol=0, atol=0)


def test_a_tied_head_adds_to_the_gradient_of_the_embedding():
    case = Case()
    tokens = torch.randint(0, V, (N,), generator=case.generator)

    hidden = torch.tanh(case.weight[tokens]) * 2
    ours = linear_divergence(hidden, Head(case.weight, valid=V), case.teacher_hidden, case.teacher_weight, beta=0.5)
    hidden = torch.tanh(case.weight[tokens]) * 2
    wanted = ref.dense(ref.head_logits(hidden, case.weight, valid=V), case.teacher_logits(), 0.5).sum()
    ours.backward()
    torch.testing.assert_close(case.weight.grad, ref.grads(wanted, case.weight)[0])


def test_gradients_flow_through_an_effective_weight():
    """LoRA on the head: W + B A, built outside."""
    case = Case()
    base, a, b = case.weight.detach(), case.randn(2, H_S).requires_grad_(), case.randn(V + 3, 2).requires_grad_()
    effective = base + b @ a
    ours = linear_divergence(case.hidden, Head(effective, valid=V), case.teacher_hidden, case.teacher_weight, beta=0.5)
    wanted = ref.dense(ref.head_logits(case.hidden, base + b @ a, valid=V), case.teacher_logits(), 0.5).sum()
    torch.testing.assert_close(ref.grads(ours, a, b), ref.grads(wanted, a, b))


def test_frozen_parts_get_no_gradient(monkeypatch):
    case = Case()
    frozen = Head(case.weight.detach(), valid=V)
    args = (case.teacher_hidden, case.teacher_weight)
    trained = linear_divergence(case.hidden, case.head, *args, beta=0.5)
    from limbeck.losses import chunks

    monkeypatch.setattr(chunks, "into_weight_", lambda *_: pytest.fail("a frozen head's gradient was computed"))
    loss = linear_divergence(case.hidden, frozen, *args, beta=0.5)
    torch.testing.assert_close(ref.grads(loss, case.hidden), ref.grads(trained, case.hidden))
    monkeypatch.setattr(chunks, "into_hidden", lambda *_: pytest.fail("a gradient was computed without need"))
    with torch.no_grad():
        value = linear_divergence(case.hidden, case.head, *args, beta=0.5)
    torch.testing.assert_close(value, trained.detach())
    assert not value.requires_grad
    assert not linear_divergence(case.hidden.detach(), frozen, *args, beta=0.5).requires_grad


@pytest.mark.parametrize("beta", (0.0, 0.5, 1.0))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_against_float64_of_the_same_numbers(beta, dtype):
    case = Case(dtype=dtype)
    ours = linear_divergence(
        case.hidden, case.head, case.teacher_hidden, case.teacher_weight, beta=beta, ce_ids=case.ce_ids
    )
    assert ours.dtype == torch.float32
    found = ref.grads(ours, *case.inputs)
    case.hidden, case.weight = (x.detach().double().requires_grad_() for x in case.inputs)
    wanted = (ref.dense(case.logits(), case.teacher_logits(), beta) + case.ce()).sum()
    torch.testing.assert_close(ours.double(), wanted, rtol=2e-6, atol=1e-5)
    for half, exact in zip(found, ref.grads(wanted, *case.inputs), strict=True):
        assert half.dtype == dtype
        assert (half.double() - exact).norm() <= 0.5 * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("hidden_dtype", (torch.float32, torch.bfloat16))
def test_autocast_does_not_reach_inside(hidden_dtype):
    case = Case(dtype=torch.float32)
    hidden = case.hidden.detach().to(hidden_dtype).requires_grad_()
    args = (hidden, case.head, case.teacher_hidden.to(hidden_dtype), case.teacher_weight)
    plain = linear_divergence(*args, beta=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = linear_divergence(*args, beta=0.5)
        dense = divergence(case.logits().float(), case.teacher_logits().float(), beta=0.5)
    assert inside.dtype == torch.float32 and inside.item() == plain.item()
    torch.testing.assert_close(ref.grads(inside, hidden), ref.grads(plain, hidden), rtol=0, atol=0)
    assert dense.dtype == torch.float32


def test_nothing_of_size_tokens_by_vocabulary_is_kept():
    """Neither saved for the backward nor allocated at once: the largest tensor made is a chunk's."""
    rows, vocab, chunk = 64, 300, 8
    hidden = torch.randn(rows, 4, requires_grad=True)
    weight = torch.randn(vocab, 4, requires_grad=True)
    teacher_hidden, teacher_weight = torch.randn(rows, 5), torch.randn(vocab, 5)
    signal = linear_topk(teacher_hidden, teacher_weight, 6)
    text = {"ce_ids": torch.zeros(rows, dtype=torch.int64), "chunk_rows": chunk, "return_stats": True}
    runs = (
        lambda: linear_divergence(hidden, weight, teacher_hidden, teacher_weight, beta=0.5, **text),
        lambda: linear_topk_divergence(hidden, weight, *signal[:2], beta=0.5, teacher_log_tail=signal[2], **text),
    )
    saved: list[int] = []
    for run in runs:
        saved.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t),
            Largest() as largest,
        ):
            run()[0].backward()
        assert max(saved) <= max(hidden.numel(), weight.numel())
        assert 0 < largest.numel <= 6 * chunk * vocab


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_a_bias_of_minus_infinity_takes_an_id_out():
    case = Case("bias")
    masked = case.bias.detach().clone()
    masked[[2, 5]] = -torch.inf
    teacher_bias = torch.zeros(V + 8, dtype=torch.float64)
    teacher_bias[[2, 5]] = -torch.inf
    keep = [i for i in range(V) if i not in (2, 5)]
    bias = masked.requires_grad_()
    for beta in BETAS:
        ours = linear_divergence(
            case.hidden, Head(case.weight, bias, valid=V), case.teacher_hidden, Head(case.teacher_weight, teacher_bias),
            beta=beta,
        )  # fmt: skip
        logits = ref.head_logits(case.hidden, case.weight, bias, valid=V)[:, keep]
        wanted = ref.dense(logits, case.teacher_logits()[:, keep], beta).sum()
        torch.testing.assert_close(ours, wanted)
        torch.testing.assert_close(
            ref.grads(ours, case.hidden, case.weight), ref.grads(wanted, case.hidden, case.weight)
        )
        logprobs, ids, tail = linear_topk(case.teacher_hidden, Head(case.teacher_weight, teacher_bias, valid=V), 4)
        for mode in ("tail", "renorm"):
            fused = linear_topk_divergence(
                case.hidden, Head(case.weight, bias, valid=V), logprobs, ids, beta=beta, mode=mode,
                teacher_log_tail=tail,
            )  # fmt: skip
            full = ref.head_logits(case.hidden, case.weight, bias, valid=V)
            dense = topk_divergence(full, logprobs, ids, beta=beta, mode=mode, teacher_log_tail=tail).sum()
            torch.testing.assert_close(fused, dense)
            assert all(g.isfinite().all() for g in ref.grads(fused, case.hidden, case.weight, bias))


def test_cross_entropy_counts_every_row_by_default():
    case = Case()
    args = (case.hidden, case.head, case.teacher_hidden, case.teacher_weight)
    ours = linear_divergence(*args, beta=0.0, weights=case.weights, ce_ids=case.ce_ids)
    wanted = (case.weights * ref.dense(case.logits(), case.teacher_logits(), 0.0)).sum() + case.ce().sum()
    check(case, ours, wanted)


def test_arguments_are_checked():
    case = Case()
    args = (case.hidden, case.head, case.teacher_hidden, case.teacher_weight)
    with pytest.raises(ValueError, match="weights"):
        linear_divergence(*args, beta=0.5, weights=torch.ones(N + 1))
    with pytest.raises(ValueError, match="ce_ids"):
        linear_divergence(*args, beta=0.5, ce_ids=case.ce_ids + V)
    with pytest.raises(ValueError, match="ce_weights"):
        linear_divergence(*args, beta=0.5, ce_weights=case.ce_weights)
    with pytest.raises(ValueError, match="teacher_index"):
        linear_divergence(case.hidden, case.head, case.teacher_hidden[:-1], case.teacher_weight, beta=0.5)
    with pytest.raises(ValueError, match="hidden"):
        linear_divergence(case.teacher_hidden, case.head, case.teacher_hidden, case.teacher_weight, beta=0.5)
    with pytest.raises(ValueError, match="token_clip"):
        linear_divergence(*args, beta=0.5, token_clip=-1.0)
    for bad in ({"valid": V + 4}, {"softcap": 0.0}, {"bias": torch.zeros(3)}):
        with pytest.raises(ValueError, match="Head"):
            Head(case.weight, **bad)
