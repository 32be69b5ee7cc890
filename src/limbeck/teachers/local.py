"""A teacher in this process: a frozen model beside the student, or the student itself in some view of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.collate import collate
from limbeck.losses import Head, linear_divergence
from limbeck.models import fingerprint, hidden_states, model_head
from limbeck.signal import Ask, Sample, Signal, signal_of, split
from limbeck.teachers.base import Answers, Named, Teacher
from limbeck.teachers.shadow import Shadow


@dataclass
class LocalTeacher(Teacher):
    """Scores with `model`, in eval mode and without gradients.

    view: entered around every scoring, e.g. `peft_model.disable_adapter` for the base under an adapter.
    shadow: other weights that the model wears while it scores: a frozen copy of the student, or its average.
    moves: asked again after the next step it would answer otherwise. Its head is copied, so that an answer stays what
        it was while the student learns.
    offload: the model lies in main memory and is moved once a generation batch, not once a micro-batch.
    answer_device: where the signals are needed; by default the teacher's own device.
    """

    model: nn.Module
    name: str
    ask: Ask
    valid: int
    pad_id: int
    device: torch.device | str = "cpu"
    answer_device: torch.device | str | None = None
    offload: bool = False
    moves: bool = False
    shadow: Shadow | None = None
    view: Callable[[], AbstractContextManager] = field(default=nullcontext)
    autocast: Callable[..., AbstractContextManager] = field(default=nullcontext)

    def __post_init__(self) -> None:
        self.identity = "" if self.moves else fingerprint(self.model)
        if self.shadow is not None:
            self.view = self.shadow.worn

    @torch.no_grad()
    def score(self, batches: Sequence[Sequence[Sample]], named: Named | None = None) -> Answers:
        with self._ready():
            head = self._head() if batches else None
            return [
                self._score_batch(samples, named[i] if named is not None else None, head)
                for i, samples in enumerate(batches)
            ]

    @torch.no_grad()
    def privileged_kl(self, sample: Sample) -> Tensor | None:
        if sample.tokens.teacher is None:
            return None
        with self._ready():  # a row at a time and unpadded: equal prompts are then computed alike, and give zero
            with_, without = (
                hidden_states(self.model, batch.input_ids, (batch.rows, batch.cols))
                for batch in (collate([tokens], self.pad_id).to(self.device) for tokens in (sample.told, sample.tokens))
            )
            head = model_head(self.model, self.valid)
            options = {"beta": 0.0, "temperature": self.ask.temperature, "return_stats": True}
            _, found = linear_divergence(without, head, with_, head, **options)
        return found["divergence"]

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The model in eval mode, in its view, and where it computes."""
        training = self.model.training
        self.model.eval()
        if self.offload:
            self.model.to(self.device)
        try:
            with self.view(), self.autocast():
                yield
        finally:
            self.model.train(training)
            if self.offload:
                self.model.to("cpu")

    def _head(self) -> Head:
        """The head as plain tensors: a signal that holds it must not follow the model to another device, or to its
        next weights."""
        head = model_head(self.model, self.valid)
        copy = self.moves and self.ask.kind == "hidden"

        def keep(tensor: Tensor) -> Tensor:
            return tensor.detach().to(self.answer_device or tensor.device, copy=copy)

        return replace(head, weight=keep(head.weight), bias=None if head.bias is None else keep(head.bias))

    def _score_batch(
        self, samples: Sequence[Sample], named: Sequence[Tensor] | None, head: Head | None
    ) -> list[Signal | None]:
        assert head is not None
        batch = collate([s.told for s in samples], self.pad_id).to(self.device)
        hidden = hidden_states(self.model, batch.input_ids, (batch.rows, batch.cols))
        hidden = hidden if self.answer_device is None else hidden.to(self.answer_device)
        if self.ask.kind == "sampled":
            ids = batch.targets.unsqueeze(-1).to(hidden.device)
        else:
            ids = torch.cat(list(named)).to(hidden.device) if named is not None else None
        return list(split(signal_of(self.ask, hidden, head, ids), batch.counts))

    @property
    def follows(self) -> bool:
        return self.shadow is not None and self.shadow.decay is not None

    def follow(self) -> None:
        if self.shadow is not None:
            self.shadow.follow()

    def state(self) -> dict[str, Any]:
        return {} if self.shadow is None else self.shadow.state()

    def restore(self, state: dict[str, Any]) -> None:
        if self.shadow is not None:
            self.shadow.restore(state)
