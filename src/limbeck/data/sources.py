"""Files, folders and hub ids -> examples, with every row that could not be read counted and named."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any

from limbeck.data.dropped import Dropped
from limbeck.data.formats import Example, rename_columns, to_example
from limbeck.data.preprocess import preprocess, preprocessor_of, registered
from limbeck.data.turns import RowError
from limbeck.errors import DataError


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one data set, read one at a time: get(i) may raise RowError for a line that is no row at all.

    size: None where the rows come one after another; get(i) is then called in order, and raises IndexError at the end.
    notes: what of the data set is not read.
    """

    tag: str
    size: int | None
    get: Callable[[int], Any]
    origin: Callable[[int], str]
    notes: tuple[str, ...] = ()


def load_examples(
    specs: Sequence[str],
    *,
    seed: int,
    shuffle: bool = False,
    system: str | None = None,
    strict: bool = False,
    columns: Mapping[str, str] | None = None,
    streaming: bool = False,
) -> tuple[list[Example], Dropped]:
    """Read data sets in the order given: paths (.jsonl, .json, .csv, .parquet, folders) and hub ids, each perhaps `#N`.

    `spec#N` takes N rows, drawn without replacement by (seed, data set), in the order of the file; rows that cannot
    be read are passed over and counted. streaming: its first N instead, and nothing after them is read or downloaded.
    shuffle mixes all rows by seed. system: the system prompt of rows without one. columns renames columns (old -> new).
    strict raises the first row's error where rows are otherwise dropped and counted (`--truncation_strategy raise`).
    Raises DataError for a data set that is missing, empty, or of which no row is left.
    """
    examples: list[Example] = []
    dropped = Dropped()
    reading = _Reading(seed, system, strict, columns or {}, streaming)
    for spec in specs:
        name, wanted = _wanted(spec)
        if streaming and wanted is None and not Path(name).expanduser().exists():
            fix = f"write {name}#10000, or leave --streaming out"
            raise DataError("--streaming needs to know how many rows to take", where=f"data set {name}", fix=fix)
        source = _open(name, stream=streaming and wanted is not None)
        examples += _read(source, name, wanted, reading, dropped)
    if shuffle:
        random.Random(seed).shuffle(examples)
    return examples, dropped


def check_names(columns: Mapping[str, str], *read: Dropped) -> list[str]:
    """What to say of preprocessors that no data set went by. Raises DataError for a column to rename that no row has.

    read: the counts of all data sets of the run together.
    """
    seen = {name for dropped in read for name in dropped.seen}
    if absent := [name for name in columns if name not in seen]:
        raise DataError(
            f"no row has the column {', '.join(absent)}",
            where=f"--columns {json.dumps(dict(columns))}",
            fix='write it as \'{"name in the file": "name here"}\', or leave it out',
        )
    return [
        f"no data set is called {name!r}: its preprocessor has nothing to do" for name in registered if name not in seen
    ]


@dataclass(frozen=True, slots=True)
class _Reading:
    seed: int
    system: str | None
    strict: bool
    columns: Mapping[str, str]
    streaming: bool


def _read(source: Source, name: str, wanted: int | None, how: _Reading, dropped: Dropped) -> list[Example]:
    """The source's examples in its own order: all, the first `wanted` readable ones of a seeded permutation, or with
    --streaming of the file."""
    if source.size == 0:
        raise DataError(f"{name} holds no rows", where=f"data set {name}", fix="give a data set with at least one row")
    order: Iterable[int] = count() if source.size is None else list(range(source.size))
    if wanted is not None and isinstance(order, list) and wanted < len(order) and not how.streaming:
        # seeded by name, not by position, so that another data set beside it changes nothing here
        random.Random(f"{how.seed}:{source.tag}").shuffle(order)
    found: dict[int, Example] = {}
    here = Dropped(notes=list(source.notes))
    own = preprocessor_of(name, source.tag)
    for index in order:
        if wanted is not None and len(found) == wanted:
            break
        try:
            row = source.get(index)
            origin = source.origin(index)  # a stream knows where a row stands when it has it
            here.seen |= how.columns.keys() & (row if isinstance(row, dict) else {}).keys()
            row = rename_columns(row, how.columns, origin)
            if own is not None and (row := preprocess(own, row, origin)) is None:
                here.add(f"left out by the preprocessor of {own}", origin, "mend the preprocessor")
                continue
            found[index] = to_example(row, origin=origin, tag=source.tag, system=how.system)
        except IndexError:
            if source.size is not None:
                raise
            break
        except RowError as error:
            if how.strict:
                raise
            here.add(error.what, source.origin(index), error.fix)
    if not found:
        raise here.error(f"no row of {name} can be used")
    if wanted is not None and len(found) < wanted:
        here.notes.append(f"{name}#{wanted} has {len(found)} usable rows: all taken")
    after = f", after the preprocessor of {own}" if own else ""
    here.seen |= {own} if own else set()
    here.kinds = dict(Counter(f"{name}: {example.kind}{after}" for example in found.values()))
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


