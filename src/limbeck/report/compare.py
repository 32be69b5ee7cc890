"""comparison.html: several runs on one page, a colour a run: their rows, what they reached, and their curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.report.charts import CURVES, TIMES, overlay
from limbeck.report.folder import Run, read_run
from limbeck.report.format import MISSING, duration, number
from limbeck.report.html import fill, put, setting
from limbeck.report.results import KNOWN, OWN, evaluation_of, measures

COLOURS = 5  # of the page; a sixth run has the first one's again
CELLS = ("name", "sampling", "divergence", "granularity", "path", "source")


@dataclass(frozen=True, slots=True)
class Row:
    """A measure: of each run before, after, and whether it is the best of all runs after."""

    name: str
    unit: str
    cells: list[tuple[str, str, bool]]


def write_comparison(runs: Sequence[Path | str], target: Path) -> Path:
    """Write one page of several run folders, finished or still growing; the page's path."""
    found = [read_run(Path(run)) for run in runs]
    names = names_of([run.path for run in found])
    charts = overlay([*CURVES, *TIMES], found, names)
    data = {"charts": {"curves": [asdict(drawing) for drawing in charts]}, "maps": [], "completions": []}
    page = fill(
        "compare.html.j2",
        data,
        name=f"{len(found)} runs",
        runs=[_head(run, name, i) for i, (run, name) in enumerate(zip(found, names, strict=True))],
        rows=rows(found),
        settings=differences(found),
        charts=charts,
        notes=[f"{name}: {note}" for run, name in zip(found, names, strict=True) for note in run.notes],
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    return put(target, page)


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    whole = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(set(whole)):
            break
    return names


def rows(runs: Sequence[Run]) -> list[Row]:
    """Every measure that a run has; the best after is marked where a direction is better and runs differ. The loss of
    another method is another quantity, and then none of them is the best."""
    tables = [{m.title: m for m in measures(evaluation_of(run))} for run in runs]
    better = {name: way for name, _, way in (*KNOWN.values(), *OWN.values())}
    losses = {tuple(str(_method(run).get(key)) for key in ("name", "divergence", "granularity")) for run in runs}
    better |= {"Loss": 0} if len(losses) > 1 else {}
    found: list[Row] = []
    for name in dict.fromkeys(name for table in tables for name in table):
        own = [table.get(name) for table in tables]
        way = better.get(next(m.name for m in own if m is not None), 0)
        values = [m.value * way for m in own if m is not None and m.value is not None]
        best = max(values) if way and len(set(values)) > 1 else None
        found.append(
            Row(
                name,
                next(m.unit for m in own if m is not None),
                [
                    (MISSING, MISSING, False)
                    if m is None
                    else (m.before, m.after, best is not None and m.value is not None and m.value * way == best)
                    for m in own
                ],
            )
        )
    return found


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The flags on which the runs differ, with each one's value."""
    flat = [run.flat_config for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    shown = [(key, [MISSING if config.get(key) is None else setting(config[key]) for config in flat]) for key in keys]
    return [(key, values) for key, values in shown if len(set(values)) > 1]


def _method(run: Run) -> dict[str, Any]:
    method = run.summary.get("method")
    return method if isinstance(method, dict) else {}


def _head(run: Run, name: str, i: int) -> dict[str, Any]:
    last = run.train[-1] if run.train else {}
    method = _method(run)
    return {
        "name": name,
        "colour": i % COLOURS,
        "method": ", ".join(str(method[key]) for key in CELLS if method.get(key) not in (None, "", "-")),
        "facts": ", ".join(
            text
            for text in (
                f"{number(run.last_step)} steps" if run.last_step is not None else "no step yet",
                f"{number(last['tokens'])} tokens" if isinstance(last.get("tokens"), int) else "",
                duration(run.seconds) if run.seconds is not None else "",
            )
            if text
        ),
    }
