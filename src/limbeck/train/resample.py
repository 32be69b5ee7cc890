"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): groups that no reward tells apart are drawn again.

All samples of such a group have advantage 0, so that a batch shrinks without anyone seeing it. Each of these groups
gives its place in the batch to the next prompt of the stream, which is asked for as many prompts as are missing and no
more: no prompt is drawn in vain, and none is drawn twice before its epoch is over. A place stays on its rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from limbeck.losses import groups_without_spread
from limbeck.rewards import RewardTable, join_tables
from limbeck.rollouts import Row
from limbeck.signal import Sample
from limbeck.train import parallel

Draw = Callable[[Sequence[Row], int], list[Sample]]


@dataclass(frozen=True, slots=True)
class Filled:
    """samples of this rank, by place, and their rewards, one row each. Over all ranks: prompts, those that were drawn
    beyond the first ones; replaced, the groups that another took the place of, of groups; tries."""

    samples: list[Sample]
    rewards: list[RewardTable]
    prompts: int
    replaced: int
    groups: int
    tries: int


def resample(
    accelerator: Accelerator,
    samples: Sequence[Sample],
    places: Sequence[int],
    *,
    group: int,
    reward: Callable[[Sequence[Sample]], RewardTable],
    further: Callable[[int, int], list[Row]],
    draw: Draw,
    limit: int,
) -> Filled:
    """Replaces groups without a spread of rewards until none is left, `limit` times at most; what is left then stays.

    samples: this rank's, at `places` in the batch of all ranks, where `group` of them in a row are a prompt's.
    further(start, n): the rows of the n prompts after the `start` ones that were drawn here before.
    draw(rows, attempt): samples of rows. Every rank must call it, and all of them go through the same attempts.
    """
    samples, told = list(samples), list[RewardTable]()
    with parallel.together(accelerator):
        told = _rows(reward(samples))
    drawn, tries, flat = 0, 0, _flat(accelerator, told, places, group)
    groups, replaced = len(flat), sum(flat)
    while any(flat) and tries < limit:
        again = [number for number, is_flat in enumerate(flat) if is_flat]
        rows = dict(zip(again, further(drawn, len(again)), strict=True))
        own = [i for i, place in enumerate(places) if place // group in rows]
        drawn, tries = drawn + len(again), tries + 1
        with parallel.together(accelerator):
            fresh = draw([rows[places[i] // group] for i in own], tries)
            table = reward(fresh)
            for i, new, row in zip(own, fresh, _rows(table), strict=True):
                samples[i], told[i] = new, row
        flat = _flat(accelerator, told, places, group)
    return Filled(samples, told, drawn, replaced, groups, tries)


def _rows(table: RewardTable) -> list[RewardTable]:
    return [table.row(i) for i in range(len(table.values))]


def _flat(accelerator: Accelerator, told: Sequence[RewardTable], places: Sequence[int], group: int) -> list[bool]:
    """By group of the whole batch: whether its rewards tell its samples apart nowhere."""
    gathered = parallel.gather(accelerator, dict(zip(places, told, strict=True)))
    by_place = {place: row for rank in gathered for place, row in rank.items()}
    rewards = join_tables([by_place[place] for place in sorted(by_place)]).total
    flat, _ = groups_without_spread(rewards, torch.arange(len(rewards)) // group)
    return flat.tolist()
