"""Sampled tokens: log-probabilities, entropies, policy losses, and a teacher's top-k signal."""

from __future__ import annotations

import loss_reference as ref
import pytest
import torch

from limbeck.losses import Head, linear_named, linear_policy_loss, linear_token_logprobs, linear_topk

N, V, H = 19, 31, 5
HEADS = ({}, {"softcap": 3.0, "scale": 0.7})


def case(dtype=torch.float64, with_bias=True, **options):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V + 4, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(V + 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.randint(0, V, (N,), generator=generator)
    inputs = [hidden, weight, bias] if with_bias else [hidden, weight]
    head = Head(weight, bias if with_bias else None, valid=V, **options)
    return head, inputs, ids


def exact(inputs, ids, temperature, **options):
    logits = ref.head_logits(*inputs, valid=V, **options)
    lq = torch.log_softmax(logits / temperature, -1)
    return lq.gather(-1, ids[:, None]).squeeze(-1), -(lq.exp() * lq).sum(-1)


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("with_bias", (False, True))
@pytest.mark.parametrize("temperature", (1.0, 0.7))
def test_logprobs_and_entropy(options, with_bias, temperature):
    head, inputs, ids = case(with_bias=with_bias, **options)
    logp, entropy = linear_token_logprobs(
        inputs[0], head, ids, temperature=temperature, return_entropy=True, chunk_rows=8
    )
    wanted_logp, wanted_entropy = exact(inputs, ids, temperature, **options)
    torch.testing.assert_close(logp, wanted_logp)
    torch.testing.assert_close(entropy, wanted_entropy)
    a, b = torch.rand(2, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a[3] = b[3] = 0
    ours = (a * logp.square() + b * entropy).sum()
    wanted = (a * wanted_logp.square() + b * wanted_entropy).sum()
    torch.testing.assert_close(ref.grads(ours, *inputs), ref.grads(wanted, *inputs))


def test_logprobs_gradcheck_and_sequence_level_use():
    _, inputs, ids = case()

    def ratio(hidden, weight, bias):
        return linear_token_logprobs(hidden, Head(weight, bias, valid=V), ids, chunk_rows=8).sum().exp()

    assert torch.autograd.gradcheck(ratio, tuple(inputs))


def test_logprobs_without_entropy_match_and_without_gradient_keep_nothing():
    head, inputs, ids = case()
    logp = linear_token_logprobs(inputs[0], head, ids)
    torch.testing.assert_close(logp, exact(inputs, ids, 1.0)[0])
    with torch.no_grad():
        assert not linear_token_logprobs(inputs[0], head, ids).requires_grad
    plain = linear_token_logprobs(inputs[0].detach(), inputs[1].detach(), ids)
    assert not plain.requires_grad
    torch.testing.assert_close(plain, exact_plain(inputs, ids))


def exact_plain(inputs, ids):
    logits = inputs[0].detach() @ inputs[1].detach().T
    return torch.log_softmax(logits, -1).gather(-1, ids[:, None]).squeeze(-1)


def test_logprobs_in_half_precision_and_under_autocast():
    head, inputs, ids = case(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp = linear_token_logprobs(inputs[0], head, ids)
    assert logp.dtype == torch.float32
    found = ref.grads(logp.sum(), *inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    wanted = exact(wide, ids, 1.0)[0]
    torch.testing.assert_close(logp.double(), wanted, rtol=2e-6, atol=2e-6)
    for half, full in zip(found, ref.grads(wanted.sum(), *wide), strict=True):
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.double(), full, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("temperature", (1.0, 0.7))
@pytest.mark.parametrize("with_entropy", (False, True))
def test_logprobs_with_a_frozen_head(options, temperature, with_entropy):
    """Unit gradients from the forward; a gradient of the entropy still comes by recomputation."""
    head, inputs, ids = case(**options)
    inputs[1].requires_grad_(False)
    inputs[2].requires_grad_(False)
    found = linear_token_logprobs(
        inputs[0], head, ids, temperature=temperature, return_entropy=with_entropy, chunk_rows=8
    )
    logp, wanted = found[0] if with_entropy else found, exact(inputs, ids, temperature, **options)
    pairs = [(logp.square().sum(), wanted[0].square().sum()), (logp[:7].sum().exp(), wanted[0][:7].sum().exp())]
    if with_entropy:
        pairs.append(((found[1] * logp).sum(), (wanted[1] * wanted[0]).sum()))
    for ours, theirs in pairs:
        (grad,) = torch.autograd.grad(ours, inputs[:1], retain_graph=True)
        (wanted_grad,) = torch.autograd.grad(theirs, inputs[:1], retain_graph=True)
        torch.testing.assert_close(grad, wanted_grad)


def test_a_frozen_head_keeps_rows_without_upstream_gradient_out():
    head, inputs, ids = case(with_bias=False)
    hidden = inputs[0].detach().clone()
    hidden[2] = torch.nan
    hidden.requires_grad_()
    logp = linear_token_logprobs(hidden, Head(head.weight.detach(), valid=V), ids)
    (grad,) = ref.grads(logp[3:].sum(), hidden)
    assert grad.isfinite().all() and (grad[:3] == 0).all() and (grad[3:] != 0).any()


@pytest.mark.parametrize("rows", (0, N))
def test_rows_without_upstream_gradient_are_left_out_of_the_backward(rows):
    head, inputs, ids = case()
    hidden = inputs[0].detach()[:rows].clone()
    hidden[1:3] = torch.nan
    hidden.requires_grad_()
    logp = linear_token_logprobs(hidden, head, ids[:rows])
    keep = torch.ones(rows, dtype=torch.bool)
    keep[1:3] = False
    grads = ref.grads(logp[keep].sum(), hidden, inputs[1])
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("temperature", (1.0, 0.7))
@pytest.mark.parametrize("weighted", (False, True))
def test_policy_loss_against_autograd_of_the_dense_form(options, temperature, weighted):
    """A clipped ratio with per-token advantages, as in PPO (arXiv 1707.06347, equation 7)."""
    head, inputs, ids = case(**options)
    generator = torch.Generator().manual_seed(2)
    advantage = torch.randn(N, generator=generator, dtype=torch.float64)
    old = exact(inputs, ids, temperature, **options)[0].detach() + 0.3 * torch.randn(
        N, generator=generator, dtype=torch.float64
    )
    weights = torch.rand(N, generator=generator, dtype=torch.float64) if weighted else None
    if weights is not None:
        weights[::3] = 0

    def objective(logp, index):
        ratio = (logp - old[index]).exp()
        return -torch.minimum(ratio * advantage[index], ratio.clamp(0.8, 1.2) * advantage[index])

    ours, stats = linear_policy_loss(
        inputs[0], head, ids, objective, temperature=temperature, weights=weights, return_stats=True, chunk_rows=4
    )
    logp, entropy = exact(inputs, ids, temperature, **options)
    every = torch.arange(N)
    scale = torch.ones(N, dtype=torch.float64) if weights is None else weights
    wanted = (scale * objective(logp, every)).sum()
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(ref.grads(ours, *inputs), ref.grads(wanted, *inputs))
    for name, values in (("logp", logp), ("entropy", entropy), ("loss", objective(logp, every))):
        torch.testing.assert_close(stats[name], (values * (scale != 0)).detach())


def test_policy_loss_leaves_rows_of_weight_zero_out():
    head, inputs, ids = case()
    weights = torch.ones(N, dtype=torch.bool)
    weights[[0, 7]] = False
    hidden = inputs[0].detach().masked_fill(~weights[:, None], torch.nan).requires_grad_()
    loss = linear_policy_loss(hidden, head, ids.masked_fill(~weights, -100), lambda logp, _: -logp, weights=weights)
    torch.testing.assert_close(loss, -exact(inputs, ids, 1.0)[0][weights].sum())
    grads = ref.grads(loss, hidden, *inputs[1:])
    assert all(g.isfinite().all() for g in grads) and (grads[0][[0, 7]] == 0).all()


def test_policy_loss_of_a_constant_of_no_rows_and_without_gradient():
    head, inputs, ids = case()
    loss = linear_policy_loss(inputs[0], head, ids, lambda logp, _: torch.ones_like(logp))
    assert loss.item() == N and all((g == 0).all() for g in ref.grads(loss, *inputs))
    empty = linear_policy_loss(inputs[0], head, ids, lambda logp, _: -logp, weights=torch.zeros(N))
    assert empty.item() == 0 and all((g == 0).all() for g in ref.grads(empty, *inputs))
    with torch.no_grad():
        assert not linear_policy_loss(inputs[0], head, ids, lambda logp, _: -logp).requires_grad


def test_policy_loss_backward_twice():
    head, inputs, ids = case()
    loss = linear_policy_loss(inputs[0], head, ids, lambda logp, _: logp.square())
    loss.backward(retain_graph=True)
    first = [x.grad.clone() for x in inputs]
    (2 * loss).backward()
    for x, g in zip(inputs, first, strict=True):
        torch.testing.assert_close(x.grad, 3 * g)


def test_policy_gradient_of_the_log_ratio_is_that_of_the_reverse_kl_in_expectation():
    """Design, section 2: with d_t as advantage, the expected gradient is that of minus the per-token reverse KL.

    Summed over all ids with their probabilities instead of sampled, it is equal to rounding."""
    head, inputs, _ = case(with_bias=False)
    hidden, weight = inputs
    teacher = torch.randn(1, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    every = torch.arange(V)
    row = hidden[:1].expand(V, H)
    logits = ref.head_logits(hidden[:1], weight, valid=V)
    lq, lp = torch.log_softmax(logits, -1), torch.log_softmax(teacher, -1)
    d, q = (lp - lq).detach().squeeze(0), lq.exp().detach().squeeze(0)
    loss = linear_policy_loss(row, head, every, lambda logp, index: -d[index] * logp, weights=q)
    reverse_kl = (lq.exp() * (lq - lp)).sum()
    torch.testing.assert_close(ref.grads(loss, hidden, weight), ref.grads(reverse_kl, hidden, weight))


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("k", (1, 6, V))
def test_topk_signal(options, k):
    head, inputs, _ = case(**options)
    logprobs, ids, tail = linear_topk(inputs[0], head, k, temperature=0.7, chunk_rows=8)
    lp = torch.log_softmax(ref.head_logits(*inputs, valid=V, **options).detach() / 0.7, -1)
    wanted, wanted_ids = lp.topk(k, -1)
    torch.testing.assert_close(logprobs, wanted)
    assert (ids == wanted_ids).all() and ids.dtype == torch.int64
    rest = lp.exp().scatter(-1, wanted_ids, 0.0).sum(-1)
    torch.testing.assert_close(tail.exp(), rest)
    assert (tail == -torch.inf).all() == (k == V)
    assert not logprobs.requires_grad


def test_topk_signal_of_a_peaked_teacher_has_its_tail():
    """One minus the sum is exactly 0 in float32 where the tail's mass is 1e-13."""
    weight = torch.tensor([[30.0], [0.0], [-1.0]])
    logprobs, _, tail = linear_topk(torch.ones(1, 1), weight, 1)
    assert logprobs.exp().item() == 1.0
    exact_tail = torch.log_softmax(weight.double().T, -1)[0, 1:].logsumexp(0)
    torch.testing.assert_close(tail.double()[0], exact_tail)


def brute_named(lp, ids, k):
    """One row in float64, entry by entry: [V], named ids -> log-probabilities, ids, log of the remaining mass."""
    row = lp.topk(k).indices.tolist() + ids
    seen: set[int] = set()
    logprobs, found = [], []
    for i in row:
        absent = i < 0 or i in seen or lp[i] == -torch.inf
        logprobs.append(-torch.inf if absent else lp[i].item())
        found.append(0 if absent else i)
        if not absent:
            seen.add(i)
    rest = lp[[i for i in range(len(lp)) if i not in seen]]
    return torch.tensor(logprobs, dtype=lp.dtype), torch.tensor(found), rest.logsumexp(0)


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("k", (0, 3, V))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_named_ids_after_the_likeliest(options, k, dtype):
    head, inputs, _ = case(dtype, **options)
    wide = [x.detach().double() for x in inputs]
    if not options:  # an id out of the distribution
        head.bias.data[4] = wide[2][4] = -torch.inf
    named = torch.randint(-2, V, (N, 7), generator=torch.Generator().manual_seed(3))
    named[0] = torch.tensor([5, 5, 5, -1, 0, 4, 5])
    named[1] = -1
    named[2] = torch.arange(7)
    ours = linear_named(inputs[0], head, named, temperature=0.7, k=k, chunk_rows=8)
    lp = torch.log_softmax(ref.head_logits(*wide, valid=V, **options) / 0.7, -1)
    wanted = [torch.stack(parts) for parts in zip(*map(brute_named, lp, named.tolist(), [k] * N), strict=True)]
    assert (ours[1] == wanted[1]).all() and ours[1].dtype == torch.int64
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    for mine, exact_values in ((ours[0], wanted[0]), (ours[2], wanted[2])):
        assert mine.dtype == dtype and not mine.requires_grad
        torch.testing.assert_close(mine.double(), exact_values, **tolerance)
    if k == V:
        assert (ours[2] == -torch.inf).all()


def test_named_ids_of_a_peaked_row_have_their_tail_and_no_name_leaves_all_of_it():
    weight = torch.tensor([[30.0], [0.0], [-1.0]])
    ids = torch.tensor([[0, -1], [-1, -7], [2, 2]])
    logprobs, found, tail = linear_named(torch.ones(3, 1), weight, ids)
    lp = torch.log_softmax(weight.double().T, -1)[0]
    assert found.tolist() == [[0, 0], [0, 0], [2, 0]]
    torch.testing.assert_close(tail.double(), torch.stack([lp[1:].logsumexp(0), lp.logsumexp(0), lp[:2].logsumexp(0)]))
    assert logprobs[1].tolist() == [-torch.inf, -torch.inf] and logprobs[2, 1] == -torch.inf
    none, _, whole = linear_named(torch.ones(2, 1), weight, torch.empty(2, 0, dtype=torch.int64))
    assert none.shape == (2, 0)
    torch.testing.assert_close(whole, torch.zeros(2))


def test_arguments_are_checked():
    head, inputs, ids = case()
    with pytest.raises(ValueError, match="k must"):
        linear_topk(inputs[0], head, V + 1)
    with pytest.raises(ValueError, match="k must"):
        linear_named(inputs[0], head, ids[:, None], k=V + 1)
    with pytest.raises(ValueError, match="below"):
        linear_named(inputs[0], head, ids[:, None] + V)
    with pytest.raises(ValueError, match="ids must be"):
        linear_named(inputs[0], head, ids)
    with pytest.raises(ValueError, match="below"):
        linear_token_logprobs(inputs[0], head, ids + V)
    with pytest.raises(ValueError, match="token_ids"):
        linear_token_logprobs(inputs[0], head, ids[1:])
    with pytest.raises(ValueError, match="temperature"):
        linear_token_logprobs(inputs[0], head, ids, temperature=0.0)
    with pytest.raises(ValueError, match="objective"):
        linear_policy_loss(inputs[0], head, ids, lambda logp, _: logp.sum())
