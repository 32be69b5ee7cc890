"""Off-policy: the dataset's own responses."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.rollouts.base import Row
from limbeck.signal import Sample


def sample_dataset(rows: Sequence[Row], *, seed: int = 0) -> list[Sample]:
    return [Sample(tokens, "dataset", example) for example, tokens in rows]
