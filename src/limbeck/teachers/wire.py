"""What a Limbeck teacher server and its client say to each other: packed arrays, no pickle, a digest over all.

A message is `limbeck1`, 16 bytes of BLAKE2b over the rest, and a safetensors file. The question:

    tokens  int32 [sum L]      prompt and response of every sequence, one after the other
    lengths int32 [B]          tokens of each
    places  int32 [sum N]      where in its sequence each active token stands (0 is never one: nothing predicts it)
    counts  int32 [B]          active tokens of each
    named   int32 [sum N, K]   the ids that the asker names, -1 for none (kinds `named` and `union` only)
    metadata: kind, k, temperature, bits (16 or 32)

The answer holds the sequences that were not refused, in order:

    echo     int32 [sum N]            the ids that the server read at the places, to be compared with those sent
    hidden   [sum N, H]               kind `hidden`, as the server computes them
    ids_low  uint16 [sum N, K]        ids, the low 16 bits, and
    ids_high uint8 [sum N, K / 4]     the rest of them, where any is over 65,535: 2 bits each, the first ones lowest, or
                                      [sum N, K] where any is over 262,143
    logprobs float32 [sum N, K], or codes uint16 [sum N, K] with spans float32 [sum N]
    log_tail float32 [sum N]
    metadata: kind, teacher (its identity), head (a hash), refused (JSON: {index: reason})

A code c of a row with span s is the log-probability -(s c / 65534)^2, 65535 an absent one. Square roots put the
precision where the mass is: the error is at most sqrt(-s^2 log p) / 65534, a fifth of float16's at p = e^-5.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from limbeck.signal import Ask, Kind, TopK

MEDIA_TYPE = "application/vnd.limbeck.score"
MAGIC = b"limbeck1"
DIGEST = 16  # bytes
STEPS = 65534  # codes of a present log-probability: 0 .. STEPS, an absent one is the next
KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind) if kind != "sampled"}  # there it is `named`
Arrays = dict[str, Tensor]


class WireError(ValueError):
    """A message that cannot be read; its text says why."""


@dataclass(frozen=True, slots=True)
class Question:
    """sequences[i]: ids of prompt and response. places[i]: indices of its active tokens, ascending, from 1.
    named[i]: int64 [N, K], where `ask` has the asker name ids. bits: precision of the log-probabilities, 16 or 32."""

    ask: Ask
    sequences: Sequence[Sequence[int]]
    places: Sequence[Sequence[int]]
    named: Sequence[Tensor] | None = None
    bits: int = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """signals[i]: a TopK, hidden states [N, H], or None where sequence i was refused, for the reason in `refused`.
    echo[i]: int64 [N], the ids that the server read at the places. head: hash of the head that hidden states go with.
    """

    kind: str
    teacher: str
    signals: list[TopK | Tensor | None]
    echo: list[Tensor | None]
    head: str = ""
    refused: dict[int, str] = field(default_factory=dict[int, str])


def encode_question(q: Question) -> bytes:
    arrays = {
        "tokens": _int32([i for ids in q.sequences for i in ids]),
        "lengths": _int32([len(ids) for ids in q.sequences]),
        "places": _int32([i for places in q.places for i in places]),
        "counts": _int32([len(places) for places in q.places]),
    }
    if q.named is not None:
        arrays["named"] = torch.cat(list(q.named)).to(torch.int32)
    ask = {"kind": q.ask.kind, "k": str(q.ask.k), "temperature": repr(q.ask.temperature), "bits": str(q.bits)}
    return seal(arrays, ask)


def decode_question(body: bytes, *, valid: int) -> Question:
    """Raises WireError for whatever is not a question about a model of `valid` ids. Limits are the server's own."""
    arrays, meta = unseal(body)
    lengths, counts = _ints(arrays, "lengths"), _ints(arrays, "counts")
    if len(lengths) != len(counts) or not lengths:
        raise WireError(f"{len(lengths)} lengths and {len(counts)} counts; at least one sequence, one of each")
    if min(lengths) < 1 or min(counts) < 0:
        raise WireError("a sequence needs tokens, and its count of places cannot be negative")
    sequences, places = _parts(arrays, "tokens", lengths), _parts(arrays, "places", counts)
    ask, bits = _ask(meta)
    for i, (ids, at) in enumerate(zip(sequences, places, strict=True)):
        if min(ids) < 0 or max(ids) >= valid:
            raise WireError(
                f"sequence {i} has id {max(ids) if max(ids) >= valid else min(ids)}, outside 0..{valid - 1}"
            )
        if at and (at[0] < 1 or at[-1] >= len(ids) or any(a >= b for a, b in pairwise(at))):
            raise WireError(f"the places of sequence {i} must ascend inside 1..{len(ids) - 1}")
    if not 0 <= ask.k <= valid or (ask.k == 0) != (ask.kind in ("hidden", "named")):
        raise WireError(f"k = {ask.k} does not go with kind {ask.kind} and {valid} ids")
    named = None
    if ask.names:
        ids = arrays.get("named")
        if ids is None or ids.dtype != torch.int32 or ids.ndim != 2 or ids.shape[0] != sum(counts) or not ids.shape[1]:
            raise WireError(f"kind {ask.kind} needs `named`, int32 [{sum(counts)}, K]")
        if ids.numel() and int(ids.max()) >= valid:
            raise WireError(f"a named id is {int(ids.max())}, and the model has {valid} ids")
        named = list(ids.long().split(counts))
    return Question(ask, sequences, places, named, bits)


