"""Models: loading them, their tokenizers, their output heads, and hidden states of chosen positions."""

from limbeck.models.head import check_head, model_head
from limbeck.models.load import (
    ModelFacts,
    add_lora,
    describe,
    fingerprint,
    load_config,
    load_generation_config,
    load_model,
    position_limit,
    skeleton,
)
from limbeck.models.pack import computed_positions
from limbeck.models.score import attention_of, backbone, dropout_off, enable_packing, evaluating, hidden_states, unwrap
from limbeck.models.shrink import even_layers, keep_layers
from limbeck.models.tokenizer import (
    end_token_ids,
    load_tokenizer,
    tokenizer_difference,
    tokenizer_fingerprint,
    valid_ids,
)

__all__ = [
    "ModelFacts",
    "add_lora",
    "attention_of",
    "backbone",
    "check_head",
    "computed_positions",
    "describe",
    "dropout_off",
    "enable_packing",
    "end_token_ids",
    "evaluating",
    "even_layers",
    "fingerprint",
    "hidden_states",
    "keep_layers",
    "load_config",
    "load_generation_config",
    "load_model",
    "load_tokenizer",
    "model_head",
    "position_limit",
    "skeleton",
    "tokenizer_difference",
    "tokenizer_fingerprint",
    "unwrap",
    "valid_ids",
]
