"""TRL's published commands (examples/scripts, trl/scripts, trl/experimental, the page on its command line), files, as
data: name -> the command that it is here, its flags with their values, those of them that stay as they are. Model and
data set names are ours."""

from __future__ import annotations

_PAIR = "--model_name_or_path S --teacher_model_name_or_path T --dataset_name d"
_STEPS = "--per_device_train_batch_size 4 --gradient_accumulation_steps 8 --output_dir out --num_train_epochs 1"
_STEPS_OURS = "per_device_train_batch_size gradient_accumulation_steps output_dir num_train_epochs"
_LORA = "--use_peft --lora_r 64 --lora_alpha 16"
_GKD = f"{_PAIR} --report_to wandb --learning_rate 2e-5 {_STEPS} --logging_steps 1 --push_to_hub"
_GKD_OURS = f"report_to learning_rate {_STEPS_OURS} logging_steps push_to_hub gradient_checkpointing"
_SFT = (
    f"--model_name_or_path S --dataset_name d --learning_rate 2.0e-5 --packing {_STEPS} --gradient_checkpointing "
    "--eos_token <|im_end|> --eval_strategy steps --eval_steps 100 --push_to_hub"
)
_SFT_OURS = f"learning_rate {_STEPS_OURS} gradient_checkpointing eval_strategy eval_steps push_to_hub"
_VLM = "--model_name_or_path S --output_dir out --learning_rate 1e-5 --max_prompt_length 2048"
_VLM = f"{_VLM} --max_completion_length 1024 --use_peft --lora_target_modules q_proj v_proj --log_completions"
_VLM_OURS = "output_dir learning_rate max_completion_length log_completions"

COMMANDS: dict[str, tuple[str, str, str]] = {
    "gkd, full": ("rlhf", f"{_GKD} --gradient_checkpointing", _GKD_OURS),
    "gkd, LoRA": ("rlhf", f"{_GKD} --gradient_checkpointing {_LORA}", f"{_GKD_OURS} lora_alpha"),
    "distillation, off-policy": (
        "rlhf",
        f"{_PAIR} --learning_rate 2e-5 {_STEPS} --lmbda 0.0",
        f"learning_rate {_STEPS_OURS} lmbda",
    ),
    "distillation, mixed": (
        "rlhf",
        f"{_PAIR} --learning_rate 2e-5 {_STEPS} --lmbda 0.5 --beta 0.5",
        f"learning_rate {_STEPS_OURS} lmbda beta",
    ),
    "trl distillation, LoRA": (
        "rlhf",
        f"{_PAIR} --learning_rate 2e-4 {_STEPS} {_LORA}",
        f"learning_rate {_STEPS_OURS} lora_alpha",
    ),
    "gold, full": (
        "rlhf",
        f"{_PAIR} --learning_rate 2e-5 {_STEPS} --push_to_hub --gradient_checkpointing",
        f"learning_rate {_STEPS_OURS} push_to_hub gradient_checkpointing",
    ),
    "gold, another tokenizer": (
        "rlhf",
        f"{_PAIR} {_STEPS} --use_uld_loss --teacher_tokenizer_name_or_path T --uld_use_hybrid_loss "
        "--uld_hybrid_matched_weight 0.6 --uld_hybrid_unmatched_weight 0.4",
        _STEPS_OURS,
    ),
    "gold_vlm": ("rlhf", "--student_model_name S --teacher_model_name T --use_uld_loss --dataset_name d", ""),
    "minillm": (
        "rlhf",
        f"{_PAIR} {_STEPS} --rlhf_type grpo --rkl_advantage true --single_step_decomposition false --gamma 0.0 "
        "--kd_temperature 1.0 --length_normalization true --num_generations 1",
        f"{_STEPS_OURS} rlhf_type num_generations",
    ),
    "sft, full": ("sft", _SFT, _SFT_OURS),
    "sft, LoRA": ("sft", f"{_SFT} {_LORA}", f"{_SFT_OURS} lora_alpha"),
    "sft, LoRA without regret": (
        "sft",
        f"--model_name_or_path S --dataset_name d --learning_rate 2.0e-5 --packing {_STEPS} --eval_strategy no {_LORA} "
        "--lora_target_modules all-linear --report_to trackio --push_to_hub",
        f"learning_rate {_STEPS_OURS} eval_strategy lora_alpha report_to push_to_hub",
    ),
    "trl sft, several processes": ("sft", "--model_name_or_path S --dataset_name d --num_processes 4", ""),
    "trl sft, accelerate": ("sft", "--model_name_or_path S --dataset_name d --accelerate_config zero2", ""),
    "trl grpo": (
        "rlhf",
        "--rlhf_type grpo --model_name_or_path S --dataset_name d --reward_funcs accuracy --num_processes 4",
        "rlhf_type reward_funcs",
    ),
    "trl grpo, a reward model": (
        "rlhf",
        "--rlhf_type grpo --model_name_or_path S --dataset_name d --dataset_config standard_prompt_only "
        "--reward_model_name_or_path R --output_dir out --num_generations 4 --max_completion_length 32",
        "rlhf_type output_dir num_generations max_completion_length",
    ),
    "grpo_vlm": (
        "rlhf",
        f"--rlhf_type grpo {_VLM} --gradient_checkpointing --dtype bfloat16 --use_vllm --vllm_mode colocate "
        "--dataset_name d",
        f"rlhf_type {_VLM_OURS} gradient_checkpointing",
    ),
    "gspo": (
        "rlhf",
        f"--rlhf_type grpo {_VLM} --torch_dtype bfloat16 --per_device_train_batch_size 8 --num_generations 8 "
        "--importance_sampling_level sequence --epsilon 3e-4 --epsilon_high 4e-4 --beta 0.0 --loss_type grpo "
        "--gradient_accumulation_steps 2 --steps_per_generation 8 --dataset_name d",
        f"rlhf_type {_VLM_OURS} torch_dtype per_device_train_batch_size num_generations importance_sampling_level "
        "epsilon epsilon_high beta loss_type gradient_accumulation_steps steps_per_generation",
    ),
    "grpo, LoRA without regret": (
        "rlhf",
        "--rlhf_type grpo --model_name_or_path S --dataset_name d --output_dir out --learning_rate 1.0e-6 "
        "--lr_scheduler_type cosine --warmup_ratio 0.0 --max_grad_norm 1.0 --beta 0.0 --max_completion_length 4096 "
        "--num_generations 16 --generation_batch_size 16 --lora_r 1 --lora_alpha 32 --lora_dropout 0.0 "
        "--lora_target_modules all-linear --vllm_mode colocate --save_strategy steps --save_steps 50 "
        "--save_total_limit 1 --max_steps 200 --report_to trackio",
        "rlhf_type output_dir learning_rate lr_scheduler_type warmup_ratio max_grad_norm beta max_completion_length "
        "num_generations lora_alpha lora_dropout save_strategy save_steps save_total_limit max_steps report_to",
    ),
}

