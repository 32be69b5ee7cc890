"""TRL's settings: how each is called here. `docs/coming-from-trl.md` is written from it, and who gives one of its
names on our command line is told ours.

Names are those of TRL 1.16, of each class what it adds to the one before; those of transformers' TrainingArguments have
the same names here or are in ms-swift's table, which holds for TRL too.
"""

from __future__ import annotations

from collections.abc import Mapping

from limbeck.config.entries import Entry, NotNeeded, Refused, Renamed

_SAMPLING = (
    "max_completion_length temperature top_p top_k min_p repetition_penalty generation_kwargs chat_template_kwargs "
    "cache_implementation use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex "
    "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port "
    "vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size max_tool_calling_iterations "
    "ds3_gather_for_generation log_completions num_completions_to_print log_unique_prompts "
)
_LOADING = (
    "learning_rate model_init_kwargs trust_remote_code disable_dropout shuffle_dataset pad_to_multiple_of "
    "remove_unused_columns "
)

_ULD = (
    "use_uld_loss uld_token_merge_strategy use_extended_uld uld_use_hybrid_loss uld_hybrid_matched_weight "
    "uld_hybrid_unmatched_weight uld_crossentropy_weight uld_distillation_weight uld_student_temperature "
    "uld_teacher_temperature uld_skip_student_eos uld_skip_teacher_eos"
)
_VLLM = (
    "use_vllm vllm_mode vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port "
    "vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_max_model_length vllm_model_impl "
    "vllm_structured_outputs_regex vllm_sync_frequency vllm_enable_sleep_mode"
)

# class -> how it is started here, and the names of its settings
CLASSES: Mapping[str, tuple[str, str]] = {
    "SFTConfig": (
        "limbeck sft",
        "learning_rate logging_steps gradient_checkpointing bf16 lr_scheduler_kwargs use_liger_kernel "
        "torch_empty_cache_steps model_init_kwargs trust_remote_code router_aux_loss_coef chat_template_path "
        "dataset_text_field dataset_kwargs dataset_num_proc eos_token max_length truncation_mode shuffle_dataset "
        "packing packing_strategy padding_free pad_to_multiple_of eval_packing completion_only_loss "
        "assistant_only_loss loss_type activation_offloading pad_token",
    ),
    "GKDConfig": (
        "limbeck rlhf --rlhf_type gkd",
        "temperature lmbda beta max_new_tokens teacher_model_name_or_path teacher_model_init_kwargs disable_dropout "
        "seq_kd",
    ),
    "DistillationConfig": (
        "limbeck rlhf --rlhf_type gkd --lmbda 1 --beta 1",
        f"{_LOADING} {_SAMPLING} teacher_model_name_or_path teacher_model_revision teacher_model_init_kwargs beta",
    ),
    "ServerDistillationConfig": (
        "limbeck rlhf --rlhf_type gkd --lmbda 1 --beta 0 --gkd_logits_topk 64",
        "teacher_model_server_url loss_top_k loss_add_tail reverse_kl_top_1_mode",
    ),
    "GOLDConfig": (
        "limbeck rlhf --rlhf_type gkd",
        "learning_rate temperature top_p top_k lmbda beta max_completion_length teacher_model_name_or_path "
        "teacher_model_revision teacher_model_init_kwargs teacher_tokenizer_name_or_path disable_dropout seq_kd "
        f"num_generations generation_batch_size {_ULD} {_VLLM} log_completions log_completions_steps "
        "num_completions_to_print wandb_log_unique_prompts callbacks",
    ),
    "IWOPDConfig": (
        "limbeck rlhf --rlhf_type gkd --lmbda 1 --beta 1",
        "model_init_kwargs trust_remote_code max_length learning_rate temperature lmbda beta distillation_objective "
        "iw_opd_gamma iw_opd_epsilon reverse_kl_top_1_mode max_completion_length max_prompt_length disable_dropout "
        "teacher_model_name_or_path teacher_model_revision teacher_model_init_kwargs use_teacher_server "
        "teacher_model_server_url loss_top_k loss_add_tail num_generations generation_batch_size top_p top_k "
        f"{_VLLM} log_completions log_completions_steps num_completions_to_print",
    ),
    "SDFTConfig": (
        "limbeck rlhf --rlhf_type gkd --lmbda 1 --teacher_source frozen",
        "model_init_kwargs trust_remote_code disable_dropout remove_unused_columns max_prompt_length num_generations "
        "num_generations_eval max_completion_length ds3_gather_for_generation shuffle_dataset generation_batch_size "
        "steps_per_generation temperature top_p top_k min_p generation_kwargs chat_template_kwargs repetition_penalty "
        f"cache_implementation use_teacher_server {_VLLM} num_iterations teacher_model_kind teacher_update_rate "
        "teacher_sync_steps distillation_alpha distillation_mode distillation_topk distillation_is_clip "
        "distillation_add_tail generate_from_teacher teacher_prompt_template num_loss_tokens_to_skip",
    ),
    "GRPOConfig": (
        "limbeck rlhf --rlhf_type grpo",
        f"{_LOADING} {_SAMPLING} router_aux_loss_coef cast_lm_head_to_fp32 num_generations num_generations_eval "
        "generation_batch_size steps_per_generation beta num_iterations epsilon delta epsilon_high "
        "sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg "
        "importance_sampling_level reward_weights multi_objective_aggregation scale_rewards loss_type "
        "mask_truncated_completions sync_ref_model ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile "
        "entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target "
        "vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
        "vllm_importance_sampling_clip_min off_policy_mask_threshold use_bias_correction_kl log_multimodal "
        "log_completions_hub_repo use_transformers_continuous_batching transformers_continuous_batching_config "
        "use_transformers_paged vllm_importance_sampling_cap",
    ),
    "MiniLLMConfig": (
        "limbeck rlhf --rlhf_type grpo --opd_signal full",
        "teacher_model_init_kwargs disable_dropout rkl_advantage single_step_decomposition kd_temperature gamma "
        "length_normalization",
    ),
    "GRPOScriptArguments": ("limbeck rlhf --rlhf_type grpo", "reward_model_name_or_path reward_funcs"),
    "ModelConfig": (
        "any command",
        "model_name_or_path model_revision dtype attn_implementation use_peft lora_r lora_alpha lora_dropout "
        "lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type use_rslora use_dora "
        "load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage",
    ),
    "ScriptArguments": (
        "any command",
        "dataset_name dataset_config dataset_train_split dataset_test_split dataset_streaming "
        "gradient_checkpointing_use_reentrant ignore_bias_buffers",
    ),
    "DatasetMixtureConfig": ("any command", "datasets streaming test_split_size"),
    "accelerate launch": (
        "any command",
        "num_processes num_machines machine_rank main_process_ip main_process_port accelerate_config",
    ),
    "Older names": (
        "any command",
        "torch_dtype max_seq_length evaluation_strategy student_model_name teacher_model_name student_model_revision "
        "load_best_model_at_end",
    ),
}

