"""What is watched in the samples' texts, by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.data.formats import Example
from limbeck.data.rendered import Rendered
from limbeck.signal import Sample, Source
from limbeck.teachers import Teacher
from limbeck.train import parallel
from limbeck.train.meter import Meter
from limbeck.train.monitors import _lot, add_privileged_kl, add_texts, length_drift, quotes_reference, reference_of

SOLUTION = "add one and two and then you get three as a sum"
TEXTS = {1: "the question is this", 2: f"hmm so {SOLUTION}", 3: "wait maybe four", 4: "five"}


def sample(response: int, source: Source = "student", **columns: str) -> Sample:
    return Sample(Rendered((1,), (response,), (True,)), source, Example("p", None, columns, "rows:1"))


def test_quotes() -> None:
    assert quotes_reference(f"so we {SOLUTION} .", SOLUTION)
    assert not quotes_reference("add one and two and then you", SOLUTION)  # seven words in a row
    assert quotes_reference("add one and two and then you get", SOLUTION)
    assert not quotes_reference("add one and two and then you get", SOLUTION, prompt=SOLUTION)  # it is the question's
    assert quotes_reference("it is 42", "42") and not quotes_reference("it is 43", "42")


def test_the_reference() -> None:
    assert reference_of({"teacher_prompt": "a", "solution": "b"}) == "a"
    assert reference_of({"teacher_prompt": [{"role": "user"}], "solution": "b"}) == "b"
    assert reference_of({"answer": "b"}) is None


def test_sums_by_hand() -> None:
    meter = Meter()
    samples = [
        sample(2, solution=SOLUTION),
        sample(3, solution=SOLUTION),
        sample(4),
        sample(2, "dataset", solution="x"),
    ]
    add_texts(meter, samples, lambda ids: TEXTS[ids[0]])
    words = len(TEXTS[2].split())
    assert meter.mean["text/hedging"] == [pytest.approx(1 / words + 2 / 3), 3]
    assert meter.mean["text/quotes"] == [1, 2]


class Told(Teacher):
    def score(self, batches, named=None):
        raise NotImplementedError

    def privileged_kl(self, sample: Sample) -> Tensor | None:
        value = sample.tokens.response_ids[0]
        return None if value == 3 else torch.full((value,), float(value))


def test_two_privileged_rows_are_measured_whoever_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def privileged(response: int) -> Sample:
        s = sample(response)
        return replace(s, tokens=replace(s.tokens, teacher=s.tokens))

    def measured(*by_rank: list[Sample]) -> list[float]:
        """(sum, count) over ranks that hold these samples."""
        keys = [[_lot(s) for s in own if s.tokens.teacher is not None] for own in by_rank]
        monkeypatch.setattr(parallel, "gather", lambda accelerator, value: keys)
        meter = Meter()
        for rank, own in enumerate(by_rank):
            accelerator: Any = SimpleNamespace(process_index=rank, num_processes=len(by_rank))
            add_privileged_kl(accelerator, meter, Told(), own)
        return meter.mean["privileged_kl"]

    rows = [sample(9), privileged(2), sample(8), privileged(5), privileged(7)]
    total, count = measured(rows)
    pairs = {(a * a + b * b, a + b) for a, b in ((2, 5), (2, 7), (5, 7))}
    assert (total, count) in pairs
    assert measured(rows[3:], rows[:3]) == measured(rows[:1], rows[1:]) == [total, count]
    assert measured(rows, rows[::-1]) == [total, count]  # the same text on two ranks counts once
    assert measured([privileged(3)]) == [0, 0]  # a teacher that cannot say


def test_drift_is_against_the_first_lines() -> None:
    def line(length: float, kind: str = "train") -> dict[str, object]:
        return {"kind": kind, "completion_length/mean": length}

    assert length_drift([line(10), line(20)], 30) is None
    history = [line(99, "eval"), line(10), line(20), line(30), line(500)]
    assert length_drift(history, 40) == pytest.approx(2.0)
