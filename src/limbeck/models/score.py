"""Hidden states of chosen positions: the backbone's output, and never the output head.

The head is the expensive part of a small model with a large vocabulary, so it is not run here: the losses apply it
themselves, chunk by chunk, to the positions that count (`limbeck.models.head`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.errors import ModelError
from limbeck.models.pack import PACKED, pack_positions

PROBE = [(0, 3), (0, 8), (1, 4), (1, 6), (2, 0), (2, 7)]  # sequences of 9, 7 and 8 tokens, two of them alike for 5


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PeftModel (its adapter layers stay in place), or the model itself.

    Raises ModelError for prompt-learning adapters: they add virtual tokens in PeftModel's own forward.
    """
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"adapters of type {model.active_peft_config.peft_type} put virtual tokens before the prompt",
                fix="use a LoRA adapter",
            )
        model = model.get_base_model()
    return cast(PreTrainedModel, model)


def backbone(model: nn.Module) -> nn.Module:
    """The decoder without its output head; calling it gives `last_hidden_state` with the final norm applied.

    Raises ModelError, naming the class, where the head cannot be told from the rest.
    """
    base = unwrap(model)
    body = getattr(base, "base_model", base)
    if body is base or not isinstance(body, nn.Module):
        raise ModelError(
            f"{type(base).__name__} has no backbone apart from its output head",
            fix="use a decoder-only language model that AutoModelForCausalLM loads",
        )
    return body


def hidden_states(model: nn.Module, input_ids: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
    """Hidden states [N, H] at the positions (rows [N], cols [N]) of right-padded `input_ids` [B, T].

    No attention mask is passed: attention is causal and the padding stands on the right, so no real token sees it. That
    keeps the fast attention kernels. What the padding positions compute is never read, and any valid id will do there.
    Nothing behind the last position of a row is computed, and with `enable_packing` nothing twice.
    """
    rows, cols = positions
    if rows.numel() and unwrap(model).config._attn_implementation == PACKED:
        packing = pack_positions(input_ids, rows, cols)
        if packing.fold.numel() < packing.spread.numel():
            output = backbone(model)(
                input_ids=packing.input_ids,
                position_ids=packing.position_ids,
                attention_mask=packing.no_mask,
                packing=packing,
                use_cache=False,
            )
            return output.last_hidden_state[0].index_select(0, packing.place(rows, cols))
    output = backbone(model)(input_ids=input_ids, use_cache=False)
    return output.last_hidden_state[rows, cols]


def enable_packing(model: nn.Module) -> bool:
    """Lets `hidden_states` pack for this model, if that gives the very states that it has without; says whether.

    Not for models with another way to mix tokens than transformers' attention interface, nor for attention
    implementations other than sdpa.
    """
    base = unwrap(model)
    c = base.config
    windows = getattr(c, "sliding_window", None) or getattr(c, "attention_chunk_size", None)
    if c._attn_implementation != "sdpa" or c.sub_configs or windows:
        return False
    device = next(model.parameters()).device
    count = base.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    ids = (torch.arange(1, 28, device=device) * 7919 % count).view(3, 9)
    ids[1, :5] = ids[0, :5]
    rows, cols = (torch.tensor(x, device=device) for x in zip(*PROBE, strict=True))
    with evaluating(model):
        expected = hidden_states(model, ids, (rows, cols))
        base.set_attn_implementation(PACKED)
        try:
            found = hidden_states(model, ids, (rows, cols))
        except (TypeError, ValueError, RuntimeError, IndexError):
            found = torch.full_like(expected, torch.nan)
    tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 5e-2
    same = bool((found - expected).abs().max() <= tolerance * expected.abs().max())
    if not same:
        base.set_attn_implementation("sdpa")
    return same


def attention_of(model: nn.Module) -> tuple[str, str]:
    """The attention implementation as transformers names it, and what that means for shared beginnings and padding."""
    c = unwrap(model).config
    if c._attn_implementation == PACKED:
        return "sdpa", "transformers' choice; what sequences begin with in common is computed once, and no padding"
    if c._attn_implementation != "sdpa":
        return str(c._attn_implementation), "padding and shared beginnings are computed each time, with sdpa not"
    kind = "a window of attention" if getattr(c, "sliding_window", None) else "its own way to mix tokens"
    return "sdpa", f"this model has {kind}, so padding and shared beginnings are computed each time"


def dropout_off(model: nn.Module) -> None:
    """Set the model's own dropout probabilities to zero, for good: student and teacher are scored without dropout.

    A model in `train()` mode (which gradient checkpointing needs) then computes exactly what it computes in `eval()`.
    Reaches dropout modules and the plain numbers that attention layers keep; LoRA's dropout is the adapter's business.
    """
    for path, module in model.named_modules():
        if ".lora_dropout" in path:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and name.endswith(("dropout", "dropout_p", "dropout_prob", "layerdrop")):
                setattr(module, name, 0.0)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
