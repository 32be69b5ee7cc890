"""Files, folders and hub ids -> examples, with every row that could not be read counted and named."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from limbeck.data.formats import Example, RowError, to_example
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


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one data set, read one at a time: get(i) may raise RowError for a line that is no row at all."""

    tag: str
    size: int
    get: Callable[[int], Any]
    origin: Callable[[int], str]


def load_examples(
    specs: Sequence[str],
    *,
    seed: int,
    shuffle: bool = False,
    system: str | None = None,
    strict: bool = False,
) -> tuple[list[Example], Dropped]:
    """Read data sets in the order given: paths (.jsonl, .json, .csv, .parquet, folders) and hub ids, each perhaps `#N`.

    `spec#N` takes N rows, drawn without replacement by (seed, data set), in the order of the file; rows that cannot
    be read are passed over and counted. shuffle mixes all rows by seed. system: the system prompt of rows without one.
    strict raises the first row's error where rows are otherwise dropped and counted (`--truncation_strategy raise`).
    Raises DataError for a data set that is missing, empty, or of which no row is left.
    """
    examples: list[Example] = []
    dropped = Dropped()
    for spec in specs:
        name, wanted = _wanted(spec)
        examples += _read(_open(name), name, wanted, seed=seed, system=system, strict=strict, dropped=dropped)
    if shuffle:
        random.Random(seed).shuffle(examples)
    return examples, dropped


def _read(
    source: Source, name: str, wanted: int | None, *, seed: int, system: str | None, strict: bool, dropped: Dropped
) -> list[Example]:
    """The source's examples in its own order: all, or the first `wanted` readable ones of a seeded permutation."""
    if source.size == 0:
        raise DataError(f"{name} holds no rows", where=f"data set {name}", fix="give a data set with at least one row")
    order = list(range(source.size))
    if wanted is not None and wanted < source.size:
        # seeded by name, not by position, so that another data set beside it changes nothing here
        random.Random(f"{seed}:{source.tag}").shuffle(order)
    found: dict[int, Example] = {}
    here = Dropped()
    for index in order:
        if wanted is not None and len(found) == wanted:
            break
        origin = source.origin(index)
        try:
            found[index] = to_example(source.get(index), origin=origin, tag=source.tag, system=system)
        except RowError as error:
            if strict:
                raise
            here.add(error.what, origin, error.fix)
    if not found:
        raise here.error(f"no row of {name} can be used")
    if wanted is not None and len(found) < wanted:
        here.notes.append(f"{name}#{wanted} has {len(found)} usable rows: all taken")
    dropped.merge(here)
    return [found[index] for index in sorted(found)]


# ---------------------------------------------------------------- names


def _wanted(spec: str) -> tuple[str, int | None]:
    """ "path#N" -> (path, N). A file that really has a # in its name is taken as it is."""
    name, mark, number = spec.rpartition("#")
    if not mark or Path(spec).expanduser().exists():
        return spec, None
    if not number.isdecimal() or int(number) == 0 or not name:
        raise DataError(
            f"cannot read the number of rows in {spec!r}",
            where=f"data set {spec}",
            fix="write NAME#N with N at least 1, such as train.jsonl#500",
        )
    return name, int(number)


_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<subset>[\w.+-]+))?")


def _open(name: str) -> Source:
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, name)
    if path.is_file():
        return _file(path, name)
    hub = _HUB_ID.fullmatch(name)
    if hub and path.suffix.lower() not in READERS:
        return _hub(hub["id"], hub["subset"], name)
    fix = "give a path that exists, or a hub id org/name"
    raise DataError(f"no file {name}", where=f"data set {name}{_near(path)}", fix=fix)


def _near(path: Path) -> str:
    """Files and folders beside the missing one whose names look like it."""
    parent = path.parent
    if not parent.is_dir():
        return f" (there is no folder {parent} either)"
    names = [entry.name for entry in parent.iterdir() if entry.is_dir() or entry.suffix.lower() in READERS]
    close = get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f" (near: {', '.join(str(parent / near) for near in close)})" if close else ""


# ---------------------------------------------------------------- files


