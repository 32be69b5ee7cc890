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


def rows_of_generation(n_rows: int, index: int, size: int, *, total: int | None, seed: int, shuffle: bool) -> list[int]:
    """Row numbers of generation batch `index`, `size` rows long: places index * size and on in the concatenated epochs.

    A batch runs over the end of an epoch, so no row is left out; `total` ends the stream and may cut the last batch.
    """
    places = range(index * size, (index + 1) * size if total is None else min((index + 1) * size, total))
    return [_epoch(n_rows, place // n_rows, seed, shuffle)[place % n_rows] for place in places]