def encode_answer(a: Answer, bits: int = 32) -> bytes:
    """bits: 16 sends codes, 32 sends float32."""
    present = [s for s in a.signals if s is not None]
    arrays = {"echo": torch.cat([e for e in a.echo if e is not None] or [torch.empty(0)]).to(torch.int32)}
    if a.kind == "hidden":
        hidden = [s for s in present if isinstance(s, Tensor)]
        arrays["hidden"] = torch.cat(hidden).contiguous() if hidden else torch.empty(0, 0)
    else:
        arrays |= pack([s for s in present if isinstance(s, TopK)], bits)
    refused = json.dumps({str(i): why for i, why in a.refused.items()})
    return seal(arrays, {"kind": a.kind, "teacher": a.teacher, "head": a.head, "refused": refused})


def decode_answer(body: bytes, counts: Sequence[int], *, valid: int) -> Answer:
    """counts: active tokens of each sequence that was asked about. Raises WireError for whatever does not fit them."""
    arrays, meta = unseal(body)
    try:
        refused = {int(i): str(why) for i, why in json.loads(meta["refused"]).items()}
        kind, teacher, head = meta["kind"], meta["teacher"], meta["head"]
    except (KeyError, ValueError, AttributeError, RecursionError) as error:
        raise WireError(f"the answer's metadata cannot be read: {error}") from error
    answered = [n for i, n in enumerate(counts) if i not in refused]
    if kind == "hidden":
        hidden = arrays.get("hidden")
        if hidden is None or hidden.ndim != 2 or hidden.shape[0] != sum(answered):
            raise WireError(f"the answer has no hidden states [{sum(answered)}, H]")
        signals: list[Any] = list(hidden.split(answered))
    else:
        signals = list(unpack(arrays, answered, valid=valid))
    echo = _int_array(arrays, "echo").long()
    if echo.shape[0] != sum(answered):
        raise WireError(f"the answer echoes {echo.shape[0]} ids, not {sum(answered)}")
    rest, ids = iter(signals), iter(echo.split(answered))
    both = [(None, None) if i in refused else (next(rest), next(ids)) for i in range(len(counts))]
    return Answer(kind, teacher, [s for s, _ in both], [e for _, e in both], head, refused)


