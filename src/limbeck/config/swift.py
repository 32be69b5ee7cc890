"""ms-swift's flags: which are ours by another name, which need nothing here, and which are not supported.

A flag that has the same name and meaning is in the schema and not in this table. Every entry that changes or refuses
something carries the sentence that the user reads. `docs/coming-from-ms-swift.md` is written from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Renamed:
    """Ours is called `to`. `values` translates values that are spelled otherwise; others pass as they are,
    and an empty translation sets nothing."""

    to: str
    values: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class NotNeeded:
    """Accepted and without effect: it changes speed or convenience there, not what is computed. Nothing is said of
    the values in `off`."""

    why: str
    off: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Not supported. `instead` is what to do; the values in `off` switch the feature off and are accepted."""

    instead: str
    off: tuple[str, ...] = ()


Entry = Renamed | NotNeeded | Refused

_PACKING = (
    "no padding is computed as it is, and a shared prompt once (--attn_impl sdpa); "
    "--per_device_train_batch_size counts rows, so give the rows that a pack would hold"
)
_NO = ("false", "no", "0")
_SERVER = "leave it out: responses are sampled with transformers' generate in this version"
_ZERO = (
    "use --fsdp fsdp2 with several processes, which shards the student (docs/parallel.md); --tuner_type lora and "
    "--gradient_checkpointing true save memory"
)
_TEACHER_ZERO = "leave it out: put a large teacher behind `limbeck deploy`, or give it --teacher_quant_bits 4"
_IMAGES = "leave it out: text models only"
_PPO = "leave it out: --rlhf_type grpo does not have it in this version"
_PREF = "Limbeck distils and does not train on preferences; leave it out"
_ENGINE = (
    "use_vllm sleep_level move_model_batches gpu_memory_utilization tensor_parallel_size async_generate "
    "offload_model offload_optimizer tp data_parallel_size"
)
_4BIT = "leave it out, and use --torch_dtype bfloat16 with --tuner_type lora"
_LINEAR = "the loss never holds a tokens x vocabulary tensor (--loss_impl linear)"
_SPLIT = "tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size expert_model_parallel_size"
_STATE = "no_save_optim no_save_rng no_load_optim no_load_rng"
_OFFICES = "recompute_method recompute_num_layers sequence_parallel cross_entropy_loss_fusion"
_POLICY = "reward_model reward_model_plugin sync_ref_model kl_in_reward"

