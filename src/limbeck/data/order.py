"""Which rows make up a generation batch: endless shuffled epochs, addressed by place. A resume needs one number."""

from __future__ import annotations

import random
from functools import lru_cache


@lru_cache(maxsize=4)
def _epoch(n_rows: int, epoch: int, seed: int, shuffle: bool) -> tuple[int, ...]:
    order = list(range(n_rows))
    if shuffle:
        random.Random(f"order:{seed}:{epoch}").shuffle(order)
    return tuple(order)


def rows_at(n_rows: int, start: int, count: int, *, seed: int, shuffle: bool) -> list[int]:
    """Row numbers at places `start` .. `start + count` of the concatenated epochs; a batch may run over the end of one,
    so that no row is left out."""
    places = range(start, start + count)
    return [_epoch(n_rows, place // n_rows, seed, shuffle)[place % n_rows] for place in places]