def pack(signals: Sequence[TopK], bits: int) -> Arrays:
    """Signals of equal K as arrays, [sum N, ...]."""
    ids = torch.cat([s.ids for s in signals]) if signals else torch.empty(0, 1, dtype=torch.long)
    logprobs = torch.cat([s.logprobs for s in signals]).float() if signals else torch.empty(0, 1)
    arrays = {"ids_low": (ids & 0xFFFF).to(torch.uint16)}
    if ids.numel() and int(ids.max()) > 0xFFFF:
        arrays["ids_high"] = _pack_high(ids >> 16)
    tails = [s.log_tail for s in signals if s.log_tail is not None]
    if len(tails) == len(signals):  # a stock server sends none
        arrays["log_tail"] = torch.cat([t.float() for t in tails]) if tails else torch.empty(0)
    if bits == 32:
        return arrays | {"logprobs": logprobs}
    codes, spans = to_codes(logprobs, STEPS)
    return arrays | {"codes": codes.to(torch.uint16), "spans": spans}


def to_codes(logprobs: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, K] -> codes int32 [N, K], 0..steps and steps + 1 for an absent one, and spans [N]."""
    roots = logprobs.double().clamp(max=0).neg().sqrt()
    present = roots.isfinite()
    spans = roots.where(present, 0.0).amax(-1).float()
    codes = roots / spans.double().clamp(min=1e-30).unsqueeze(-1) * steps
    return codes.clamp(max=steps).round().where(present, float(steps + 1)).to(torch.int32), spans


def from_codes(codes: Tensor, spans: Tensor, steps: int) -> Tensor:
    """The inverse of `to_codes` but for the rounding, float64 [N, K]; an absent one is -inf."""
    roots = codes.double() * (spans.double() / steps).unsqueeze(-1)
    return (-roots.square()).masked_fill(codes == steps + 1, -torch.inf)


def unpack(arrays: Arrays, counts: Sequence[int], *, valid: int) -> list[TopK]:
    """The inverse of `pack`. Raises WireError for shapes, ids and numbers that cannot be.

    Codes are shifted, a row by one number, so that the mass on the support and the tail, which is exact, add up to 1:
    what is left of the rounding changes a divergence in the second order only, where the two sides are close.
    """
    rows, low = sum(counts), arrays.get("ids_low")
    if low is None or low.dtype != torch.uint16 or low.ndim != 2 or low.shape[0] != rows:
        raise WireError(f"the answer has no ids [{rows}, K]")
    ids = low.to(torch.int64)
    if (high := arrays.get("ids_high")) is not None:
        ids += _unpack_high(high, low.shape) << 16
    log_tail = _floats(arrays, "log_tail", (rows,)) if "log_tail" in arrays else None
    shape = tuple(low.shape)
    logprobs = _from_codes(arrays, shape, log_tail) if "codes" in arrays else _floats(arrays, "logprobs", shape)
    if logprobs.isnan().any() or (logprobs > 1e-3).any():
        raise WireError("a log-probability is not one: NaN, or above 0")
    if log_tail is not None and (log_tail.isnan().any() or (log_tail > 1e-3).any()):
        raise WireError("the log of a remaining mass is NaN, or above 0")
    ids = ids.masked_fill(logprobs.isneginf(), 0)
    if ids.numel() and int(ids.max()) >= valid:
        raise WireError(f"the answer names id {int(ids.max())}, and the tokenizer has {valid}")
    tails = [None] * len(counts) if log_tail is None else log_tail.split(list(counts))
    split = zip(logprobs.split(list(counts)), ids.split(list(counts)), tails, strict=True)
    return [TopK(lp, i, tail) for lp, i, tail in split]


def _pack_high(high: Tensor) -> Tensor:
    """Numbers [N, K] as bytes [N, K / 4], four in each, where all are below 4; otherwise as they are."""
    if int(high.max()) > 3:
        return high.to(torch.uint8)
    fours = torch.nn.functional.pad(high, (0, -high.shape[1] % 4)).unflatten(1, (-1, 4))
    return (fours << torch.tensor([0, 2, 4, 6], device=high.device)).sum(-1).to(torch.uint8)


def _unpack_high(high: Tensor, shape: torch.Size) -> Tensor:
    rows, columns = shape
    if high.dtype != torch.uint8 or tuple(high.shape) not in ((rows, columns), (rows, -(-columns // 4))):
        raise WireError("the two halves of the ids differ in shape")
    numbers = high.to(torch.int64)
    if high.shape[1] == columns:  # one id of 2 bits is its own byte
        return numbers
    return (numbers.unsqueeze(-1) >> torch.tensor([0, 2, 4, 6]) & 3).flatten(1)[:, :columns]


def _from_codes(arrays: Arrays, shape: tuple[int, ...], log_tail: Tensor | None) -> Tensor:
    codes = arrays["codes"]
    if tuple(codes.shape) != shape or codes.dtype != torch.uint16:
        raise WireError(f"the answer has no codes {list(shape)}")
    spans = _floats(arrays, "spans", shape[:1])
    logprobs = from_codes(codes.to(torch.int32), spans, STEPS)
    if log_tail is not None:
        on_support = -torch.expm1(log_tail.double())
        shift = on_support.clamp(min=1e-30).log() - logprobs.logsumexp(-1)
        sound = (on_support > 1e-3) & (shift.abs() < 1e-2)  # else the difference is rounding of the tail itself
        logprobs = logprobs + shift.where(sound, 0.0).unsqueeze(-1)
    return logprobs.clamp(max=0).float()


def seal(arrays: Arrays, meta: dict[str, str]) -> bytes:
    """Arrays and metadata as a message with its digest."""
    body = save(arrays, meta)
    return MAGIC + hashlib.blake2b(body, digest_size=DIGEST).digest() + body


def unseal(message: bytes) -> tuple[Arrays, dict[str, str]]:
    """The inverse of `seal`. Raises WireError for a message that is cut, changed or of another kind."""
    start = len(MAGIC) + DIGEST
    if message[: len(MAGIC)] != MAGIC:
        raise WireError("this is no message of Limbeck's: it does not start with its name and version")
    body = message[start:]
    if hashlib.blake2b(body, digest_size=DIGEST).digest() != message[len(MAGIC) : start]:
        raise WireError("the message was cut or changed on its way: its digest does not fit")
    try:
        head = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        return load(body), {str(k): str(v) for k, v in head.get("__metadata__", {}).items()}
    except (SafetensorError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise WireError(f"the arrays cannot be read: {error}") from error


def _ask(meta: dict[str, str]) -> tuple[Ask, int]:
    try:
        kind, k, temperature, bits = meta["kind"], int(meta["k"]), float(meta["temperature"]), int(meta["bits"])
    except (KeyError, ValueError) as error:
        raise WireError(f"the metadata needs kind, k, temperature and bits: {error}") from error
    if kind not in KINDS:
        raise WireError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    if not 0 < temperature < float("inf"):
        raise WireError(f"the temperature must be positive and finite, not {temperature}")
    if bits not in (16, 32):
        raise WireError(f"bits must be 16 or 32, not {bits}")
    return Ask(KINDS[kind], k, temperature), bits


def _int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _int_array(arrays: Arrays, name: str) -> Tensor:
    array = arrays.get(name)
    if array is None or array.dtype != torch.int32 or array.ndim != 1:
        raise WireError(f"`{name}` must be a list of int32")
    return array


def _ints(arrays: Arrays, name: str) -> list[int]:
    return _int_array(arrays, name).tolist()


def _parts(arrays: Arrays, name: str, counts: Sequence[int]) -> list[list[int]]:
    values = _ints(arrays, name)
    if len(values) != sum(counts):
        raise WireError(f"`{name}` has {len(values)} entries, not {sum(counts)}")
    return [values[a:b] for a, b in pairwise(accumulate(counts, initial=0))]


def _floats(arrays: Arrays, name: str, shape: tuple[int, ...]) -> Tensor:
    array = arrays.get(name)
    if array is None or array.dtype != torch.float32 or tuple(array.shape) != shape:
        raise WireError(f"the answer has no `{name}` {list(shape)} in float32")
    return array