FLAGS: dict[str, Entry] = {
    # ours by another name
    "train_type": Renamed("tuner_type"),
    "sft_type": Renamed("tuner_type"),
    "max_new_tokens": Renamed("max_completion_length"),
    "max_batch_size": Renamed("rollout_batch_size"),
    "bf16": Renamed("mixed_precision", {"true": "bf16", "": "bf16", "false": ""}),
    "fp16": Refused("use --bf16 true, or --mixed_precision no: float16 overflows and needs its loss scaled", _NO),
    "model_id_or_path": Renamed("model"),
    "swanlab_exp_name": Renamed("run_name"),
    "train_dataloader_shuffle": Renamed("dataset_shuffle"),
    # those of `megatron rlhf` and `megatron sft`
    "lr": Renamed("learning_rate"),
    "lr_warmup_fraction": Renamed("warmup_ratio"),
    "lr_warmup_iters": Renamed("warmup_steps"),
    "lr_decay_style": Renamed("lr_scheduler_type"),
    "min_lr": Refused(
        """use --lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{"min_lr": 1e-6}'""", ("0",)
    ),
    "train_iters": Renamed("max_steps"),
    "micro_batch_size": Renamed("per_device_train_batch_size"),
    "global_batch_size": Refused(
        "use --gradient_accumulation_steps: the global batch over --per_device_train_batch_size and the processes"
    ),
    "attention_backend": Renamed("attn_impl", {"flash": "flash_attention_2", "unfused": "eager", "auto": ""}),
    "recompute_granularity": Renamed("gradient_checkpointing", {"selective": "true", "full": "true", "none": "false"}),
    **{name: Refused(_ZERO, ("1",)) for name in _SPLIT.split()},
    "resume_only_model": Refused(
        "start a new run from the weights: --adapters CHECKPOINT for LoRA, --model CHECKPOINT for all weights", _NO
    ),
    # nothing to do here
    "dataset_num_proc": NotNeeded("rows are tokenised in large batches, on all cores, before the first step"),
    "dataloader_num_workers": NotNeeded("rows are rendered before the first step"),
    "dataloader_pin_memory": NotNeeded("rows are rendered before the first step"),
    "dataloader_persistent_workers": NotNeeded("rows are rendered before the first step"),
    "dataloader_prefetch_factor": NotNeeded("rows are rendered before the first step"),
    "load_from_cache_file": NotNeeded("rows are read anew in every run"),
    "save_only_model": NotNeeded("a checkpoint always holds what an exact resume needs"),
    "create_checkpoint_symlink": NotNeeded("the last model always lies in the run folder's last/"),
    "add_version": NotNeeded("an existing run folder is resumed or refused, never overwritten"),
    "logging_first_step": NotNeeded("the first step is always logged"),
    "check_model": NotNeeded("models are read as they are"),
    "use_hf": NotNeeded("models and data sets are looked up on the Hugging Face hub"),
    "model_type": NotNeeded("the architecture is read from the model's own configuration"),
    "template": NotNeeded("the chat template is the tokenizer's own"),
    "template_backend": NotNeeded("the chat template is the tokenizer's own"),
    "padding_side": NotNeeded("rows are padded where the model needs it"),
    "remove_unused_columns": NotNeeded("extra columns are always kept"),
    "ddp_find_unused_parameters": NotNeeded("every trained parameter takes part in every step"),
    "ddp_backend": NotNeeded("the backend follows the device"),
    "write_batch_size": NotNeeded("every batch is written at once"),
    "acc_strategy": NotNeeded("the loss is one mean over the tokens of the whole step"),
    "average_tokens_across_devices": NotNeeded("the loss is one mean over the tokens of the whole step"),
    "use_logits_to_keep": NotNeeded("prompt and padding positions never reach the output head"),
    "use_liger_kernel": NotNeeded(_LINEAR, _NO),
    "use_cce": NotNeeded(_LINEAR, _NO),
    "lazy_tokenize": NotNeeded("rows are tokenised in large batches, on all cores, before the first step", _NO),
    "eval_accumulation_steps": NotNeeded("an evaluation keeps sums, not logits"),
    "local_repo_path": NotNeeded("models are loaded by transformers"),
    "ddp_timeout": NotNeeded("processes wait for one another as accelerate is set up"),
    "disable_tqdm": NotNeeded("a live display is shown on a terminal only"),
    "logging_dir": NotNeeded("trackers write into the run folder"),
    "save_on_each_node": NotNeeded("the main process writes"),
    "gradient_checkpointing_kwargs": NotNeeded("activations are recomputed without re-entrance"),
    "eval_human": NotNeeded("a conversation in the terminal where no data set is given, answers to it where one is"),
    "finetune": NotNeeded("a run begins at step 0 where --resume_from_checkpoint does not say otherwise"),
    **{name: NotNeeded("a checkpoint always holds what an exact resume needs") for name in _STATE.split()},
    **{name: NotNeeded("Megatron's own way to memory or speed") for name in _OFFICES.split()},
    "log_entropy": NotNeeded("entropies are always logged"),
    # not supported
    "seq_kd": Refused(
        "let the teacher answer the prompts first (`limbeck generate --model TEACHER`), then train on its file "
        "with --lmbda 0",
        _NO,
    ),
    "deepspeed": Refused(_ZERO, ("none", "zero0")),
    "teacher_deepspeed": Refused(_TEACHER_ZERO, ("none", "zero0")),
    "sequence_parallel_size": Refused(_ZERO, ("1",)),
    "device_map": Refused(_ZERO, ("none",)),
    "packing": NotNeeded(_PACKING, _NO),
    "padding_free": NotNeeded(_PACKING, _NO),
    "packing_length": NotNeeded(_PACKING),
    "packing_num_proc": NotNeeded(_PACKING),
    "custom_register_path": Renamed("external_plugins"),
    "cached_dataset": Refused("pass the rows themselves as --dataset"),
    "cached_val_dataset": Refused("pass the rows themselves as --val_dataset"),
    "to_cached_dataset": Refused("leave it out: rows are tokenised when a run begins"),
    "multi_turn_scheduler": Refused("leave it out: the student writes one turn of a conversation"),
    "max_turns": Refused("leave it out: the student writes one turn of a conversation", ("1",)),
    "teacher_model_group": Refused("name several teachers with their tags on --teacher_model"),
    "use_mopd": Refused("name several teachers with their tags on --teacher_model", _NO),
    "teacher_model_type": NotNeeded("the architecture is read from the model's own configuration"),
    "enable_thinking": Refused("leave it out, and set the thinking switch in the model's chat template"),
    "response_prefix": Refused("leave it out, and begin the dataset's responses with it"),
    "num_beams": Refused("leave it out: responses are sampled, or greedy with --temperature 0", ("1",)),
    "stop_words": Refused("leave it out: generation stops at the model's own end tokens"),
    "quant_method": Refused(_4BIT),
    "quant_bits": Refused(_4BIT, ("none",)),
    "freeze_vit": Refused(_IMAGES, ("true",)),
    "freeze_aligner": Refused(_IMAGES, ("true",)),
    "freeze_llm": Refused(_IMAGES, _NO),
    "max_pixels": Refused(_IMAGES),
    "limit_mm_per_prompt": Refused(_IMAGES),
    "vision_batch_size": Refused(_IMAGES),
    "optim": Refused("leave it out: AdamW", ("adamw_torch", "adamw_torch_fused", "adamw")),
    "optimizer": Refused("leave it out: AdamW"),
    "predict_with_generate": Refused("use --eval_on_policy true, or `limbeck generate` after training", _NO),
    "load_best_model_at_end": Refused(
        "leave it out: last/ holds the last model, and trainer_state.json names the best checkpoint", _NO
    ),
    "save_safetensors": Refused("leave it out: weights are always safetensors", ("true",)),
    "hub_token": Refused("put it into the environment as HF_TOKEN, or log in with `hf auth login`"),
    "hub_strategy": Refused("leave it out: the model is pushed once, when it is done", ("end",)),
    "stream": NotNeeded("a conversation in the terminal streams, a data set does not"),
    "neftune_noise_alpha": Refused("leave it out: student and teacher are scored without noise", ("none", "0")),
    "use_dora": Refused("leave it out: plain LoRA adapters", _NO),
    "use_rslora": Refused("leave it out, and set --lora_alpha to the scale you want", _NO),
    "modules_to_save": Refused("leave it out, or train all weights with --tuner_type full"),
    "target_regex": Refused("use --target_modules"),
    "freeze_parameters": Refused("leave it out: --tuner_type lora leaves the model's own weights alone"),
    "model_name": Refused("write the name into the rows: {{NAME}} is not filled in"),
    "model_author": Refused("write the author into the rows: {{AUTHOR}} is not filled in"),
    "eval_dataset": Refused("use --val_dataset with held-out rows"),
    "val_dataset_shuffle": Refused("leave it out: the order of held-out rows does not matter", _NO),
    "strict": Refused("use --truncation_strategy raise", _NO),
    "interleave_prob": Refused("weigh data sets by taking parts of them: PATH#N"),
    "val_dataset_sample": Refused("take a part of the held-out rows: PATH#N"),
    "agent_template": Refused("leave it out: tools are rendered by the tokenizer's own chat template"),
    "new_special_tokens": Refused("leave it out: the tokenizer stays as it is, since teacher and student share it"),
    "enable_dft_loss": Refused("leave it out: sft is plain cross-entropy", _NO),
    "enable_eaft_loss": Refused("leave it out: sft is plain cross-entropy", _NO),
    "eaft_alpha": Refused("leave it out: sft is plain cross-entropy"),
    "enable_channel_loss": Refused("leave it out: one loss is logged for all rows", _NO),
    "channel_list": Refused("leave it out: one loss is logged for all rows"),
    "early_stop_interval": Refused("leave it out: --metric_for_best_model names the best checkpoint, which is kept"),
    "activation_cpu_offload": Refused("use --gradient_checkpointing true", _NO),
    "use_chat_template": Refused("leave it out: prompts are rendered by the tokenizer's own chat template", ("true",)),
    "num_labels": Refused("leave it out: language models only"),
    "task_type": Refused("leave it out: language models only", ("causal_lm",)),
    "tuner_backend": Refused("leave it out: peft", ("peft",)),
    "init_weights": Refused("leave it out: adapters start at zero", ("true",)),
    "init_lora_weights": Refused("leave it out: adapters start at zero", ("true",)),
    "use_galore": Refused("leave it out: AdamW", _NO),
    "lora_dtype": Refused("leave it out: adapters are trained in float32", ("none", "float32")),
    "lora_bias": Refused("leave it out: adapters have no bias", ("none",)),
    "rope_scaling": Refused("set it in the model's own config.json"),
    "num_generations_eval": Refused("leave it out: --eval_on_policy samples one response a row"),
    "rpo_alpha": Refused(_PREF),
    "label_smoothing": Refused(_PREF, ("0",)),
    **{name: Refused(_SERVER, _NO) for name in _ENGINE.split()},
    **{name: Refused(_PPO) for name in _POLICY.split()},
}
# Families of flags, by how they begin.
FAMILIES: dict[str, Entry] = {
    "vllm_": Refused(_SERVER),
    "sglang_": Refused(_SERVER),
    "lmdeploy_": Refused(_SERVER),
    "swanlab_": Refused("set it in the environment, as SWANLAB_PROJECT and the like"),
    "ref_": Refused(_PPO),
    "chord_": Refused(_PPO),
    "vit_": Refused(_IMAGES),
    "lora_ga_": Refused("leave it out: plain LoRA adapters"),
    "bnb_4bit_": Refused(_4BIT),
    "galore_": Refused("leave it out: AdamW"),
    "lisa_": Refused("use --tuner_type lora or full"),
    "llamapro_": Refused("use --tuner_type lora or full"),
}


