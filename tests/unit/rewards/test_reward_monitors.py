"""Shares of text, by hand."""

from __future__ import annotations

import random

import pytest

from limbeck.rewards import hedging_share, length, longest_quote, quotes, repeated_share, text_metrics


def test_repeated_share():
    assert repeated_share("a b c a b c", 3) == pytest.approx(1 / 4)  # abc bca cab abc
    assert repeated_share("x " * 10, 1) == pytest.approx(0.9)
    assert repeated_share([5, 5, 5, 5], 2) == pytest.approx(2 / 3)
    assert repeated_share("a b", 3) == repeated_share("", 3) == repeated_share([], 1) == 0


def test_hedging_share():
    assert hedging_share("Wait, maybe it is 4.") == pytest.approx(2 / 5)
    assert hedging_share("waiting") == hedging_share("") == 0
    assert hedging_share("I doubt it", frozenset({"doubt"})) == pytest.approx(1 / 3)


def test_quotes():
    reference = "the sum of the two roots is minus b over a"
    assert quotes("so The sum of the two roots is nine", reference, 7)
    assert not quotes("so the sum of the two roots is nine", reference, 8)
    assert not quotes("", reference, 1) and not quotes("the sum", "", 1)
    assert quotes([1, 2, 3], [9, 2, 3], 2)


def test_longest_quote_against_all_runs():
    draw = random.Random(0)
    for _ in range(200):
        a, b = ([draw.randrange(3) for _ in range(draw.randrange(12))] for _ in range(2))
        runs = [j - i for i in range(len(a)) for j in range(i, len(a) + 1) if any(
            a[i:j] == b[k : k + j - i] for k in range(len(b)))]  # fmt: skip
        assert longest_quote(a, b) == max(runs, default=0), (a, b)


def test_length_and_metrics():
    assert length("a b  c\n") == 3 and length([1, 2]) == 2
    texts = ["maybe a b", "a b c d e f g h"]
    assert text_metrics(texts) == pytest.approx({"text/words": 5.5, "text/repeated": 0, "text/hedging": 1 / 6})
    assert text_metrics(texts, ["x", "z a b c d e f g h"])["text/quotes"] == 0.5
    assert text_metrics(texts, [None, "z a b c d e f g h"])["text/quotes"] == 1.0
    assert "text/quotes" not in text_metrics(texts, [None, None]) and text_metrics([]) == {}
