"""Models from hub ids, folders and GGUF files, with adapters: load, add LoRA, describe, tell apart."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedModel

from limbeck.errors import ModelError
from limbeck.models.gguf import end_ids, gguf_file, load_gguf_config, load_gguf_model
from limbeck.models.score import unwrap
from limbeck.models.source import check_adapter, check_folder, refusals

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: Dtype = "auto",
    attn_impl: str | None = None,
    adapters: Sequence[str] = (),
    trust_remote_code: bool = False,
    trainable: bool,
    quant_bits: Literal[4, 8] | None = None,
) -> PreTrainedModel | PeftModel:
    """Load a causal language model on the CPU.

    Args:
        name: hub id, folder, .gguf file, or a folder with a single .gguf file.
        revision: branch, tag or commit of a hub id.
        dtype: "auto" is what the checkpoint has (float32 for GGUF), but float32 where all weights will be trained:
            bfloat16 master weights swallow small updates.
        attn_impl: transformers' `attn_implementation`.
        adapters: adapter folders or hub ids, applied in order: all but the last are merged into the weights, and the
            last one stays an adapter of its own.
        trust_remote_code: run code that comes with the model.
        trainable: the weights loaded here will be trained: the last adapter where there are any, otherwise all of
            them. False for a teacher, and for a student that gets a fresh adapter from `add_lora`.
        quant_bits: hold the linear layers, the head left out, in 8 bits or in 4-bit NormalFloat (bitsandbytes through
            transformers); the model then lies on the device that bitsandbytes chose.

    The model comes in evaluation mode. Raises ModelError.
    """
    full = trainable and not adapters
    path = gguf_file(name)
    if path is None:
        check_folder(name)
    with refusals(name):
        if path is not None:
            torch_dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype)
            if quant_bits is not None:
                raise ModelError(
                    "a GGUF file is unpacked when it is loaded, and cannot be quantised again",
                    where=name,
                    fix="leave --teacher_quant_bits out, or name the model's folder or hub id",
                )
            model = load_gguf_model(path, dtype=torch_dtype, attn_impl=attn_impl)
        else:
            # The config first: with no network this fails once, not once per file.
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
            model = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                revision=revision,
                dtype="float32" if dtype == "auto" and full else dtype,
                attn_implementation=attn_impl,
                trust_remote_code=trust_remote_code,
                **_quantised(quant_bits),
            )
    model.requires_grad_(full)
    if adapters:
        model = _with_adapters(model, adapters, trainable=trainable)
    return model.eval()


def _quantised(bits: Literal[4, 8] | None) -> dict[str, Any]:
    if bits is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"loading in {bits} bits needs the package bitsandbytes, which is not installed",
            where=f"--teacher_quant_bits {bits}",
            fix="pip install bitsandbytes, or leave it out",
        )
    # It says at every single product that 8 bits are multiplied in float16; docs/teachers.md says it once.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4"
        )
    }


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int = 8,
    alpha: float = 32,
    dropout: float = 0.05,
    target_modules: str | Sequence[str] = "all-linear",
    seed: int = 0,
) -> PeftModel:
    """Freeze the model and put fresh LoRA adapters on it: float32 weights, the same for the same seed.

    The output is unchanged at first (B = 0). "all-linear" means every linear layer but the output head.
    Raises ModelError where no module has one of the names.
    """
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  (a float works: it is only divided by the rank)
        lora_dropout=dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            # New modules are born in training mode: without the last call their dropout is on in an eval() model.
            with _quiet_peft():
                return get_peft_model(model, config).train(model.training)  # type: ignore[return-value]
        except ValueError as error:
            raise ModelError(
                f"LoRA cannot be put on {type(model).__name__}",
                where=f"target_modules: {', '.join(targets)}; {str(error).splitlines()[0][:200]}",
                fix="use --target_modules all-linear, or names of its linear layers: "
                + ", ".join(_linear_names(model)),
            ) from error


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What `limbeck plan` says of a model. Counts are of numbers, each tied tensor once."""

    architecture: str
    parameters: int
    trainable: int
    layers: int
    hidden: int
    vocabulary: int
    dtype: str
    tied: bool

    def __str__(self) -> str:
        head = "tied" if self.tied else "untied"
        return (
            f"{self.architecture}: {self.parameters / 1e6:,.1f}M parameters ({self.trainable / 1e6:,.1f}M trainable), "
            f"{self.layers} layers, hidden {self.hidden}, vocabulary {self.vocabulary:,}, {self.dtype}, {head} head"
        )


