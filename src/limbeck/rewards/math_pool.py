"""A few processes that compare answers with math-verify, each ended and started anew where a row takes too long.

math-verify's own time limit is a signal handler, which Python allows in the main thread only, and which cannot stop a
computation inside one long C call. Processes are started by path rather than forked, so that threads, a CUDA context
and the caller's `__main__` stay out of it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from functools import cache
from pathlib import Path
from queue import SimpleQueue

from limbeck.rewards.base import Missing

KEPT = 1024  # results remembered: accuracy and cosine ask about the same rows
WORKER = Path(__file__).with_name("math_worker.py")
Pair = tuple[str, str]
Tasks = SimpleQueue[tuple[Pair, Future[float]] | None]


class MathPool:
    """limit: seconds a row; workers: processes. Both processes and threads start at the first use, and end when nobody
    holds the pool any more. Thread-safe."""

    def __init__(self, limit: float = 5.0, workers: int = 2) -> None:
        self.limit, self.workers = limit, workers
        self._tasks: Tasks = SimpleQueue()
        self._known: OrderedDict[Pair, Future[float]] = OrderedDict()
        self._lock = threading.Lock()
        self._started = False

    def verify(self, pairs: Sequence[Pair], *, timeout: float = 60.0) -> list[float]:
        """(gold, answer) each -> 1.0, 0.0 or Missing; rows that are not done after `timeout` seconds are missing."""
        deadline = time.monotonic() + timeout
        futures = [self._ask(pair) for pair in pairs]
        return [_wait(future, deadline) for future in futures]

    def _ask(self, pair: Pair) -> Future[float]:
        with self._lock:
            if not self._started:
                self._started = True
                for _ in range(self.workers):
                    # daemons: a queue of slow rows must not hold up the end of the program. They know the queue and not
                    # the pool, which they would keep alive
                    threading.Thread(
                        target=_serve, args=(self._tasks, self.limit), name="math-verify", daemon=True
                    ).start()
                    weakref.finalize(self, self._tasks.put, None)
            future = self._known.get(pair)
            if future is None or future.cancelled():
                future = self._known[pair] = Future()
                self._tasks.put((pair, future))
            self._known.move_to_end(pair)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return future


def _serve(tasks: Tasks, limit: float) -> None:
    """One thread and its process: answers until it is told None."""
    process: subprocess.Popen[str] | None = None
    while (task := tasks.get()) is not None:
        pair, future = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            process = process or _start()
            answer = _exchange(process, pair, limit)
        except OSError as error:
            answer, process = Missing(f"math-verify could not be started: {error.strerror}"), None
        if process is not None and process.poll() is not None:
            process = None
        future.set_result(answer)
    if process is not None:
        with process:  # the end of its input is the end of the process
            pass


@cache
def math_pool(limit: float, workers: int) -> MathPool:
    """The pool that all rewards of these settings share."""
    return MathPool(limit, workers)


def _start() -> subprocess.Popen[str]:
    # -P: the worker's folder stays off its import path
    command = [sys.executable, "-P", str(WORKER)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="utf-8")


def _exchange(process: subprocess.Popen[str], pair: Pair, limit: float) -> float:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps([*pair, limit]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if line:
        answer = json.loads(line)
        return float(answer) if isinstance(answer, bool) else Missing(answer)
    process.stdout.close()
    code = process.wait()
    over = code == -signal.SIGALRM
    return Missing(f"took longer than {limit:g} s" if over else f"math-verify ended with status {code}")


def _wait(future: Future[float], deadline: float) -> float:
    late = Missing("was not reached in the time of the call")
    try:
        return future.result(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        future.cancel()
        return late
    except CancelledError:  # by another call that shares the row
        return late
