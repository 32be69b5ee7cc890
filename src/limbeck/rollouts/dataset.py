"""Off-policy: the dataset's own responses."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.rollouts.base import Done, Row
from limbeck.signal import Sample


def sample_dataset(rows: Sequence[Row], *, seed: int = 0, done: Done | None = None) -> list[Sample]:
    samples = [Sample(tokens, "dataset", example) for example, tokens in rows]
    if done is not None:
        done(samples)
    return samples
