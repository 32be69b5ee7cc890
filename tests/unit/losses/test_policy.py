"""Policy losses through the linear head against references on full logits, written case by case from the papers."""

from __future__ import annotations

import math

import loss_reference as ref
import pytest
import torch

from limbeck.losses import (
    Head,
    PolicyLoss,
    clip_shares,
    denominator,
    drop_truncated,
    entropy_threshold,
    linear_policy_loss,
    linear_token_logprobs,
    pad_tokens,
    policy_objective,
    rollout_metrics,
    rollout_weights,
    sequence_logratio,
    token_mask,
    token_weights,
    top_entropy_mask,
)

V, H, LONGEST = 11, 4, 9
COUNTS = (3, 7, 1, 5, 0, 4)
TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
LEVELS = ("token", "sequence")
EXACT = {"rtol": 1e-12, "atol": 1e-12}
OPTIONS = {"epsilon": 0.15, "epsilon_high": 0.25}


class Case:
    """Sequences of the lengths COUNTS, one of them with no active token; every ratio well away from one."""

    def __init__(self, seed=5):
        generator = torch.Generator().manual_seed(seed)
        n = sum(COUNTS)

        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.hidden, self.weight = randn(n, H).requires_grad_(), randn(V + 2, H).requires_grad_()
        self.ids = torch.randint(0, V, (n,), generator=generator)
        self.mask = token_mask(COUNTS)
        self.by_sequence = randn(len(COUNTS))
        drift = torch.repeat_interleave(0.25 * randn(len(COUNTS)), torch.tensor(COUNTS))
        logp = dense_logp(self.hidden, self.weight, self.ids).detach()
        self.old = logp + drift + 0.25 * randn(n)
        self.reference = logp + 0.5 * randn(n)
        self.advantage = torch.repeat_interleave(self.by_sequence, torch.tensor(COUNTS))

    @property
    def leaves(self):
        return self.hidden, self.weight


def dense_logp(hidden, weight, ids):
    return torch.log_softmax(ref.head_logits(hidden, weight, valid=V), -1).gather(-1, ids[:, None]).squeeze(-1)


def of_ratio(settings, ratio, advantage, logp):
    """One token's (or one sequence's) loss, in cases: all scalars. logp: what cispo differentiates."""
    low, high = 1 - settings.epsilon, 1 + settings.epsilon_high
    positive = bool(advantage > 0)
    if settings.loss_type == "cispo":
        return -min(float(ratio.detach()), high) * advantage * logp
    if settings.loss_type == "sapo":
        tau = settings.tau_pos if positive else settings.tau_neg
        return -advantage * 4 / (tau * (1 + (-tau * (ratio - 1)).exp()))
    r = float(ratio.detach())
    if positive:
        return -advantage * (ratio if r <= high else high)
    if settings.delta is not None and r >= settings.delta:
        return -advantage * settings.delta
    return -advantage * (ratio if r >= low else low)


def reference_loss(settings, case):
    """Sequence by sequence, as the papers write it, on full logits, the mean of the whole batch at once."""
    logp = dense_logp(*case.leaves, case.ids)
    total, active = torch.zeros((), dtype=torch.float64), [c for c in COUNTS if c]
    start = 0
    for count in COUNTS:
        at = range(start, start + count)
        start += count
        if not count:
            continue
        ratios = [(logp[t] - case.old[t]).exp() for t in at]
        if settings.level == "sequence":  # GSPO, arXiv 2507.18071: one ratio, differentiated as a whole
            mean = math.prod(ratios) ** (1 / count)
            logp_sum = sum(logp[t] for t in at)
            if settings.loss_type == "cispo":
                values = of_ratio(settings, mean, case.advantage[at[0]], logp_sum)
            else:
                values = count * of_ratio(settings, mean, case.advantage[at[0]], None)
        else:
            values = sum(of_ratio(settings, r, case.advantage[t], logp[t]) for r, t in zip(ratios, at, strict=True))
        if settings.beta:
            d = [case.reference[t] - logp[t] for t in at]
            kl = [x.exp() - x - 1 if settings.kl == "k3" else x**2 / 2 for x in d]
            values = values + settings.beta * sum(kl)
        total = total + (values / count if settings.loss_type in ("grpo", "sapo") else values)
    if settings.loss_type in ("grpo", "sapo"):
        return total / len(active)
    if settings.loss_type == "dr_grpo":
        return total / (len(COUNTS) * LONGEST)
    return total / sum(active)