# TRL's commands and scripts that are not commands here -> what to do instead.
COMMANDS: Mapping[str, str] = {
    "gkd": "use `limbeck rlhf --rlhf_type gkd`",
    "gold": "use `limbeck rlhf --rlhf_type gkd`, where student and teacher share a tokenizer",
    "distillation": "use `limbeck rlhf --rlhf_type gkd --lmbda 1 --beta 1`",
    "minillm": "use `limbeck rlhf --rlhf_type grpo --opd_signal full` with a --teacher_model",
    "grpo": "use `limbeck rlhf --rlhf_type grpo`",
    "rloo": "use `limbeck rlhf --rlhf_type grpo --advantage_estimator rloo`",
    **dict.fromkeys(("dpo", "kto", "reward"), "Limbeck distils and does not train on preferences"),
    "vllm-serve": "use `limbeck deploy --infer_backend vllm`",
    "chat": "use `limbeck infer`",
    "env": "use `limbeck --version`; a run's versions are in its env.json",
}

_LAUNCH = "start several processes with NPROC_PER_NODE=4 before the command, or with torchrun (docs/parallel.md)"
_MACHINES = "num_processes num_machines machine_rank main_process_ip main_process_port"
_BITS = "load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage"
_ENTROPIES = "entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target"
_TEMPLATE = "set it in the tokenizer's own chat template"
_KWARGS = "--torch_dtype, --attn_impl and --model_revision are flags of their own; there is no more"
_ENTROPY = "leave it out: no bonus for entropy; --stop_on_collapse true watches it"
_VESPO = "leave it out: --loss_type grpo, bnpo, dr_grpo, dapo, cispo or sapo"
_REFERENCE = "leave it out: --beta's reference is the model before training"
_QUANT = "use --torch_dtype bfloat16 with --tuner_type lora; a teacher takes --teacher_quant_bits 4"
_SPLIT = "the split train is read; held-out rows are --val_dataset or --split_dataset_ratio"
_PAD = "padding is never read"
_BATCHING = "leave it out: responses are sampled with transformers' generate"

