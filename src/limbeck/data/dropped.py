"""What happened to the rows of a data set: how they were read, and which were left out, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from limbeck.errors import DataError

SHOWN = 3  # origins named for each reason


@dataclass
class Tally:
    """How many rows, the first few of them by origin, and what to do about it."""

    count: int = 0
    origins: list[str] = field(default_factory=list)
    fix: str = ""

    def add(self, count: int, origins: Iterable[str], fix: str) -> None:
        self.count += count
        self.origins = [*self.origins, *origins][:SHOWN]
        self.fix = self.fix or fix


@dataclass
class Dropped:
    """Rows that were left out, by reason; rows that were kept but cut; remarks about whole data sets.

    `str()` is what the user reads, empty when there is nothing to say:
    "3 rows dropped: 2 empty response (a.jsonl:4, a.jsonl:9), 1 longer than max_length 128 (b.jsonl:2)".
    """

    reasons: dict[str, Tally] = field(default_factory=dict)
    cuts: dict[str, Tally] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)  # "data set: format" -> rows that were read so
    seen: set[str] = field(default_factory=set)  # columns to rename, and preprocessors, that were there

    def add(self, reason: str, origin: str, fix: str = "") -> None:
        self.reasons.setdefault(reason, Tally()).add(1, [origin], fix)

    def cut(self, reason: str, origin: str) -> None:
        """Count a row that was kept, but shortened."""
        self.cuts.setdefault(reason, Tally()).add(1, [origin], "")

    def merge(self, other: Dropped) -> Dropped:
        """Add the other's counts to this one; returns this one."""
        for mine, theirs in ((self.reasons, other.reasons), (self.cuts, other.cuts)):
            for reason, tally in theirs.items():
                mine.setdefault(reason, Tally()).add(tally.count, tally.origins, tally.fix)
        self.notes += other.notes
        self.seen |= other.seen
        for kind, rows in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + rows
        return self

    @property
    def total(self) -> int:
        """Rows dropped (not those that were only cut)."""
        return sum(tally.count for tally in self.reasons.values())

    def error(self, what: str) -> DataError:
        """The error for a data set of which nothing is left: the counts, and the fix of the commonest reason."""
        commonest = max(self.reasons.values(), key=lambda tally: tally.count, default=Tally())
        return DataError(
            what, where=_sentence(self.reasons, "dropped"), fix=commonest.fix or "mend or replace these rows"
        )

    def __str__(self) -> str:
        parts = [_sentence(self.reasons, "dropped"), _sentence(self.cuts, "cut"), *self.notes]
        return "; ".join(part for part in parts if part)


def _sentence(reasons: dict[str, Tally], verb: str) -> str:
    if not reasons:
        return ""
    total = sum(tally.count for tally in reasons.values())
    ordered = sorted(reasons.items(), key=lambda item: -item[1].count)
    listed = ", ".join(
        f"{tally.count} {reason} ({', '.join(tally.origins)}{', ...' if tally.count > len(tally.origins) else ''})"
        for reason, tally in ordered
    )
    return f"{total} row{'s' if total != 1 else ''} {verb}: {listed}"
