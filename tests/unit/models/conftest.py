"""Tiny random models, one of each kind of output head, and tiny tokenizers built here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCAB = 97
SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 8.0, **changes: Any):
    """A random model of transformers' `kind`. Its head is multiplied by `scale`, so that soft-caps bend the logits."""
    from transformers import AutoConfig

    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **(SIZE | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # norms and biases are constants otherwise
        model.get_output_embeddings().weight.mul_(scale)
    return model


@pytest.fixture
def make() -> Callable[..., PreTrainedModel]:
    return tiny


def padded_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Right-padded ids [3, 12], their attention mask, and the positions of real tokens (rows, cols)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([12, 5, 9])
    mask = torch.arange(12)[None] < lengths[:, None]
    ids = torch.randint(3, VOCAB, (3, 12), generator=generator) * mask
    rows, cols = mask.nonzero(as_tuple=True)
    return ids, mask.long(), (rows, cols)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    return padded_batch()
