"""The model's thread: batches over requests, faults that stay with theirs, generation that gives way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from serve_running import sequences

from limbeck.models import load_model
from limbeck.serve.engine import Broken, Busy, Engine, Scoring, batches
from limbeck.serve.metrics import Metrics


def sums(hidden: torch.Tensor, head, which: list[int]) -> list[float]:
    return hidden.sum(-1).tolist()


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    model = load_model(str(tiny / "student"), trainable=False)
    engine = Engine(model, valid=320, pad_id=0, budget=64, max_queue=20, metrics=Metrics())
    yield engine
    if engine._thread.is_alive():
        assert engine.close(10)


def scoring(*lengths: int, read=sums, seed: int = 0) -> Scoring:
    ids = sequences(*lengths, seed=seed)
    return Scoring(ids, [[len(s) - 1] for s in ids], read)


def rows_of_forwards(engine: Engine, monkeypatch, limit: int | None = None, fault: type[Exception] = ValueError):
    """Sizes of the batches that the model sees; more than `limit` rows raise `fault`."""
    import limbeck.serve.engine as module

    seen: list[int] = []
    real = module.hidden_states

    def watched(model, ids, at):
        seen.append(ids.shape[0])
        if limit is not None and ids.shape[0] > limit:
            raise fault("no room")
        return real(model, ids, at)

    monkeypatch.setattr(module, "hidden_states", watched)
    return seen


def test_batches_hold_like_lengths_and_stay_in_the_budget() -> None:
    work = scoring(*range(1, 60), 200)
    items = [(work, i) for i in range(60)]
    found = batches(items, 128)
    assert sorted(i for batch in found for _, i in batch) == list(range(60))
    for batch in found:
        lengths = [work.length(i) for _, i in batch]
        assert len(batch) * max(lengths) <= 128 or len(batch) == 1
    order = [work.length(i) for batch in found for _, i in batch]
    assert order == sorted(order, reverse=True)


def test_what_waits_of_several_clients_is_one_batch(engine: Engine, monkeypatch) -> None:
    seen = rows_of_forwards(engine, monkeypatch)
    futures = [engine.score(scoring(6, seed=i)) for i in range(10)]
    engine.start()
    together = [future.result(20) for future in futures]
    assert seen == [10]
    alone = [engine.score(scoring(6, seed=i)).result(20) for i in range(10)]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=0, atol=1e-5)


def test_a_fault_is_told_to_its_own_request_and_the_thread_lives_on(engine: Engine, caplog) -> None:
    def broken(hidden, head, which):
        raise ZeroDivisionError("secret")

    futures = [engine.score(scoring(5, 5, read=broken if i == 2 else sums, seed=i)) for i in range(5)]
    engine.start()
    for i, future in enumerate(futures):
        if i == 2:
            with pytest.raises(Broken, match="ZeroDivisionError") as caught:
                future.result(20)
            assert "secret" not in str(caught.value)
        else:
            assert len(future.result(20)) == 2
    assert engine.score(scoring(4)).result(20)
    assert "scoring failed" in caplog.text


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError, MemoryError])
def test_too_little_memory_halves_the_batch(engine: Engine, monkeypatch, fault) -> None:
    seen = rows_of_forwards(engine, monkeypatch, limit=3, fault=fault)
    future = engine.score(scoring(*[6] * 10))
    engine.start()
    assert len(future.result(20)) == 10
    assert seen == [10, 5, 2, 3, 5, 2, 3]


def test_too_little_memory_for_one_sequence_is_told(engine: Engine, monkeypatch) -> None:
    rows_of_forwards(engine, monkeypatch, limit=0, fault=torch.OutOfMemoryError)
    future = engine.score(scoring(6, 6))
    engine.start()
    with pytest.raises(Busy, match="memory"):
        future.result(20)
    monkeypatch.undo()
    assert engine.score(scoring(4)).result(20)


def test_the_queue_has_an_end_and_a_cancelled_request_is_never_run(engine: Engine, monkeypatch) -> None:
    seen = rows_of_forwards(engine, monkeypatch)
    futures = [engine.score(scoring(6, seed=i)) for i in range(20)]
    with pytest.raises(Busy, match="--max_queue"):
        engine.score(scoring(6))
    for future in futures[:15]:
        future.cancel()
    engine.start()
    for future in futures[15:]:
        future.result(20)
    assert sum(seen) == 5
    assert engine.queued() == 0


def test_a_long_request_does_not_hold_up_a_short_one(engine: Engine) -> None:
    order: list[str] = []
    long, short = scoring(*[60] * 8), scoring(60)
    for name, work in (("long", long), ("short", short)):
        work.future.add_done_callback(lambda _, name=name: order.append(name))
        engine.score(work)
    engine.start()
    long.future.result(20)
    assert order == ["short", "long"]


class Counting:
    """A generation of ten tokens that sends a scoring after the first."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.future, self.scored = engine, Future(), 0

    def run(self, give_way) -> int:
        for token in range(10):
            if token == 0:
                self.scoring = self.engine.score(scoring(6))
            if give_way():
                return token
            self.scored += self.scoring.done()
        return 10


def test_generation_gives_way_to_scoring_and_ends_when_nobody_waits(engine: Engine) -> None:
    engine.start()
    generation = Counting(engine)
    assert engine.generate(generation).result(20) == 10
    assert generation.scored == 10  # done at the first chance, nine tokens before the end


def test_closing_refuses_what_comes_and_drops_what_waits(engine: Engine) -> None:
    waiting = engine.score(scoring(6))
    engine._closing = True
    engine.start()
    with pytest.raises(Busy, match="going down"):
        waiting.result(20)
    with pytest.raises(Busy, match="going down"):
        engine.score(scoring(6))
