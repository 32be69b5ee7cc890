"""Run a batch's rewards side by side. Whatever one of them does, the batch comes back in time."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from limbeck.rewards.base import Missing, NamedReward, Reward
from limbeck.rewards.table import RewardTable

logger = logging.getLogger(__name__)


class _Failed(Exception):
    """A whole call's failure. reason: to count by; detail: for the person who reads the warning."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def score(
    rewards: Sequence[NamedReward],
    completions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    prompts: Sequence[Any] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    trainer_state: Any = None,
    timeout: float = 60.0,
    warn: Callable[[str], None] | None = None,
) -> RewardTable:
    """Ask every reward about B completions. rows: the columns of each one's row (`Example.columns`).

    Functions run in threads, what is awaitable on one event loop that lasts as long as the process. A function that
    raises, is not back after `timeout` seconds, or returns anything but B values loses the whole batch; a value that is
    no finite number loses its row. Losses are counted, told to `warn` (the log, where not given) once a reason, and
    never raised. A function that is still busy with an earlier batch is not called again before it has come back.
    Give whole groups: see `RewardTable.total`.
    """
    size = len(completions)
    columns = _columns(completions, rows, prompts, completion_ids)
    values = torch.full((size, len(rewards)), torch.nan, dtype=torch.float64)
    failed = torch.zeros((size, len(rewards)), dtype=torch.bool)
    reasons: dict[str, Counter[str]] = {}
    deadline = time.monotonic() + timeout
    given = {**columns, "trainer_state": trainer_state}
    calls = [_start(reward, given, timeout) for reward in rewards] if size else []
    for column, (reward, call) in enumerate(zip(rewards, calls, strict=False)):
        try:
            found = _numbers(_result(call, deadline, timeout), size)
        except _Failed as failure:
            found = [Missing(failure.reason)] * size
            _say(reward, failure.reason, failure.detail, warn)
        counts = Counter(value.reason for value in found if isinstance(value, Missing))
        for reason in counts:
            _say(reward, reason, "", warn)
        if counts:
            reasons[reward.name] = counts
        values[:, column] = torch.tensor([math.nan if v is None else v for v in found], dtype=torch.float64)
        failed[:, column] = torch.tensor([isinstance(v, Missing) for v in found])
    names = tuple(reward.name for reward in rewards)
    weights = torch.tensor([reward.weight for reward in rewards], dtype=torch.float64)
    return RewardTable(names, weights, values, failed, reasons)


def _columns(
    completions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Any] | None,
    completion_ids: Sequence[Sequence[int]] | None,
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        columns[name] = [row.get(name) for row in rows]
    columns["completions"] = list(completions)
    if prompts is not None:
        columns["prompts"] = list(prompts)
    if completion_ids is not None:
        columns["completion_ids"] = columns["response_token_ids"] = list(completion_ids)
    for name, column in {"rows": rows, **columns}.items():
        if len(column) != len(completions):
            raise ValueError(f"{len(completions)} completions, but {len(column)} {name}")
    return columns


# ---------------------------------------------------------------- the call


def _start(reward: NamedReward, given: Mapping[str, Any], timeout: float) -> Future[Any]:
    future: Future[Any] = Future()
    if reward.call is not None and not reward.call.done():
        future.set_exception(_Failed("was still busy with an earlier batch"))
        return future
    arguments = _arguments(reward.function, given)

    def run() -> None:
        try:
            result = reward.function(**arguments)
            if inspect.isawaitable(result):
                result = LOOP.run(result, timeout)
            future.set_result(result)
        except BaseException as error:  # sys.exit() in a reward too: it ends this thread's call, not the run
            future.set_exception(error)

    # a daemon, since a function that hangs cannot be stopped and must not keep the program from ending
    reward.call = future
    threading.Thread(target=run, name=f"reward {reward.name}", daemon=True).start()
    return future


def _arguments(function: Reward, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the signature names, or everything; lists of its own, so that none alters another's."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {}
    takes_all = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    chosen = {name: value for name, value in given.items() if takes_all or name in parameters}
    return {name: list(value) if isinstance(value, list) else value for name, value in chosen.items()}


def _result(call: Future[Any], deadline: float, timeout: float) -> Any:
    late = _Failed(f"took longer than {timeout:g} s")
    try:
        error = call.exception(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise late from None
    if error is None:
        return call.result()
    if isinstance(error, _Failed):
        raise error
    if isinstance(error, _Late):
        raise late
    raise _Failed(f"raised {type(error).__name__}", str(error))


def _numbers(result: Any, size: int) -> list[float | None]:
    """B floats; None as it is; Missing for what is no finite number. Raises _Failed where there are not B of them."""
    if hasattr(result, "tolist"):  # tensors and arrays
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise _Failed("returned no list", f"but {type(result).__name__}")
    if len(result) != size:
        raise _Failed("returned a wrong number of values", f"{len(result)} for {size} completions")
    return [_number(value) for value in result]


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, Missing):
        return value
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    return number if math.isfinite(number) else Missing("gave a value that is no finite number")


def _say(reward: NamedReward, reason: str, detail: str, warn: Callable[[str], None] | None) -> None:
    if reason in reward.said:
        return
    reward.said.add(reason)
    said = f"{reason} ({detail[:200]})" if detail else reason
    (warn or logger.warning)(f"reward {reward.name}: {said}; such rows are missing, counted, and not mentioned again")


# ---------------------------------------------------------------- the event loop


class _Late(Exception):
    """An awaitable that was not done in time."""


class _Loop:
    """One event loop in a thread of its own, so that clients which a reward keeps open outlive a batch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, awaitable: Any, timeout: float) -> Any:
        async def whole() -> Any:
            return await asyncio.wait_for(awaitable, timeout)

        loop = self._running()
        future = asyncio.run_coroutine_threadsafe(whole(), loop)
        try:
            # wait_for tells in time, unless something blocks the loop or swallows its cancellation
            return future.result(timeout + 1)
        except TimeoutError:
            if not future.done():
                self._abandon(loop)
            raise _Late from None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run_loop, args=(self._loop,), name="async rewards", daemon=True).start()
            return self._loop

    def _abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._loop is loop:
                self._loop = None
        asyncio.run_coroutine_threadsafe(_wind_up(loop), loop)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    """End a loop that was left behind, once it moves again and what ran on it is done."""
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
    loop.stop()


LOOP = _Loop()
