"""The log-probability of a sampled token is that of the distribution that it was drawn from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.support import make_model, make_tokenizer
from torch import Tensor

from limbeck.data.formats import Example
from limbeck.data.render import Rendered
from limbeck.rollouts import HFSampler, Sampling

TOKENIZER = make_tokenizer()
VALID = len(TOKENIZER)
PROMPTS = [(5, 6, 7, 30), (9, 40, 41, 42), (60, 5, 60, 8)]


def distribution(logits: Tensor, seen: list[int], s: Sampling) -> Tensor:
    """float64 [valid] by the definitions: penalty, temperature, top-k, top-p, min-p, each on what is left."""
    logits = logits.double()[:VALID].clone()
    for i in set(seen):
        logits[i] = logits[i] / s.repetition_penalty if logits[i] > 0 else logits[i] * s.repetition_penalty
    p = (logits / s.temperature).softmax(-1)
    if s.top_k:
        p = p.where(p >= p.sort(descending=True).values[s.top_k - 1], 0.0)
        p = p / p.sum()
    if s.top_p < 1:
        order = p.argsort(descending=True)
        before = p[order].cumsum(-1) - p[order]  # the mass of likelier ones: the set ends where it has reached top_p
        p[order[before >= s.top_p]] = 0.0
        p = p / p.sum()
    if s.min_p > 0:
        p = p.where(p >= s.min_p * p.max(), 0.0)
    return p / p.sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20},
        {"top_p": 0.8},
        {"min_p": 0.1, "repetition_penalty": 1.3},
        {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
)
def test_against_the_definitions(options: dict[str, float]) -> None:
    model = make_model(TOKENIZER, seed=5, surplus=7)
    sampling = Sampling(**{"temperature": 0.9, "max_new_tokens": 8, **options})
    sampler = HFSampler(model, sampling, frozenset(range(100, 140)), 0, VALID, keeps_logprobs=True)
    found = sampler.draw(PROMPTS * 4, seed=1)
    assert [ids for ids, _ in found] == replace(sampler, keeps_logprobs=False).generate(PROMPTS * 4, seed=1)
    assert len({len(ids) for ids, _ in found}) > 1  # some end early: what comes after the end is no part of them
    for prompt, (ids, logp) in zip(PROMPTS * 4, found, strict=True):
        assert logp is not None
        assert len(logp) == len(ids)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0]
        for t, (token, value) in enumerate(zip(ids, logp, strict=True)):
            seen = [*prompt, *ids[:t]]
            expected = distribution(logits[len(prompt) + t - 1], seen, sampling)[token]
            assert value == pytest.approx(float(expected.log()), abs=2e-5)


def test_they_come_with_the_samples_and_only_when_asked_for() -> None:
    model = make_model(TOKENIZER, seed=5)
    rows = [(Example("x", None, {}, f"row:{i}"), Rendered(p, (), ())) for i, p in enumerate(PROMPTS)]
    sampler = HFSampler(model, Sampling(max_new_tokens=4), frozenset([2]), 0, VALID, batch_size=2, keeps_logprobs=True)
    for sample in sampler(rows, seed=3):
        assert sample.sampler_logp is not None
        assert len(sample.sampler_logp) == sample.n_active
    assert all(s.sampler_logp is None for s in replace(sampler, keeps_logprobs=False)(rows, seed=3))
    greedy = replace(sampler, sampling=Sampling(temperature=0.0, max_new_tokens=4))
    assert all(s.sampler_logp is None for s in greedy(rows, seed=3))
