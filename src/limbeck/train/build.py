"""The weights: student, teacher, optimizer and sampler, from what `prepare` settled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, get_scheduler

from limbeck.config.defaults import Choice
from limbeck.config.schema import Config, Model
from limbeck.errors import ConfigError
from limbeck.models import add_lora, check_head, dropout_off, enable_packing, load_model, unwrap
from limbeck.rollouts import HFSampler, Sampling, sample_dataset
from limbeck.teachers import LocalTeacher, Teacher
from limbeck.train.objective import DivergenceLoss
from limbeck.train.prepare import Prepared
from limbeck.train.step import Parts
from limbeck.train.student import StudentStep

ROLLOUT_BATCH = 32  # sequences a `generate` call, where not given


def make_accelerator(config: Config) -> tuple[Accelerator, list[Choice]]:
    """One process, or this rank of several that torchrun or `accelerate launch` started."""
    precision, choices = config.optim.mixed_precision, []
    cuda = torch.cuda.is_available() and not config.run.use_cpu
    if precision == "auto":
        bf16 = cuda and torch.cuda.is_bf16_supported()
        precision = "bf16" if bf16 else "no"
        reason = "the GPU multiplies in bfloat16, weights stay float32" if bf16 else "there is no GPU with bfloat16"
        choices.append(Choice("mixed_precision", precision, reason))
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    return Accelerator(mixed_precision=precision, cpu=config.run.use_cpu), choices


def build(prepared: Prepared, accelerator: Accelerator, *, checkpoint: Path | None) -> tuple[Parts, list[Choice]]:
    """Loads and prepares everything that a step works with. `checkpoint`: take the student's weights from there."""
    config, choices = prepared.config, []
    model = build_student(config, checkpoint)
    check_head(model)
    packs = enable_packing(model)
    objective = objective_of(config)
    student = StudentStep(model, objective, prepared.valid)
    optimizer = torch.optim.AdamW(
        _groups(student.named_parameters(), config.optim.weight_decay),
        lr=config.optim.learning_rate or 0.0,
        betas=(config.optim.adam_beta1, config.optim.adam_beta2),
        eps=config.optim.adam_epsilon,
        fused=True,
    )
    prepared_student, optimizer = accelerator.prepare(student, optimizer)
    prepared_student.train()
    warmup = config.optim.warmup_steps
    try:
        scheduler = get_scheduler(  # not prepared: a prepared one steps once a process
            config.optim.lr_scheduler_type,
            optimizer,
            num_warmup_steps=round(config.optim.warmup_ratio * prepared.max_steps) if warmup is None else warmup,
            num_training_steps=prepared.max_steps,
            scheduler_specific_kwargs=config.optim.lr_scheduler_kwargs or None,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the scheduler {config.optim.lr_scheduler_type} cannot be made: {error}",
            where=f"--lr_scheduler_kwargs {config.optim.lr_scheduler_kwargs}",
            fix="give what transformers' scheduler of that name takes, such as '{\"min_lr\": 1e-6}'",
        ) from error
    teacher = build_teacher(prepared, accelerator, model, choices)
    parts = Parts(
        plan=prepared.plan,
        accelerator=accelerator,
        rows=prepared.rows,
        samplers={"dataset": sample_dataset, "student": build_sampler(prepared, accelerator, model)},
        teacher=teacher,
        student=prepared_student,
        optimizer=optimizer,
        scheduler=scheduler,
        pad_id=prepared.tokenizer.pad_token_id,
        packs=packs,
    )
    return parts, choices


