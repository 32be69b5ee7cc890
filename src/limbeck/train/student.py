"""The module that is prepared (DDP, FSDP2, ZeRO): backbone, head and loss in one forward.

The loss runs inside the forward, so that an engine's hooks gather the head's weight where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from limbeck.data.collate import collate
from limbeck.losses import Head, linear_token_logprobs, linear_topk
from limbeck.models import hidden_states, model_head
from limbeck.signal import Sample
from limbeck.train.objective import MicroBatch, Stats


class Objective(Protocol):
    """A loss sum and statistics, see `limbeck.train.objective`; `amount`: what sequences of counts[i] active tokens add
    to the denominator."""

    def __call__(self, hidden: Tensor, head: Head, micro: MicroBatch, *, stats: bool) -> tuple[Tensor, Stats]: ...

    def amount(self, counts: Sequence[int]) -> float: ...


class StudentStep(nn.Module):
    """model: a causal language model, plain or peft. valid: the tokenizer's ids; the surplus of the head is cut."""

    def __init__(self, model: nn.Module, objective: Objective, valid: int) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.valid = valid

    def forward(self, micro: MicroBatch, stats: bool = False) -> tuple[Tensor, Stats]:
        """-> (loss sum, detached statistics [N]). Only positions that predict an active token reach the head."""
        batch = micro.batch
        hidden = hidden_states(self.model, batch.input_ids, (batch.rows, batch.cols))
        return self.objective(hidden, model_head(self.model, self.valid), micro, stats=stats)

    def likeliest(self, samples: Sequence[Sample], k: int, pad_id: int, device: torch.device) -> list[Tensor]:
        """The student's k likeliest ids [N, k] int64 at the active tokens of every sample."""
        batch = collate([s.tokens for s in samples], pad_id).to(device)
        hidden = hidden_states(self.model, batch.input_ids, (batch.rows, batch.cols))
        _, ids, _ = linear_topk(hidden, model_head(self.model, self.valid), k)
        return list(ids.split(list(batch.counts)))

    def logprobs(
        self, samples: Sequence[Sample], temperatures: tuple[float, float], pad_id: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities [N] of the active tokens at both temperatures, and the entropies [N] at the first."""
        batch = collate([s.tokens for s in samples], pad_id).to(device)
        hidden = hidden_states(self.model, batch.input_ids, (batch.rows, batch.cols))
        head, (first, second) = model_head(self.model, self.valid), temperatures
        logp, entropy = linear_token_logprobs(hidden, head, batch.targets, temperature=first, return_entropy=True)
        if first == second:
            return logp, logp, entropy
        return logp, linear_token_logprobs(hidden, head, batch.targets, temperature=second), entropy
