"""A teacher in this process: a frozen model beside the student, or the base model under the student's LoRA adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from limbeck.data.collate import collate
from limbeck.losses import linear_topk
from limbeck.models import hidden_states, model_head
from limbeck.signal import Hidden, Sample, Signal, TopK, split


@dataclass
class LocalTeacher:
    """Scores with `model`, in eval mode and without gradients.

    topk: None for the whole vocabulary (hidden states travel, the head runs inside the loss), else the K likeliest ids.
    temperature: the loss temperature; top-k log-probabilities are taken at it.
    view: entered around every scoring, e.g. `peft_model.disable_adapter` for the base under an adapter.
    """

    model: nn.Module
    name: str
    valid: int
    pad_id: int
    topk: int | None = None
    temperature: float = 1.0
    device: torch.device | str = "cpu"
    offload: bool = False
    view: Callable[[], AbstractContextManager] = field(default=nullcontext)
    autocast: Callable[..., AbstractContextManager] = field(default=nullcontext)

    @torch.no_grad()
    def score(self, batches: Sequence[Sequence[Sample]]) -> list[list[Signal | None]]:
        training = self.model.training
        self.model.eval()
        if self.offload:
            self.model.to(self.device)  # once a generation batch, not once a micro-batch
        try:
            with self.view(), self.autocast():
                return [self._score_batch(samples) for samples in batches]
        finally:
            self.model.train(training)
            if self.offload:
                self.model.to("cpu")

    def _score_batch(self, samples: Sequence[Sample]) -> list[Signal | None]:
        batch = collate([s.tokens for s in samples], self.pad_id).to(self.device)
        hidden = hidden_states(self.model, batch.input_ids, (batch.rows, batch.cols))
        head = model_head(self.model, self.valid)
        if self.topk is None:
            return list(split(Hidden(hidden, head), batch.counts))
        logprobs, ids, log_tail = linear_topk(hidden, head, self.topk, temperature=self.temperature)
        return list(split(TopK(logprobs, ids, log_tail), batch.counts))
