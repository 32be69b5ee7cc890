"""One thread that owns the model: sequences of all clients, batched by length; generation gives way between tokens."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.losses import Head
from limbeck.models import hidden_states, model_head
from limbeck.serve.metrics import Metrics

logger = logging.getLogger(__name__)

WAIT = 0.003  # seconds that an idle engine waits for the requests of other clients before it runs a batch

Reader = Callable[[Tensor, Head, list[int]], list[Any]]


class Busy(RuntimeError):
    """The request cannot be taken now; later it can."""


class Broken(RuntimeError):
    """The model failed on this request. The text holds no traceback."""


@dataclass(eq=False)
class Scoring:
    """Sequences of one request. Nobody waits for an answer whose `future` is cancelled.

    sequences[i]: ids. places[i]: the tokens that are asked about, indices from 1 into sequence i, ascending.
    read(hidden [N, H], head, which): the answers of the sequences `which`, whose N places stand one after the other in
    `hidden`; called in the model's thread, without gradients.
    """

    sequences: Sequence[Sequence[int]]
    places: Sequence[Sequence[int]]
    read: Reader
    future: Future[list[Any]] = field(default_factory=Future)
    waiting: deque[int] = field(init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.sequences)
        self.waiting = deque(sorted(range(self.left), key=self.length, reverse=True))
        self.answers: list[Any] = [None] * self.left

    def length(self, i: int) -> int:
        """Tokens of sequence i that the model must read: what stands behind the last place says nothing of it."""
        return max(self.places[i], default=1)

    def finish(self, which: Sequence[int], answers: Sequence[Any]) -> None:
        for i, answer in zip(which, answers, strict=True):
            self.answers[i] = answer
        self.left -= len(which)
        if self.left == 0:
            settle(self.future, self.answers)

    def fail(self, error: BaseException) -> None:
        self.waiting.clear()
        settle(self.future, error)


class Generation(Protocol):
    """Something that samples from the model; `run` calls `give_way` between tokens, which returns True to stop."""

    future: Future[Any]

    def run(self, give_way: Callable[[], bool]) -> Any: ...


Item = tuple[Scoring, int]


class Engine:
    """Takes work from any thread, does it in one.

    budget: tokens in one forward pass, padding included. max_queue: requests that may wait or run.
    """

    def __init__(
        self, model: nn.Module, *, valid: int, pad_id: int, budget: int, max_queue: int, metrics: Metrics
    ) -> None:
        self.model, self.valid, self.pad_id, self.budget, self.max_queue = model, valid, pad_id, budget, max_queue
        self.metrics = metrics
        self.device = next(model.parameters()).device
        self._scorings: list[Scoring] = []
        self._generations: deque[Generation] = deque()
        self._running: Generation | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        metrics.queue.set_function(self.queued)

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def queued(self) -> int:
        """Requests that wait or run and that somebody waits for."""
        running = [] if self._running is None else [self._running]
        return sum(not work.future.done() for work in (*self._scorings, *self._generations, *running))

    def score(self, scoring: Scoring) -> Future[list[Any]]:
        """Raises Busy where the queue is full or the server is going down."""
        if not scoring.sequences:
            settle(scoring.future, [])
            return scoring.future
        with self._changed:
            self._admit()
            self._scorings.append(scoring)
        return scoring.future

    def generate(self, generation: Generation) -> Future[Any]:
        """Raises Busy as `score` does."""
        with self._changed:
            self._admit()
            self._generations.append(generation)
        return generation.future

    def _admit(self) -> None:
        if self._closing:
            raise Busy("the server is going down")
        if self.queued() >= self.max_queue:
            raise Busy(f"{self.max_queue} requests are waiting already (--max_queue)")
        self._changed.notify()

    def close(self, seconds: float) -> bool:
        """Refuses new work, drops what waits, and waits for what runs. Whether the thread has ended in that time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            while not self._closing:
                self._wait()
                self._score_some()
                if self._generations and not self._closing:
                    self._generate_one()
        finally:
            with self._changed:
                self._closing = True
                for work in (*self._scorings, *self._generations):
                    settle(work.future, Busy("the server is going down"))

    def _wait(self) -> None:
        """For work; an engine that was idle waits a little longer, for the requests of other clients."""
        with self._changed:
            idle = not self.queued()
            self._changed.wait_for(lambda: self._closing or self.queued() > 0)
            if idle:
                self._changed.wait_for(self._full, timeout=WAIT)

    def _full(self) -> bool:
        """There is enough for a whole batch."""
        return self._closing or sum(s.length(i) for s in self._scorings for i in s.waiting) >= self.budget

    def _generate_one(self) -> None:
        with self._changed:
            self._running = generation = self._generations.popleft()
        if not generation.future.cancelled():
            try:
                settle(generation.future, generation.run(lambda: self._give_way(generation)))
            except Exception as error:
                logger.exception("generation failed")
                settle(generation.future, told(error))
        self._running = None

    def _give_way(self, generation: Generation) -> bool:
        """Between two tokens: scoring that waits goes first. True where nobody waits for the generation any more."""
        if self._scorings:
            self._score_some()
        return self._closing or generation.future.cancelled()

    @torch.no_grad()
    def _score_some(self) -> None:
        """At most one batch's worth of every request that waits: a long one does not hold up the others."""
        with self._changed:
            self._scorings = [s for s in self._scorings if s.waiting and not s.future.done()]
            items = [item for s in self._scorings for item in _take(s, self.budget)]
        for batch in batches(items, self.budget):
            asked = [(s, i) for s, i in batch if not s.future.done()]
            if asked and not self._closing:
                self._run(asked)
        with self._changed:
            self._scorings = [s for s in self._scorings if s.waiting and not s.future.done()]

    def _run(self, batch: list[Item]) -> None:
        """Scores a batch. Where that fails its halves are tried: too much memory asks for less at a time, and any other
        fault is told to the one request that it belongs to."""
        fault: BaseException | None = None
        try:
            self._forward(batch)
            return
        except Exception as error:
            if len(batch) == 1 and not out_of_memory(error):
                logger.exception("scoring failed")
            fault = error.with_traceback(None)  # a traceback would keep the batch's tensors
        if out_of_memory(fault) and self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            batch[0][0].fail(told(fault))
            return
        half = len(batch) // 2
        self._run(batch[:half])
        self._run([(s, i) for s, i in batch[half:] if not s.future.done()])

    def _forward(self, batch: list[Item]) -> None:
        if not batch:
            return
        began = time.perf_counter()
        batch = sorted(batch, key=lambda item: id(item[0]))  # a request's sequences together: one pass over the head
        lengths = [s.length(i) for s, i in batch]
        ids = torch.full((len(batch), max(lengths)), self.pad_id, dtype=torch.long)
        rows, cols, counts = [], [], []
        for row, ((s, i), length) in enumerate(zip(batch, lengths, strict=True)):
            ids[row, :length] = torch.tensor(s.sequences[i][:length], dtype=torch.long)
            rows += [row] * len(s.places[i])
            cols += [place - 1 for place in s.places[i]]
            counts.append(len(s.places[i]))
        positions = (torch.tensor(rows, dtype=torch.long), torch.tensor(cols, dtype=torch.long))
        at = (positions[0].to(self.device), positions[1].to(self.device))
        hidden = hidden_states(self.model, ids.to(self.device), at)
        head = model_head(self.model, self.valid)
        done: dict[Scoring, tuple[list[int], list[Tensor]]] = {}
        for (s, i), part in zip(batch, hidden.split(counts), strict=True):
            which, parts = done.setdefault(s, ([], []))
            which.append(i)
            parts.append(part)
        answers = [(s, which, s.read(torch.cat(parts), head, which)) for s, (which, parts) in done.items()]
        for s, which, found in answers:
            s.finish(which, found)
        seconds = time.perf_counter() - began
        self.metrics.batch(sequences=len(batch), tokens=sum(lengths), places=len(rows), seconds=seconds)


def _take(scoring: Scoring, budget: int) -> list[Item]:
    taken: list[Item] = []
    while scoring.waiting and budget > 0:
        i = scoring.waiting.popleft()
        budget -= scoring.length(i)
        taken.append((scoring, i))
    return taken


def batches(items: Sequence[Item], budget: int) -> list[list[Item]]:
    """Like lengths together, longest first, so that rows x longest stays inside the budget; one row always fits."""
    found: list[list[Item]] = []
    room = 0
    for scoring, i in sorted(items, key=lambda item: -item[0].length(item[1])):
        if room == 0:
            found.append([])
            room = max(budget // scoring.length(i), 1)
        found[-1].append((scoring, i))
        room -= 1
    return found


def settle(future: Future[Any], outcome: Any) -> None:
    """Gives the outcome, an answer or an error, to whoever still waits for it."""
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:  # cancelled, or failed by another part of the same request
        pass


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def told(error: BaseException) -> Exception:
    """What the client hears."""
    if out_of_memory(error):
        return Busy("there is not enough memory for this request now")
    if isinstance(error, (Busy, Broken)):
        return error
    return Broken(f"the model failed on this request ({type(error).__name__})")
