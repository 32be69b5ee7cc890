"""Functions that behave and functions that do not, and what a table makes of them."""

from __future__ import annotations

import asyncio
import math
import pickle
import threading
import time

import pytest
import torch

from limbeck.rewards import Missing, RewardTable, join_tables, named_rewards, score

ROWS = [{"solution": "a", "k": 1}, {"solution": "b"}, {"solution": "c", "k": 3}]
TEXTS = ["x", "yy", "zzz"]
nan = math.nan


def run(*functions, weights=None, texts=TEXTS, rows=ROWS, **options):
    said: list[str] = []
    rewards = named_rewards(functions, weights)
    return score(rewards, texts, rows, warn=said.append, **options), said


def lengths(completions):
    return [len(text) for text in completions]


def same(tensor, wanted):
    torch.testing.assert_close(tensor, torch.tensor(wanted, dtype=torch.float64), equal_nan=True, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- what they are given


def test_each_is_given_what_it_names():
    seen = {}

    def some(completions, k, trainer_state, prompts=None):
        seen["some"] = (completions, k, trainer_state, prompts)
        return [0, 0, 0]

    def everything(completions, **columns):
        seen["everything"] = {"completions": completions, **columns}
        return [0, 0, 0]

    class Callable:
        def __call__(self, completion_ids):
            seen["callable"] = completion_ids
            return [0, 0, 0]

    ids = [[1], [2, 2], [3]]
    table, said = run(some, everything, Callable(), prompts=["p", "q", "r"], completion_ids=ids, trainer_state="now")
    assert said == [] and table.names == ("some", "everything", "Callable")
    assert seen["some"] == (TEXTS, [1, None, 3], "now", ["p", "q", "r"])
    assert seen["callable"] == ids
    assert seen["everything"] == {
        "completions": TEXTS,
        "prompts": ["p", "q", "r"],
        "completion_ids": ids,
        "response_token_ids": ids,
        "solution": ["a", "b", "c"],
        "k": [1, None, 3],
        "trainer_state": "now",
    }


def test_one_that_alters_its_lists_alters_no_others():
    started = threading.Event()

    def vandal(completions):
        completions.clear()
        started.set()
        return [0, 0, 0]

    def reader(completions):
        started.wait(5)
        return [len(text) for text in completions]

    table, _ = run(vandal, reader)
    same(table.values, [[0, 1], [0, 2], [0, 3]])


def test_lists_of_another_length_are_the_caller_s_fault():
    with pytest.raises(ValueError, match="2 rows"):
        run(lengths, rows=ROWS[:2])
    with pytest.raises(ValueError, match="1 prompts"):
        run(lengths, prompts=["p"])


def test_without_completions_nothing_is_called():
    def never(completions):
        raise AssertionError

    table, said = run(never, lengths, texts=[], rows=[])
    assert table.values.shape == (0, 2) and table.total.shape == (0,) and said == []
    assert table.metrics()["reward_missing"] == 0


# ---------------------------------------------------------------- values


def test_weighted_sum():
    table, said = run(lengths, lambda completions: [1.0, True, torch.tensor(0.5)], weights=[2.0, -1.0])
    assert said == [] and table.values.dtype == table.total.dtype == torch.float64
    same(table.values, [[1, 1], [2, 1], [3, 0.5]])
    same(table.total, [1, 3, 5.5])


@pytest.mark.parametrize("result", [torch.tensor([1.0, 2.0, 3.0]), (1, 2, 3), torch.tensor([1, 2, 3]).numpy()])
def test_other_kinds_of_lists(result):
    def other(completions):
        return result

    table, said = run(other)
    assert said == []
    same(table.values, [[1], [2], [3]])


@pytest.mark.parametrize("bad", [nan, math.inf, -math.inf, "1", [1.0], torch.tensor([1.0, 2.0]), object()])
def test_a_value_that_is_no_finite_number_loses_its_row(bad):
    def odd(completions):
        return [1.0, bad, 3.0]

    table, said = run(odd)
    same(table.values, [[1], [nan], [3]])
    same(table.total, [1, nan, 3])
    assert table.reasons == {"odd": {"gave a value that is no finite number": 1}}
    assert len(said) == 1 and "odd" in said[0]


# ---------------------------------------------------------------- failures


def raises(completions):
    raise KeyError("column")


def exits(completions):
    raise SystemExit(3)


def too_few(completions):
    return [1.0]


def a_number(completions):
    return 1.0


def wants_more(completions, not_there):
    return [1.0] * 3


async def raises_later(completions):
    await asyncio.sleep(0)
    raise KeyError("column")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (raises, "raised KeyError"),
        (raises_later, "raised KeyError"),
        (exits, "raised SystemExit"),
        (too_few, "returned a wrong number of values"),
        (a_number, "returned no list"),
        (wants_more, "raised TypeError"),
    ],
)
def test_a_failed_call_loses_its_batch_and_no_other_function(function, reason):
    table, said = run(function, lengths)
    same(table.values, [[nan, 1], [nan, 2], [nan, 3]])
    assert table.failed[:, 0].all() and not table.failed[:, 1].any()
    assert table.reasons == {function.__name__: {reason: 3}}
    assert len(said) == 1 and reason in said[0]
    same(table.total, [1, 2, 3])


def test_a_reason_is_said_once_and_counted_each_time():
    rewards, said = named_rewards([raises]), []
    for _ in range(3):
        assert score(rewards, TEXTS, ROWS, warn=said.append).reasons == {"raises": {"raised KeyError": 3}}
    assert len(said) == 1 and "'column'" in said[0]


