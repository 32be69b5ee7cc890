"""The weights: student, teacher, optimizer and sampler, from what `prepare` settled."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, get_scheduler

from limbeck.config.choices import SELF
from limbeck.config.defaults import ROLLOUT_BATCH, Choice
from limbeck.config.schema import Config, Model, Rollout
from limbeck.errors import ConfigError
from limbeck.losses import PolicyLoss
from limbeck.losses.chunks import chunk_choice
from limbeck.models import (
    add_lora,
    attention_of,
    check_head,
    dropout_off,
    enable_packing,
    load_model,
    unwrap,
    valid_ids,
)
from limbeck.rewards import NamedReward, RewardTable, score
from limbeck.rollouts import HFSampler, Sampling, sample_dataset
from limbeck.signal import Sample
from limbeck.teachers import Teacher
from limbeck.train import parallel
from limbeck.train.chosen import precision_of
from limbeck.train.objective import AdvantageLoss, DivergenceLoss
from limbeck.train.policy import Judge, Reward
from limbeck.train.prepare import Prepared
from limbeck.train.shard import Whole, shard, unsharded
from limbeck.train.step import Parts
from limbeck.train.student import Objective, StudentStep
from limbeck.train.teacher import build_reference, build_teacher


def make_accelerator(config: Config) -> tuple[Accelerator, list[Choice]]:
    """One process, or this rank of several that torchrun or `accelerate launch` started."""
    precision, choices = precision_of(config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            "the environment says that there are several processes, and not where they meet",
            where=f"WORLD_SIZE={os.environ['WORLD_SIZE']}, MASTER_ADDR is not set",
            fix="start them with torchrun --nproc_per_node N -m limbeck.cli.main ..., or unset WORLD_SIZE",
        )
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(mixed_precision=precision, cpu=config.run.use_cpu)
    parallel.keep_group()
    return accelerator, choices


def build(
    prepared: Prepared,
    accelerator: Accelerator,
    *,
    checkpoint: Path | None,
    say: Callable[[str], None] = print,
    state: Callable[[], Any] = lambda: None,
) -> tuple[Parts, list[Choice]]:
    """Loads and prepares everything that a step works with. `checkpoint`: take the student's weights from there.
    `state`: the run's `TrainerState` as it is when rewards ask for it."""
    config, choices = prepared.config, []
    model = build_student(config, checkpoint)
    check_head(model)
    packs = enable_packing(model)
    if config.model.attn_impl is None:
        choices.append(Choice("attn_impl", *attention_of(model)))
    elif not packs:
        say(f"attention: {attention_of(model)[1]}")
    objective = objective_of(config)
    student = StudentStep(model, objective, prepared.valid)
    sharded = config.optim.fsdp == "fsdp2"
    student, whole = shard(student, accelerator) if sharded else (student, unsharded(student))
    optimizer = torch.optim.AdamW(
        _groups(student.named_parameters(), config.optim.weight_decay),
        lr=config.optim.learning_rate or 0.0,
        betas=(config.optim.adam_beta1, config.optim.adam_beta2),
        eps=config.optim.adam_epsilon,
        fused=True,
    )
    if sharded:
        prepared_student, optimizer = student, accelerator.prepare(optimizer)
    else:
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
    with whole() as plain, parallel.together(accelerator):
        model = plain.model
        teacher = build_teacher(prepared, accelerator, model, choices, say=say)
        reference = build_reference(prepared, accelerator, model, say)
    if config.method.loss_impl == "linear":
        say(f"loss: {chunk_choice(prepared.valid, torch.float32, accelerator.device)[1]}")
    judge = build_judge(prepared, reference, say, state)
    parts = Parts(
        plan=prepared.plan,
        accelerator=accelerator,
        rows=prepared.rows,
        samplers={"dataset": sample_dataset, "student": build_sampler(prepared, accelerator, model, whole)},
        teacher=teacher,
        student=prepared_student,
        optimizer=optimizer,
        scheduler=scheduler,
        pad_id=prepared.tokenizer.pad_token_id,
        judge=judge,
        packs=packs,
        whole=whole,
        runs_student=judge is not None or prepared.method.source in SELF or (teacher is not None and teacher.ask.names),
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


def objective_of(config: Config) -> Objective:
    m, p = config.method, config.policy
    divergence = DivergenceLoss(
        beta=m.beta or 0.0,
        temperature=m.loss_temperature,
        normalize=m.jsd_normalize,
        topk_mode=m.topk_mode,
        token_clip=m.token_loss_clip,
        sft_alpha=m.sft_alpha,
        impl=m.loss_impl,
        position=tuple(m.position_weights),
    )
    if m.rlhf_type != "grpo":
        return divergence
    beside = (
        None
        if p.opd_signal == "sampled"
        else replace(divergence, beta=1.0, normalize=False, sft_alpha=0.0, position=())
    )
    return AdvantageLoss(
        policy_loss(config),
        config.rollout.temperature or 1.0,
        m.loss_temperature,
        beside,
        m.teacher_kl_coef,
        rewarded=bool(config.reward.reward_funcs),
    )


def policy_loss(config: Config) -> PolicyLoss:
    p = config.policy
    return PolicyLoss(
        loss_type=p.loss_type,
        level=p.importance_sampling_level,
        epsilon=p.epsilon,
        epsilon_high=p.epsilon_high,
        delta=p.delta,
        tau_pos=p.tau_pos,
        tau_neg=p.tau_neg,
        beta=config.method.beta or 0.0,
    )


def build_judge(
    prepared: Prepared, reference: Teacher | None, say: Callable[[str], None], state: Callable[[], Any]
) -> Judge | None:
    """What settles the advantages on path B; None on path A."""
    config, p = prepared.config, prepared.config.policy
    if prepared.method.path != "advantage":
        return None
    return Judge(
        loss=policy_loss(config),
        group=prepared.plan.num_generations,
        coef=config.method.teacher_kl_coef,
        temperature=config.rollout.temperature or 1.0,
        loss_temperature=config.method.loss_temperature,
        max_length=config.rollout.max_completion_length,
        pad_id=prepared.tokenizer.pad_token_id,
        reuses=prepared.plan.steps_per_generation * prepared.plan.num_iterations > 1,
        sampled=p.opd_signal == "sampled",
        logratio_clip=config.method.teacher_logratio_clip,
        estimator=p.advantage_estimator,
        scale=p.scale_rewards,
        overlong_filter=p.overlong_filter,
        top_entropy=p.top_entropy_quantile,
        reward=build_reward(prepared, say, state),
        reference=reference,
        rollout_mode=config.rollout.rollout_importance_sampling_mode,
        rollout_threshold=config.rollout.rollout_importance_sampling_threshold,
        rollout_metrics=config.rollout.log_rollout_offpolicy_metrics,
        position=tuple(config.method.position_weights),
    )


def build_reward(
    prepared: Prepared, say: Callable[[str], None], state: Callable[[], Any] = lambda: None
) -> Reward | None:
    """The rewards' table of samples; a failure is counted in it and said once a reason."""
    if not prepared.rewards:
        return None
    timeout = prepared.config.reward.reward_timeout

    def reward(samples: Sequence[Sample]) -> RewardTable:
        return reward_samples(
            prepared.rewards, samples, prepared.tokenizer, prepared.end_ids, timeout, say, state=state()
        )

    return reward


def reward_samples(
    rewards: Sequence[NamedReward],
    samples: Sequence[Sample],
    tokenizer: Any,
    end_ids: frozenset[int],
    timeout: float,
    say: Callable[[str], None],
    state: Any = None,
) -> RewardTable:
    """What the rewards give for the samples' texts, end tokens left off. timeout: seconds for all of them. state: the
    rewards' `trainer_state`."""
    ids = [_without_end(s.tokens.targets, end_ids) for s in samples]
    return score(
        rewards,
        [tokenizer.decode(own) for own in ids],  # with its special tokens: <think> may be one
        [s.example.columns for s in samples],
        prompts=[s.example.prompt for s in samples],
        completion_ids=ids,
        trainer_state=state,
        timeout=timeout,
        warn=lambda text: say(f"warning: {text}"),
    )


def _without_end(ids: Sequence[int], end_ids: frozenset[int]) -> list[int]:
    """A response without its end-of-turn token."""
    return list(ids[:-1] if ids and ids[-1] in end_ids else ids)


def build_sampler(prepared: Prepared, accelerator: Accelerator, model: nn.Module, whole: Whole) -> HFSampler:
    tokenizer, ends, r = prepared.tokenizer, prepared.end_ids, prepared.config.rollout
    return sampler_of(model, r, tokenizer, ends, valid=prepared.valid, autocast=accelerator.autocast, whole=whole)


def sampler_of(
    model: nn.Module, r: Rollout, tokenizer: Any, end_ids: frozenset[int], *, valid: int | None = None, **more: Any
) -> HFSampler:
    """Samples from `model` as the flags say."""
    return HFSampler(
        model=model,
        sampling=Sampling(r.temperature, r.top_p, r.top_k, r.min_p, r.repetition_penalty, r.max_completion_length),
        end_ids=end_ids,
        pad_id=tokenizer.pad_token_id,
        valid=valid_ids(tokenizer) if valid is None else valid,
        batch_size=r.rollout_batch_size or ROLLOUT_BATCH,
        keeps_logprobs=r.rollout_importance_sampling_mode is not None or r.log_rollout_offpolicy_metrics,
        **more,
    )


def _groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Decay on matrices alone; biases and norms are left where the gradient puts them."""
    trainable = [p for _, p in named if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
