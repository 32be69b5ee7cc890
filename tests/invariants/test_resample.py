"""Dynamic sampling: which prompts are drawn, what is counted, and where the stream goes on."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from limbeck.data.formats import Example
from limbeck.data.order import rows_at
from limbeck.data.render import Rendered
from limbeck.losses import PolicyLoss
from limbeck.rewards import RewardTable
from limbeck.signal import Sample
from limbeck.train.policy import Judge
from limbeck.train.shard import unsharded
from limbeck.train.step import Generation, Parts, Plan, sample, score

ROWS = [(Example("x", None, {"n": i}, f"row:{i}"), Rendered((5, 10 + i), (), ())) for i in range(10)]
GROUP = 2


def table(values: list[float]) -> RewardTable:
    column = torch.tensor(values, dtype=torch.float64)[:, None]
    return RewardTable(("x",), torch.ones(1, dtype=torch.float64), column, torch.zeros(column.shape, dtype=bool), {})


class World:
    """A sampler that remembers what it was asked, and a reward that tells the samples of some prompts apart."""

    def __init__(self, limit: int, spread: set[int], *, total: int | None = None, shuffle: bool = True) -> None:
        self.asked: list[tuple[int, list[int]]] = []
        self.spread, self.rewarded = spread, 0
        plan = Plan(1.0, 4, 8, 1, GROUP, 1, total, 0.0, 7, 7, shuffle, limit)
        judge = Judge(PolicyLoss(), GROUP, 0.0, 1.0, 1.0, 8, 0, False, reward=self.reward)
        nothing: Any = None
        student: Any = torch.nn.Linear(1, 1)
        samplers = {"student": self.sampler}
        whole, accelerator = unsharded(student), Accelerator(cpu=True)
        self.parts = Parts(
            plan, accelerator, ROWS, samplers, None, student, nothing, nothing, pad_id=0, whole=whole, judge=judge
        )

    def sampler(self, rows: Any, *, seed: int, done: Any = None) -> list[Sample]:
        self.asked.append((seed, [example.columns["n"] for example, _ in rows]))
        rng = random.Random(seed)
        made = []
        for example, tokens in rows:
            ids = tuple(rng.randrange(3, 200) for _ in range(rng.randint(1, 6)))
            made.append(Sample(Rendered(tokens.prompt_ids, ids, (True,) * len(ids)), "student", example))
        return made

    def reward(self, samples: Any) -> RewardTable:
        self.rewarded += len(samples)
        return table([i % GROUP * float(s.example.columns["n"] in self.spread) for i, s in enumerate(samples)])


def prompts(generation: Generation) -> list[int]:
    """By place in the batch."""
    at = {generation.places[id(s)]: s for step in generation.steps for batch in step for s in batch}
    assert sorted(at) == list(range(len(at)))
    numbers = [at[i].example.columns["n"] for i in range(len(at))]
    assert all(len(set(numbers[i : i + GROUP])) == 1 for i in range(0, len(numbers), GROUP))  # a group is a prompt's
    return numbers[::GROUP]


def test_by_hand() -> None:
    """Prompts 0 to 3 in four places; 1, 3, and of those that follow 4 and 6, have no spread."""
    world = World(3, {0, 2, 5, 7}, shuffle=False)
    generation = sample(world.parts, 0, 0)
    asked = [numbers for _, numbers in world.asked]
    assert asked == [[0, 0, 1, 1, 2, 2, 3, 3], [4, 4, 5, 5], [6, 6], [7, 7]]
    assert prompts(generation) == [0, 7, 2, 5]
    assert generation.next_row == 8
    assert generation.found == {
        "dynamic_sample/replaced_share": (2, 4),
        "dynamic_sample/tries": (3, 1),
        "dynamic_sample/prompts": (8, 1),
    }
    assert len({seed for seed, _ in world.asked}) == 4  # a try has draws of its own


def test_what_is_left_at_the_limit_stays_and_is_not_rewarded_twice() -> None:
    world = World(2, {0, 2}, shuffle=False)
    generation = sample(world.parts, 0, 0)
    assert prompts(generation) == [0, 6, 2, 7]
    assert generation.next_row == 8
    rewarded = world.rewarded
    score(world.parts, generation)
    assert world.rewarded == rewarded == 8 + 4 + 4
    assert world.parts.judge is not None
    assert world.parts.judge.found["reward/groups_without_spread"] == (2, 4)
    assert world.parts.judge.found["reward"] == (0.25, 1)


@pytest.mark.parametrize(("spread", "drawn"), [(set(), 6 * 16), ({1, 4, 5, 8}, None), (set(range(10)), 6 * 4)])
def test_no_prompt_is_lost_or_repeated(spread: set[int], drawn: int | None) -> None:
    """Over several epochs the prompts asked for are the stream's, one after the other, and a run that goes on from the
    middle draws what the whole one drew."""
    world, at, ends = World(3, spread), 0, [(0, 0)]
    for index in range(6):
        at = sample(world.parts, index, at).next_row
        ends.append((at, len(world.asked)))
    asked = [n for _, numbers in world.asked for n in numbers[::GROUP]]
    assert asked == rows_at(10, 0, at, seed=7, shuffle=True)
    assert drawn is None or at == drawn
    assert 24 <= at <= 96
    again = World(3, spread)
    assert sample(again.parts, 4, ends[4][0]).next_row == ends[5][0]
    assert again.asked == world.asked[ends[4][1] : ends[5][1]]


def test_the_last_batch_of_the_run_may_be_short() -> None:
    """10 rows in batches of 4: the third learns from 2, wherever the stream stands by then."""
    world = World(3, {0, 1, 2, 3}, total=10, shuffle=False)
    generation = sample(world.parts, 2, 17)
    assert world.asked[0][1] == [7, 7, 8, 8]
    assert len(prompts(generation)) == 2


def test_off_it_is_the_plain_order() -> None:
    world = World(0, set())
    first = sample(world.parts, 0, 0)
    second = sample(world.parts, 1, first.next_row)
    assert prompts(first) + prompts(second) == rows_at(10, 0, 8, seed=7, shuffle=True)
    assert not first.found
