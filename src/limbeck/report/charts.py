"""metrics.jsonl as the columns that the page draws: which metric goes where, and fewer points for long runs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from limbeck.report.folder import Run

PARTS = ("loss/dataset", "loss/student")
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


def _both(title: str, key: str, unit: str = "nats/token", **more: Any) -> Chart:
    """A metric of training and of the held-out rows, and where it is measured of fresh samples (`--eval_on_policy`)."""
    named = ((key, "train"), (f"eval_{key}", "held out"), (f"eval_on_policy_{key}", "held out, own answers"))
    return Chart(title, unit, named, **more)


CURVES = (
    Chart(
        "Loss",
        "nats/token",
        (
            ("loss", "all"),
            ("loss/dataset", "dataset's tokens"),
            ("loss/student", "student's tokens"),
            ("eval_loss", "held out"),
            ("eval_on_policy_loss", "held out, own answers"),
        ),
    ),
    Chart(
        "Reward",
        "mean of the samples",
        (("reward", "weighted sum"), ("eval_on_policy_reward", "held out, own answers")),
    ),
    Chart(
        "Teacher's k3 estimate of the reverse KL",
        "nats/token",
        (("teacher_kl", "student's tokens"), ("eval_on_policy_teacher_kl", "held out, own answers")),
    ),
    Chart(
        "Size of the advantage",
        "mean of |A|",
        (("advantage/task", "of the rewards"), ("advantage/teacher", "of the teacher")),
    ),
    _both("Forward KL, teacher ‖ student", "forward_kl"),
    _both("Reverse KL, student ‖ teacher", "reverse_kl"),
    _both("Forward KL over the top-k buckets", "topk_forward_kl"),
    _both("Reverse KL over the top-k buckets", "topk_reverse_kl"),
    _both("Top-1 agreement", "top1_agreement", "share of tokens", show="percent"),
    _both("Cross-entropy", "ce"),
    Chart(
        "Entropy",
        "nats/token",
        (
            ("student_entropy", "student"),
            ("teacher_entropy", "teacher"),
            ("eval_student_entropy", "student, held out"),
            ("eval_teacher_entropy", "teacher, held out"),
        ),
    ),
    Chart("What the privileged prompt changes", "nats/token", (("privileged_kl", "KL(teacher with ‖ without)"),)),
    Chart(
        "Lengths",
        "tokens",
        (
            ("completion_length/mean", "completion, mean"),
            ("completion_length/max", "completion, longest"),
            ("prompt_length/mean", "prompt, mean"),
        ),
    ),
    Chart("Completions cut off", "share of the samples", (("truncated_share", "cut off"),), show="percent"),
    Chart("Gradient norm", "before clipping", (("grad_norm", "norm"),)),
    Chart("Learning rate", "", (("learning_rate", "rate"),)),
)
# in the fold, in this order; what no chart names comes after them
MORE = (
    _both("Divergence, as the loss has it", "divergence"),
    Chart(
        "Entropy on its own answers",
        "nats/token",
        (("eval_on_policy_student_entropy", "student"), ("eval_on_policy_teacher_entropy", "teacher")),
    ),
    Chart("Log-probability of the sampled token", "nats/token", (("logp", "student"),)),
    Chart("Teacher's log-ratio of the sampled token", "nats/token", (("teacher_logratio", "teacher - student"),)),
    Chart("k3 on the held-out responses", "no estimate: not the student's tokens", (("eval_teacher_kl", "held out"),)),
    Chart("Spread of the rewards", "standard deviation in a group", (("reward_std", "of the weighted sum"),)),
    Chart(
        "Groups without a spread", "share", (("reward/groups_without_spread", "nothing to compare"),), show="percent"
    ),
    Chart(
        "What the samples look like",
        "share",
        (
            ("repeated_share", "four-token pieces said before"),
            ("text/hedging", "words of doubt"),
            ("text/quotes", "quote what the teacher reads"),
        ),
        show="percent",
    ),
    Chart("Drift of the length", "times that of the first lines", (("completion_length/drift", "completion, mean"),)),
    Chart("Tokens that are trained", "share of all tokens", (("active_share", "trained"),), show="percent"),
    Chart("Tokens for a computed position", "above 1: prompts shared", (("useful_positions", "tokens/position"),)),
    Chart("Rows that the teacher refused", "so far", (("refused_rows", "rows"),)),
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
_NOT_DRAWN = {*PARTS, "step", "kind", "epoch", "time", "tokens"}


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
    """The page's charts by section; one without a single finite value is left out, and so is in the fold (`more`) one
    whose values never change: see `unchanged`."""
    rows = _rows_by_step(run)
    more = [chart for chart in (*MORE, *_others(rows)) if not _constant(chart, rows)]
    sections = {"curves": _curves(rows), "times": TIMES, "more": more}
    return {
        name: [drawing for chart in charts if (drawing := _draw(chart, rows)) is not None]
        for name, charts in sections.items()
    }


def unchanged(run: Run) -> list[tuple[str, float]]:
    """Metrics that no chart of the page shows, since all their values are the same: (key, value)."""
    rows = _rows_by_step(run)
    constant = [chart for chart in (*MORE, *_others(rows)) if _constant(chart, rows)]
    found = ((metric, _values(metric, rows)) for chart in constant for metric, _ in chart.lines)
    return sorted((metric, values[0]) for metric, values in found if values)


def _constant(chart: Chart, rows: dict[int, dict[str, Any]]) -> bool:
    """Whether each of the lines stays where it began; a single point does too."""
    return all(len(set(_values(metric, rows))) <= 1 for metric, _ in chart.lines)


def _values(metric: str, rows: dict[int, dict[str, Any]]) -> list[float]:
    return [value for row in rows.values() if (value := _finite(row.get(metric))) is not None]


def _curves(rows: dict[int, dict[str, Any]]) -> list[Chart]:
    """The curves of these rows. Of the loss no part that is all of it: one line would hide the other. The reward has
    each function's mean beside their sum, where there are several."""
    keys = sorted({key for row in rows.values() for key in row if re.fullmatch("rewards/.+/mean", key)})
    rewards = tuple((key, key.split("/")[1]) for key in keys) if len(keys) > 1 else ()
    whole = [row.get("loss") for row in rows.values()]
    twice = {part for part in PARTS if [row.get(part) for row in rows.values()] == whole}

    def own(chart: Chart) -> Chart:
        lines = tuple(line for line in chart.lines if line[0] not in twice)
        return replace(chart, lines=lines + rewards if chart.title == "Reward" else lines)

    return [own(chart) for chart in CURVES]


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
    """A chart for each family of numbers that no other chart shows: `a/b` is of family a, `rewards/name/x` of
    `rewards/name`."""
    drawn = {metric for chart in (*_curves(rows), *TIMES, *MORE) for metric, _ in chart.lines}
    families: dict[str, list[str]] = {}
    for row in rows.values():
        for key, value in row.items():
            name = key.removeprefix("eval_")
            if key in drawn or name in _NOT_DRAWN or key.startswith("seconds/") or _finite(value) is None:
                continue
            family = families.setdefault("/".join(name.split("/")[: 2 if name.startswith("rewards/") else 1]), [])
            if key not in family:
                family.append(key)
    return tuple(
        Chart(_spoken(family), "", tuple((key, _label(key, family)) for key in keys))
        for family, keys in sorted(families.items())
    )


def _spoken(name: str) -> str:
    text = name.replace("rewards/", "reward: ").replace("_", " ")
    return text[:1].upper() + text[1:]


def _label(key: str, family: str) -> str:
    where = "held out" if key.startswith("eval_") else "train"
    own = key.removeprefix("eval_").removeprefix(family).lstrip("/")
    return f"{own}, {where}" if own and where != "train" else own or where


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
