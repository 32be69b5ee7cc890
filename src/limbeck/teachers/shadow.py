"""A second set of the student's trainable weights: a frozen copy, or an average over the steps.

What is not trained is shared, so that under LoRA the copy is an adapter's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Shadow:
    """A copy of the trainable weights of `model`, taken now.

    decay: None for a copy that stays, else each `follow` makes it decay * copy + (1 - decay) * student
    (Tarvainen and Valpola 2017, "Mean teachers", section 3; there without a bias correction too).
    """

    def __init__(self, model: nn.Module, decay: float | None = None) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in self.parameters.items()}

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Inside, the model computes with the copy; its own weights come back afterwards, untouched."""
        own = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.data = self.weights[name]
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = own[name]

    @torch.no_grad()
    def follow(self) -> None:
        """The average's share of one optimizer step. New tensors: whoever still holds the old ones keeps them."""
        if self.decay is None:
            return
        for name, p in self.parameters.items():
            self.weights[name] = torch.lerp(p.detach(), self.weights[name], self.decay)

    def state(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Raises KeyError for a checkpoint of other trainable weights."""
        self.weights = {name: state[name].to(p.device, p.dtype) for name, p in self.parameters.items()}