def our_parts(settings, case, sequences=None, **more):
    """(sum of the losses, part of the denominator) of some of the sequences, as a micro-batch of its own."""
    sequences = range(len(COUNTS)) if sequences is None else sequences
    own = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    rows = torch.cat([(own == i).nonzero().squeeze(-1) for i in sequences])
    counts = [COUNTS[i] for i in sequences]
    mask = token_mask(counts)
    hidden, ids, old = case.hidden[rows], case.ids[rows], case.old[rows]
    ratio = None
    if settings.level == "sequence":
        with torch.no_grad():
            logp = linear_token_logprobs(hidden, Head(case.weight, valid=V), ids)
        ratio = sequence_logratio(pad_tokens(logp, counts), pad_tokens(old, counts), mask)[mask]
    objective = policy_objective(
        settings,
        case.advantage[rows],
        old_logp=old,
        seq_logratio=ratio,
        ref_logp=case.reference[rows] if settings.beta else None,
        **more,
    )
    weights = token_weights(mask, settings.reduction, dtype=torch.float64)[mask]
    loss = linear_policy_loss(hidden, Head(case.weight, valid=V), ids, objective, weights=weights, chunk_rows=4)
    return loss, denominator(mask, settings.reduction, fixed_length=LONGEST)


def ours(settings, case, parts=None):
    found = [our_parts(settings, case, part) for part in (parts or [range(len(COUNTS))])]
    return sum(loss for loss, _ in found) / sum(d for _, d in found)


def same(ours, wanted, leaves):
    torch.testing.assert_close(ours, wanted, **EXACT)
    torch.testing.assert_close(ref.grads(ours, *leaves), ref.grads(wanted, *leaves), **EXACT)


@pytest.mark.parametrize("seed", (4, 5))
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", TYPES)
def test_value_and_gradient_of_every_loss_at_every_level(loss_type, level, seed):
    settings, case = PolicyLoss(loss_type, level, tau_pos=0.8, tau_neg=1.4, **OPTIONS), Case(seed)
    same(ours(settings, case), reference_loss(settings, case), case.leaves)


def test_the_cases_above_clip_on_both_sides_and_neither():
    for level in LEVELS:
        settings, seen = PolicyLoss("dapo", level, **OPTIONS), {"clip_low": 0.0, "clip_high": 0.0, "clip_region": 0.0}
        for seed in (4, 5):
            case = Case(seed)
            log_ratio = dense_logp(*case.leaves, case.ids).detach() - case.old
            if level == "sequence":
                log_ratio = torch.cat([r.mean().expand_as(r) for r in log_ratio.split(COUNTS)])
            for name, values in clip_shares(settings, log_ratio, case.advantage).items():
                seen[name] += float(values.mean()) / 2
        assert 0 < seen["clip_low"] < 1 and 0 < seen["clip_high"] < 1 and seen["clip_region"] < 0.9, level


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", TYPES)
@pytest.mark.parametrize("parts", ([[i] for i in range(6)], [[4, 1, 0], [5, 3], [2]], [[5, 4, 3, 2, 1, 0]]))
def test_other_micro_batches_give_the_same_loss_and_gradient(loss_type, level, parts):
    settings, case = PolicyLoss(loss_type, level, beta=0.1, **OPTIONS), Case()
    same(ours(settings, case, parts), ours(settings, case), case.leaves)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ("grpo", "dapo"))
def test_two_sided_clip_caps_the_ratio_of_negative_advantages(loss_type, level):
    """INTELLECT-2, arXiv 2505.07291, section 4.1."""
    settings, case = PolicyLoss(loss_type, level, delta=1.3, **OPTIONS), Case()
    case.advantage = -case.advantage.abs()
    case.old = case.old - 0.2
    wanted = reference_loss(settings, case)
    same(ours(settings, case), wanted, case.leaves)
    assert not torch.isclose(wanted, reference_loss(PolicyLoss(loss_type, level, **OPTIONS), case))


