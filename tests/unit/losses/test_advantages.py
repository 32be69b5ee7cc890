"""Advantages of task rewards, against statistics by hand; and OPD-RL, exact on a small vocabulary."""

from __future__ import annotations

import itertools
import math
import statistics

import loss_reference as ref
import pytest
import torch

from limbeck.losses import (
    PolicyLoss,
    group_advantages,
    groups_without_spread,
    k3_estimate,
    linear_policy_loss,
    opd_advantage,
    policy_objective,
    teacher_logratio,
)

EPS = 1e-4
REWARDS = [1.0, 0.0, 0.25, 1.0, -3.0, 0.5, 0.5, 2.0, 0.0]
IDS = [7, 7, 2, 7, 2, 2, 40, 40, 7]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def by_hand(rewards, ids, estimator, scale):
    """Row by row with the standard library."""
    known = [i for i, r in enumerate(rewards) if not math.isnan(r)]
    members = {i: [j for j in known if ids[j] == ids[i]] for i in known}
    centred = {}
    for i in known:
        others = [rewards[j] for j in members[i] if estimator != "rloo" or j != i]
        centred[i] = rewards[i] - statistics.fmean(others) if others else 0.0
    found = [0.0] * len(rewards)
    for i in known:
        if len({rewards[j] for j in members[i]}) < 2:
            continue
        source = centred if estimator == "reinforce_plus_plus" else dict(enumerate(rewards))
        over = members[i] if scale == "group" else known
        found[i] = centred[i] / (1 if scale == "none" else statistics.stdev(source[j] for j in over) + EPS)
    return double(found)


@pytest.mark.parametrize("estimator", ("grpo", "rloo", "reinforce_plus_plus"))
@pytest.mark.parametrize("scale", ("group", "batch", "none"))
@pytest.mark.parametrize("missing", ((), (1,), (0, 1, 3), (5, 6)))
def test_estimators_and_scales_by_hand(estimator, scale, missing):
    rewards = [math.nan if i in missing else r for i, r in enumerate(REWARDS)]
    ours = group_advantages(double(rewards), torch.tensor(IDS), estimator=estimator, scale=scale)
    torch.testing.assert_close(ours, by_hand(rewards, IDS, estimator, scale), rtol=1e-12, atol=1e-12)
    assert all(ours[i] == 0 for i in missing)


def test_each_estimator_scales_as_its_paper_does():
    ids = torch.tensor(IDS)
    for estimator, scale in (("grpo", "group"), ("rloo", "none"), ("reinforce_plus_plus", "batch")):
        ours = group_advantages(double(REWARDS), ids, estimator=estimator)
        assert torch.equal(ours, group_advantages(double(REWARDS), ids, estimator=estimator, scale=scale))


def test_closed_forms():
    grpo = group_advantages(double([1, 0, 0, 0]), 4)
    deviation = math.sqrt((0.75**2 + 3 * 0.25**2) / 3)  # n - 1, as in torch.std
    torch.testing.assert_close(grpo, double([0.75, -0.25, -0.25, -0.25]) / (deviation + EPS))
    rloo = group_advantages(double([1, 0, 0, 0]), 4, estimator="rloo")
    torch.testing.assert_close(rloo, double([1, -1 / 3, -1 / 3, -1 / 3]))
    assert group_advantages(torch.tensor([3, 1]), 2, scale="none").tolist() == [1.0, -1.0]  # whole numbers too


def test_one_sample_a_prompt_leaves_the_batch_as_the_baseline_or_none():
    rewards = [0.5, 1.5, math.nan, 4.0]
    ours = group_advantages(double(rewards), 1, estimator="reinforce_plus_plus")
    known = [0.5, 1.5, 4.0]
    wanted = [(r - 2.0) / (statistics.stdev(known) + EPS) for r in known]
    torch.testing.assert_close(ours, double([*wanted[:2], 0.0, wanted[2]]))
    for groups in (1, torch.arange(4)):
        for estimator in ("grpo", "rloo"):
            with pytest.raises(ValueError, match="at least 2 samples"):
                group_advantages(double(rewards), groups, estimator=estimator, scale="none")
        with pytest.raises(ValueError, match="at least 2 samples"):
            group_advantages(double(rewards), groups, estimator="reinforce_plus_plus", scale="group")
    assert group_advantages(double([3.0]), 1, estimator="reinforce_plus_plus").tolist() == [0.0]


def test_a_group_of_equals_gives_exactly_nothing():
    """In float32 the mean of eleven times 0.1 is not 0.1, and the difference divided by eps would be a gradient."""
    equal = torch.full((11,), 0.1)
    assert float(equal[0] - sum(equal) / 11) != 0
    rewards = torch.cat([equal, torch.eye(11)[0]])
    for estimator in ("grpo", "rloo", "reinforce_plus_plus"):
        for scale in ("group", "batch", "none"):
            ours = group_advantages(rewards, 11, estimator=estimator, scale=scale)
            assert (ours[:11] == 0).all() and (ours[11:] != 0).all()


def test_groups_without_spread():
    nan = math.nan
    rewards = torch.tensor([1.0, 2.0, 1.0, 2.0, nan, 3.0, nan, 0.3, 0.3])
    flat, index = groups_without_spread(rewards, torch.tensor([5, 1, 5, 1, 1, 3, 3, 9, 9]))
    assert flat.tolist() == [True, True, True, True]
    assert index.tolist() == [2, 0, 2, 0, 0, 1, 1, 3, 3]
    flat, index = groups_without_spread(torch.tensor([1.0, 1.0, 1.0, 1.0 + 1e-6, nan, nan]), 2)
    assert flat.tolist() == [True, False, True] and index.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_order_of_rows_and_the_rank_that_has_them_do_not_matter():
    order = torch.randperm(len(IDS), generator=torch.Generator().manual_seed(0))
    for estimator in ("grpo", "rloo", "reinforce_plus_plus"):
        whole = group_advantages(double(REWARDS), torch.tensor(IDS), estimator=estimator)
        mixed = group_advantages(double(REWARDS)[order], torch.tensor(IDS)[order], estimator=estimator)
        torch.testing.assert_close(mixed, whole[order], rtol=1e-12, atol=1e-12)


