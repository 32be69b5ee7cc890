"""What means hide: how lengths and divergences are spread, and where teacher and student disagree most.

Counted from numbers that a logging step has anyway, and written to histograms.jsonl. It costs no forward pass: a copy
of one number a token to the host, and sums over them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from limbeck.signal import Sample
from limbeck.train.parallel import gather

LENGTHS = [1, *(n for i in range(17) for n in (2 << i, 3 << i))]  # tokens; two edges a doubling
DIVERGENCES = [0.0, *(10 ** (i / 4) for i in range(-12, 9))]  # nats; four edges a decade, 0.001 to 100
PLACES = [0, 1, 2, 3, *(n for i in range(16) for n in (4 << i, 6 << i))]  # of a token in its response, counted from 0
TOKENS, PROMPTS, PROMPT_TEXT = 40, 5, 200  # how many are kept a line, and characters of a prompt


@dataclass
class Tally:
    """Sums between two lines of the log. A bin holds what lies at or above its edge and below the next one."""

    lengths: list[int] = field(default_factory=lambda: [0] * len(LENGTHS))
    divergences: list[int] = field(default_factory=lambda: [0] * len(DIVERGENCES))
    tokens: dict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0.0]))  # count, sum
    places: list[list[float]] = field(default_factory=lambda: [[0, 0.0] for _ in PLACES])
    prompts: list[tuple[float, int, str, str]] = field(default_factory=list)  # mean, tokens, origin, prompt

    def add_lengths(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            if sample.n_active:
                self.lengths[bisect_right(LENGTHS, sample.n_active) - 1] += 1

    def add_divergence(self, sample: Sample, values: Sequence[float]) -> None:
        """values [N]: of the sample's active tokens; NaN where a token has none."""
        known = [
            (place, token, value)
            for place, (token, value) in enumerate(zip(sample.tokens.targets, values, strict=True))
            if not math.isnan(value)
        ]
        for place, token, value in known:
            self.divergences[max(bisect_right(DIVERGENCES, value) - 1, 0)] += 1
            for entry in (self.tokens[token], self.places[bisect_right(PLACES, place) - 1]):
                entry[0] += 1
                entry[1] += value
        if known:
            mean = sum(value for *_, value in known) / len(known)
            self.prompts.append((mean, len(known), sample.example.origin, asked(sample)))

    def result(self, accelerator: Accelerator, tokenizer: Any) -> dict[str, Any]:
        """A line of histograms.jsonl, over all ranks: lists of [edge, count], and of what disagreed. Every rank must
        call it. "tokens" are those with the greatest sums, "prompts" those with the greatest means."""
        whole = Tally()
        own = (self.lengths, self.divergences, dict(self.tokens), self.places, self._worst())
        for lengths, divergences, tokens, places, prompts in gather(accelerator, own):
            whole.lengths = [a + b for a, b in zip(whole.lengths, lengths, strict=True)]
            whole.divergences = [a + b for a, b in zip(whole.divergences, divergences, strict=True)]
            whole.places = [[a + c, b + d] for (a, b), (c, d) in zip(whole.places, places, strict=True)]
            whole.prompts += prompts
            for token, (count, total) in tokens.items():
                whole.tokens[token][0] += count
                whole.tokens[token][1] += total
        most = sorted(whole.tokens.items(), key=lambda item: item[1][1], reverse=True)[:TOKENS]
        return {
            "lengths": _filled(LENGTHS, whole.lengths),
            "divergences": _filled(DIVERGENCES, whole.divergences),
            "tokens": [[tokenizer.decode([token]), count, round(total, 5)] for token, (count, total) in most],
            "places": [[edge, n, round(s, 5)] for edge, (n, s) in zip(PLACES, whole.places, strict=True) if n],
            "prompts": [[origin, prompt, n, round(mean, 5)] for mean, n, origin, prompt in whole._worst()],
        }

    def _worst(self) -> list[tuple[float, int, str, str]]:
        return sorted(self.prompts, key=lambda row: row[0], reverse=True)[:PROMPTS]


def _filled(edges: Sequence[float], counts: Sequence[int]) -> list[list[float]]:
    """[edge, count] from the first bin that holds something to the empty one after the last."""
    full = [i for i, count in enumerate(counts) if count]
    return [[round(edges[i], 6), counts[i]] for i in range(full[0], min(full[-1] + 2, len(edges)))] if full else []


def asked(sample: Sample) -> str:
    """For people: the last message before the response, or the end of a raw text."""
    prompt = sample.example.prompt
    return str(prompt if isinstance(prompt, str) else prompt[-1].get("content") or "")[-PROMPT_TEXT:]
