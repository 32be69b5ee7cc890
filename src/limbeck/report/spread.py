"""histograms.jsonl as what the page shows: how lengths and divergences spread as the run goes, and where teacher and
student disagree most."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from limbeck.report.folder import Run

MAX_COLUMNS = 120  # of a map: lines next to each other are added up
SHOWN_TOKENS, SHOWN_PROMPTS = 15, 6
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Map:
    """A histogram a column. edges [B or B + 1]: lower ends of the bins, and where it is known the last one's upper;
    steps [C]: the last step of a column; counts [C][B].
    quantiles [3][C]: of 10%, 50% and 90%, counted in bins from the lowest, spread evenly within one."""

    title: str
    unit: str
    edges: list[float]
    steps: list[int]
    counts: list[list[int]] = field(repr=False)
    quantiles: list[list[float]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a table: the mean over `count` tokens; bar: its, or the sum's, share of the greatest one."""

    label: str
    count: int
    mean: float
    bar: float
    more: str = ""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Sums over the latest half of the lines, of steps `first` to `last`; each table has the greatest first, but for
    `places`, which has the first first."""

    first: int
    last: int
    tokens: list[Entry]
    places: list[Entry]
    prompts: list[Entry]


def maps(run: Run) -> list[Map]:
    """The divergences' and the lengths', where a run has them."""
    named = (("Divergence of a token", "nats", "divergences"), ("Length of a completion", "tokens", "lengths"))
    return [found for title, unit, key in named if (found := _map(run.histograms, title, unit, key)) is not None]


def _map(lines: list[dict[str, Any]], title: str, unit: str, key: str) -> Map | None:
    columns = [(line["step"], dict(_pairs(line.get(key)))) for line in lines]
    columns = [(step, counts) for step, counts in columns if any(counts.values())]
    if len(columns) < 2:
        return None
    together = -(-len(columns) // MAX_COLUMNS)
    every = sorted({edge for _, counts in columns for edge in counts})
    merged = [columns[i : i + together] for i in range(0, len(columns), together)]
    counts = [[sum(own.get(edge, 0) for _, own in group) for edge in every] for group in merged]
    if not any(column[-1] for column in counts):  # the writer names the edge above the last bin
        counts = [column[:-1] for column in counts]
    if len(counts[0]) < 2:  # all in one bin: a block of colour says nothing
        return None
    quantiles = [[_quantile(column, share) for column in counts] for share in QUANTILES]
    return Map(title, unit, every, [group[-1][0] for group in merged], counts, quantiles)


def _quantile(counts: list[int], share: float) -> float:
    """The place in bins below which this share of the counts lies, each bin's own spread evenly over it."""
    wanted, before = share * sum(counts), 0
    for place, count in enumerate(counts):
        if count and before + count >= wanted:
            return round(place + (wanted - before) / count, 3)
        before += count
    return float(len(counts))


def disagreement(run: Run) -> Disagreement | None:
    """Where teacher and student disagree most; None for a run whose loss is no divergence."""
    lines = [line for line in run.histograms if _triples(line.get("places"))]
    lines = lines[len(lines) // 2 :]
    if not lines:
        return None
    tokens = _summed(lines, "tokens")
    places = _summed(lines, "places")
    prompts: dict[str, tuple[str, int, float]] = {}
    for line in lines:
        for row in line.get("prompts") or []:
            if isinstance(row, list) and len(row) == 4 and _is_count(row[2]) and _is_number(row[3]):
                prompts[str(row[0])] = (str(row[1]), row[2], row[3])  # of a row that comes again the latest counts
    ranked = sorted(tokens.items(), key=lambda item: item[1][1], reverse=True)[:SHOWN_TOKENS]
    worst = sorted(prompts.items(), key=lambda item: item[1][2], reverse=True)[:SHOWN_PROMPTS]
    total = sum(total for _, total in places.values()) or 1.0
    edges = sorted(places)
    return Disagreement(
        first=lines[0]["step"],
        last=lines[-1]["step"],
        tokens=_entries(
            [(_visible(t), n, s / n, f"{100 * s / total:.1f}% of all") for t, (n, s) in ranked], by_sum=True
        ),
        places=_entries(
            [(_range(edges, i), places[e][0], places[e][1] / places[e][0], "") for i, e in enumerate(edges)]
        ),
        prompts=_entries([(text or origin, n, mean, origin) for origin, (text, n, mean) in worst]),
    )


def _summed(lines: list[dict[str, Any]], key: str) -> dict[Any, tuple[int, float]]:
    """Counts and sums of [name, count, sum] over the lines."""
    found: dict[Any, tuple[int, float]] = {}
    for line in lines:
        for name, count, total in _triples(line.get(key)):
            before, sum_before = found.get(name, (0, 0.0))
            found[name] = before + count, sum_before + total
    return found


def _entries(rows: list[tuple[str, int, float, str]], *, by_sum: bool = False) -> list[Entry]:
    bars = [max(mean, 0.0) * (n if by_sum else 1) for _, n, mean, _ in rows]
    top = max(bars, default=0.0) or 1.0
    return [Entry(label, n, mean, bar / top, more) for (label, n, mean, more), bar in zip(rows, bars, strict=True)]


def _range(edges: list[float], i: int) -> str:
    """Places counted from 1, as people do: "1", "5-6", "385 on"."""
    first = int(edges[i]) + 1
    if i + 1 == len(edges):
        return str(first) if first <= 4 else f"{first} on"
    last = int(edges[i + 1])
    return str(first) if first >= last else f"{first}\N{EN DASH}{last}"


def _visible(token: str) -> str:
    return str(token).replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "(empty)"


def _pairs(value: Any) -> list[tuple[float, int]]:
    rows = value if isinstance(value, list) else []
    return [
        (r[0], r[1]) for r in rows if isinstance(r, list) and len(r) == 2 and _is_number(r[0]) and type(r[1]) is int
    ]


def _triples(value: Any) -> list[tuple[Any, int, float]]:
    rows = value if isinstance(value, list) else []
    return [
        (r[0], r[1], r[2])
        for r in rows
        if isinstance(r, list) and len(r) == 3 and _is_count(r[1]) and _is_number(r[2]) and not isinstance(r[0], list)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
