"""Threads that wait for servers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
Work = tuple[Future[Any], Callable[[], Any]]


class Threads:
    """`count` threads that do what is submitted, as a ThreadPoolExecutor does; but one that waits for an answer does
    not hold up the end of the process, as the executor's would, however long the server takes."""

    def __init__(self, count: int) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._threads = [threading.Thread(target=_work, args=(self._queue,), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._queue.put((future, lambda: call(*args, **kwargs)))
        return future

    def close(self) -> None:
        """The threads end when they have done what was submitted before."""
        for _ in self._threads:
            self._queue.put(None)

    def __del__(self) -> None:
        self.close()


def _work(queue: SimpleQueue[Work | None]) -> None:
    while (work := queue.get()) is not None:
        future, call = work
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        del work, future, call  # an idle thread holds on to nothing
