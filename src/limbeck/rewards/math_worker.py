"""Compares answers with math-verify, in a process of its own that may be killed: one JSON line in, one out.

Run as a file and free of Limbeck, so that it starts in a second. In: [gold, text, limit in seconds]. Out: true, false,
or a string saying why there is no answer. Over its limit the process is ended by the alarm that the kernel sends,
whatever the computation holds at that moment, and a task outlives its asker by no more than that.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from decimal import Decimal

MEMORY = 4 << 30  # bytes of address space: 9^9^9^9 asks for more than any machine has

DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed|\\begin")
SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d{1,3}")
PLAIN = re.compile(r"[-+]?\s*\d[\d,]*(\.\d+)?(\s*/\s*\d+)?\s*%?")
WORD = re.compile(r"[^\W\d_]{2,}")
COMMAND = re.compile(r"\\(text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")


def read(text: str) -> list:
    """What math-verify finds in a text. It reads LaTeX between delimiters only, and of bare `3x+1` would take the 3;
    so a bare formula is put between delimiters, and prose, where the last number is meant, is not."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    def find(text: str) -> list:
        targets = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
        return parse(text, extraction_config=targets, extraction_mode="first_match", parsing_timeout=0)

    text = text.strip()
    if SCIENTIFIC.fullmatch(text):
        text = f"{Decimal(text):f}"
    if not text or "\n" in text or DELIMITED.search(text) or PLAIN.fullmatch(text):
        return find(text)
    formula = f"${text.rstrip('.')}$"
    if WORD.search(re.sub(r"\\[a-zA-Z]+", " ", text)):
        return find(text) or find(formula)
    return find(formula) or find(text)


def word(text: str) -> str:
    """The text of an answer that is a word: without box, \\text, dollars and full stop, in one case."""
    boxed = BOXED.findall(text)
    text = COMMAND.sub(r"\2", boxed[-1] if boxed else text)
    return text.strip(" $.\n").casefold()


def is_word(text: str) -> bool:
    """Words, not a formula: four Latin letters in a row, or letters that are neither Latin nor Greek."""
    if re.search(r"[\d\\=^+]", text):
        return False
    return bool(re.search("[a-z]{4}", text)) or any(
        letter.isalpha() and not letter.isascii() and not "\u0370" <= letter <= "\u03ff" for letter in text
    )


def compare(gold: str, text: str) -> bool | str:
    from math_verify import verify

    if word(gold) == word(text):
        return True
    if is_word(word(gold)):
        return False  # as LaTeX it would be a product of letters, equal to its anagrams
    right = read(gold)
    if not right:
        return "the solution could not be read"
    return bool(verify(right, read(text), timeout_seconds=0))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the run, which may yet score a last batch
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    import math_verify  # noqa: F401  before the first task, whose time it would take

    for line in sys.stdin:
        gold, text, limit = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit)  # no handler: the default ends the process
        try:
            answer: bool | str = compare(gold, text)
        except MemoryError:
            answer = "out of memory"
        except Exception as error:
            answer = f"math-verify raised {type(error).__name__}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
