"""What the samples of a logged step look like: words of doubt, quotes of what the teacher reads, drift in length, and
what its privileged prompt does to the teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from accelerate import Accelerator

from limbeck.rewards.monitors import hedging_share, ngrams
from limbeck.signal import Sample
from limbeck.teachers import Teacher
from limbeck.train import parallel
from limbeck.train.meter import Meter

QUOTE = 8  # words in a row
PRIVILEGED = 2  # rows a logging step, over all processes
FIRST = 3  # lines of the log that lengths are compared with


def add_texts(meter: Meter, samples: Sequence[Sample], decode: Callable[[Sequence[int]], str]) -> None:
    """Adds to the sums, sample by sample of the student's own, `text/hedging` (share of words that are in
    `limbeck.rewards.monitors.HEDGING`) and, for rows that have a reference, `text/quotes`."""
    for sample in samples:
        if sample.source != "student":
            continue
        text = decode(sample.tokens.response_ids)
        meter.add("text/hedging", hedging_share(text), 1)
        reference = reference_of(sample.example.columns)
        if reference is not None:
            prompt = decode(sample.tokens.prompt_ids)
            meter.add("text/quotes", float(quotes_reference(text, reference, prompt)), 1)


def add_privileged_kl(accelerator: Accelerator, meter: Meter, teacher: Teacher, samples: Sequence[Sample]) -> None:
    """Adds `privileged_kl` of PRIVILEGED of the samples that have a privileged prompt: two forwards of each. They are
    chosen by their content among all ranks', so that it is the same few however many ranks there are. Every rank must
    call it."""
    own = {_lot(s): s for s in samples if s.tokens.teacher is not None}
    by_rank = parallel.gather(accelerator, list(own))
    for lot in sorted({lot for lots in by_rank for lot in lots})[:PRIVILEGED]:
        if next(rank for rank, lots in enumerate(by_rank) if lot in lots) != accelerator.process_index:
            continue
        values = teacher.privileged_kl(own[lot])
        if values is not None:
            meter.add("privileged_kl", float(values.double().sum()), values.numel())


def _lot(sample: Sample) -> bytes:
    """A draw that only the sample decides."""
    return hashlib.sha256(repr((sample.example.origin, sample.tokens)).encode()).digest()


def reference_of(columns: Mapping[str, Any]) -> str | None:
    """What a completion should not copy: the privileged text, else the row's solution; None where neither is a text."""
    texts = (columns.get(name) for name in ("teacher_prompt", "solution"))
    return next((text for text in texts if isinstance(text, str) and text), None)


def quotes_reference(completion: str, reference: str, prompt: str = "") -> bool:
    """Whether QUOTE words in a row of the reference stand in the completion and not in the prompt, which both may
    repeat. A shorter reference counts as a whole."""
    n = min(QUOTE, len(reference.split()))
    return bool((set(ngrams(completion, n)) & set(ngrams(reference, n))) - set(ngrams(prompt, n)))


def length_drift(history: Sequence[Mapping[str, Any]], now: float) -> float | None:
    """Mean completion length of this line over that of the run's first FIRST lines; None while these are written."""
    first = [line["completion_length/mean"] for line in history if line.get("kind") == "train"][:FIRST]
    return now / fmean(first) if len(first) == FIRST and fmean(first) > 0 else None
