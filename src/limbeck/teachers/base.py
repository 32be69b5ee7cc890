"""The one thing that every teacher does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from limbeck.signal import Sample, Signal


class Teacher(Protocol):
    """Answers given token ids with a signal for each active token.

    `score` takes a whole generation batch, grouped as the student will learn from it, and answers in the same shape.
    A local teacher keeps the grouping: the same sequences, padded alike, pass through the same kernels, so that a
    teacher with the student's weights gives bitwise the student's hidden states, and a loss of exactly zero. (A noise
    gradient of 1e-9 would be a full-sized step for Adam.) None stands for a row that the teacher refused.
    """

    name: str

    def score(self, batches: Sequence[Sequence[Sample]]) -> list[list[Signal | None]]: ...