def build_student(config: Config, checkpoint: Path | None) -> PreTrainedModel | PeftModel:
    """The model with its trainable parameters, in train mode, every dropout but LoRA's own off."""
    m, full = config.model, config.model.tuner_type == "full"
    adapters = [str(checkpoint)] if checkpoint and not full else m.adapters
    model = load_model(
        str(checkpoint) if checkpoint and full else m.model,
        revision=None if checkpoint and full else m.model_revision,
        dtype=m.torch_dtype,
        attn_impl=m.attn_impl,
        adapters=adapters,
        trust_remote_code=m.trust_remote_code,
        trainable=full or bool(adapters),
    )
    dropout_off(model)
    if isinstance(model, PreTrainedModel) and not full:
        model = add_lora(
            model,
            rank=m.lora_rank,
            alpha=m.lora_alpha,
            dropout=m.lora_dropout,
            target_modules=m.target_modules,
            seed=config.run.seed,
        )
    if m.gradient_checkpointing:
        base = unwrap(model)
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def load_frozen(m: Model, device: torch.device) -> nn.Module:
    """A model to ask and not to train, on `device`; on a CPU in float32, which is what CPUs are fast and exact in."""
    model = load_model(
        m.model,
        revision=m.model_revision,
        dtype="float32" if m.torch_dtype == "auto" and device.type == "cpu" else m.torch_dtype,
        attn_impl=m.attn_impl,
        adapters=m.adapters,
        trust_remote_code=m.trust_remote_code,
        trainable=False,
    )
    return cast(nn.Module, model).to(device)


def objective_of(config: Config) -> DivergenceLoss:
    m = config.method
    return DivergenceLoss(
        beta=m.beta or 0.0,
        temperature=m.loss_temperature,
        normalize=m.jsd_normalize,
        topk_mode=m.topk_mode,
        token_clip=m.token_loss_clip,
        sft_alpha=m.sft_alpha,
        impl=m.loss_impl,
    )


def build_teacher(
    prepared: Prepared, accelerator: Accelerator, student: nn.Module, choices: list[Choice]
) -> Teacher | None:
    """The teacher of the method's row: none, a frozen model of its own, or the base under the student's adapter."""
    config, source = prepared.config, prepared.method.source
    shared: dict[str, Any] = {
        "valid": prepared.valid,
        "pad_id": prepared.tokenizer.pad_token_id,
        "topk": config.method.gkd_logits_topk,
        "temperature": config.method.loss_temperature,
        "device": accelerator.device,
        "autocast": accelerator.autocast,
    }
    if source == "none":
        return None
    if source == "base":
        assert isinstance(student, PeftModel)
        return LocalTeacher(student, name="base", view=student.disable_adapter, **shared)
    t = config.teacher
    assert t.teacher_model is not None
    dtype = t.teacher_torch_dtype
    if dtype == "auto" and (accelerator.device.type == "cpu" or t.teacher_model == config.model.model):
        dtype = cast(Any, str(next(student.parameters()).dtype).removeprefix("torch."))
        choices.append(Choice("teacher_torch_dtype", dtype, "as the student computes, so that equal weights agree"))
    teacher = load_model(
        t.teacher_model,
        revision=t.teacher_model_revision,
        dtype=dtype,
        attn_impl=config.model.attn_impl,
        adapters=t.teacher_adapters,
        trust_remote_code=config.model.trust_remote_code,
        trainable=False,
    )
    check_head(teacher)
    enable_packing(teacher)
    if not t.offload_teacher_model:
        teacher.to(accelerator.device)
    return LocalTeacher(teacher, name=t.teacher_model, offload=t.offload_teacher_model, **shared)


def build_sampler(prepared: Prepared, accelerator: Accelerator, model: nn.Module) -> HFSampler:
    r = prepared.config.rollout
    return HFSampler(
        model=model,
        sampling=Sampling(r.temperature, r.top_p, r.top_k, r.min_p, r.repetition_penalty, r.max_completion_length),
        end_ids=prepared.end_ids,
        pad_id=prepared.tokenizer.pad_token_id,
        valid=prepared.valid,
        batch_size=r.rollout_batch_size or ROLLOUT_BATCH,
        autocast=accelerator.autocast,
    )


def _groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Decay on matrices alone; biases and norms are left where the gradient puts them."""
    trainable = [p for _, p in named if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
