"""Sums between two lines of the log, equal however the tokens were split over micro-batches and ranks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from accelerate import Accelerator

from limbeck.train.parallel import gather


@dataclass
class Meter:
    """mean: (sum, count) by name; peak: highest value by name. A plain state, so that a checkpoint can hold it."""

    mean: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    peak: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: float, count: float) -> None:
        entry = self.mean[name]
        entry[0] += total
        entry[1] += count

    def top(self, name: str, value: float) -> None:
        self.peak[name] = max(value, self.peak.get(name, value))

    def result(self, accelerator: Accelerator) -> dict[str, float]:
        """The means and peaks over all ranks. Every rank must call it."""
        whole = Meter()
        for mean, peak in gather(accelerator, (dict(self.mean), self.peak)):
            for name, (total, count) in mean.items():
                whole.add(name, total, count)
            for name, value in peak.items():
                whole.top(name, value)
        return {name: total / count for name, (total, count) in whole.mean.items() if count} | whole.peak

    def clear(self) -> None:
        self.mean.clear()
        self.peak.clear()

    def state(self) -> dict[str, dict]:
        return {"mean": {k: list(v) for k, v in self.mean.items()}, "peak": dict(self.peak)}

    def restore(self, state: dict[str, dict]) -> None:
        self.clear()
        self.mean.update({k: list(v) for k, v in state["mean"].items()})
        self.peak.update(state["peak"])
