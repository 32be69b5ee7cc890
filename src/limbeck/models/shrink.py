"""A smaller student cut from a model: some of its layers, everything else as it was.

Keeping every other layer is the start of DistilBERT (Sanh et al. 2019, section 2); what is lost is then distilled back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from limbeck.errors import ConfigError, ModelError
from limbeck.models.score import backbone, evaluating
from limbeck.quiet import quiet

# Lists in a config that may have as many entries as the model has layers, but are not one entry a layer.
_NOT_PER_LAYER = frozenset({"architectures", "eos_token_id", "bos_token_id", "pad_token_id"})


def even_layers(n_total: int, n_keep: int) -> list[int]:
    """`n_keep` of `n_total` layers, evenly spread: layer i is round(i (n_total - 1) / (n_keep - 1)), halves up.

    The first and the last layer are always kept (a single layer is the first). Raises ConfigError outside 1..n_total.
    """
    if not 1 <= n_keep <= n_total:
        raise ConfigError(
            f"cannot keep {n_keep} of {n_total} layers", where="--num_layers", fix=f"choose 1 to {n_total}"
        )
    if n_keep == 1:
        return [0]
    gaps = n_keep - 1
    return [(2 * i * (n_total - 1) + gaps) // (2 * gaps) for i in range(n_keep)]


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A new model of the same class with only these layers, in this order; the old one is left as it was.

    It is built afresh from a cut config, so that layer numbers (the KV cache goes by them), per-layer config lists,
    tied heads and buffers are right by construction; the weights are copies. Then it is compared with the old model
    running those layers only. Raises ConfigError for layers that do not exist, ModelError, naming the class, for a
    model that cannot be cut this way.
    """
    name = type(model).__name__
    prefix, stack = _layer_stack(model)
    wrong = [i for i in layers if not 0 <= i < len(stack)]
    if wrong or not layers or len(set(layers)) != len(layers):
        raise ConfigError(
            f"{name} has no such choice of layers: {list(layers)}",
            where="--keep_layers",
            fix=f"give different numbers from 0 to {len(stack) - 1}",
        )
    weights = {key: value.clone() for key, value in _renumbered(model.state_dict(), prefix, layers).items()}
    try:
        with quiet(errors_only=True):  # a table of keys, among others
            kind: Any = type(model)
            small, report = kind.from_pretrained(
                None,
                config=_cut_config(model.config, len(stack), layers),
                state_dict=weights,
                dtype=model.dtype,
                attn_implementation=model.config._attn_implementation,
                output_loading_info=True,
            )
        problems = [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report.get(key)]
        if problems:
            raise ValueError(f"{problems[0]}: {sorted(map(str, report[problems[0]]))[:3]}")
        difference = _difference(model, small, layers)
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _cannot_cut(name, f"{type(error).__name__}: {str(error)[:300]}") from error
    if not difference <= 1e-3:
        raise _cannot_cut(
            name, f"the cut model's hidden states differ by {difference:.2g} (relative) from those layers'"
        )
    small.generation_config = copy.deepcopy(model.generation_config)
    return small.to(model.device).train(model.training)


def _cannot_cut(name: str, detail: str) -> ModelError:
    return ModelError(
        f"{name} cannot be cut layer by layer", where=detail, fix="use a Llama-, Qwen-, Mistral- or Gemma-like model"
    )


def _layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers, all of one class."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise _cannot_cut(name, "it carries adapters: merge them first")
    body = backbone(model)
    stack = getattr(body, "layers", None)
    if model.config.get_text_config() is not model.config or not isinstance(stack, nn.ModuleList):
        raise _cannot_cut(name, "it has no plain list of decoder layers")
    if len(stack) != model.config.num_hidden_layers:
        raise _cannot_cut(name, f"{len(stack)} layers, but num_hidden_layers is {model.config.num_hidden_layers}")
    return next(key for key, module in model.named_modules() if module is stack), stack


def _cut_config(config: Any, total: int, layers: Sequence[int]) -> Any:
    """The config with fewer layers and its one-entry-a-layer lists cut to the same ones."""
    values = config.to_dict()
    for key, value in values.items():
        if isinstance(value, list) and len(value) == total and key not in _NOT_PER_LAYER:
            values[key] = [value[i] for i in layers]
    return type(config).from_dict(values | {"num_hidden_layers": len(layers)})


def _renumbered(weights: dict[str, torch.Tensor], prefix: str, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    new = {old: i for i, old in enumerate(layers)}
    kept: dict[str, torch.Tensor] = {}
    for key, value in weights.items():
        if not key.startswith(prefix + "."):
            kept[key] = value
            continue
        number, _, rest = key[len(prefix) + 1 :].partition(".")
        if int(number) in new:
            kept[f"{prefix}.{new[int(number)]}.{rest}"] = value
    return kept


@contextmanager
def _only(model: PreTrainedModel, config: Any, layers: Sequence[int]) -> Iterator[nn.Module]:
    """The backbone running only these of its layers, in place; undone on leaving."""
    body: Any = backbone(model)
    stack, old_config = body.layers, body.config
    body.layers, body.config = nn.ModuleList([stack[i] for i in layers]), config
    try:
        yield body
    finally:
        body.layers, body.config = stack, old_config


def _difference(model: PreTrainedModel, small: PreTrainedModel, layers: Sequence[int]) -> float:
    """Largest difference of hidden states between the cut model and the old one's layers, relative to their size."""
    ids = torch.arange(1, 13, device=model.device)[None] * 7919 % model.config.vocab_size
    small.to(model.device)  # type: ignore[arg-type]
    with evaluating(model), evaluating(small):
        with _only(model, small.config, layers) as body:
            expected = body(input_ids=ids, use_cache=False).last_hidden_state.float()
        got = backbone(small)(input_ids=ids, use_cache=False).last_hidden_state.float()
    return ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
