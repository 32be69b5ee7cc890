"""Several teachers, each asked about the rows with its tags, all at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from limbeck.signal import Ask, Sample
from limbeck.teachers.base import Answers, Named, Teacher
from limbeck.teachers.threads import Threads


@dataclass
class RoutedTeacher(Teacher):
    """teachers: (tags, teacher). tag_key: the column of a row that holds its tag. `prepare` has seen to it that every
    row has one. Answers come back in the order of the question, whoever gave them."""

    teachers: Sequence[tuple[Sequence[str], Teacher]]
    tag_key: str
    pool: Threads = field(init=False)

    def __post_init__(self) -> None:
        self.each = [teacher for _, teacher in self.teachers]
        self.by_tag = {tag: number for number, (tags, _) in enumerate(self.teachers) for tag in tags}
        self.name = ", ".join(teacher.name for teacher in self.each)
        self.identity = " ".join(teacher.identity for teacher in self.each)
        self.ask: Ask = self.each[0].ask
        self.pool = Threads(len(self.each))

    def who(self, sample: Sample) -> str:
        return self.each[self._number(sample)].name

    def _number(self, sample: Sample) -> int:
        return self.by_tag[str(sample.example.columns[self.tag_key])]

    def score(self, batches: Sequence[Sequence[Sample]], named: Named | None = None) -> Answers:
        """Each teacher gets its own samples of every batch."""
        places = [
            [[i for i, s in enumerate(batch) if self._number(s) == number] for batch in batches]
            for number in range(len(self.each))
        ]

        def ask(number: int) -> Answers:
            mine = [(b, own) for b, own in enumerate(places[number]) if own]
            samples = [[batches[b][i] for i in own] for b, own in mine]
            ids = None if named is None else [[named[b][i] for i in own] for b, own in mine]
            return self.each[number].score(samples, ids)

        answers: Answers = [[None] * len(batch) for batch in batches]
        futures = [self.pool.submit(ask, number) for number in range(len(self.each))]
        for number, future in enumerate(futures):
            mine = [(b, own) for b, own in enumerate(places[number]) if own]
            for (b, own), signals in zip(mine, future.result(), strict=True):
                for i, signal in zip(own, signals, strict=True):
                    answers[b][i] = signal
        return answers

    def privileged_kl(self, sample: Sample) -> Tensor | None:
        return self.each[self._number(sample)].privileged_kl(sample)

    def expect(self, samples: Sequence[Sample]) -> None:
        for number, teacher in enumerate(self.each):
            if mine := [s for s in samples if self._number(s) == number]:
                teacher.expect(mine)

    def counts(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for teacher in self.each:
            for name, value in teacher.counts().items():
                total[name] = total.get(name, 0.0) + value
        return total

    def state(self) -> dict[str, Any]:
        return {str(i): state for i, teacher in enumerate(self.each) if (state := teacher.state())}

    def restore(self, state: dict[str, Any]) -> None:
        for i, teacher in enumerate(self.each):
            if str(i) in state:
                teacher.restore(state[str(i)])

    def close(self) -> None:
        self.pool.close()
        for teacher in self.each:
            teacher.close()
