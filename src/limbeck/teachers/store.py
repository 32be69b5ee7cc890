"""What a teacher has said, kept in a folder: over all epochs, restarts and students no row is asked about twice.

store.json   format, the teacher's name and identity, the tokenizer's fingerprint, how many ids count
*.seg        records (`limbeck.teachers.segments`); every process that writes appends to a file of its own
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from limbeck.errors import ConfigError, TeacherError
from limbeck.signal import Ask, Sample, Signal, TopK
from limbeck.teachers.base import Answers, Named, Teacher
from limbeck.teachers.segments import KINDS, SIZE, Segment, decode, encode, record
from limbeck.teachers.wire import WireError

FORMAT = 2
ABOUT = "store.json"


@dataclass
class StoredTeacher(Teacher):
    """Answers from `folder` what stands there, and asks `inner` for the rest, in the grouping that was given.

    What is asked for is written and then answered from its own bytes, so that the first epoch and a later one learn
    from the same numbers, bit for bit. A row that `inner` refuses is not stored. Signals are on the CPU.

    tokenizer: its fingerprint. valid: how many ids it has.
    Raises ConfigError for a teacher or an ask that cannot be stored, and for a folder of another teacher or tokenizer;
    `score` raises TeacherError where the folder cannot be written.
    """

    inner: Teacher
    ask: Ask
    folder: Path
    tokenizer: str = field(kw_only=True)
    valid: int = field(kw_only=True)

    def __post_init__(self) -> None:
        ask, self.name, self.identity = self.ask, self.inner.name, self.inner.identity
        _check(self.inner, ask, self.valid)
        open_folder(self.folder, About(FORMAT, self.name, self.identity, self.tokenizer, self.valid))
        self.store = Store(self.folder, self.valid)
        self.asked = blake2b(f"{self.identity} {ask.kind} {ask.k} {ask.temperature!r} ".encode(), digest_size=16)
        self.expected: set[bytes] = set()  # what the inner teacher is at work on, and must be collected from it
        self.hits = self.misses = 0

    def score(self, batches: Sequence[Sequence[Sample]], named: Named | None = None) -> Answers:
        self.store.refresh()
        keys = [
            [self.key(sample, None if named is None else named[b][i]) for i, sample in enumerate(batch)]
            for b, batch in enumerate(batches)
        ]
        known: dict[bytes, Signal | None] = {}
        missing: list[list[int]] = [[] for _ in batches]
        for own, row in zip(missing, keys, strict=True):
            for i, key in enumerate(row):
                if key not in known:  # a row that stands there twice is asked about once
                    known[key] = None if key in self.expected else self.store.get(key)
                    own += [i] if known[key] is None else []
        for b, i, signal in self._ask(batches, named, missing):
            known[keys[b][i]] = self.store.put(keys[b][i], self.ask, signal)
        self.store.flush()
        self.expected.difference_update(known)
        misses = sum(map(len, missing))
        self.misses += misses
        self.hits += sum(map(len, keys)) - misses
        return [[known[key] for key in row] for row in keys]

    def _ask(
        self, batches: Sequence[Sequence[Sample]], named: Named | None, missing: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, TopK]]:
        """What the inner teacher says of the missing rows, with batch and place of each."""
        asked = [b for b, own in enumerate(missing) if own]
        if not asked:
            return
        samples = [[batches[b][i] for i in missing[b]] for b in asked]
        ids = None if named is None else [[named[b][i] for i in missing[b]] for b in asked]
        for b, signals in zip(asked, self.inner.score(samples, ids), strict=True):
            for i, signal in zip(missing[b], signals, strict=True):
                if signal is not None:
                    assert isinstance(signal, TopK)
                    yield b, i, signal

    def key(self, sample: Sample, named: Tensor | None = None) -> bytes:
        """A hash of all that an answer depends on: the teacher, what it is asked for, the ids, the places of the active
        tokens, the ids that are named."""
        tokens = sample.told
        ids = array("i", tokens.prompt_ids + tokens.response_ids)
        digest = self.asked.copy()
        digest.update(f"{self.inner.who(sample)!r} {len(ids)} ".encode())
        digest.update(ids)
        digest.update(bytes(len(tokens.prompt_ids)) + bytes(tokens.response_mask))
        if named is not None:
            digest.update(array("i", named.reshape(-1).tolist()))
        return digest.digest()

    def privileged_kl(self, sample: Sample) -> Tensor | None:
        return self.inner.privileged_kl(sample)

    def expect(self, samples: Sequence[Sample]) -> None:
        """Passes on what the store has not. Ids that the student names are not known yet."""
        if self.ask.names:
            return
        self.store.refresh()
        missing: list[Sample] = []
        for sample in samples:
            key = self.key(sample)
            if key not in self.store.index and key not in self.expected:
                self.expected.add(key)
                missing.append(sample)
        if missing:
            self.inner.expect(missing)

    def counts(self) -> dict[str, float]:
        own = {"teacher/store_hits": float(self.hits), "teacher/store_misses": float(self.misses)}
        if self.store.damaged:
            own["teacher/store_damaged"] = float(self.store.damaged)
        self.hits = self.misses = self.store.damaged = 0
        return own | self.inner.counts()

    def who(self, sample: Sample) -> str:
        return self.inner.who(sample)

    def follow(self) -> None:
        self.inner.follow()

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.inner.restore(state)

    def close(self) -> None:
        self.store.close()
        self.inner.close()


class Store:
    """The records of a folder by key. A process writes a file of its own and reads all files. Of several records with
    one key the first that was seen counts; the others are there should it be damaged."""

    def __init__(self, folder: Path, valid: int) -> None:
        self.folder, self.valid = folder, valid
        self.segments: dict[str, Segment] = {}
        self.index: dict[bytes, tuple[Segment, int]] = {}
        self.spare: dict[bytes, list[tuple[Segment, int]]] = {}
        self.damaged = 0  # records whose payload could not be read
        self.out: BinaryIO | None = None
        self.refresh()

    def refresh(self) -> None:
        """Reads the headers of what has been written since, here or by other processes."""
        for path in sorted(self.folder.glob("*.seg")):
            segment = self.segments.setdefault(path.name, Segment(path))
            with suppress(FileNotFoundError):  # removed while we run
                for at, header in segment.new():
                    place = self.index.setdefault(header.key, (segment, at))
                    if place != (segment, at):
                        self.spare.setdefault(header.key, []).append((segment, at))

    def get(self, key: bytes) -> TopK | None:
        """The signal; None where there is none that can be read."""
        while (place := self.index.get(key)) is not None:
            segment, at = place
            if (found := segment.payload(at)) is not None:
                with suppress(zlib.error, WireError):
                    return decode(*found, self.valid)
            self.damaged += 1
            if others := self.spare.get(key):
                self.index[key] = others.pop(0)
            else:
                del self.index[key]
        return None

    def put(self, key: bytes, ask: Ask, signal: TopK) -> TopK:
        """Appends a record and returns what `get` will give, once it has been flushed."""
        header, payload = encode(key, ask, signal)
        with _writing(self.folder):
            if self.out is None:
                self.out = (self.folder / f"{secrets.token_hex(8)}.seg").open("xb")
            self.out.write(record(header, payload))
        return decode(header, payload, self.valid)

    def flush(self) -> None:
        """From here on a kill of the process loses nothing; what a power failure spoils, the CRCs find."""
        if self.out is not None:
            with _writing(self.folder):
                self.out.flush()

    def close(self) -> None:
        if self.out is not None:
            with suppress(OSError):  # whatever matters was flushed
                self.out.close()
        self.out = None


@dataclass(frozen=True, slots=True)
class About:
    """Whose answers a folder holds: `store.json`."""

    format: int
    name: str
    teacher: str
    tokenizer: str
    valid: int


def open_folder(folder: Path, mine: About) -> None:
    """Makes the folder, or sees that it is one of this teacher and tokenizer. Raises ConfigError."""
    where, path = f"--teacher_cache {folder}", folder / ABOUT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
        if not path.exists():
            if foreign:
                raise ConfigError(
                    f"{folder} is no store: it holds other files", where=where, fix="name a new or an empty folder"
                )
            _publish(path, json.dumps(asdict(mine), indent=1) + "\n")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"the store cannot be opened: {reason}", where=where, fix="name a folder that can be written"
        ) from error
    theirs = read_about(folder)
    if theirs.teacher != mine.teacher:
        what = f"{theirs.name} ({theirs.teacher[:8]}), and the teacher is {mine.name} ({mine.teacher[:8]})"
    elif (theirs.tokenizer, theirs.valid) != (mine.tokenizer, mine.valid):
        what = (
            f"the tokenizer {theirs.tokenizer[:8]} of {theirs.valid:,} ids, and this run's is {mine.tokenizer[:8]} of "
            f"{mine.valid:,}"
        )
    else:
        return
    fix = "name another folder, or remove this one and ask again"
    if theirs.name == mine.name and theirs.teacher != mine.teacher:
        fix += "; its weights are others, or of another type (--teacher_torch_dtype)"
    raise ConfigError(f"the store holds what was said by {what}", where=where, fix=fix)


def read_about(folder: Path) -> About:
    """Whose answers a folder holds. Raises ConfigError for a folder that is no store, or of another format."""
    fix = "name a folder that `limbeck data score` or --teacher_cache has made"
    try:
        about = About(**json.loads((folder / ABOUT).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder} is no store: {ABOUT} cannot be read", where=str(folder), fix=fix) from error
    if about.format != FORMAT:
        raise ConfigError(
            f"the store is of format {about.format}, and this Limbeck reads {FORMAT}",
            where=str(folder / ABOUT),
            fix="name another folder, or use the Limbeck that has made it",
        )
    return about


@dataclass(slots=True)
class Tally:
    """rows: different ones. bytes: of their records, headers and all."""

    rows: int = 0
    tokens: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Survey:
    """groups: by (kind, ids a token, temperature). duplicates: records of a row that another one holds already.
    damaged: records that cannot be read. cut: segments that end in the middle of one. bytes: of all segments."""

    about: About
    segments: int
    groups: dict[tuple[str, int, float], Tally]
    duplicates: int
    damaged: int
    cut: int
    bytes: int


def survey(folder: Path, *, check: bool = True) -> Survey:
    """What a store holds, by its headers; check: read the payloads too, and count those that are damaged.

    Raises ConfigError for a folder that is no store.
    """
    found = Survey(read_about(folder), 0, {}, 0, 0, 0, 0)
    seen: set[bytes] = set()
    for path in sorted(folder.glob("*.seg")):
        segment = Segment(path)
        for at, header in segment.new():
            if check and segment.payload(at) is None:
                found.damaged += 1
            elif header.key in seen:
                found.duplicates += 1
            else:
                seen.add(header.key)
                group = (KINDS[header.kind], header.columns, header.temperature)
                tally = found.groups.setdefault(group, Tally())
                tally.rows += 1
                tally.tokens += header.tokens
                tally.bytes += SIZE + header.length
        found.segments += 1
        found.damaged += segment.broken
        found.cut += segment.cut
        found.bytes += path.stat().st_size
    return found


def _check(inner: Teacher, ask: Ask, valid: int) -> None:
    """Raises ConfigError for what cannot be stored."""
    if inner.moves:
        raise ConfigError(
            f"the teacher {inner.name} moves with the student, so what it has said is no use later",
            where="--teacher_cache",
            fix="leave it out, or take a teacher that stays: --teacher_model, or --teacher_source base",
        )
    if ask.kind == "hidden":
        raise ConfigError(
            f"the store keeps the likeliest ids: all {valid:,} of the vocabulary would be {2 * valid:,} bytes a token",
            where="--teacher_cache",
            fix="add --gkd_logits_topk 64 (less than 300 bytes a token), or leave --teacher_cache out",
        )


def _publish(path: Path, text: str) -> None:
    """Writes a file whole or not at all; of several processes the first one wins."""
    draft = path.with_name(f".{secrets.token_hex(8)}")
    draft.write_text(text)
    with suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TeacherError(
            f"the store cannot be written: {error.strerror or error}",
            where=f"--teacher_cache {folder}",
            fix="make room there, or go on with another folder",
        ) from error
