"""The output head of a model as plain tensors: weight, bias, soft-cap and scale.

What transformers' models do to their logits is a handful of config keys, listed in `HEAD_KEYS`. A model that does
something else is not guessed at: `check_head` compares the head with the model's own logits and refuses it by name.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from limbeck.errors import ModelError
from limbeck.losses import Head
from limbeck.models.score import backbone, evaluating, unwrap

How = Literal["softcap", "multiply", "divide", "cut", "ignore"]

# Config key -> what the model does with it, read from the modeling files of transformers 5.23.
HEAD_KEYS: dict[str, How] = {
    "final_logit_softcapping": "softcap",  # Gemma 2, 3, 3n, 4, NanoChat, VaultGemma, Inkling 2
    "logits_soft_cap": "softcap",  # RecurrentGemma
    "output_logit_soft_cap": "softcap",  # xLSTM
    "logit_scale": "multiply",  # Cohere, Cohere 2
    "lm_head_multiplier": "multiply",  # Falcon-H1
    "logits_scaling": "divide",  # Granite; MiniCPM3, which divides the hidden states (its head has no bias)
    "logits_mup_width_multiplier": "divide",  # Inkling
    "unpadded_vocab_size": "cut",  # Inkling
}
# The same key with another meaning, by model type.
HEAD_KEYS_OF: dict[str, dict[str, How]] = {
    "hyperclovax": {"logits_scaling": "multiply"},
    "mpt": {"logit_scale": "ignore"},  # in the config, never read
}

# Largest difference of logits, relative to the largest logit, that rounding explains.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def model_head(model: nn.Module, valid: int | None = None) -> Head:
    """The head such that `softcap * tanh(scale * (h W^T + b) / softcap)` are the model's logits.

    Args:
        model: a causal language model or a PeftModel around one.
        valid: number of ids that count (`limbeck.models.valid_ids`); wider heads are cut to it.

    Weights are read from the modules at every call. Call it inside the forward pass that uses it, so that gradients
    flow to the head and sharded weights are gathered. LoRA on the head gives its effective weight, with gradients to
    A and B, and without its dropout. Raises ModelError for a head of another kind.
    """
    base = unwrap(model)
    name = type(base).__name__
    module = base.get_output_embeddings()
    if module is None:
        raise _not_understood(name, "it has no output embeddings")
    weight, bias = _weight_and_bias(module, name)
    found: dict[How, float] = {}
    for how, value in _head_values(base.config.get_text_config()):
        if how in found:
            raise _not_understood(name, f"its config gives two values to {how} by")
        found[how] = value
    if valid is not None and valid > weight.shape[0]:
        raise ModelError(
            f"the tokenizer knows {valid} ids, but the output head of {name} has only {weight.shape[0]} rows",
            fix="use the tokenizer that belongs to this model",
        )
    widths = [int(width) for width in (valid, found.get("cut")) if width is not None]
    return Head(
        weight=weight,
        bias=bias,
        softcap=found.get("softcap"),
        scale=found.get("multiply", 1.0) / found.get("divide", 1.0),
        valid=min(widths) if widths else None,
    )


def check_head(model: nn.Module) -> None:
    """Compare head(hidden states) with the model's own logits on a few tokens.

    Raises ModelError, naming the class and the difference, where they are not the same. Run it once after loading and
    before the model is wrapped or sharded. It tests that the head and the backbone are understood, and that
    the model's forward does nothing else in between.
    """
    base: Any = unwrap(model)
    name = type(base).__name__
    head = model_head(model)
    count = base.get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    ids = (torch.arange(1, 9, device=device) * 7919 % min(count, head.weight.shape[0]))[None]
    with evaluating(model):
        expected = model(input_ids=ids, use_cache=False).logits
        hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
        if hidden.shape[-1] != head.weight.shape[1]:
            raise _not_understood(name, f"hidden size {hidden.shape[-1]}, head of {tuple(head.weight.shape)}")
        got = head.logits(hidden)
    if not expected.isfinite().all():
        raise ModelError(f"the weights of this {name} give logits that are not finite", fix="load another copy of it")
    if got.shape != expected.shape:
        raise _not_understood(name, f"logits of shape {tuple(expected.shape)}, not {tuple(got.shape)}")
    difference = (got - expected.to(got.dtype)).abs().max().item()
    size = expected.abs().max().item()
    if not difference <= TOLERANCE.get(expected.dtype, 1e-4) * size + 1e-12:
        raise _not_understood(name, f"logits differ by up to {difference:.3g}, at a size of {size:.3g}")


def _not_understood(name: str, detail: str) -> ModelError:
    return ModelError(
        f"the output head of {name} is not understood",
        where=detail,
        fix="if its config has a key that changes the logits, add that to HEAD_KEYS in limbeck/models/head.py",
    )


def _head_values(config: Any) -> list[tuple[How, float]]:
    keys = HEAD_KEYS | HEAD_KEYS_OF.get(getattr(config, "model_type", ""), {})
    return [
        (how, float(value)) for key, how in keys.items() if (value := getattr(config, key, None)) and how != "ignore"
    ]


def _weight_and_bias(module: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Effective weight [V, H] and bias [V] of a linear layer, seen through peft's wrappers as its forward would."""
    if isinstance(module, ModulesToSaveWrapper):
        active = [adapter for adapter in module.active_adapters if adapter in module.modules_to_save]
        use_base = module.disable_adapters or not active
        return _weight_and_bias(module.original_module if use_base else module.modules_to_save[active[0]], name)
    if isinstance(module, LoraLayer):
        return _lora_weight_and_bias(module, name)
    if isinstance(module, AuxiliaryTrainingWrapper):
        raise _not_understood(name, f"it is wrapped in {type(module).__name__}")
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise _not_understood(name, f"{type(module).__name__} has no floating-point weight [vocabulary, hidden]")
    return weight, bias


def _lora_weight_and_bias(module: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """W + sum over the active adapters of scaling * B A  (Hu et al. 2021, "LoRA", section 4.1)."""
    if module.disable_adapters and module.merged:
        module.unmerge()
    weight, bias = _weight_and_bias(module.get_base_layer(), name)
    if module.disable_adapters or module.merged:
        return weight, bias
    for adapter in module.active_adapters:
        if adapter not in module.lora_A:
            continue
        if adapter in getattr(module, "lora_variant", {}):
            kind = type(module.lora_variant[adapter]).__name__
            raise _not_understood(name, f"its adapter is {kind}, whose weight is not W + scaling * B A")
        weight = weight + module.get_delta_weight(adapter)
        extra = module.lora_B[adapter].bias
        if extra is not None:
            extra = extra * module.scaling[adapter]
            bias = extra if bias is None else bias + extra
    return weight, bias