# file -> the command, its text, the keys that stay as they are
FILES: dict[str, tuple[str, str, str]] = {
    "cli_configs/example_config": (
        "sft",
        "# env:\n#   CUDA_VISIBLE_DEVICES: 0\nmodel_name_or_path:\n  S\ndataset_name:\n  d\nreport_to:\n  none\n"
        "learning_rate:\n  0.0001\nlr_scheduler_type:\n  cosine\n",
        "report_to learning_rate lr_scheduler_type",
    ),
    "clis, sft with a mixture": ("sft", "model_name_or_path: S\ndatasets:\n  - path: a\n  - path: b\n", ""),
    "clis, sft with accelerate": (
        "sft",
        "env:\n  WANDB_PROJECT: p\nmodel_name_or_path: S\ndataset_name: d\naccelerate_config: zero2\n",
        "",
    ),
    "clis, grpo": (
        "rlhf",
        "rlhf_type: grpo\nmodel_name_or_path: S\ndataset_name: d\nreward_funcs:\n  - accuracy\nnum_processes: 4\n",
        "rlhf_type reward_funcs",
    ),
    "nemo_gym/config, what is GRPOConfig's": (
        "rlhf",
        "rlhf_type: grpo\nmodel_name_or_path: S\ndataset_name: d\nreport_to: none\nlog_completions: true\n"
        "num_completions_to_print: 2\nlearning_rate: 1.0e-5\nmax_steps: 1000\nnum_generations: 16\nwarmup_steps: 3\n"
        "lr_scheduler_type: linear\noptim: adamw_torch_fused\nweight_decay: 0.01\n"
        "vllm_importance_sampling_correction: true\ntemperature: 1.0\ntop_p: 0.999\nsave_steps: 10\n"
        "eval_strategy: steps\neval_steps: 10\n",
        "rlhf_type report_to log_completions learning_rate max_steps num_generations warmup_steps lr_scheduler_type "
        "weight_decay temperature top_p save_steps eval_strategy eval_steps",
    ),
}
