"""A teacher without weights: what it says of a row follows from the row's ids alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from limbeck.data.formats import Example
from limbeck.data.render import Rendered
from limbeck.signal import Ask, Sample, TopK
from limbeck.teachers import Answers, Named, Teacher
from limbeck.teachers.store import StoredTeacher

VALID = 70_000  # ids of more than 16 bits


class Oracle(Teacher):
    name, identity = "oracle", "0123456789abcdef"

    def __init__(self, ask: Ask = Ask("topk", 8), *, tails: bool = True) -> None:  # noqa: B008
        self.ask, self.tails = ask, tails
        self.asked: list[list[Sample]] = []
        self.expected: list[Sample] = []
        self.refuses: set[int] = set()  # first ids of rows
        self.followed = self.closed = 0
        self.restored: dict = {}

    def score(self, batches: Sequence[Sequence[Sample]], named: Named | None = None) -> Answers:
        self.asked += [list(batch) for batch in batches]
        return [
            [
                None
                if s.tokens.prompt_ids[0] in self.refuses
                else self.signal(s, None if named is None else named[b][i])
                for i, s in enumerate(batch)
            ]
            for b, batch in enumerate(batches)
        ]

    def signal(self, sample: Sample, named: torch.Tensor | None = None) -> TopK:
        """`k` ids, likeliest first, then the ids named; the second time that one stands there it is absent."""
        generator = torch.Generator().manual_seed(hash((sample.tokens, self.ask.temperature)) % 2**60)
        n, k = sample.n_active, self.ask.k
        if self.ask.kind == "sampled":
            named = torch.tensor(sample.tokens.response_ids).unsqueeze(-1)
        ids = (torch.randint(VALID, (n, 1), generator=generator) + 997 * torch.arange(k)) % VALID
        scores = torch.randn(n, k, generator=generator).sort(-1, descending=True).values * 4
        if named is not None:
            ids = torch.cat([ids, named], -1)
            scores = torch.cat([scores, torch.randn(named.shape, generator=generator)], -1)
        again = (ids.unsqueeze(-1) == ids.unsqueeze(-2)).tril(-1).any(-1)
        scores = torch.cat([scores.masked_fill(again, -torch.inf), torch.zeros(n, 1)], -1).log_softmax(-1)
        return TopK(scores[:, :-1], ids.masked_fill(again, 0), scores[:, -1] if self.tails else None)

    def expect(self, samples: Sequence[Sample]) -> None:
        self.expected += samples

    def who(self, sample: Sample) -> str:
        return str(sample.example.columns.get("tag", ""))

    def follow(self) -> None:
        self.followed += 1

    def state(self) -> dict:
        return {"some": "state"}

    def restore(self, state: dict) -> None:
        self.restored = state

    def counts(self) -> dict[str, float]:
        return {"teacher/requests": 3.0}

    def close(self) -> None:
        self.closed += 1


def sample(number: int, *, length: int = 12, tag: str = "", mask: tuple[bool, ...] | None = None) -> Sample:
    rng = random.Random(number)
    prompt = (number, *(rng.randrange(VALID) for _ in range(3)))
    response = tuple(rng.randrange(VALID) for _ in range(length))
    example = Example("prompt", "response", {"dataset": "rows", "tag": tag}, f"rows.jsonl:{number}")
    return Sample(Rendered(prompt, response, mask or (True,) * length), "dataset", example)


def stored(folder: Path, inner: Teacher | None = None, **changes) -> StoredTeacher:
    inner = inner or Oracle()
    return StoredTeacher(inner, inner.ask, folder, **{"tokenizer": "f1ngerpr1nt", "valid": VALID, **changes})


def write_rows(folder: Path, first: int, last: int) -> None:
    """For a process of its own: scores rows one by one, so that several writers come to be in each other's way."""
    torch.set_num_threads(1)
    teacher = stored(folder)
    for number in range(first, last):
        teacher.score([[sample(number)]])
    teacher.close()
