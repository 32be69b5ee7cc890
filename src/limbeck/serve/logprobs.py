"""Log-probabilities of given tokens and of the likeliest beside them, at temperature 1, in vLLM's and OpenAI's JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from limbeck.losses import Head
from limbeck.losses.chunks import HeadPass
from limbeck.losses.head import compute_dtype
from limbeck.serve.engine import Reader

LOWEST = -9999.0  # JSON has no -inf; vLLM's choice

Words = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Position:
    """A token with its log-probability, its rank (1: no id is likelier), and the likeliest ids, in order."""

    id: int
    logprob: float
    rank: int
    top: Sequence[tuple[int, float]]


def positions(logprobs: Tensor, ids: Tensor, k: int) -> list[Position]:
    """[n, valid], [n] -> n positions with the k likeliest ids each."""
    own = logprobs.gather(-1, ids[:, None])
    ranks = (logprobs >= own).sum(-1)
    best = logprobs.topk(min(k, logprobs.shape[-1]), -1)
    columns = (
        t.tolist() for t in (ids, own[:, 0].clamp(min=LOWEST), ranks, best.indices, best.values.clamp(min=LOWEST))
    )
    return [
        Position(i, logprob, rank, list(zip(top, values, strict=True)))
        for i, logprob, rank, top, values in zip(*columns, strict=True)
    ]


def prompt_reader(prompts: Sequence[Sequence[int]], k: int) -> Reader:
    """Reads, for `Scoring`, the positions of every prompt token but the first; one chunk of logits at a time."""

    def read(hidden: Tensor, head: Head, which: list[int]) -> list[list[Position]]:
        ids = torch.tensor([t for i in which for t in prompts[i][1:]], dtype=torch.long, device=hidden.device)
        found: list[Position] = []

        def rule(logits: Tensor, at: slice) -> None:
            found.extend(positions(logits.log_softmax(-1), ids[at], k))

        dtype = compute_dtype(hidden, head.weight)
        HeadPass(hidden, head, head.vocab, dtype=dtype, chunk_rows=None).run(None, rule)
        rest = iter(found)
        return [[next(rest) for _ in prompts[i][1:]] for i in which]

    return read


def vllm_form(position: Position, words: Words) -> dict[str, dict[str, Any]]:
    """vLLM's entry of `prompt_logprobs`: the token itself and the k likeliest, k or k + 1 entries."""
    entries = [(position.id, position.logprob, position.rank)]
    entries += [(i, logprob, rank) for rank, (i, logprob) in enumerate(position.top, 1)]
    return {str(i): {"logprob": lp, "rank": rank, "decoded_token": words(i)} for i, lp, rank in entries}


def completion_form(
    found: Sequence[Position | None], ids: Sequence[int], words: Words, offset: int = 0
) -> dict[str, list[Any]]:
    """OpenAI's `logprobs` of a completion: the first token of a prompt (None) has neither. offset: of the first token
    in the text."""
    tokens = [words(i) for i in ids]
    return {
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=offset)) if tokens else [],
        "token_logprobs": [None if p is None else p.logprob for p in found],
        "tokens": tokens,
        "top_logprobs": [None if p is None else {words(i): lp for i, lp in _with_own(p)} for p in found],
    }


def chat_form(position: Position, words: Words) -> dict[str, Any]:
    """OpenAI's entry of a chat message's `logprobs`."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = words(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace"))}

    return entry(position.id, position.logprob) | {"top_logprobs": [entry(i, lp) for i, lp in position.top]}


def _with_own(position: Position) -> list[tuple[int, float]]:
    return [(position.id, position.logprob), *(pair for pair in position.top if pair[0] != position.id)]
