"""A teacher in this process: a frozen model beside the student, or the student itself in some view of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from limbeck.data.collate import collate
from limbeck.models import hidden_states, model_head
from limbeck.signal import Ask, Sample, Signal, signal_of, split
from limbeck.teachers.base import Answers, Named, Teacher


@dataclass
class LocalTeacher(Teacher):
    """Scores with `model`, in eval mode and without gradients.

    view: entered around every scoring, e.g. `peft_model.disable_adapter` for the base under an adapter.
    offload: the model lies in main memory and is moved once a generation batch, not once a micro-batch.
    """

    model: nn.Module
    name: str
    ask: Ask
    valid: int
    pad_id: int
    device: torch.device | str = "cpu"
    offload: bool = False
    view: Callable[[], AbstractContextManager] = field(default=nullcontext)
    autocast: Callable[..., AbstractContextManager] = field(default=nullcontext)

    def __post_init__(self) -> None:
        self.identity = fingerprint(self.model)

    @torch.no_grad()
    def score(self, batches: Sequence[Sequence[Sample]], named: Named | None = None) -> Answers:
        training = self.model.training
        self.model.eval()
        if self.offload:
            self.model.to(self.device)
        try:
            with self.view(), self.autocast():
                return [
                    self._score_batch(samples, named[i] if named is not None else None)
                    for i, samples in enumerate(batches)
                ]
        finally:
            self.model.train(training)
            if self.offload:
                self.model.to("cpu")

    def _score_batch(self, samples: Sequence[Sample], named: Sequence[Tensor] | None) -> list[Signal | None]:
        batch = collate([s.tokens for s in samples], self.pad_id).to(self.device)
        hidden = hidden_states(self.model, batch.input_ids, (batch.rows, batch.cols))
        ids = torch.cat(list(named)).to(self.device) if named is not None else None
        signal = signal_of(self.ask, hidden, model_head(self.model, self.valid), ids)
        return list(split(signal, batch.counts))


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's names, shapes and a sample of 64 numbers from every tensor: another model has another one."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(flat.numel() // 64, 1)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(str(flat[::step][:64].tolist()).encode())
    return digest.hexdigest()
