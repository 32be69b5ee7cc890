"""Histograms and disagreement against plain counting; a completion's favourites against a float64 softmax."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tests.e2e.test_command_line import gkd, run
from tests.support import metrics

from limbeck.data.formats import Example
from limbeck.data.rendered import Rendered
from limbeck.losses import Head, linear_topk
from limbeck.models import load_model, load_tokenizer
from limbeck.signal import Ask, Hidden, Sample, Scored, TopK
from limbeck.train.completions import FAVOURITES, describe
from limbeck.train.objective import DivergenceLoss
from limbeck.train.student import StudentStep
from limbeck.train.tally import DIVERGENCES, LENGTHS, PLACES, TOKENS, Tally


def make_sample(rng: random.Random, length: int, n: int = 0, vocab: int = 300) -> Sample:
    ids = tuple(rng.randrange(3, vocab) for _ in range(length))
    mask = tuple(rng.random() < 0.8 for _ in ids)
    example = Example(({"role": "user", "content": f"question {n}"},), None, {"dataset": "d"}, f"d:{n}")
    return Sample(Rendered((5, 6, 7), ids, mask), "dataset", example)


def bin_of(edges: list, value: float) -> float:
    return max((edge for edge in edges if edge <= value), default=edges[0])


def test_counts_are_those_of_plain_counting(tiny: Path) -> None:
    rng, tokenizer = random.Random(0), load_tokenizer(str(tiny / "student"))
    tally, lengths, divergences, places = Tally(), Counter(), Counter(), Counter()
    sums: Counter = Counter()
    means = {}
    for n in range(30):
        sample = make_sample(rng, rng.randrange(1, 90), n)
        values = [rng.choice([0.0, 1e-9, 10 ** rng.uniform(-4, 2.5), math.nan]) for _ in sample.tokens.targets]
        tally.add_lengths([sample])
        tally.add_divergence(sample, values)
        lengths[bin_of(LENGTHS, sample.n_active)] += bool(sample.n_active)
        known = [
            (i, t, v) for i, (t, v) in enumerate(zip(sample.tokens.targets, values, strict=True)) if not math.isnan(v)
        ]
        for i, token, value in known:
            divergences[bin_of(DIVERGENCES, value)] += 1
            places[bin_of(PLACES, i)] += 1
            sums[token] += value
        if known:
            means[f"d:{n}"] = sum(v for *_, v in known) / len(known)
    line = tally.result(Accelerator(cpu=True), tokenizer)
    assert {edge: n for edge, n in line["lengths"] if n} == {edge: n for edge, n in lengths.items() if n}
    assert {edge: n for edge, n in line["divergences"] if n} == {round(edge, 6): n for edge, n in divergences.items()}
    assert {edge: n for edge, n, _ in line["places"]} == dict(places)
    assert sum(s for *_, s in line["places"]) == pytest.approx(sum(sums.values()), abs=1e-3)
    assert len(line["tokens"]) == TOKENS
    assert [s for *_, s in line["tokens"]] == [round(v, 5) for _, v in sums.most_common(TOKENS)]
    worst = sorted(means, key=means.__getitem__, reverse=True)[:5]
    assert [origin for origin, *_ in line["prompts"]] == worst
    assert line["prompts"][0][1] == f"question {worst[0][2:]}"
    assert all(sorted(set(edges)) == edges for edges in (LENGTHS, DIVERGENCES, PLACES))


@pytest.mark.parametrize("kind", ["hidden", "topk", "named", "warm"])
def test_favourites_and_log_probabilities_are_those_of_a_float64_softmax(tiny: Path, kind: str) -> None:
    tokenizer = load_tokenizer(str(tiny / "student"))
    valid, sample = len(tokenizer), make_sample(random.Random(1), 12)
    torch.manual_seed(0)
    hidden, weight = torch.randn(sample.n_active, 16), torch.randn(valid + 4, 16)
    teacher = (hidden.double() @ weight.double().T)[:, :valid].log_softmax(-1)
    ask = Ask("hidden")
    signal: Hidden | TopK = Hidden(hidden, Head(weight, valid=valid))
    if kind != "hidden":
        ask = Ask("named" if kind == "named" else "topk", k=8, temperature=2.0 if kind == "warm" else 1.0)
        signal = TopK(*linear_topk(hidden, Head(weight, valid=valid), 8))
    model = load_model(str(tiny / "student"), trainable=False)
    student = StudentStep(model, DivergenceLoss(beta=0.0), valid)
    row = describe(Accelerator(cpu=True), student, Scored(sample, signal), tokenizer, 0, ask)

    ids, start = sample.tokens.prompt_ids + sample.tokens.response_ids, len(sample.tokens.prompt_ids)
    at = [start + i - 1 for i, on in enumerate(sample.tokens.response_mask) if on]
    own = model.double()(torch.tensor([ids])).logits[0, at, :valid].log_softmax(-1)
    targets = torch.tensor(sample.tokens.targets)

    def expected(logp: torch.Tensor) -> list[list[tuple[str, float]]]:
        best = logp.exp().topk(FAVOURITES)
        return [
            [(tokenizer.decode([i]), pytest.approx(p, abs=2e-4)) for p, i in zip(ps, ids, strict=True)]
            for ps, ids in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    assert [list(map(tuple, top)) for top in row["student_top"]] == expected(own)
    assert row["student_logp"] == pytest.approx(own.gather(-1, targets[:, None])[:, 0].tolist(), abs=1e-4)
    if kind in ("hidden", "topk"):
        assert [list(map(tuple, top)) for top in row["teacher_top"]] == expected(teacher)
    else:  # ids that the student named, or another temperature: not the teacher's favourites
        assert row["teacher_top"] is None
    logp = teacher.gather(-1, targets[:, None])[:, 0].tolist()
    inside = (teacher.topk(8).indices == targets[:, None]).any(-1).tolist()
    if kind == "hidden":
        assert row["teacher_logp"] == pytest.approx(logp, abs=1e-4)
    elif kind == "warm":
        assert row["teacher_logp"] is None
    else:
        wanted = [pytest.approx(v, abs=1e-4) if known else None for v, known in zip(logp, inside, strict=True)]
        assert row["teacher_logp"] == wanted


def test_a_run_leaves_histograms_that_add_up_to_its_metrics(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*gkd(tiny, out), "--logging_steps", 2, "--log_completions", "false") == 0
    lines = [json.loads(line) for line in (out / "histograms.jsonl").read_text().splitlines()]
    train = metrics(out)
    assert [line["step"] for line in lines] == [row["step"] for row in train]
    for line, row in zip(lines, train, strict=True):
        places = line["places"]
        count, total = sum(n for _, n, _ in places), sum(s for *_, s in places)
        assert count == sum(n for _, n in line["divergences"]) > 0
        assert total / count >= 0
        assert max(edge for edge, n in line["lengths"] if n) <= row["completion_length/max"]
        assert "prompts" not in line  # no text was asked for
    # with one step a line the loss is the mean of the counted divergences
    again = tmp_path / "again"
    assert run(*gkd(tiny, again), "--logging_steps", 1) == 0
    for line, row in zip(map(json.loads, (again / "histograms.jsonl").open()), metrics(again), strict=True):
        count, total = sum(n for _, n, _ in line["places"]), sum(s for *_, s in line["places"])
        assert total / count == pytest.approx(row["loss"], rel=1e-4)
        assert line["prompts"]