def _file(path: Path, name: str) -> Source:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"cannot read files of type {path.suffix or '(none)'}",
            where=f"data set {name}",
            fix=f"convert it to one of {', '.join(READERS)}",
        )
    return reader(path, name)


def _folder(path: Path, name: str) -> Source:
    """A folder as one data set: its readable files by name; without any, whatever `datasets` makes of it."""
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved(path, name)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS)
    if not files:
        return _datasets(name, path.name, name, lambda d: d.load_dataset(str(path), split="train"))
    parts = [_file(file, str(Path(name) / file.name)) for file in files]
    rows = [(part, index) for part in parts for index in range(part.size)]
    return Source(
        path.name,
        len(rows),
        lambda at: rows[at][0].get(rows[at][1]),
        lambda at: rows[at][0].origin(rows[at][1]),
    )


def _jsonl(path: Path, name: str) -> Source:
    # by bytes: str.splitlines would also cut at U+2028 inside a string
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), start=1) if line.strip()]

    def get(index: int) -> Any:
        number, line = lines[index]
        try:
            return json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise RowError(
                "not UTF-8", where=f"{name}:{number}  {error.reason}", fix="save the file as UTF-8"
            ) from None
        except (ValueError, RecursionError) as error:
            fault = f"{name}:{number}  {getattr(error, 'msg', error)} at column {getattr(error, 'colno', 1)}"
            raise RowError("not JSON", where=fault, fix="write one JSON object a line") from None

    return Source(path.stem, len(lines), get, lambda index: f"{name}:{lines[index][0]}")


def _json(path: Path, name: str) -> Source:
    """An array of rows (counted from 1), or JSON lines under another name."""
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not raw.lstrip().startswith(b"["):
        return _jsonl(path, name)
    try:
        rows = json.loads(raw)
    except ValueError as error:
        raise DataError(f"{name} is not JSON", where=f"{name}: {error}", fix="write an array of objects") from None
    return Source(path.stem, len(rows), rows.__getitem__, lambda index: f"{name}:{index + 1}")


def _csv(path: Path, name: str) -> Source:
    """Cells are text, and an empty cell is an absent one. Rows are named by the line on which they end."""
    csv.field_size_limit(1 << 30)
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
        for row in reader:
            rows.append((reader.line_num, row))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name} is not CSV", where=f"{name}: {error}", fix="save it as CSV in UTF-8") from None

    def get(index: int) -> Any:
        number, row = rows[index]
        if None in row:
            fix = "put quotes around cells with commas"
            raise RowError("more cells than the header has", where=f"{name}:{number}", fix=fix)
        return {key: cell or None for key, cell in row.items()}

    return Source(path.stem, len(rows), get, lambda index: f"{name}:{rows[index][0]}")


def _parquet(path: Path, name: str) -> Source:
    return _datasets(name, path.stem, name, lambda d: d.load_dataset("parquet", data_files=str(path), split="train"))


READERS: dict[str, Callable[[Path, str], Source]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


# ---------------------------------------------------------------- through `datasets`


def _hub(hub_id: str, subset: str | None, name: str) -> Source:
    origin = f"{hub_id}{f':{subset}' if subset else ''}[train]"
    return _datasets(name, hub_id, origin, lambda d: d.load_dataset(hub_id, subset, split="train"))


def _saved(path: Path, name: str) -> Source:
    def load(datasets: Any) -> Any:
        saved = datasets.load_from_disk(str(path))
        return saved["train"] if isinstance(saved, dict) else saved

    return _datasets(name, path.name, name, load)


def _datasets(name: str, tag: str, origin: str, load: Callable[[Any], Any]) -> Source:
    import datasets  # seconds to import, and most runs read JSONL

    try:
        rows = load(datasets)
    except Exception as error:  # whatever the hub, the network, the cache or Arrow has to say
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        near = _near(Path(name).expanduser())
        raise DataError(
            f"cannot load the data set {name}",
            where=f"{type(error).__name__}: {said[:200]}{near if near.startswith(' (near') else ''}",
            fix="check the name (a path, org/name or org/name:subset, with a train split), the network and your login",
        ) from error
    return Source(tag, len(rows), rows.__getitem__, lambda index: f"{origin}:{index + 1}")