def test_what_cannot_be_grouped_is_refused():
    with pytest.raises(ValueError, match="whole groups of 2"):
        group_advantages(torch.zeros(3), 2)
    with pytest.raises(ValueError, match="infinite"):
        group_advantages(torch.tensor([0.0, torch.inf]), 2)
    with pytest.raises(ValueError, match=r"groups must be \[3\]"):
        group_advantages(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    assert group_advantages(torch.zeros(0), 4).shape == (0,)
    assert groups_without_spread(torch.zeros(0), 4)[0].shape == (0,)


V, H = 5, 3


def language(seed):
    """A language of two tokens: hidden states at the start and after each first token, and a head, in float64."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1 + V, H, generator=generator, dtype=torch.float64)
    return hidden, 2 * torch.randn(V, H, generator=generator, dtype=torch.float64)


def every_sequence():
    """All V * V sequences: the rows of hidden states that predict their tokens [S, 2], and the tokens [S, 2]."""
    tokens = torch.tensor(list(itertools.product(range(V), repeat=2)))
    return torch.stack([torch.zeros(V * V, dtype=torch.int64), 1 + tokens[:, 0]], -1), tokens


def logprobs(hidden, weight, rows, tokens):
    return torch.log_softmax(hidden @ weight.T, -1)[rows, tokens]


@pytest.mark.parametrize("loss_type", ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"))
@pytest.mark.parametrize("level", ("token", "sequence"))
def test_the_expected_gradient_of_opd_rl_is_that_of_the_per_token_reverse_kl(loss_type, level):
    """alpha 1, no rewards, ratio 1: over every sequence with its probability instead of a sample. The prefix is fixed:
    its own probability is not differentiated."""
    hidden, weight = (x.requires_grad_() for x in language(0))
    teacher_hidden, teacher_weight = language(1)
    rows, tokens = every_sequence()
    logp = logprobs(hidden, weight, rows, tokens).detach()
    teacher = logprobs(teacher_hidden, teacher_weight, rows, tokens)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    advantage = opd_advantage(torch.zeros(V * V), teacher_logratio(teacher, logp, mask), mask, coef=1.0)
    chance = logp.sum(-1, keepdim=True).exp().expand(-1, 2)
    objective = policy_objective(PolicyLoss(loss_type, level), advantage.flatten())
    ours = linear_policy_loss(hidden[rows.flatten()], weight, tokens.flatten(), objective, weights=chance.flatten())

    lq, lp = torch.log_softmax(hidden @ weight.T, -1), torch.log_softmax(teacher_hidden @ teacher_weight.T, -1)
    per_position = (lq.exp() * (lq - lp)).sum(-1)
    reached = torch.cat([torch.ones(1, dtype=torch.float64), lq[0].exp().detach()])
    wanted = (reached * per_position).sum()
    torch.testing.assert_close(
        ref.grads(ours, hidden, weight), ref.grads(wanted, hidden, weight), rtol=1e-10, atol=1e-10
    )


def test_rewards_and_teacher_add_up_in_the_gradient():
    """A_t = A_base + alpha d_t: the expected gradient is that of -E[reward] plus alpha times the reverse KL's."""
    hidden, weight = (x.requires_grad_() for x in language(2))
    teacher_hidden, teacher_weight = language(3)
    rows, tokens = every_sequence()
    reward = torch.randn(V * V, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    logp = logprobs(hidden, weight, rows, tokens)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    d = teacher_logratio(logprobs(teacher_hidden, teacher_weight, rows, tokens), logp, mask)
    chance = logp.detach().sum(-1, keepdim=True).exp().expand(-1, 2)

    def loss(base, coef):
        objective = policy_objective(PolicyLoss("dapo"), opd_advantage(base, d, mask, coef=coef).flatten())
        value = linear_policy_loss(
            hidden[rows.flatten()], weight, tokens.flatten(), objective, weights=chance.flatten()
        )
        return ref.grads(value, hidden, weight)

    expected_reward = (logprobs(hidden, weight, rows, tokens).sum(-1).exp() * reward).sum()
    only_reward = ref.grads(-expected_reward, hidden, weight)
    torch.testing.assert_close(loss(reward, 0.0), only_reward, rtol=1e-10, atol=1e-10)
    both = [r + 0.3 * t for r, t in zip(only_reward, loss(torch.zeros(V * V), 1.0), strict=True)]
    torch.testing.assert_close(loss(reward, 0.3), both, rtol=1e-10, atol=1e-10)


def test_teacher_kl_is_the_reverse_kl_in_the_mean_and_never_negative():
    hidden, weight = language(5)
    teacher_hidden, teacher_weight = language(6)
    lq, lp = torch.log_softmax(hidden @ weight.T, -1), torch.log_softmax(teacher_hidden @ teacher_weight.T, -1)
    k3 = k3_estimate(teacher_logratio(lp, lq, torch.ones_like(lq, dtype=torch.bool)))
    assert (k3 >= 0).all()
    torch.testing.assert_close((lq.exp() * k3).sum(-1), (lq.exp() * (lq - lp)).sum(-1))
    far = k3_estimate(torch.tensor([0.0, -80.0, 500.0]))
    assert far[0] == 0 and far[1] == 79 and far.isfinite().all()
