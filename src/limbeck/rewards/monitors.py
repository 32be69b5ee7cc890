"""What a completion's text shows of a run's health, as plain functions of texts (or of token ids)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from statistics import fmean

HEDGING = frozenset(
    "wait hmm perhaps maybe actually alternatively seems seem might likely probably possibly unsure check".split()  # noqa: SIM905
)
"""Words of doubt. A teacher that sees the solution has no use for them; a student that loses them with its teacher's
confidence checks itself less (arXiv 2603.24472)."""

Words = str | Sequence[Hashable]

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def words(text: Words) -> Sequence[Hashable]:
    """A text's lower-case words, cut at white space; anything else (token ids) as it is."""
    return text.lower().split() if isinstance(text, str) else text


def length(text: Words) -> int:
    """Words of a text, or tokens of ids."""
    return len(words(text))


def ngrams(text: Words, n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n words, in order, repeated ones included; none where the text is shorter."""
    items = words(text)
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def repeated_share(text: Words, n: int = 3) -> float:
    """Share of the n-grams that stood earlier in the text: 1 - distinct / all, in [0, 1); 0 where there are none."""
    found = ngrams(text, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def hedging_share(text: str, hedging: frozenset[str] = HEDGING) -> float:
    """Share of a text's words (punctuation aside) that are words of doubt, in [0, 1]."""
    found = _WORD.findall(text.lower())
    return sum(word in hedging for word in found) / len(found) if found else 0.0


def quotes(completion: Words, reference: Words, n: int = 8) -> bool:
    """Whether n words in a row of the reference (the privileged text) stand in the completion."""
    return not set(ngrams(completion, n)).isdisjoint(ngrams(reference, n))


def longest_quote(completion: Words, reference: Words) -> int:
    """Length in words of the longest run that both texts have."""
    low, high = 0, min(length(completion), length(reference))
    while low < high:  # a common run of n words holds one of n - 1
        middle = (low + high + 1) // 2
        if quotes(completion, reference, middle):
            low = middle
        else:
            high = middle - 1
    return low


def text_metrics(
    completions: Sequence[str], references: Sequence[str | None] | None = None, *, n: int = 3, quote: int = 8
) -> dict[str, float]:
    """Means over completions: "text/words", "text/repeated" (n-grams), "text/hedging", and "text/quotes", the share of
    completions that quote their reference by `quote` words, over the rows that have one. Empty without completions."""
    if not completions:
        return {}
    metrics = {
        "text/words": fmean(length(text) for text in completions),
        "text/repeated": fmean(repeated_share(text, n) for text in completions),
        "text/hedging": fmean(hedging_share(text) for text in completions),
    }
    pairs = zip(completions, references or [None] * len(completions), strict=True)
    quoted = [quotes(text, reference, quote) for text, reference in pairs if reference is not None]
    if quoted:
        metrics["text/quotes"] = fmean(quoted)
    return metrics