def _open(name: str, *, stream: bool = False) -> Source:
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, name)
    if path.is_file():
        return _lines(path, name) if stream and path.suffix.lower() == ".jsonl" else _file(path, name)
    hub = _HUB_ID.fullmatch(name)
    if hub and path.suffix.lower() not in READERS:
        return _hub(hub["id"], hub["subset"], name, stream=stream)
    fix = "give a path that exists, or a hub id org/name"
    if name.startswith(("http://", "https://")):
        fix = "download it and give its path, or write a hub id as org/name"
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
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.suffix.lower() in READERS and entry.is_file()]
    if not files:
        return _datasets(name, path.name, name, lambda d: d.load_dataset(str(path), split="train"))
    parts = [_file(file, str(Path(name) / file.name)) for file in files]
    rows = [(part, index) for part in parts for index in range(part.size or 0)]
    return Source(
        path.name,
        len(rows),
        lambda at: rows[at][0].get(rows[at][1]),
        lambda at: rows[at][0].origin(rows[at][1]),
        _not_read(name, [entry.name for entry in entries if entry not in files]),
    )


def _not_read(name: str, others: list[str]) -> tuple[str, ...]:
    if not others:
        return ()
    named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return (f"{name} also holds {len(others)} entries that are not read as rows ({named})",)


def _jsonl(path: Path, name: str) -> Source:
    # by bytes: str.splitlines would also cut at U+2028 inside a string
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), start=1) if line.strip()]

    return Source(
        path.stem, len(lines), lambda index: _decoded(name, *lines[index]), lambda index: f"{name}:{lines[index][0]}"
    )


def _lines(path: Path, name: str) -> Source:
    """JSON lines, one after another: nothing behind the last one that is asked for is read. Rows are named by line."""
    read: list[int] = []  # line numbers of the rows so far

    def rows() -> Iterator[Any]:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    read.append(number)
                    yield number, line

    lines = rows()

    def get(index: int) -> Any:
        found = next(lines, None)
        if found is None:
            raise IndexError(index)
        return _decoded(name, *found)

    return Source(path.stem, None, get, lambda index: f"{name}:{read[index] if index < len(read) else index + 1}")


def _decoded(name: str, number: int, line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RowError("not UTF-8", where=f"{name}:{number}  {error.reason}", fix="save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        fault = f"{name}:{number}  {getattr(error, 'msg', error)} at column {getattr(error, 'colno', 1)}"
        raise RowError("not JSON", where=fault, fix="write one JSON object a line") from None


def _json(path: Path, name: str) -> Source:
    """An array of rows (counted from 1), or JSON lines under another name."""
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not raw.lstrip().startswith(b"["):
        return _jsonl(path, name)
    try:
        rows = json.loads(raw)
    except UnicodeDecodeError as error:
        fix = "save the file as UTF-8"
        raise DataError(f"{name} is not UTF-8", where=f"{name}: {error}", fix=fix) from None
    except (ValueError, RecursionError) as error:
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


def _hub(hub_id: str, subset: str | None, name: str, *, stream: bool) -> Source:
    origin = f"{hub_id}{f':{subset}' if subset else ''}[train]"
    return _datasets(name, hub_id, origin, lambda d: d.load_dataset(hub_id, subset, split="train", streaming=stream))


def _saved(path: Path, name: str) -> Source:
    def load(datasets: Any) -> Any:
        saved = datasets.load_from_disk(str(path))
        return saved["train"] if isinstance(saved, dict) else saved

    source, about = _datasets(name, path.name, name, load), path / "dataset_dict.json"
    splits: list[str] = json.loads(about.read_text())["splits"] if about.is_file() else []
    others = ", ".join(split for split in splits if split != "train")
    return replace(source, notes=(f"{name}: the split train is read, and not {others}",) if others else ())


def _datasets(name: str, tag: str, origin: str, load: Callable[[Any], Any]) -> Source:
    import datasets  # seconds to import, and most runs read JSONL

    try:
        rows = load(datasets)
    except Exception as error:  # whatever the hub, the network, the cache or Arrow has to say
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        here = Path(name).expanduser().exists()
        near = "" if here else _near(Path(name).expanduser())
        fault = f"{f'{name}: ' if here else ''}{type(error).__name__}: {said[:200]}"
        raise DataError(
            f"cannot load the data set {name}",
            where=fault + (near if near.startswith(" (near") else ""),
            fix=f"write it again, or give rows as {', '.join(READERS)}"
            if here
            else "check the name (a path, org/name or org/name:subset, with a train split), the network and your login",
        ) from error
    if not hasattr(rows, "__len__"):
        return _stream(iter(rows), tag, origin)
    return Source(tag, len(rows), rows.__getitem__, lambda index: f"{origin}:{index + 1}")


def _stream(rows: Iterator[Any], tag: str, origin: str) -> Source:
    end = object()

    def get(index: int) -> Any:
        row = next(rows, end)
        if row is end:
            raise IndexError(index)
        return row

    return Source(tag, None, get, lambda index: f"{origin}:{index + 1}")
