"""Automatic choices that the models, the rows and the machine decide, each with its reason; no weight is loaded.

`limbeck plan` prints them with those of `config.defaults`, and so does a run before its first step.
"""

from __future__ import annotations

from typing import Any

import torch

from limbeck.config.choices import MethodRow
from limbeck.config.defaults import ROLLOUT_BATCH, Choice
from limbeck.config.schema import Config, Model, Rollout
from limbeck.models import load_config
from limbeck.models.gguf import gguf_file

_SOURCES = {
    "model": "--teacher_model names it",
    "server": "--teacher_model_server names it",
    "base": "--teacher_model is the model under the student's own adapter, which is in memory already",
    "live": "rows have a teacher_prompt, and no teacher is named",
}


def model_choices(config: Config, method: MethodRow) -> list[Choice]:
    """Who the teacher is, and in which type the student is held."""
    found: list[Choice] = []
    if config.teacher.teacher_source == "auto" and method.source in _SOURCES:
        found.append(Choice("teacher_source", method.source, _SOURCES[method.source]))
    if config.model.torch_dtype == "auto":
        found.append(Choice("torch_dtype", *student_dtype(config.model)))
    return found


def student_dtype(m: Model) -> tuple[str, str]:
    """The type that `load_model` makes of "auto" where a student is trained, and why."""
    if m.tuner_type == "full":
        return "float32", "all weights are trained, and narrower ones swallow small updates"
    return saved_dtype(m)


def saved_dtype(m: Model) -> tuple[str, str]:
    if gguf_file(m.model) is not None:
        return "float32", "a GGUF file is unpacked when it is loaded"
    saved = load_config(m.model, revision=m.model_revision, trust_remote_code=m.trust_remote_code).dtype
    if saved is None:
        return "auto", "that of the weights, which the model's config does not name"
    return str(saved).removeprefix("torch."), "what the model was saved in"


def frozen_choices(m: Model, device: torch.device, *, use_cpu: bool) -> list[Choice]:
    """Where a model that is asked and not trained lies, and in which type: see `build.load_frozen`."""
    found = [] if use_cpu else [device_choice(device.type)]
    if m.torch_dtype == "auto":
        exact = ("float32", "CPUs are fast and exact in it")
        found.append(Choice("torch_dtype", *(exact if device.type == "cpu" else saved_dtype(m))))
    return found


def rollout_choice(r: Rollout) -> list[Choice]:
    return [] if r.rollout_batch_size else [Choice("rollout_batch_size", ROLLOUT_BATCH, "the default")]


def device_choice(kind: str) -> Choice:
    return Choice("use_cpu", kind == "cpu", "torch sees no GPU" if kind == "cpu" else f"there is a device, {kind}")


def precision_of(config: Config) -> tuple[str, list[Choice]]:
    """accelerate's mixed precision, and the choices that the machine decides."""
    precision = config.optim.mixed_precision
    cuda = torch.cuda.is_available() and not config.run.use_cpu
    kind = "cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu"  # as accelerate takes them
    found = [] if config.run.use_cpu else [device_choice(kind)]
    if precision == "auto":
        bf16 = cuda and torch.cuda.is_bf16_supported()
        precision = "bf16" if bf16 else "no"
        reason = "the GPU multiplies in bfloat16, weights stay float32" if bf16 else "there is no GPU with bfloat16"
        found.append(Choice("mixed_precision", precision, reason))
    return precision, found


def warmup_choice(config: Config, max_steps: int) -> list[Choice]:
    optim = config.optim
    if optim.warmup_steps is not None:
        return []
    reason = f"--warmup_ratio {optim.warmup_ratio:g} of {max_steps:,} steps"
    return [Choice("warmup_steps", round(optim.warmup_ratio * max_steps), reason)]


def teacher_dtype(config: Config, name: str, device: str, student: str) -> Choice | None:
    """The type of a teacher that is loaded here; None where the flag says it. student: the type of its weights."""
    if config.teacher.teacher_torch_dtype != "auto":
        return None
    if device == "cpu" or name == config.model.model:
        return Choice("teacher_torch_dtype", student, "as the student computes, so that equal weights agree")
    return Choice("teacher_torch_dtype", "auto", "what the teacher was saved in")


def reading(tokenizer: Any, valid: int, end_ids: frozenset[int], *, teachers_too: bool = False) -> str:
    """How texts become ids, and where a response ends: what the model's own files decide."""
    names = [repr(tokenizer.convert_ids_to_tokens(i)) for i in sorted(end_ids)]
    more = " and its generation config" + (", and the teacher's" if teachers_too else "")
    why = "its tokenizer names it" if end_ids == {tokenizer.eos_token_id} else f"named by its tokenizer{more}"
    ends = f"a response ends at {' or '.join(names)} ({why})" if names else "no token ends a response"
    turns = "turns by its own chat template" if tokenizer.chat_template else "no chat template, so prompts are raw text"
    return f"{valid:,} ids; {ends}; padded with {tokenizer.pad_token!r}, which is never read; {turns}"