@pytest.mark.parametrize("kl", ("k3", "k2"))
@pytest.mark.parametrize("loss_type", TYPES)
def test_the_penalty_to_the_reference_model(loss_type, kl):
    settings, case = PolicyLoss(loss_type, beta=0.3, kl=kl, **OPTIONS), Case()
    same(ours(settings, case), reference_loss(settings, case), case.leaves)


@pytest.mark.parametrize(("kl", "order"), (("k2", "reverse"), ("k3", "forward")))
def test_whose_gradient_the_penalty_has_in_the_mean(kl, order):
    """Over all ids with their probability: k2 has reverse KL's gradient, k3 the forward one's, as the docs say."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((1, H), (V, H)))
    hidden.requires_grad_()
    other = torch.log_softmax(torch.randn(V, generator=generator, dtype=torch.float64), -1)
    lq = torch.log_softmax(hidden @ weight.T, -1).squeeze(0)
    objective = policy_objective(PolicyLoss(beta=1.0, kl=kl), torch.zeros(V), ref_logp=other)
    loss = linear_policy_loss(hidden.expand(V, H), weight, torch.arange(V), objective, weights=lq.detach().exp())
    wanted = (lq.exp() * (lq - other)).sum() if order == "reverse" else (other.exp() * (other - lq)).sum()
    torch.testing.assert_close(ref.grads(loss, hidden), ref.grads(wanted, hidden), **EXACT)


def slope(settings, logp, advantage, **data):
    leaf = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    data = {name: torch.tensor(values, dtype=torch.float64) for name, values in data.items()}
    objective = policy_objective(settings, torch.tensor(advantage, dtype=torch.float64), **data)
    value = objective(leaf, torch.arange(len(logp)))
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def test_slopes_in_closed_form():
    """d loss / d log p: minus the ratio times the advantage, where nothing is clipped."""
    old = [math.log(p) for p in (0.5, 0.5, 0.5, 0.5)]
    logp = [math.log(0.5 * r) for r in (1.1, 3.0, 0.4, 3.0)]
    advantage = [2.0, 2.0, -1.0, -1.0]
    clipped, inside = slope(PolicyLoss("grpo"), logp, advantage, old_logp=old)
    torch.testing.assert_close(clipped, torch.tensor([-2.2, -2.4, 0.8, 3.0], dtype=torch.float64))
    torch.testing.assert_close(inside, torch.tensor([-2.2, 0.0, 0.0, 3.0], dtype=torch.float64))
    _, capped = slope(PolicyLoss("grpo", delta=2.0), logp, advantage, old_logp=old)
    torch.testing.assert_close(capped, torch.tensor([-2.2, 0.0, 0.0, 0.0], dtype=torch.float64))
    _, cispo = slope(PolicyLoss("cispo", epsilon_high=1.5), logp, advantage, old_logp=old)
    torch.testing.assert_close(cispo, torch.tensor([-2.2, -5.0, 0.4, 2.5], dtype=torch.float64))
    value, sapo = slope(PolicyLoss("sapo", tau_pos=1.0, tau_neg=2.0), logp, advantage, old_logp=old)

    def gate(tau, r):
        return 1 / (1 + math.exp(-tau * (r - 1)))

    rows = list(zip((1.1, 3.0, 0.4, 3.0), (1.0, 1.0, 2.0, 2.0), advantage, strict=True))
    values = [-4 / tau * gate(tau, r) * a for r, tau, a in rows]
    slopes = [-4 * gate(tau, r) * (1 - gate(tau, r)) * r * a for r, tau, a in rows]
    torch.testing.assert_close(value, torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(sapo, torch.tensor(slopes, dtype=torch.float64))


def test_gspo_with_an_advantage_a_token_has_the_sequences_ratio_and_the_tokens_advantage():
    """GSPO-token, arXiv 2507.18071, section 4.3: the slope of s_i A_t is s_i A_t, clipped by s_i and A_t's sign."""
    inside = math.log(1.1)
    value, found = slope(PolicyLoss("grpo", "sequence"), [-1.0, -2.0], [3.0, -1.0], seq_logratio=[inside] * 2)
    torch.testing.assert_close(value, torch.tensor([-3.3, 1.1], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([-3.3, 1.1], dtype=torch.float64))
    above = math.log(2.0)
    _, found = slope(PolicyLoss("grpo", "sequence"), [-1.0, -2.0], [3.0, -1.0], seq_logratio=[above] * 2)
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", TYPES)
def test_fresh_weights_need_no_old_logprobs(loss_type, level):
    """Ratio 1, so that every loss has the gradient of -A log p: with and without the numbers."""
    case = Case()
    case.old = dense_logp(*case.leaves, case.ids).detach()
    settings = PolicyLoss(loss_type, level)
    objective = policy_objective(settings, case.advantage)
    weights = token_weights(case.mask, settings.reduction, dtype=torch.float64)[case.mask]
    loss = linear_policy_loss(case.hidden, Head(case.weight, valid=V), case.ids, objective, weights=weights)
    torch.testing.assert_close(loss, our_parts(settings, case)[0], **EXACT)
    plain = -(weights * case.advantage * dense_logp(*case.leaves, case.ids)).sum()
    torch.testing.assert_close(ref.grads(loss, *case.leaves), ref.grads(plain, *case.leaves), **EXACT)


def test_kept_tokens_lose_their_policy_part_and_no_penalty():
    settings, case = PolicyLoss("dapo", beta=0.2, **OPTIONS), Case()
    keep = torch.rand(len(case.ids), generator=torch.Generator().manual_seed(7)) > 0.4
    found, d = our_parts(settings, case, keep=keep)
    case.advantage = case.advantage * keep
    same(found / d, reference_loss(settings, case), case.leaves)


@pytest.mark.parametrize("loss_type", TYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_extreme_ratios_overflow_nothing_in_float32(loss_type, level):
    logp = torch.tensor([-0.01, -200.0, -0.5], requires_grad=True)
    old, advantage = torch.tensor([-200.0, -0.01, -0.5]), torch.tensor([0.0, 1.0, -1.0])
    for sign in (1, -1):
        objective = policy_objective(
            PolicyLoss(loss_type, level, beta=0.1), sign * advantage, old_logp=old, seq_logratio=logp.detach() - old,
            ref_logp=old,
        )  # fmt: skip
        value = objective(logp, torch.arange(3))
        assert value.isfinite().all() and value.dtype == torch.float32
        assert torch.autograd.grad(value.sum(), logp)[0].isfinite().all()


def test_float64_data_do_not_change_the_dtype_of_a_float32_pass():
    case = Case()
    hidden, weight = case.hidden.detach().float().requires_grad_(), case.weight.detach().float()
    objective = policy_objective(PolicyLoss(), case.advantage, old_logp=case.old)
    loss, stats = linear_policy_loss(hidden, Head(weight, valid=V), case.ids, objective, return_stats=True)
    assert loss.dtype == stats["loss"].dtype == torch.float32


def test_what_a_loss_needs_and_settings_out_of_range():
    zeros = torch.zeros(3)
    with pytest.raises(ValueError, match="seq_logratio"):
        policy_objective(PolicyLoss(level="sequence"), zeros, old_logp=zeros)
    with pytest.raises(ValueError, match="ref_logp"):
        policy_objective(PolicyLoss(beta=0.1), zeros)
    with pytest.raises(ValueError, match=r"old_logp must be \(3,\)"):
        policy_objective(PolicyLoss(), zeros, old_logp=torch.zeros(2))
    for wrong in (
        {"loss_type": "ppo"}, {"level": "word"}, {"kl": "k1"}, {"epsilon": -0.1}, {"epsilon_high": -1.0},
        {"beta": -1.0}, {"tau_neg": 0.0}, {"delta": 1.2}, {"delta": 4.0, "loss_type": "cispo"},
        {"delta": 4.0, "loss_type": "sapo"}, {"epsilon": math.nan},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            PolicyLoss(**wrong)
    with pytest.raises(ValueError, match="fixed_length"):
        denominator(torch.ones(2, 3, dtype=torch.bool), "fixed")


def test_clip_shares():
    log_ratio = torch.tensor([0.5, 0.9, 1.1, 1.5, 5.0]).log().repeat(2)
    advantage = torch.tensor([1.0] * 5 + [-1.0] * 5)
    shares = clip_shares(PolicyLoss("dapo", epsilon=0.2, epsilon_high=0.3, delta=4.0), log_ratio, advantage)
    found = {name: values.nonzero().flatten().tolist() for name, values in shares.items()}
    assert found == {"clip_low": [5], "clip_high": [3, 4], "clip_delta": [9], "clip_region": [3, 4, 5, 9]}
    assert clip_shares(PolicyLoss("grpo"), log_ratio, advantage).keys() == {"clip_low", "clip_high", "clip_region"}
    cispo = clip_shares(PolicyLoss("cispo", epsilon_high=3.0), log_ratio, advantage)
    assert cispo["clip_high"].nonzero().flatten().tolist() == [4, 9]
    assert clip_shares(PolicyLoss("sapo"), log_ratio, advantage) == {}


@pytest.mark.parametrize("loss_type", ("grpo", "dapo", "dr_grpo"))
@pytest.mark.parametrize("level", LEVELS)
def test_the_clip_shares_are_the_tokens_without_gradient(loss_type, level):
    settings, case = PolicyLoss(loss_type, level, delta=1.4, **OPTIONS), Case(3)
    log_ratio = 0.6 * torch.randn(len(case.ids), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logp = (case.old + log_ratio).requires_grad_()
    objective = policy_objective(settings, case.advantage, old_logp=case.old, seq_logratio=log_ratio)
    (found,) = torch.autograd.grad(objective(logp, torch.arange(len(logp))).sum(), logp)
    region = clip_shares(settings, log_ratio, case.advantage)["clip_region"]
    assert 0 < region.sum() < len(region) and torch.equal(found == 0, region == 1)


def gap():
    """Trainer and sampler, [3, 3]: two sequences and one row without a token; NaN and inf stand where masked."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    ratios = torch.tensor([[4.0, 0.5, 1.0], [3.0, 6.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    rollout = torch.full((3, 3), -2.0, dtype=torch.float64)
    train = (rollout + ratios.log()).masked_fill(~mask, torch.nan)
    return train, rollout.masked_fill(~mask, -torch.inf), mask


def test_rollout_weights_in_every_mode():
    first, second = 2 ** (1 / 3), 18**0.5
    for mode, wanted in {
        "token_truncate": [[2, 0.5, 1], [2, 2, 0], [0, 0, 0]],
        "token_mask": [[0, 0.5, 1], [0, 0, 0], [0, 0, 0]],
        "sequence_truncate": [[first] * 3, [2, 2, 0], [0, 0, 0]],
        "sequence_mask": [[first] * 3, [0, 0, 0], [0, 0, 0]],
    }.items():
        train, rollout, mask = gap()
        ours = rollout_weights(train.requires_grad_(), rollout, mask, mode=mode, threshold=2.0)
        torch.testing.assert_close(ours, torch.tensor(wanted, dtype=torch.float64))
        assert not ours.requires_grad
    loose = rollout_weights(*gap(), mode="sequence_mask", threshold=5.0)
    torch.testing.assert_close(loose[1], torch.tensor([second, second, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="unknown mode"):
        rollout_weights(*gap(), mode="word_mask")
    with pytest.raises(ValueError, match="threshold"):
        rollout_weights(*gap(), mode="token_mask", threshold=0.0)


def test_rollout_metrics_by_hand():
    found = rollout_metrics(*gap(), mode="token_truncate", threshold=2.0)
    ratios, sequences = [4.0, 0.5, 1.0, 3.0, 6.0], ([4.0, 0.5, 1.0], [3.0, 6.0])
    logs = [math.log(r) for r in ratios]
    geometric = [math.prod(s) ** (1 / len(s)) for s in sequences]
    weights = [2.0, 0.5, 1.0, 2.0, 2.0]
    diffs = [-math.log(g) for g in geometric]
    wanted = {
        "ratio_mean": sum(ratios) / 5, "ratio_max": 6.0, "kl": -sum(logs) / 5,
        "k3_kl": sum(r - 1 - x for r, x in zip(ratios, logs, strict=True)) / 5,
        "chi2_token": sum(r * r for r in ratios) / 5 - 1, "chi2_seq": sum(g * g for g in geometric) / 2 - 1,
        "training_ppl": sum(math.exp(2) / g for g in geometric) / 2, "training_log_ppl": 2 + sum(diffs) / 2,
        "rollout_ppl": math.exp(2), "rollout_log_ppl": 2.0, "log_ppl_diff": sum(diffs) / 2,
        "log_ppl_abs_diff": -sum(diffs) / 2, "log_ppl_diff_max": max(diffs), "log_ppl_diff_min": min(diffs),
        "ppl_ratio": sum(1 / g for g in geometric) / 2, "is_weight_mean": 7.5 / 5,
        "ess": sum(weights) ** 2 / (5 * sum(w * w for w in weights)), "clipped_frac": 3 / 5,
    }  # fmt: skip
    assert found == pytest.approx(wanted, rel=1e-12)
    assert rollout_metrics(*gap(), mode="sequence_mask")["clipped_frac"] == 0.5
    assert {"ess", "clipped_frac"}.isdisjoint(rollout_metrics(*gap()))
    same_policy = rollout_metrics(gap()[0], gap()[0], gap()[2], mode="token_mask")
    assert same_policy["ess"] == same_policy["ppl_ratio"] == 1 and same_policy["kl"] == same_policy["chi2_token"] == 0
    assert rollout_metrics(*gap()[:2], torch.zeros(3, 3, dtype=torch.bool)) == {}


def test_rollout_weights_make_the_samplers_mean_the_trainers():
    """E_rollout[w f] = E_train[f] as long as no weight is cut: why they multiply the loss."""
    generator = torch.Generator().manual_seed(0)
    train, rollout = torch.log_softmax(torch.randn(2, V, generator=generator, dtype=torch.float64), -1)
    mask, f = torch.ones(1, V, dtype=torch.bool), torch.randn(V, generator=generator, dtype=torch.float64)
    w = rollout_weights(train[None], rollout[None], mask, mode="token_truncate", threshold=1e6)
    torch.testing.assert_close((rollout.exp() * w * f).sum(), (train.exp() * f).sum(), **EXACT)


def test_the_tokens_of_highest_entropy_over_the_whole_step():
    generator = torch.Generator().manual_seed(0)
    entropy, mask = torch.rand(6, 10, generator=generator), torch.rand(6, 10, generator=generator) > 0.3
    entropy[~mask] = torch.nan
    for share in (0.05, 0.2, 0.5, 1.0):
        kept = top_entropy_mask(entropy, mask, share)
        ordered = sorted(entropy[mask].tolist(), reverse=True)
        wanted = set(ordered[: max(1, round(share * len(ordered)))])
        assert set(entropy[kept].tolist()) == wanted and not (kept & ~mask).any()
        threshold = entropy_threshold(torch.cat([entropy[i][mask[i]] for i in (3, 0, 5, 1, 2, 4)]), share)
        ranks = [top_entropy_mask(entropy[r], mask[r], share, threshold=threshold) for r in (slice(2), slice(2, 6))]
        assert torch.equal(torch.cat(ranks), kept)
    tied = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert top_entropy_mask(tied, torch.ones(4, dtype=torch.bool), 0.25).tolist() == [True, True, True, False]
    nothing = torch.zeros(4, dtype=torch.bool)
    assert not top_entropy_mask(tied, nothing, 0.5).any()
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share"):
            entropy_threshold(tied, share)
    with pytest.raises(ValueError, match="no tokens"):
        entropy_threshold(tied[:0], 0.5)


def test_truncated_rows_leave_every_denominator_but_the_fixed_one():
    mask = token_mask((3, 2, 4))
    kept = drop_truncated(mask, torch.tensor([False, True, False]))
    assert kept.sum(-1).tolist() == [3, 0, 4]
    assert [denominator(kept, r, fixed_length=10) for r in ("tokens", "sequences", "fixed")] == [7, 2, 30]
    assert (token_weights(kept, "sequences")[1] == 0).all()


def test_flat_tokens_and_back():
    values = torch.arange(1.0, sum(COUNTS) + 1)
    padded = pad_tokens(values, COUNTS)
    assert padded.shape == (6, 7) and padded[0].tolist() == [1, 2, 3, 0, 0, 0, 0] and (padded[4] == 0).all()
    assert torch.equal(padded[token_mask(COUNTS)], values)
    for none in ((), (0, 0)):
        assert pad_tokens(values[:0], none).shape == (len(none), 0)
        assert [denominator(token_mask(none), r, fixed_length=4) for r in ("tokens", "sequences")] == [0, 0]
