"""Expressions that never end, in processes that do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from limbeck.rewards import RewardOptions, math_pool, named_rewards, score
from limbeck.rewards.base import Missing
from limbeck.rewards.math_pool import MathPool

SLOW = "$(10^{9})!$"


def reasons(values):
    return [value.reason if isinstance(value, Missing) else value for value in values]


def test_a_slow_row_is_missing_and_its_neighbours_are_not():
    pool = MathPool(limit=1.0, workers=1)
    pairs = [("7", "7"), ("7", SLOW), ("7", "8"), ("7", "$\\frac{14}{2}$")]  # the last two by the process's successor
    assert reasons(pool.verify(pairs)) == [1.0, "took longer than 1 s", 0.0, 1.0]


def test_its_processes_end_with_it(monkeypatch):
    started, real = [], math_pool._start
    monkeypatch.setattr(math_pool, "_start", lambda: started.append(real()) or started[-1])
    pool = MathPool(workers=2)
    assert pool.verify([("7", "7"), ("7", "8"), ("7", "9")]) == [1.0, 0.0, 0.0]
    assert started and all(process.poll() is None for process in started)
    del pool
    assert [process.wait(timeout=30) for process in started] == [0] * len(started)


def test_a_solution_that_is_no_mathematics_is_missing():
    assert reasons(MathPool(workers=1).verify([("$$", "7")])) == ["the solution could not be read"]


def test_from_several_threads_at_once():
    pool = MathPool(workers=2)

    def ask(start):
        return pool.verify([(str(n), f"so it is {n + n % 2}") for n in range(start, start + 20)])

    assert threading.current_thread() is threading.main_thread()
    here = ask(0)
    with ThreadPoolExecutor(4) as threads:
        there = list(threads.map(ask, [0, 20, 40, 60]))
    assert [here, *there] == [[1.0, 0.0] * 10] * 5


def test_rows_that_were_not_reached_are_missing_and_may_be_asked_again():
    pool = MathPool(limit=2.0, workers=1)
    values = reasons(pool.verify([("7", SLOW), ("7", "$\\frac{14}{2}$")], timeout=0.2))
    assert values == ["was not reached in the time of the call"] * 2
    assert reasons(pool.verify([("7", "$\\frac{14}{2}$")])) == [1.0]


def test_a_process_that_was_killed_is_replaced(monkeypatch):
    started = []

    def start():
        started.append(real())
        return started[-1]

    real = math_pool._start
    monkeypatch.setattr(math_pool, "_start", start)
    pool = MathPool(workers=1)
    assert pool.verify([("1", "2")]) == [0.0]
    started[0].kill()
    started[0].wait()
    assert reasons(pool.verify([("1", "3")])) == ["math-verify ended with status -9"]
    assert pool.verify([("1", "4")]) == [0.0]
    assert len(started) == 2


@pytest.mark.parametrize("names", [["accuracy"], ["accuracy", "cosine", "format"]])
def test_through_score(names):
    rewards = named_rewards(names, options=RewardOptions(accuracy_time_limit=1.0))
    said = []
    table = score(
        rewards, ["7", SLOW, "8"], [{"solution": "7"}] * 3, completion_ids=[[1], [1, 2], [1]], warn=said.append
    )
    assert table.values[:, 0].isnan().tolist() == [False, True, False]
    assert table.total.isnan().tolist() == [False, True, False]
    assert table.reasons["accuracy"] == {"took longer than 1 s": 1}
    assert len(said) == len(table.reasons) == sum(name != "format" for name in names)
