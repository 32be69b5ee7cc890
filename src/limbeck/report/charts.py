"""metrics.jsonl as the columns that the page draws: which metric goes where, and fewer points for long runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from limbeck.report.folder import Run

MAX_POINTS = 2000  # a chart is at most a few thousand pixels wide

Kind = Literal["train", "held out"]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: its title, what one unit is, and (metric, label) of each line; `eval_` metrics are drawn with dots."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    form: Literal["lines", "stack", "runs"] = "lines"
    show: Literal["number", "percent", "seconds"] = "number"


CURVES = (
    Chart(
        "Loss",
        "nats/token",
        (
            ("loss", "all"),
            ("loss/dataset", "dataset's tokens"),
            ("loss/student", "student's tokens"),
            ("eval_loss", "held out"),
        ),
    ),
    Chart("Reward", "mean of the samples", (("reward", "weighted sum"),)),
    Chart("Teacher's k3 estimate of the reverse KL", "nats/token", (("teacher_kl", "student's tokens"),)),
    Chart(
        "Size of the advantage",
        "mean of |A|",
        (("advantage/task", "of the rewards"), ("advantage/teacher", "of the teacher")),
    ),
    Chart("Forward KL, teacher ‖ student", "nats/token", (("forward_kl", "train"), ("eval_forward_kl", "held out"))),
    Chart("Reverse KL, student ‖ teacher", "nats/token", (("reverse_kl", "train"), ("eval_reverse_kl", "held out"))),
    Chart(
        "Top-1 agreement",
        "share of tokens",
        (("top1_agreement", "train"), ("eval_top1_agreement", "held out")),
        show="percent",
    ),
    Chart("Cross-entropy", "nats/token", (("ce", "train"), ("eval_ce", "held out"))),
    Chart("Entropy", "nats/token", (("student_entropy", "student"), ("teacher_entropy", "teacher"))),
    Chart(
        "Lengths",
        "tokens",
        (
            ("completion_length/mean", "completion, mean"),
            ("completion_length/max", "completion, longest"),
            ("prompt_length/mean", "prompt, mean"),
        ),
    ),
    Chart("Completions cut off", "share", (("truncated_share", "cut off"),), show="percent"),
    Chart("Gradient norm", "before clipping", (("grad_norm", "norm"),)),
    Chart("Learning rate", "", (("learning_rate", "rate"),)),
)
TIMES = (
    Chart(
        "Seconds a step",
        "s",
        (("seconds/sample", "sample"), ("seconds/score", "score"), ("seconds/learn", "learn")),
        form="stack",
        show="seconds",
    ),
    Chart("Speed", "tokens/s", (("tokens_per_second", "tokens/s"),)),
    Chart("Peak memory", "GiB", (("peak_memory_gib", "GiB"),)),
)
_NOT_DRAWN = {"step", "kind", "epoch", "time", "tokens"}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart with its numbers: `columns[0]` are steps, `columns[i + 1]` the values of line i (None where absent)."""

    title: str
    unit: str
    form: str
    show: str
    labels: list[str]
    dots: list[bool]
    columns: list[list[float | None]] = field(repr=False)
    colours: list[int] | None = None  # of the lines; by their order where not given


def drawings(run: Run) -> dict[str, list[Drawing]]:
    """The page's charts by section; one without a single finite value is left out."""
    rows = _rows_by_step(run)
    sections = {"curves": CURVES, "times": TIMES, "more": _others(rows)}
    return {
        name: [drawing for chart in charts if (drawing := _draw(chart, rows)) is not None]
        for name, charts in sections.items()
    }


def overlay(charts: Sequence[Chart], runs: Sequence[Run], names: Sequence[str]) -> list[Drawing]:
    """A chart for each metric that a run has, a line a run; those of one chart stand next to each other."""
    tables = [_rows_by_step(run) for run in runs]
    found: list[Drawing] = []
    for chart in charts:
        for metric, label in chart.lines:
            merged: dict[int, dict[str, Any]] = {}
            for name, table in zip(names, tables, strict=True):
                for step, row in table.items():
                    merged.setdefault(step, {})[name] = row.get(metric)
            title = chart.title if len(chart.lines) == 1 else f"{chart.title}: {label}"
            one = replace(chart, title=title, lines=tuple((name, name) for name in names), form="runs")
            drawing = _draw(one, dict(sorted(merged.items())))
            if drawing is not None:
                held_out = metric.startswith("eval_")
                present = [names.index(label) for label in drawing.labels]
                found.append(replace(drawing, dots=[held_out] * len(drawing.labels), colours=present))
    return found


def _rows_by_step(run: Run) -> dict[int, dict[str, Any]]:
    """Train and evaluation lines of a step as one row; an evaluation's keys carry the prefix `eval_`."""
    rows: dict[int, dict[str, Any]] = {row["step"]: dict(row) for row in run.train}
    for row in run.evals:
        prefixed = {key: value for key, value in row.items() if key.startswith("eval_")}
        rows.setdefault(row["step"], {}).update(prefixed)
    return dict(sorted(rows.items()))


def _others(rows: dict[int, dict[str, Any]]) -> tuple[Chart, ...]:
    """A chart for each family (`reward/...`) of numbers that no other chart shows."""
    drawn = {metric for chart in (*CURVES, *TIMES) for metric, _ in chart.lines}
    families: dict[str, list[str]] = {}
    for row in rows.values():
        for key, value in row.items():
            name = key.removeprefix("eval_")
            if (
                key not in drawn
                and name not in _NOT_DRAWN
                and not key.startswith("seconds/")
                and _finite(value) is not None
            ):
                family = families.setdefault(name.split("/")[0], [])
                if key not in family:
                    family.append(key)
    return tuple(
        Chart(family.replace("_", " "), "", tuple((key, key.removeprefix(f"{family}/")) for key in keys))
        for family, keys in sorted(families.items())
    )


def _draw(chart: Chart, rows: dict[int, dict[str, Any]]) -> Drawing | None:
    present = [
        (metric, label)
        for metric, label in chart.lines
        if any(_finite(row.get(metric)) is not None for row in rows.values())
    ]
    if not present:
        return None
    steps = [step for step, row in rows.items() if any(_finite(row.get(metric)) is not None for metric, _ in present)]
    columns = [[_finite(rows[step].get(metric)) for step in steps] for metric, _ in present]
    kept = thin(columns, MAX_POINTS)
    return Drawing(
        title=chart.title,
        unit=chart.unit,
        form=chart.form,
        show=chart.show,
        labels=[label for _, label in present],
        dots=[metric.startswith("eval_") for metric, _ in present],
        columns=[[float(steps[i]) for i in kept], *([_short(column[i]) for i in kept] for column in columns)],
    )


def thin(columns: list[list[float | None]], limit: int) -> list[int]:
    """The indices to keep so that at most about `limit` remain: of each stretch the least and the greatest of every
    column (so no spike is lost), and the first and last of all. Everything, if there are no more than `limit`."""
    count = len(columns[0])
    if count <= limit:
        return list(range(count))
    stretches = max(1, (limit - 2) // (2 * len(columns)))
    kept = {0, count - 1}
    for part in range(stretches):
        inside = range(part * count // stretches, (part + 1) * count // stretches)
        for column in columns:
            values = [(value, i) for i in inside if (value := column[i]) is not None]
            if values:
                kept |= {min(values)[1], max(values)[1]}
    return sorted(kept)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
