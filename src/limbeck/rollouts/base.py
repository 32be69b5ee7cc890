"""Whose tokens? The dataset's responses, the student's own, or one of the two for each generation batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from limbeck.data.formats import Example
from limbeck.data.render import Rendered
from limbeck.signal import Sample, Source

Row = tuple[Example, Rendered]


Done = Callable[[Sequence[Sample]], None]


class Sampler(Protocol):
    """Answers rows with samples, in the order of the rows. `seed` decides every draw of the call.

    done: told of samples as soon as they are there, so that a teacher can be asked while others are being made.
    """

    def __call__(self, rows: Sequence[Row], *, seed: int, done: Done | None = None) -> list[Sample]: ...


def draw_source(lmbda: float, *, seed: int, generation: int) -> Source:
    """The source of a generation batch: one draw u(seed, generation) < lmbda, the same on all ranks and after a resume
    (GKD, arXiv 2306.13649, Algorithm 1; there a draw a batch too)."""
    u = random.Random(f"lmbda:{seed}:{generation}").random()
    return "student" if u < lmbda else "dataset"


def last_turn_prompt(tokens: Rendered) -> tuple[int, ...]:
    """The ids that a sampler is given: everything before the last trained turn of the row."""
    start = len(tokens.response_ids)
    while start > 0 and not tokens.response_mask[start - 1]:  # what follows the last trained turn
        start -= 1
    while start > 0 and tokens.response_mask[start - 1]:
        start -= 1
    return tokens.prompt_ids + tokens.response_ids[:start]


def completed(tokens: Rendered, ids: tuple[int, ...]) -> Rendered:
    """A row's last trained turn answered with `ids`, for the student and, after its own prompt, for the teacher."""
    mask = (True,) * len(ids)
    teacher = None if tokens.teacher is None else Rendered(last_turn_prompt(tokens.teacher), ids, mask)
    return Rendered(last_turn_prompt(tokens), ids, mask, teacher)
