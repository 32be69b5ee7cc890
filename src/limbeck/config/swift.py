"""ms-swift's flags: which are ours by another name, which need nothing here, and which are not supported.

A flag that has the same name and meaning is in the schema and not in this table. Every entry that changes or refuses
something carries the sentence that the user reads. `docs/coming-from-ms-swift.md` is written from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.config.entries import Entry, NotNeeded, Refused, Renamed
from limbeck.config.swift_rest import REST

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
    "offload_model offload_optimizer tp data_parallel_size use_lmdeploy num_infer_workers gc_collect_after_offload"
)
_TURNS = "leave it out: the student writes one turn of a conversation"
_GYMS = "multi_turn_scheduler use_gym_env gym_env tree_rollout max_tree_deep"
_ALONE = "one process a device is started by NPROC_PER_NODE=4 before the command, or by torchrun (docs/parallel.md)"
_RAY = "use_ray colocate_groups device_groups ray_exp_name train.gpus rollout.gpus ref.gpus teacher.gpus"
_RAY_TEACHER = (
    "leave it out: a teacher is loaded here, or answers as a server of its own: `limbeck deploy --model TEACHER "
    "--max_logprobs 64` and --teacher_model_server"
)
_SCORED = "leave it out; `limbeck eval --reward_funcs accuracy` scores answers, `limbeck generate` writes them"
_SCORES = "orm_model prm_model prm_threshold process_reward_rate"
_BENCH = "measure on rows of yours: `limbeck eval --val_dataset rows.jsonl --reward_funcs accuracy`"
_BENCHES = "eval_backend eval_url eval_use_evalscope eval_dataset_args eval_generation_config custom_eval_config"
_ITSELF = "leave it out, and give the run's own file first: limbeck COMMAND output/run/config.yaml"
_HF = "leave it out: models are read and written as Hugging Face has them"
_LOOK = "to_model_summary load_model return_dummy_model"
_4BIT = "leave it out, and use --torch_dtype bfloat16 with --tuner_type lora"
_LINEAR = "the loss never holds a tokens x vocabulary tensor (--loss_impl linear)"
_SPLIT = (
    "tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size expert_model_parallel_size "
    "expert_tensor_parallel_size virtual_pipeline_model_parallel_size decoder_first_pipeline_num_layers"
)
_EXPERTS = "leave it out: experts are run and weighed as transformers has them"
_STATE = "no_save_optim no_save_rng no_load_optim no_load_rng"
_OFFICES = (
    "recompute_method recompute_num_layers sequence_parallel cross_entropy_loss_fusion gradient_accumulation_fusion "
    "moe_permute_fusion moe_grouped_gemm moe_shared_expert_overlap offload_bridge use_precision_aware_optimizer"
)
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
    "max_epochs": Renamed("num_train_epochs"),
    "log_interval": Renamed("logging_steps"),
    "eval_interval": Renamed("eval_steps"),
    "save_interval": Renamed("save_steps"),
    "save": Renamed("output_dir"),
    "wandb_exp_name": Renamed("run_name"),
    "adapter_load": Renamed("adapters"),
    "load": Refused(_HF),
    "to_mcore": Refused(_HF, _NO),
    "moe_aux_loss_coeff": Refused("leave it out: no loss for balancing experts", ("0",)),
    "router_aux_loss_coef": Refused("leave it out: no loss for balancing experts", ("0",)),
    "moe_expert_capacity_factor": Refused(_EXPERTS),
    "experts_impl": Refused(_EXPERTS),
    "mtp_num_layers": Refused("leave it out: the next token alone is learnt"),
    "optimizer_offload_fraction": Refused(_ZERO, ("0",)),
    "group_by_length": NotNeeded("no padding is computed as it is (--attn_impl sdpa)", _NO),
    "aligner_lr": Refused(_IMAGES),
    "optimizer_cpu_offload": Refused(_ZERO, _NO),
    "eval_iters": Refused("leave it out: an evaluation takes all held-out rows; fewer are --val_dataset PATH#N"),
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
    # those of `swift sample`, for `limbeck generate`
    "num_return_sequences": Renamed("num_generations"),
    "num_sampling_batch_size": Renamed("rollout_batch_size"),
    "num_sampling_per_gpu_batch_size": Renamed("rollout_batch_size"),
    "output_file": Renamed("result_path"),
    "sampler_engine": Refused(_SERVER, ("transformers", "pt")),
    "sampler_type": Refused("leave it out: a model that is loaded here answers, token by token", ("sample",)),
    "engine_kwargs": Refused(_SERVER),
    "data_range": Refused("take a part of the rows: PATH#N"),
    "cache_files": Refused("leave it out: an unfinished --result_path is gone on with"),
    "override_exist_file": Refused("remove the file of --result_path first: nothing is overwritten", _NO),
    **{name: Refused(_SCORED) for name in _SCORES.split()},
    # those of a file for Ray: its mappings with `gpus` are roles
    **{name: NotNeeded(_ALONE, _NO) for name in _RAY.split()},
    "teacher.model": Renamed("teacher_model"),
    "ENV": Refused("set them before the command: NAME=value limbeck COMMAND ..."),
    "env": Refused("set them before the command: NAME=value limbeck COMMAND ..."),
    # nothing to do here
    "dataset_num_proc": NotNeeded("rows are tokenised in large batches, on all cores, before the first step"),
    "dataloader_num_workers": NotNeeded("rows are rendered before the first step"),
    "num_workers": NotNeeded("rows are rendered before the first step"),
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
    "load_safetensors": NotNeeded("weights are read as they are"),
    "to_hf": NotNeeded("models are written as Hugging Face has them", _NO),
    "test_convert_precision": NotNeeded("nothing is converted", _NO),
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
    **{name: Refused(_TURNS, _NO) for name in _GYMS.split()},
    "max_turns": Refused(_TURNS, ("1",)),
    "generation_batch_size": Refused("use --steps_per_generation; --rollout_batch_size is what is sampled at a time"),
    "teacher_model_group": Refused("name several teachers with their tags on --teacher_model"),
    "use_mopd": Refused("name several teachers with their tags on --teacher_model", _NO),
    "teacher_model_type": NotNeeded("the architecture is read from the model's own configuration"),
    "add_non_thinking_prefix": Refused("leave it out, and set it in the model's chat template", _NO),
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
    "eval_limit": Refused("take a part of the held-out rows: --val_dataset PATH#100"),
    **{name: Refused(_BENCH, _NO) for name in _BENCHES.split()},
    "ckpt_dir": Refused("use --adapters for a LoRA checkpoint, --model for one of all weights"),
    "to_ollama": Refused("use --gguf_type q8_0, and name the .gguf file in a Modelfile: FROM ./model.gguf", _NO),
    **{
        name: Refused("leave it out: `limbeck plan` says what a run would do, without weights")
        for name in _LOOK.split()
    },
    "exist_ok": Refused("give a new --output_dir: nothing is overwritten", _NO),
    "load_args": Refused(_ITSELF, _NO),
    "load_data_args": Refused(_ITSELF, _NO),
    "wandb_project": Refused("set it in the environment, as WANDB_PROJECT"),
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
    **REST,
}
# Families of flags, by how they begin.
FAMILIES: dict[str, Entry] = {
    "vllm_": Refused(_SERVER),
    "sglang_": Refused(_SERVER),
    "lmdeploy_": Refused(_SERVER),
    "swanlab_": Refused("leave it out: SWANLAB_PROJECT and SWANLAB_API_KEY are read from the environment"),
    "ref_": Refused(_PPO),
    "chord_": Refused(_PPO),
    "fipo_": Refused("use --loss_type grpo, bnpo, dr_grpo, dapo, cispo or sapo"),
    "teacher.": Refused(_RAY_TEACHER),
    "quant_": Refused("leave it out; `limbeck export --gguf_type q8_0` writes 8-bit weights"),
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


def spelled(name: str) -> str:
    """A flag as it is typed; a key of a role as it stands in its file, `teacher.model`."""
    return name if "." in name or name == "ENV" else f"--{name}"


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
