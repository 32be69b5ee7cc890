"""What a stock vLLM server is asked, and its JSON read back: `prompt_logprobs` of its `/v1/completions`.

    {"model": ..., "prompt": [[ids], ...], "max_tokens": 1, "prompt_logprobs": k}
    {"choices": [{"index": 0, "prompt_logprobs": [null, {"<id>": {"logprob": -0.5, "rank": 1}, ...}, ...]}, ...]}

The entry at t holds the k likeliest ids there and always the id that was sent, as a (k + 1)th where it is not among
them. So every answer is checked against what was asked: at each position the id that was sent must be there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch

from limbeck.signal import Ask, TopK

ZERO = -9999.0  # vLLM's way to write a log-probability of minus infinity in JSON
PATH = "/v1/completions"


class Mismatch(Exception):
    """The server answered for other tokens than were sent: number of the sequence, position, id sent, what came."""

    def __init__(self, sequence: int, position: int, sent: int | str, came: str) -> None:
        super().__init__(f"position {position}: sent {sent}, came {came}")
        self.sequence = sequence


def encode(model: str, sequences: Sequence[Sequence[int]], k: int) -> bytes:
    """k 0: the log-probability of the tokens themselves."""
    question = {
        "model": model,
        "prompt": [list(ids) for ids in sequences],
        "max_tokens": 1,  # at least one must be made; it is not looked at
        "temperature": 1.0,
        "prompt_logprobs": k,
        "return_token_ids": True,
    }
    return json.dumps(question, separators=(",", ":")).encode()


def decode(
    body: bytes, sequences: Sequence[Sequence[int]], places: Sequence[Sequence[int]], ask: Ask, *, valid: int
) -> list[TopK]:
    """The signals of the tokens at `places` of each sequence: [N, k], or [N, 1] of the tokens themselves (k = 0).

    At another temperature than 1 they are rescaled and normalised over the k, which is all that `renorm` looks at.
    Raises ValueError for what cannot be read or be right, Mismatch where the tokens are not those that were sent.
    """
    try:
        choices = sorted(json.loads(body)["choices"], key=lambda choice: choice["index"])
        if len(choices) != len(sequences):
            raise ValueError(f"{len(choices)} answers to {len(sequences)} prompts")
        return [
            _signal(choice, number, sequences[number], places[number], ask, valid)
            for number, choice in enumerate(choices)
        ]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the answer is not of vLLM's form: {error!r}") from error


def _signal(
    choice: dict[str, Any], number: int, ids: Sequence[int], places: Sequence[int], ask: Ask, valid: int
) -> TopK:
    entries, width = choice["prompt_logprobs"], ask.k or 1
    _check_echo(number, ids, entries, choice.get("prompt_token_ids"))
    rows = [_row(entries[t], ids[t], ask.k, valid) for t in places]
    logprobs = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, width)
    if ask.temperature != 1:
        logprobs = (logprobs / ask.temperature).log_softmax(-1)
    return TopK(logprobs, torch.tensor([row[1] for row in rows], dtype=torch.long).reshape(-1, width), None)


def _check_echo(number: int, ids: Sequence[int], entries: Any, echo: Any) -> None:
    if not isinstance(entries, list):
        raise ValueError("an answer has no prompt_logprobs")
    if len(entries) != len(ids):
        raise Mismatch(number, min(len(entries), len(ids)), f"{len(ids)} ids", f"{len(entries)}")
    if echo is not None and list(echo) != list(ids):
        at = next((t for t, (a, b) in enumerate(zip(ids, echo, strict=False)) if a != b), min(len(ids), len(echo)))
        raise Mismatch(number, at, _shown(ids[at : at + 1]), _shown(echo[at : at + 1]))
    for t in range(1, len(ids)):
        entry = entries[t]
        if not isinstance(entry, dict):
            raise ValueError(f"position {t} has no log-probabilities")
        if str(ids[t]) not in entry:
            raise Mismatch(number, t, ids[t], _shown(list(entry)))


def _shown(ids: Sequence[Any]) -> str:
    return ", ".join(map(str, ids[:6])) + (", ..." if len(ids) > 6 else "") if ids else "nothing"


def _row(entry: dict[str, Any], sent: int, k: int, valid: int) -> tuple[list[float], list[int]]:
    """Log-probabilities and ids of one position, likeliest first; absent ones are -inf and 0."""
    found = [(float(value["logprob"]), int(token)) for token, value in entry.items()]
    if k == 0:
        found = [pair for pair in found if pair[1] == sent]
    elif len(found) < min(k, valid):
        raise ValueError(f"{len(found)} ids where {k} were asked for")
    found = sorted(found, reverse=True)[: k or 1]  # a (k + 1)th is the token itself, and less likely than these
    if any(math.isnan(logprob) or logprob > 1e-3 for logprob, _ in found):
        raise ValueError("a log-probability is not one: NaN, or above 0")
    if sum(math.exp(logprob) for logprob, _ in found) > 1.01:
        raise ValueError("probabilities add up to more than 1")
    present = [(min(logprob, 0.0), token) for logprob, token in found if logprob > ZERO and 0 <= token < valid]
    absent = (k or 1) - len(present)
    return [logprob for logprob, _ in present] + [-math.inf] * absent, [token for _, token in present] + [0] * absent