def describe(model: nn.Module) -> ModelFacts:
    """Architecture, size and types of a loaded model or a `skeleton`."""
    base: Any = unwrap(model)
    config = base.config.get_text_config()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    return ModelFacts(
        architecture=type(base).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=embedding.weight.shape[0],
        dtype=str(base.dtype).removeprefix("torch."),
        tied=head is not None and getattr(head, "weight", None) is embedding.weight,
    )


def fingerprint(model: nn.Module, *, adapters: bool = True) -> str:
    """A hash of a model's names, shapes, types, a sample of 64 numbers from every tensor, and the scales of adapters:
    a model that answers otherwise has another one. adapters: False for a model whose adapters are switched off."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if not adapters and ".lora_" in name:
            continue
        flat = tensor.detach().reshape(-1)
        step = max(flat.numel() // 64, 1)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(str(flat[::step][:64].tolist()).encode())
    scales = {name: getattr(module, "scaling", None) for name, module in model.named_modules()}
    if adapters:
        digest.update(str(sorted((name, str(scale)) for name, scale in scales.items() if scale)).encode())
    return digest.hexdigest()


def skeleton(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without its weights, from its config alone (meta tensors): for `describe` before anything is loaded."""
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    with refusals(name), torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=config.dtype or torch.float32, trust_remote_code=trust_remote_code
        )


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """A model's transformers configuration, without its weights. Raises ModelError."""
    path = gguf_file(name)
    if path is None:
        check_folder(name)
    with refusals(name):
        if path is not None:
            return load_gguf_config(path)
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


def position_limit(config: Any) -> int | None:
    """The longest sequence in tokens that a configuration names, None where it names none: max_position_embeddings, or
    where YaRN stretches the positions (arXiv 2309.00071) the length that comes of it."""
    text = config.get_text_config()
    limit, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
    if limit and rope.get("rope_type") == "yarn":
        limit = max(limit, round(rope.get("original_max_position_embeddings", limit) * rope.get("factor", 1)))
    return limit or None


def load_generation_config(name: str, *, revision: str | None = None) -> GenerationConfig | None:
    """What the model's makers say about generating, its end tokens above all; None where they say nothing."""
    path = gguf_file(name)
    if path is not None:
        return GenerationConfig(eos_token_id=end_ids(path) or None)
    file = Path(name).expanduser() / "generation_config.json"
    if file.is_file():  # one that cannot be read must not pass for one that is not there: its end tokens would be lost
        with refusals(name, "generation config"):
            return GenerationConfig.from_pretrained(name)
    try:
        return GenerationConfig.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError):
        return None


def _with_adapters(model: PreTrainedModel, adapters: Sequence[str], *, trainable: bool) -> PeftModel:
    *merged, last = adapters
    for adapter in adapters:
        check_adapter(adapter)
    base: Any = model
    for adapter in merged:
        with refusals(adapter, "adapter"), _quiet_peft():
            base = PeftModel.from_pretrained(base, adapter).merge_and_unload()  # type: ignore[operator]
    with refusals(last, "adapter"), _quiet_peft():
        return PeftModel.from_pretrained(base, last, is_trainable=trainable)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """peft asks the model by a name that transformers has deprecated: nothing that a user could act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def _linear_names(model: nn.Module) -> list[str]:
    head = unwrap(model).get_output_embeddings()
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head)
    return sorted({name.rpartition(".")[2] for name in linear})[:12]
