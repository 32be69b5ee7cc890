"""/v1/score: from a question on the wire to the engine and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.losses import Head
from limbeck.serve.engine import Scoring
from limbeck.serve.protocol import ApiError
from limbeck.serve.served import Served
from limbeck.signal import Hidden, TopK, signal_of
from limbeck.teachers.wire import Answer, Question

MAX_NUMBERS = 1 << 28  # in one answer: tokens x ids, or tokens x hidden size
TEMPERATURES = (0.01, 100.0)  # beyond them logits overflow, or nothing is left of them


def check(q: Question, served: Served) -> None:
    """Raises ApiError for a question that goes over the server's limits."""
    if q.ask.kind == "hidden" and not served.limits.allow_hidden:
        raise ApiError("hidden states and the head are given out with --allow_hidden only", status=403, param="kind")
    width = q.named[0].shape[1] if q.named else 0
    for name, k in (("k", q.ask.k), ("named", width)):
        if k > served.max_logprobs:
            raise ApiError(
                f"{name} is {k}, and this server gives at most {served.max_logprobs} (--max_logprobs)", param=name
            )
    low, high = TEMPERATURES
    if not low <= q.ask.temperature <= high:
        raise ApiError(f"temperature {q.ask.temperature:g} is outside {low:g}..{high:g}", param="temperature")
    tokens, places = sum(map(len, q.sequences)), sum(map(len, q.places))
    if tokens > served.limits.max_request_tokens:
        raise ApiError(f"{tokens} tokens in one request; at most {served.limits.max_request_tokens}", param="tokens")
    numbers = places * (served.hidden_size if q.ask.kind == "hidden" else q.ask.k + width)
    if numbers > MAX_NUMBERS:
        raise ApiError(f"{numbers:,} numbers in one answer; at most {MAX_NUMBERS:,}: ask about fewer tokens at a time")


def scoring_of(q: Question, served: Served) -> tuple[Scoring, list[int], dict[int, str]]:
    """The work, the sequences that are in it, and why the others are not."""
    longest = served.max_model_len
    refused = {
        i: f"{len(ids)} tokens, and the longest sequence here is {longest} (--max_model_len)"
        for i, ids in enumerate(q.sequences)
        if len(ids) > longest
    }
    kept = [i for i in range(len(q.sequences)) if i not in refused]

    def read(hidden: Tensor, head: Head, which: list[int]) -> list[Any]:
        counts = [len(q.places[kept[j]]) for j in which]
        named = None if q.named is None else torch.cat([q.named[kept[j]] for j in which]).to(hidden.device)
        signal = signal_of(q.ask, hidden, head, named)
        if isinstance(signal, Hidden):
            return list(signal.hidden.cpu().split(counts))
        assert signal.log_tail is not None
        columns = (t.cpu().split(counts) for t in (signal.logprobs, signal.ids, signal.log_tail))
        return [TopK(logprobs, ids, tail) for logprobs, ids, tail in zip(*columns, strict=True)]

    scoring = Scoring([q.sequences[i] for i in kept], [q.places[i] for i in kept], read)
    return scoring, kept, refused


def answer(q: Question, served: Served, kept: list[int], refused: dict[int, str], found: list[Any]) -> Answer:
    signals: list[Any] = [None] * len(q.sequences)
    echo: list[Tensor | None] = [None] * len(q.sequences)
    for i, signal in zip(kept, found, strict=True):
        signals[i] = signal
        echo[i] = torch.tensor([q.sequences[i][place] for place in q.places[i]], dtype=torch.long)
    head = served.head if q.ask.kind == "hidden" else ""
    return Answer(q.ask.kind, served.identity, signals, echo, head, refused)
