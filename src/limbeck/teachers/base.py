"""The one thing that every teacher does."""
# ruff: noqa: B027  (what few teachers need is empty here, not abstract)

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from limbeck.signal import Ask, Sample, Signal

Answers = list[list[Signal | None]]
Named = Sequence[Sequence[Tensor]]


class Teacher(ABC):
    """Answers given token ids with a signal for each active token.

    name: as it is shown.
    ask: what it is asked for of every active token.
    identity: what makes its answers what they are, weights and all; a store of scored rollouts keeps it.
    moves: asked again later it would answer otherwise (live weights, an average over the steps).
    """

    name: str
    ask: Ask
    identity: str
    moves: bool = False

    @abstractmethod
    def score(self, batches: Sequence[Sequence[Sample]], named: Named | None = None) -> Answers:
        """A whole generation batch, grouped as the student will learn from it; the answer has the same shape.

        A local teacher keeps the grouping: the same sequences, padded alike, pass through the same kernels, so that a
        teacher with the student's weights gives bitwise the student's hidden states, and a loss of exactly zero. (A
        noise gradient of 1e-9 would be a full-sized step for Adam.)

        named: for every sample the ids [N, K] int64 whose log-probabilities are asked for, where the teacher's `Ask`
        has the asker name ids. None in an answer stands for a row that the teacher refused.
        """

    def privileged_kl(self, sample: Sample) -> Tensor | None:
        """KL(what it says after its privileged prompt || after the student's prompt) at each active token, [N] nats,
        over the whole vocabulary at the ask's temperature. None where it cannot say: a server, a row without one."""
        return None

    def expect(self, samples: Sequence[Sample]) -> None:
        """Samples that `score` will be asked for soon: a server may be asked already, while others are being made."""

    def who(self, sample: Sample) -> str:
        """Which of several teachers the sample is sent to; metrics by teacher are called after it. Else empty."""
        return ""

    @property
    def follows(self) -> bool:
        """`follow` reads the student's weights."""
        return False

    def follow(self) -> None:
        """The student has taken an optimizer step."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it; empty for a teacher that does not move."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""

    def counts(self) -> dict[str, float]:
        """Numbers for the log since the last call, by metric name: requests, retries, bytes, hits of a store."""
        return {}

    def close(self) -> None:
        """Lets go of connections and files."""
