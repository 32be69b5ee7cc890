"""A teacher behind an address: a server of Limbeck's own, or a stock vLLM server."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.losses import Head
from limbeck.signal import Ask, Hidden, Sample, Signal, TopK
from limbeck.teachers import vllm, wire
from limbeck.teachers.base import Answers, Named, Teacher
from limbeck.teachers.connection import Connection, Denied, Refused
from limbeck.teachers.discovery import ServerInfo, check_server, discover
from limbeck.teachers.threads import Threads

__all__ = ["ServerInfo", "ServerTeacher", "check_server", "discover"]

TOKENS = 8192  # of the sequences in one request, at most (one sequence may have more)
MASS = 1e-2  # how far probabilities may be from adding up to 1


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """A sample and what is asked about it. named: ids [N, K]."""

    sample: Sample
    named: Tensor | None

    @property
    def ids(self) -> tuple[int, ...]:
        return self.sample.told.prompt_ids + self.sample.told.response_ids

    @property
    def places(self) -> list[int]:
        start = len(self.sample.told.prompt_ids)
        return [start + i for i, on in enumerate(self.sample.told.response_mask) if on]


Outcome = Signal | Refused


class ServerTeacher(Teacher):
    """Asks the server that `discover` found, in requests of several sequences and several requests at a time.

    valid: number of the tokenizer's ids. bits: of a log-probability on the wire of Limbeck's own server, 16 or 32.
    key, timeout, patience, concurrency: see `Connection`. A row that the server refuses is None in the answer.
    Each process has its own: nothing is shared over a fork.
    """

    def __init__(
        self,
        info: ServerInfo,
        ask: Ask,
        valid: int,
        *,
        bits: int = 32,
        key: str | None = None,
        timeout: float = 60.0,
        patience: float = 600.0,
        concurrency: int = 8,
        seqs_per_request: int = 4,
        say: Callable[[str], None] = print,
    ) -> None:
        self.info, self.ask, self.valid, self.bits, self._say = info, ask, valid, bits, say
        self.name, self.identity = info.url, info.identity
        self._seqs = seqs_per_request
        self._connection = Connection(
            info.url, key=key, timeout=timeout, patience=patience, concurrency=concurrency, say=say
        )
        self._threads = Threads(concurrency)
        self._asked: dict[int, tuple[_Item, Future[list[Outcome]], int]] = {}
        # on the wire the sampled tokens are named ids
        self._wire_ask = Ask("named", 0, ask.temperature, named_k=1) if ask.kind == "sampled" else ask
        self._head: Head | None = None
        self._head_lock = threading.Lock()
        self._refused, self._refusals_told = 0, set[str]()

    def expect(self, samples: Sequence[Sample]) -> None:
        """Asks now, in the background. Where the student names ids, that has to wait for them."""
        if not self.ask.names:
            self._start([self._item(s) for s in samples if id(s) not in self._asked])

    def score(self, batches: Sequence[Sequence[Sample]], named: Named | None = None) -> Answers:
        """Raises TeacherError where the server stays away, answers for other tokens than were sent, or lets nobody
        in. What `expect` has asked is not asked again."""
        items = [
            self._item(sample, None if named is None else named[b][i].cpu())
            for b, batch in enumerate(batches)
            for i, sample in enumerate(batch)
        ]
        new = {id(item.sample): item for item in items if id(item.sample) not in self._asked}
        try:
            self._start(list(new.values()))
            outcomes = [self._result(item.sample) for item in items]
        except BaseException:  # an interrupt too: nobody will collect the rest
            self._connection.interrupt()
            self._forget()
            raise
        for item in items:
            self._asked.pop(id(item.sample), None)
        self._tell_refused(items, outcomes)
        rest = iter(outcomes)
        return [[None if isinstance(o := next(rest), Refused) else o for _ in batch] for batch in batches]

    def counts(self) -> dict[str, float]:
        counts = {f"teacher/{name}": value for name, value in self._connection.counts().items()}
        counts["teacher/refused"], self._refused = float(self._refused), 0
        return counts

    def close(self) -> None:
        self._forget()
        self._threads.close()
        self._connection.close()

    def _forget(self) -> None:
        for _, future, _ in list(self._asked.values()):
            future.cancel()
        self._asked.clear()

    # Asking

    def _start(self, items: Sequence[_Item]) -> None:
        for item in items:
            if refusal := self._too_long(item):
                known: Future[list[Outcome]] = Future()
                known.set_result([refusal])
                self._asked[id(item.sample)] = (item, known, 0)
        for group in _groups([item for item in items if id(item.sample) not in self._asked], self._seqs):
            future = self._threads.submit(self._outcomes, group)
            for i, item in enumerate(group):
                self._asked[id(item.sample)] = (item, future, i)  # the item keeps the sample, and so its id, alive

    def _too_long(self, item: _Item) -> Refused | None:
        """vLLM needs room for one token more: at least one must be made."""
        room, more = self.info.max_model_len, int(self.info.kind == "vllm")
        if room is None or len(item.ids) + more <= room:
            return None
        return Refused(f"{len(item.ids)} tokens are too long for its {room}" + (", less one to make" if more else ""))

    def _result(self, sample: Sample) -> Outcome:
        _, future, i = self._asked[id(sample)]
        return future.result()[i]

    def _item(self, sample: Sample, named: Tensor | None = None) -> _Item:
        return _Item(sample, _tokens(sample) if self.ask.kind == "sampled" else named)

    def _outcomes(self, group: Sequence[_Item]) -> list[Outcome]:
        """A refusal of several sequences concerns one of them, or their number: halves find out."""
        try:
            return self._ask_vllm(group) if self.info.kind == "vllm" else self._ask_limbeck(group)
        except Refused as refusal:
            if len(group) == 1:
                return [refusal]
            half = len(group) // 2
            return self._outcomes(group[:half]) + self._outcomes(group[half:])
        except Denied as denied:
            raise TeacherError(
                f"the teacher server does not let this run in any more: {denied.reason}",
                where=self.info.url,
                fix="see whether it still serves the same model, and to this key (LIMBECK_TEACHER_API_KEY)",
            ) from denied

    def _ask_vllm(self, group: Sequence[_Item]) -> list[Outcome]:
        sequences, places = [item.ids for item in group], [item.places for item in group]
        try:
            return list(
                self._connection.post(
                    vllm.PATH,
                    vllm.encode(self.info.model, sequences, self.ask.k),
                    lambda body: vllm.decode(body, sequences, places, self._wire_ask, valid=self.valid),
                )
            )
        except vllm.Mismatch as mismatch:
            self._mismatch(group[mismatch.sequence], str(mismatch))

    def _ask_limbeck(self, group: Sequence[_Item]) -> list[Outcome]:
        named = [item.named for item in group if item.named is not None] if self._wire_ask.names else None
        question = wire.Question(self._wire_ask, [i.ids for i in group], [i.places for i in group], named, self.bits)
        counts = [len(item.places) for item in group]
        answer = self._connection.post(
            "/v1/score",
            wire.encode_question(question),
            lambda body: _checked(wire.decode_answer(body, counts, valid=self.valid), self._wire_ask),
            media_type=wire.MEDIA_TYPE,
        )
        if answer.teacher != self.identity:
            raise TeacherError(
                "the server holds another teacher than at the beginning of the run",
                where=f"{self.info.url}, was {self.identity}, is {answer.teacher}",
                fix="serve the first one again",
            )
        outcomes: list[Outcome] = []
        for number, (item, signal, echo) in enumerate(zip(group, answer.signals, answer.echo, strict=True)):
            if signal is None or echo is None:
                outcomes.append(Refused(answer.refused.get(number, "for no reason given")))
                continue
            sent = _tokens(item.sample).squeeze(-1)
            if not echo.equal(sent):
                at = int((echo != sent).nonzero()[0, 0])
                self._mismatch(item, f"position {item.places[at]}: sent {int(sent[at])}, came {int(echo[at])}")
            outcomes.append(signal if isinstance(signal, TopK) else Hidden(signal, self._head_of(answer.head, signal)))
        return outcomes

    def _mismatch(self, item: _Item, place: str) -> NoReturn:
        raise TeacherError(
            "the teacher server answered for other tokens than it was sent",
            where=f"{self.info.url}, row {item.sample.example.origin}, {place}",
            fix="nothing of this answer was used; look for a proxy that mixes up answers, or a server that changes "
            "prompts (truncation, an added first token)",
        )

    def _head_of(self, digest: str, hidden: Tensor) -> Head:
        """The head that goes with the hidden states, fetched once."""
        with self._head_lock:
            if self._head is None:
                self._head = self._connection.get("/v1/head", lambda body: read_head(body, digest, self.valid))
        if self._head.weight.shape[1] != hidden.shape[1]:
            raise TeacherError(
                f"the server's hidden states have {hidden.shape[1]} numbers, its head takes "
                f"{self._head.weight.shape[1]}",
                where=self.info.url,
            )
        return self._head

    # Refusals

    def _tell_refused(self, items: Sequence[_Item], outcomes: Sequence[Outcome]) -> None:
        """Each kind of reason once, with the first row that it hit; loudly where no row is left."""
        refused = [(item, str(o)) for item, o in zip(items, outcomes, strict=True) if isinstance(o, Refused)]
        self._refused += len(refused)
        kinds = {re.sub(r"\d+", "#", reason) for _, reason in refused}
        for item, reason in refused:
            kind = re.sub(r"\d+", "#", reason)
            if kind not in self._refusals_told:
                self._refusals_told.add(kind)
                self._say(
                    f"warning: the teacher server {self.info.url} refuses {item.sample.example.origin}: {reason} "
                    "(such rows are counted and left out; this is said once)"
                )
        if refused and len(refused) == len(items) and len(kinds) == 1:
            self._say(
                f"warning: the teacher server {self.info.url} refused all {len(items)} rows of a batch, which teach "
                f"nothing then: {refused[0][1]}"
            )


def _tokens(sample: Sample) -> Tensor:
    """The active tokens themselves, [N, 1] int64."""
    t = sample.told
    active = [i for i, on in zip(t.response_ids, t.response_mask, strict=True) if on]
    return torch.tensor(active, dtype=torch.long).unsqueeze(-1)


def _groups(items: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    """In order, of at most `size` sequences, TOKENS tokens and one K."""
    group: list[_Item] = []
    tokens = 0
    for item in items:
        more = len(item.ids)
        other = group and item.named is not None and item.named.shape[1:] != _shape(group[0])
        if group and (len(group) == size or tokens + more > TOKENS or other):
            yield group
            group, tokens = [], 0
        group.append(item)
        tokens += more
    if group:
        yield group


def _shape(item: _Item) -> torch.Size:
    return item.named.shape[1:] if item.named is not None else torch.Size()


def _checked(answer: wire.Answer, ask: Ask) -> wire.Answer:
    """Raises ValueError for an answer to another question, and for numbers that cannot be."""
    if answer.kind != ask.kind:
        raise ValueError(f"the answer is of kind {answer.kind}, the question was of kind {ask.kind}")
    for signal in answer.signals:
        if isinstance(signal, Tensor) and not signal.isfinite().all():
            raise ValueError("a hidden state is not finite")
        if isinstance(signal, TopK):
            mass = signal.logprobs.exp().sum(-1)
            mass = mass if signal.log_tail is None else mass + signal.log_tail.exp()
            if ask.kind == "topk" and signal.ids.shape[-1] != ask.k:
                raise ValueError(f"the answer has {signal.ids.shape[-1]} ids a token, {ask.k} were asked for")
            if (mass > 1 + MASS).any() or (signal.log_tail is not None and (mass < 1 - MASS).any()):
                raise ValueError("the probabilities of a token do not add up to 1")
    return answer


def read_head(body: bytes, digest: str, valid: int) -> Head:
    """The head [valid, H] of a safetensors file whose metadata are softcap, scale, valid and hash.

    Raises ValueError where it cannot be read, or is not the one that `digest` names: the hash is computed anew.
    """
    try:
        tensors, header = load(body), json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        meta = {name: header["__metadata__"][name] for name in ("scale", "softcap", "valid")}
        softcap = float(meta["softcap"]) if meta["softcap"] else None
        head = Head(tensors["weight"], tensors.get("bias"), softcap, float(meta["scale"]), int(meta["valid"]))
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"the head cannot be read: {error!r}") from error
    found = hashlib.blake2b(repr(sorted(meta.items())).encode(), digest_size=16)
    for name in ("weight", "bias"):
        if name in tensors:
            found.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
            found.update(tensors[name].view(torch.uint8).numpy().data)
    if found.hexdigest() != digest:
        raise ValueError("this is not the head that the hidden states go with")
    if head.vocab != valid:
        raise ValueError(f"the head has {head.vocab} ids, the tokenizer {valid}")
    return head