_TOKENIZERS = (
    "leave it out: student and teacher share a tokenizer; what another teacher writes is learnt by `limbeck generate` "
    "and then `limbeck sft`"
)
_OBJECTIVE = "leave it out: every token counts alike, or by its place (--position_weights)"
_ALL_WRITTEN = "all completions are in completions.jsonl and report.html"

_RETURN = "leave it out: a token's advantage is its own log-ratio with the teacher (gamma 0)"

# Names that are not ours, and are not in ms-swift's table either.
FLAGS: dict[str, Entry] = {
    "model_name_or_path": Renamed("model"),
    "dtype": Renamed("torch_dtype"),
    "attn_implementation": Renamed("attn_impl"),
    "use_peft": Renamed("tuner_type", {"true": "lora", "false": "full"}),
    "lora_r": Renamed("lora_rank"),
    "lora_target_modules": Renamed("target_modules"),
    "lora_target_parameters": Refused("use --target_modules"),
    "lora_modules_to_save": Refused("leave it out, or train all weights with --tuner_type full"),
    "lora_task_type": Refused("leave it out: language models only"),
    **{name: Refused(_QUANT) for name in _BITS.split()},
    "dataset_name": Renamed("dataset"),
    "dataset_config": Refused("write it after the name: --dataset NAME:SUBSET"),
    "dataset_train_split": Refused(_SPLIT),
    "dataset_test_split": Refused(_SPLIT),
    "dataset_streaming": Renamed("streaming"),
    "datasets": Renamed("dataset"),
    "test_split_size": Renamed("split_dataset_ratio"),
    "gradient_checkpointing_use_reentrant": NotNeeded("activations are recomputed without re-entrance"),
    "max_seq_length": Renamed("max_length"),
    "evaluation_strategy": Renamed("eval_strategy"),
    "student_model_name": Renamed("model"),
    "student_model_revision": Renamed("model_revision"),
    "teacher_model_name": Renamed("teacher_model"),
    "reward_model_name_or_path": Refused("leave it out: rewards are functions, by name or --external_plugins"),
    **{name: Refused(_LAUNCH) for name in _MACHINES.split()},
    "accelerate_config": Refused(
        "use --fsdp fsdp2 with several processes, which shards the student (docs/parallel.md)"
    ),
    "rkl_advantage": NotNeeded("a teacher that is named is learnt from, as --opd_signal says"),
    "single_step_decomposition": Renamed("opd_signal", {"true": "full", "false": "sampled"}),
    "kd_temperature": Renamed("loss_temperature"),
    "gamma": Refused(_RETURN),
    "length_normalization": Refused(_RETURN),
    "ignore_bias_buffers": NotNeeded("a workaround for GPT-2 in several processes"),
    "shuffle_dataset": Renamed("dataset_shuffle"),
    "dataset_text_field": Renamed("columns", {"": '{"NAME": "prompt"}'}),
    "dataset_kwargs": Refused("leave it out: rows are always rendered"),
    "truncation_mode": Renamed("truncation_strategy", {"keep_start": "right", "keep_end": "left"}),
    "packing_strategy": NotNeeded("no padding is computed as it is"),
    "eval_packing": NotNeeded("no padding is computed as it is"),
    "pad_to_multiple_of": NotNeeded(_PAD),
    "pad_token": NotNeeded(_PAD),
    "eos_token": NotNeeded("a response ends as the chat template ends it"),
    "chat_template_path": Refused(_TEMPLATE),
    "chat_template_kwargs": Refused(_TEMPLATE),
    "completion_only_loss": NotNeeded("prompts are never trained"),
    "assistant_only_loss": Renamed("loss_scale", {"true": "default"}),
    "activation_offloading": Refused("use --gradient_checkpointing true"),
    "torch_empty_cache_steps": NotNeeded("the loss keeps no large buffers"),
    "model_init_kwargs": Refused(_KWARGS),
    "teacher_model_name_or_path": Renamed("teacher_model"),
    "teacher_model_init_kwargs": Refused("use --teacher_torch_dtype, --teacher_quant_bits, --teacher_device"),
    "teacher_model_server_url": Renamed("teacher_model_server"),
    "loss_top_k": Renamed("gkd_logits_topk"),
    "loss_add_tail": Renamed("topk_mode", {"true": "tail", "false": "renorm"}),
    "reverse_kl_top_1_mode": Refused("for the sampled token use --rlhf_type grpo with a teacher (OPD-RL)"),
    "disable_dropout": NotNeeded("student and teacher are scored without dropout, but for --lora_dropout"),
    "cast_lm_head_to_fp32": NotNeeded("logits are summed in float32 whatever the weights' type"),
    "generation_kwargs": Refused("use --temperature, --top_p, --top_k, --min_p, --repetition_penalty"),
    "cache_implementation": Refused(_BATCHING),
    "use_transformers_paged": Refused(_BATCHING),
    "use_transformers_continuous_batching": Refused(_BATCHING),
    "transformers_continuous_batching_config": Refused(_BATCHING),
    "ds3_gather_for_generation": NotNeeded("DeepSpeed is not used"),
    "max_tool_calling_iterations": Refused("leave it out: the student writes one turn of a conversation"),
    "num_completions_to_print": NotNeeded("all completions are in completions.jsonl and report.html"),
    "log_unique_prompts": NotNeeded("all completions are in completions.jsonl and report.html"),
    "log_completions_hub_repo": Refused("leave it out, or --push_to_hub the run"),
    "log_multimodal": Refused("leave it out: text models only"),
    **{name: Refused(_TOKENIZERS) for name in [*_ULD.split(), "teacher_tokenizer_name_or_path"]},
    "log_completions_steps": NotNeeded(_ALL_WRITTEN),
    "wandb_log_unique_prompts": NotNeeded(_ALL_WRITTEN),
    "callbacks": Refused("pass them to limbeck.distil(callbacks=...)"),
    "max_prompt_length": Refused("use --max_length, the longest row, with --truncation_strategy"),
    "use_teacher_server": Refused("leave it out: --teacher_model_server says it"),
    "distillation_objective": Refused(
        "leave it out: --rlhf_type gkd is its jsd; the importance-weighted one is not here"
    ),
    "iw_opd_gamma": Refused(_OBJECTIVE),
    "iw_opd_epsilon": Refused(_OBJECTIVE),
    "teacher_model_kind": Renamed("teacher_source", {"base": "frozen", "live": "live", "ema": "ema"}),
    "teacher_update_rate": Refused("use --teacher_ema_decay, which is 1 minus it: 0.95 for 0.05"),
    "teacher_sync_steps": Refused("leave it out: the average moves at every step"),
    "distillation_alpha": Renamed("beta"),
    "distillation_mode": Refused(
        "topk_logits is --gkd_logits_topk K, full_logits is without it, sampled_token is --rlhf_type grpo"
    ),
    "distillation_topk": Renamed("gkd_logits_topk"),
    "distillation_add_tail": Renamed("topk_mode", {"true": "tail", "false": "renorm"}),
    "distillation_is_clip": Refused("leave it out: samples are one generation batch old at most"),
    "generate_from_teacher": Refused("leave it out: the student samples from its own prompt"),
    "num_loss_tokens_to_skip": Refused("use --position_weights, which weighs tokens by their place"),
    "sapo_temperature_neg": Renamed("tau_neg"),
    "sapo_temperature_pos": Renamed("tau_pos"),
    **{f"vespo_{name}": Refused(_VESPO) for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")},
    "multi_objective_aggregation": Refused("leave it out: rewards are weighed, summed, then compared in their group"),
    "mask_truncated_completions": Renamed("overlong_filter"),
    "ref_model_mixup_alpha": Refused(_REFERENCE),
    "ref_model_sync_steps": Refused(_REFERENCE),
    **{name: Refused(_ENTROPY) for name in _ENTROPIES.split()},
    "vllm_importance_sampling_correction": Renamed("rollout_importance_sampling_mode", {"true": "sequence_mask"}),
    "vllm_importance_sampling_mode": Renamed("rollout_importance_sampling_mode"),
    "vllm_importance_sampling_clip_max": Renamed("rollout_importance_sampling_threshold"),
    "vllm_importance_sampling_cap": Renamed("rollout_importance_sampling_threshold"),
    "vllm_importance_sampling_clip_min": Refused("leave it out: weights are bounded above only"),
    "off_policy_mask_threshold": Refused(
        "leave it out; --rollout_importance_sampling_mode sequence_mask is the nearest to it"
    ),
    "use_bias_correction_kl": Refused("leave it out: samples are one generation batch old at most"),
}

# The same name, and another meaning or default: class -> name -> what to know.
OTHERWISE: Mapping[str, Mapping[str, str]] = {
    "SFTConfig": {
        "learning_rate": "1e-4 with LoRA and 1e-5 with all weights; there 2e-5",
        "logging_steps": "5; there 10",
        "max_length": "none; there 1024, and rows are cut, which here --truncation_strategy asks for",
        "loss_type": "not supported: plain cross-entropy; the flag of this name is grpo's",
    },
    "GKDConfig": {
        "lmbda": "one draw a generation batch; there one a micro-batch",
        "max_new_tokens": "512; there 128",
    },
    "GOLDConfig": {
        "learning_rate": "1e-4 with LoRA and 1e-5 with all weights; there 1e-7",
        "top_p": "1; there 0.95",
        "lmbda": "one draw a generation batch; there one a micro-batch",
        "max_completion_length": "512; there 128",
        "log_completions": "on; there off",
    },
    "IWOPDConfig": {
        "temperature": "the sampler's only (0.9; there 1); the loss has --loss_temperature",
        "learning_rate": "1e-4 with LoRA and 1e-5 with all weights; there 1e-6",
        "lmbda": "0.5; there 1, so give --lmbda 1",
        "beta": "0.5; there 1, so give --beta 1",
        "max_length": "none; there 1024, and rows are cut, which here --truncation_strategy asks for",
    },
    "SDFTConfig": {
        "temperature": "0.9; there 1",
        "num_generations": "1 where a teacher alone is learnt from; there 8",
        "max_completion_length": "512; there 256",
        "teacher_prompt_template": "Jinja over the row's columns; there {prompt} and {privileged_context}",
        "distillation_topk": "the full vocabulary; there 100",
        "distillation_add_tail": "tail; there off",
    },
    "DistillationConfig": {
        "beta": "0.5; there 1, so give --beta 1",
        "temperature": "the sampler's only (0.9; there 1); the loss has --loss_temperature",
        "learning_rate": "1e-4 with LoRA and 1e-5 with all weights; there 1e-6",
        "log_completions": "on; there off",
    },
    "GRPOConfig": {
        "temperature": "0.9; there 1",
        "learning_rate": "1e-4 with LoRA and 1e-5 with all weights; there 1e-6",
        "num_generations": "8 with rewards, 1 where a teacher alone is learnt from; there 8",
        "epsilon_high": "cispo's bound is 1 + epsilon_high; there epsilon_high itself, so their 5.0 is 4.0",
        "loss_type": "grpo; there dapo; vespo and luspo are not supported",
        "log_completions": "on; there off",
        "vllm_importance_sampling_mode": "off; there sequence_mask",
        "vllm_importance_sampling_clip_max": "2; there 3",
    },
    "MiniLLMConfig": {
        "single_step_decomposition": "with `full` or `sampled` it is one signal; there both are summed by default",
    },
    "GRPOScriptArguments": {
        "reward_funcs": "`accuracy_reward` is `accuracy`, `think_format_reward` is `format`, "
        "`get_soft_overlong_punishment` is `soft_overlong`",
    },
    "DatasetMixtureConfig": {"datasets": "a list of names, NAME:SUBSET where there is one"},
    "ModelConfig": {
        "use_peft": "LoRA unless told otherwise; there all weights",
        "dtype": "as the model was saved; there float32",
        "lora_alpha": "32 with rank 8; there 32 with rank 16",
    },
}


def instead(name: str) -> str:
    """What to write for TRL's `name`, as an instruction; empty for a name that is not TRL's own."""
    match FLAGS.get(name):
        case Renamed(to=to, values=values):
            known = ", ".join(f"{theirs} is {ours}" for theirs, ours in values.items() if theirs)
            return f"write --{to}" + (f" ({known})" if known else "")
        case NotNeeded(why=why):
            return f"leave it out: {why}"
        case Refused(instead=instead):
            return instead
        case None:
            return ""
