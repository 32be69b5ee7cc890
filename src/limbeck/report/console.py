"""What a run says while it goes: a live display on a terminal, one line a step elsewhere, each warning once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from limbeck.report.format import duration, number, percent

WARNING = "warning: "
SPARKS = "▁▂▃▄▅▆▇█"
# (metric, short name, how to print it), in the order of printing
FIELDS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("loss", "loss", number),
    ("forward_kl", "fwd_kl", number),
    ("reverse_kl", "rev_kl", number),
    ("teacher_kl", "teacher_kl", number),
    ("topk_forward_kl", "topk_fwd_kl", number),
    ("topk_reverse_kl", "topk_rev_kl", number),
    ("top1_agreement", "agree", percent),
    ("ce", "ce", number),
    ("reward", "reward", number),
    ("completion_length/mean", "length", number),
    ("truncated_share", "cut", percent),
    ("grad_norm", "grad", number),
    ("learning_rate", "lr", number),
    ("tokens_per_second", "tok/s", lambda value: number(value, 3)),
    ("seconds/sample", "sample", duration),
    ("seconds/score", "score", duration),
    ("seconds/learn", "learn", duration),
    ("peak_memory_gib", "mem", lambda value: f"{number(value, 3)}GiB"),
)


class Console:
    """The run's voice, on the main process only.

    total: the run's optimizer steps, once known (`begin`). enabled: False on every process but the main one.
    live: True for the display that stays in place, None to decide by whether `file` is a terminal.
    Usable as a context manager; `close` must be reached, or the terminal keeps a hidden cursor.
    """

    def __init__(
        self, total: int | None = None, *, enabled: bool = True, live: bool | None = None, file: TextIO | None = None
    ) -> None:
        self.enabled = enabled
        self.warnings: list[str] = []
        self.file = file or sys.stdout
        self._live = live if live is not None else self.file.isatty() and os.environ.get("TERM") != "dumb"
        self._display: _Display | None = None
        self._clock = _Clock(total, 0)
        if total is not None:
            self.begin(total)

    def begin(self, total: int, done: int = 0) -> None:
        """Steps are about to start: `total` in all, `done` of them before a resume (they do not enter the estimate)."""
        self._clock = _Clock(total, done)
        if self._display:
            self._display.clock = self._clock
        elif self.enabled and self._live:
            self._display = _Display(self.file, self._clock)

    def say(self, text: str) -> None:
        """Print a line (or several): an automatic choice and its reason, a path, a result. One that begins with
        `warning: ` is a warning, so that those who are given nothing but a `say` can warn."""
        if text.startswith(WARNING):
            self.warn(text.removeprefix(WARNING))
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        if not self.enabled:
            return
        if self._display:
            self._display.print(text)
        else:
            print(text, file=self.file, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, the first time that its text is seen; all of them are kept in `warnings`."""
        if text not in self.warnings:
            self.warnings.append(text)
            self._print(f"{WARNING}{text}")

    def step(self, metrics: dict[str, Any]) -> None:
        """Show a logging step's metrics; `kind` "eval" is printed as a line of its own even on a terminal."""
        is_eval = metrics.get("kind") == "eval"
        if not is_eval:
            self._clock.tick(metrics.get("step"))
        if not self.enabled:
            return
        if self._display and not is_eval:
            self._display.update(metrics)
        else:
            self.say(line(metrics, self._clock))

    def tick(self, step: int) -> None:
        """A step without metrics to show: moves the bar on a terminal, silent elsewhere."""
        self._clock.tick(step)
        if self._display:
            self._display.refresh()

    def close(self) -> None:
        """Leave the terminal as it was found, with the last state of the display standing. May be called twice."""
        if self._display:
            self._display.close()
            self._display = None

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def line(metrics: dict[str, Any], clock: _Clock | None = None) -> str:
    """One compact line: `step 20/500  loss 0.4321  fwd_kl 0.512  ...  eta 4m 05s`; evaluation keys without `eval_`."""
    is_eval = metrics.get("kind") == "eval"
    if is_eval:
        fresh = not any(f"eval_{name}" in metrics for name, *_ in FIELDS)  # samples of the student's own, and no others
        values = {key.removeprefix("eval_on_policy_" if fresh else "eval_"): v for key, v in metrics.items()}
        values |= {key: metrics.get(f"eval_on_policy_{key}") for key in ("reward", "teacher_kl")}  # of fresh ones alone
    else:
        fresh, values = False, metrics
    step = metrics.get("step", "?")
    head = (
        f"eval{' on-policy' * fresh} at {step}"
        if is_eval
        else f"step {step}" + (f"/{clock.total}" if clock and clock.total else "")
    )
    fields = [f"{name} {show(values[key])}" for key, name, show in FIELDS if values.get(key) is not None]
    if clock and not is_eval and (eta := clock.eta()) is not None:
        fields.append(f"eta {duration(eta)}")
    return "  ".join([head, *fields])


def sparkline(values: list[float], width: int = 40) -> str:
    """The last `width` finite values as bars between their minimum and maximum."""
    shown = [value for value in values if value - value == 0][-width:]
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1)) if span else 0] for value in shown)


class _Clock:
    """Steps done and the time that the rest will take, from the steps of this process only."""

    def __init__(self, total: int | None, done: int) -> None:
        self.total, self.first, self.done = total, done, done
        self.started = time.monotonic()

    def tick(self, step: Any) -> None:
        if isinstance(step, int):
            self.done = max(self.done, step)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def eta(self) -> float | None:
        steps = self.done - self.first
        if self.total is None or steps <= 0:
            return None
        return self.elapsed() / steps * max(self.total - self.done, 0)


class _Display:
    """rich's Live with a progress bar, the loss as a sparkline and the key metrics in a grid."""

    def __init__(self, file: TextIO, clock: _Clock) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live

        self.clock = clock
        self.metrics: dict[str, Any] = {}
        self.losses: list[float] = []
        self.rich = RichConsole(file=file, highlight=False)
        self.live = Live(get_renderable=self.render, console=self.rich, refresh_per_second=4, transient=False)
        self.live.start()

    def print(self, text: str) -> None:
        style = "yellow" if text.startswith(WARNING) else None
        self.rich.print(text, style=style, markup=False)

    def update(self, metrics: dict[str, Any]) -> None:
        self.metrics = {**self.metrics, **metrics}
        if isinstance(metrics.get("loss"), (int, float)):
            self.losses.append(float(metrics["loss"]))
        self.refresh()

    def refresh(self) -> None:
        self.live.refresh()

    def close(self) -> None:
        self.live.stop()

    def render(self) -> Any:
        from rich.columns import Columns
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        clock = self.clock
        total = clock.total or 0
        share = f"  {100 * clock.done / total:.0f}%" if total else ""
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(f"step {clock.done}" + (f"/{total}" if total else ""), style="bold"),
            ProgressBar(total=total or None, completed=clock.done, width=32, pulse=not total),
            Text(f"{share}  {duration(clock.elapsed())} elapsed, {duration(clock.eta())} left", style="dim"),
        )
        parts: list[Any] = [head]
        if self.losses and self.rich.encoding.startswith("utf"):
            parts.append(Text.assemble(("loss ", "dim"), (sparkline(self.losses, 48), "cyan")))
        shown = [
            Text.assemble((f"{name} ", "dim"), show(self.metrics[key]))
            for key, name, show in FIELDS
            if self.metrics.get(key) is not None
        ]
        return Group(*parts, Columns(shown, padding=(0, 2))) if shown else Group(*parts)