def lookup(name: str) -> Entry | None:
    """What ms-swift's flag is here; None for a flag that is not in the tables."""
    families = (entry for start, entry in FAMILIES.items() if name.startswith(start))
    return FLAGS.get(name) or next(families, None)


# Values of flags that are ours, spelled as ms-swift spells them.
VALUES: dict[tuple[str, str], str] = {
    ("attn_impl", "flash_attn"): "flash_attention_2",
    ("torch_dtype", "fp32"): "float32",
    ("torch_dtype", "bf16"): "bfloat16",
    ("torch_dtype", "fp16"): "float16",
    ("infer_backend", "pt"): "transformers",
}


# Commands of ms-swift that are not here -> what to do instead.
COMMANDS: dict[str, str] = {
    "rollout": "leave it out: `limbeck rlhf` samples the student's responses itself, with transformers' generate",
    "pt": "use `limbeck sft` on rows with responses: raw text is not trained on",
    "sample": "use `limbeck generate`, with --num_generations for several answers a prompt",
    "merge-lora": "use `limbeck export --model BASE --adapters ADAPTERS --output_dir FOLDER`",
    "app": "use `limbeck infer` in the terminal, or `limbeck deploy` behind a chat page of yours",
    "web-ui": "write the flags, or a YAML file: `limbeck plan run.yaml` says what it would do",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A default or a meaning that is not ms-swift's."""

    flag: str
    ours: str
    theirs: str
    why: str


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "loss_temperature", "1.0, of its own", "--temperature for both", "the sampler and the loss are two choices"
    ),
    Difference("topk_mode", "tail", "renorm", "renorm is blind to the mass off the K tokens"),
    Difference("beta", "0 for grpo", "0.04", "the KL to a reference model is not distillation"),
    Difference(
        "gradient_accumulation_steps",
        "one mean over the tokens of the step",
        "a mean of micro-batch means",
        "how a step is split must not change its loss",
    ),
    Difference("truncation_strategy", "delete, with a count", "left for grpo", "a row that was cut teaches the cut"),
    Difference("num_generations", "1 without rewards", "8", "without rewards there is no group to compare"),
    Difference(
        "gkd_logits_topk",
        "ids past the tokenizer's are cut",
        "the other model's logits are copied into them",
        "padding of the head is no token",
    ),
    Difference("top_k, top_p", "off", "50, 0.9 for grpo", "filters make the samples off-policy"),
    Difference(
        "epsilon_high",
        "cispo's bound is 1 + epsilon_high",
        "epsilon_high itself",
        "as in its paper; their 5.0 is 4.0 here",
    ),
    Difference("loss_scale", "last_round for sft too", "default (all turns) for sft", "one default for every method"),
    Difference("warmup_ratio", "0.05", "0", "AdamW's first steps are the noisiest; their examples pass 0.05"),
    Difference("report_to", "none; metrics.jsonl is always written", "tensorboard", "nothing to install"),
)