def test_a_function_that_hangs_is_left_and_not_called_again_until_it_is_back():
    release, calls = threading.Event(), []

    def hangs(completions):
        calls.append(len(calls))
        release.wait(20)
        return [9.0] * 3

    rewards, said = named_rewards([hangs, lengths]), []
    first = score(rewards, TEXTS, ROWS, timeout=0.2, warn=said.append)
    assert first.reasons == {"hangs": {"took longer than 0.2 s": 3}}
    same(first.total, [1, 2, 3])
    second = score(rewards, TEXTS, ROWS, timeout=0.2, warn=said.append)
    assert second.reasons == {"hangs": {"was still busy with an earlier batch": 3}} and len(calls) == 1
    release.set()
    rewards[0].call.result(5)
    third = score(rewards, TEXTS, ROWS, warn=said.append)
    same(third.values[:, 0], [9, 9, 9])
    assert len(calls) == 2 and len(said) == 2


def test_an_async_function_that_hangs_is_cancelled():
    cancelled = threading.Event()

    async def hangs(completions):
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    table, _ = run(hangs, lengths, timeout=0.2)
    assert table.reasons == {"hangs": {"took longer than 0.2 s": 3}}
    assert cancelled.wait(5)


def test_one_that_blocks_the_event_loop_costs_the_others_no_later_batch():
    release = threading.Event()

    async def blocks(completions):
        release.wait(20)

    async def fine(completions):
        return [1.0] * 3

    table, _ = run(blocks, timeout=0.2)
    assert table.reasons == {"blocks": {"took longer than 0.2 s": 3}}
    deadline = time.monotonic() + 10
    while run(fine, timeout=0.5)[0].reasons and time.monotonic() < deadline:
        pass
    assert run(fine)[0].reasons == {}
    release.set()


# ---------------------------------------------------------------- side by side


def test_functions_run_side_by_side():
    """Each waits for all three: one after the other, none would come back."""
    together = threading.Barrier(3, timeout=10)

    def one(completions):
        together.wait()
        return [threading.get_ident()] * 3

    def two(completions):
        return one(completions)

    async def three(completions):
        await asyncio.get_running_loop().run_in_executor(None, together.wait)
        return [1.0] * 3

    table, _ = run(one, two, three)
    assert table.reasons == {}
    assert table.values[0, 0] != table.values[0, 1]


def test_async_functions_share_a_loop_that_stays():
    loops = []

    async def first(completions):
        loops.append(asyncio.get_running_loop())
        return [1.0] * 3

    async def second(completions):
        return await first(completions)

    def plain(completions):
        return first(completions)  # awaitable all the same

    for _ in range(2):
        table, _ = run(first, second, plain)
        same(table.values, [[1, 1, 1]] * 3)
    assert len(loops) == 6 and len(set(map(id, loops))) == 1


def test_from_another_thread():
    tables = []
    thread = threading.Thread(target=lambda: tables.append(run(lengths)[0]))
    thread.start()
    thread.join(10)
    same(tables[0].total, [1, 2, 3])


# ---------------------------------------------------------------- totals and metrics


def test_partly_missing_rows():
    """A None is left out, a failure that all rows share is left out, one that some share takes their totals."""

    def mine_are_two(completions):
        return [1.0, None, 1.0]

    def fails_one(completions):
        return [10.0, 10.0, Missing("was too hard")]

    def fails_all(completions):
        return [nan, nan, nan]

    same(run(lengths, mine_are_two)[0].total, [2, 2, 4])
    same(run(lengths, fails_all)[0].total, [1, 2, 3])
    same(run(lengths, fails_one)[0].total, [11, 12, nan])
    table, _ = run(mine_are_two, fails_one, fails_all, weights=[1.0, 0.1, 5.0])
    same(table.total, [2, 1, nan])
    assert table.failed.tolist() == [[False, False, True], [False, False, True], [False, True, True]]
    assert table.reasons["fails_one"] == {"was too hard": 1}
    same(run(mine_are_two)[0].total, [1, nan, 1])
    same(run(fails_all)[0].total, [nan, nan, nan])


def test_metrics():
    def half(completions):
        return [1.0, None, 3.0]

    table, _ = run(lengths, half, raises)
    assert table.metrics() == pytest.approx(
        {
            "rewards/lengths/mean": 2,
            "rewards/lengths/std": math.sqrt(2 / 3),
            "rewards/lengths/missing": 0,
            "rewards/lengths/failed": 0,
            "rewards/half/mean": 2,
            "rewards/half/std": 1,
            "rewards/half/missing": 1,
            "rewards/half/failed": 0,
            "rewards/raises/missing": 3,
            "rewards/raises/failed": 3,
            "reward": 10 / 3,
            "reward_std": math.sqrt(((2 - 10 / 3) ** 2 + (2 - 10 / 3) ** 2 + (6 - 10 / 3) ** 2) / 3),
            "reward_missing": 0,
        }
    )


def test_tables_join_and_travel():
    tables = [run(lengths, raises)[0], run(lengths, raises, texts=["wwww"], rows=[{}])[0]]
    joined = join_tables(pickle.loads(pickle.dumps(tables)))
    assert isinstance(joined, RewardTable)
    same(joined.total, [1, 2, 3, 4])
    assert joined.reasons == {"raises": {"raised KeyError": 4}}
