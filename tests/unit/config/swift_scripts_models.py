"""As `swift_scripts`: ms-swift's commands by model, for Ascend, with pictures, and the tuners that are left."""

from __future__ import annotations

from tests.unit.config.swift_scripts import _KEEP, _TUNED, _WORKERS, _batch, _every
from tests.unit.config.swift_scripts_grpo import _MCORE, _MCORE_OFF, _MCORE_SFT, _SFT_OFF, _SIZED, _SIZED_OFF

_SEEN = f"--rlhf_type gkd --model S --teacher_model T --tuner_type full --torch_dtype bfloat16 {_batch(4)} {_KEEP}"
_SEEN = f"{_SEEN} --num_train_epochs 1 --learning_rate 1e-5 --freeze_vit true --max_length 4096 --logging_steps 5"
_SEEN = f"{_SEEN} --gradient_accumulation_steps 1 --warmup_ratio 0.05 {_WORKERS} --deepspeed zero2"
_SFT = f"--model S --dataset a#500 --torch_dtype bfloat16 --num_train_epochs 1 {_batch(1)} {_every(50)} {_WORKERS}"
_SFT = f"{_SFT} --save_total_limit 2 --logging_steps 5 --max_length 2048 --output_dir output --warmup_ratio 0.05"
_LORA = f"{_SFT} --tuner_type lora --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 --target_modules all-linear"
_BALANCED = "--moe_permute_fusion true --moe_grouped_gemm true --moe_aux_loss_coeff 1e-6 --moe_expert_capacity_factor 2"
_BALANCED_OFF = "moe_aux_loss_coeff moe_expert_capacity_factor"
_NAMES = "model_author model_name"
_OTHERS = "adapter boft bone longlora reft"

SCRIPTS: dict[str, tuple[str, str, str]] = {
    "multimodal/rlhf/gkd/fast, the answers": (
        "infer",
        "--model T --infer_backend vllm --val_dataset d:validation#5000 --vllm_gpu_memory_utilization 0.9 "
        "--vllm_max_model_len 8192 --max_new_tokens 2048 --write_batch_size 1000 --result_path new.jsonl",
        "infer_backend vllm_gpu_memory_utilization vllm_max_model_len",
    ),
    "multimodal/rlhf/gkd/fast": (
        "rlhf",
        f"{_SEEN} --dataset new.jsonl --load_from_cache_file true --split_dataset_ratio 0.01 {_every(100)} "
        "--padding_free true --attn_impl flash_attn --lmbda 0",
        "deepspeed",
    ),
    "multimodal/rlhf/gkd/full": (
        "rlhf",
        f"{_SEEN} --dataset d:validation#2000 --seq_kd true {_every(50)} --max_completion_length 512",
        "seq_kd deepspeed",
    ),
    "multimodal/lora_llm_full_vit": (
        "sft",
        f"{_SFT} --tuner_type custom --external_plugins plugin.py --learning_rate 1e-4 --vit_lr 1e-5 --aligner_lr 1e-5",
        "tuner_type vit_lr aligner_lr",
    ),
    "multimodal/vit_gradient_checkpointing": (
        "sft",
        f"{_SFT} --train_type full --freeze_vit false --freeze_aligner false --gradient_checkpointing false "
        "--vit_gradient_checkpointing true",
        "freeze_vit freeze_aligner vit_gradient_checkpointing",
    ),
    "ascend/grpo/fsdp2": (
        "rlhf",
        f"--rlhf_type grpo --model S --check_model false --dataset d#32 --split_dataset_ratio 0 --system Hi "
        f"--reward_funcs accuracy {_SIZED} --vllm_enable_lora true --max_length 256 --max_completion_length 128 "
        "--num_generations 2 --steps_per_generation 1 --tuner_type lora --per_device_train_batch_size 1 --fsdp fsdp2 "
        "--max_steps 1 --save_strategy no --eval_strategy no --report_to none",
        f"{_SIZED_OFF} vllm_enable_lora",
    ),
    "ascend/train/qwen3": (
        "sft",
        f"{_LORA} --gradient_checkpointing true --eval_strategy no --attn_impl flash_attention_2 --packing true",
        "",
    ),
    "ascend/deploy": ("deploy", "--model S --infer_backend vllm --served_model_name S", ""),
    "models/qwen3_5/transformers": (
        "sft",
        f"{_LORA} --add_non_thinking_prefix true --experts_impl grouped_mm --router_aux_loss_coef 1e-3 "
        "--group_by_length true --deepspeed zero3",
        "add_non_thinking_prefix experts_impl router_aux_loss_coef deepspeed",
    ),
    "models/gpt_oss": (
        "sft",
        f"{_LORA} --router_aux_loss_coef 1e-3 --model_author me --model_name robot",
        f"router_aux_loss_coef {_NAMES}",
    ),
    "models/gemma4/diffusion_gemma": (
        "sft",
        f"{_LORA} --loss_scale ignore_empty_think --gradient_checkpointing false --freeze_vit true --deepspeed zero2",
        "deepspeed",
    ),
    "models/gemma4/diffusion_gemma, the answers": (
        "infer",
        "--adapters a --load_data_args true --enable_thinking false",
        "load_data_args enable_thinking",
    ),
    "models/qwen3_5/mcore_full and qwen3_next/mtp": (
        "sft",
        f"{_MCORE_SFT} --pipeline_model_parallel_size 2 --decoder_first_pipeline_num_layers 24 {_BALANCED} "
        "--mtp_num_layers 1 --optimizer_cpu_offload true --use_precision_aware_optimizer true "
        "--optimizer_offload_fraction 0.62 --freeze_llm false --freeze_aligner true --group_by_length true",
        f"{_SFT_OFF} {_BALANCED_OFF} pipeline_model_parallel_size decoder_first_pipeline_num_layers mtp_num_layers "
        "optimizer_cpu_offload optimizer_offload_fraction",
    ),
    "models/deepseek_v41/megatron_sft": (
        "sft",
        "--model S --dataset d#2000 --tuner_type lora --bf16 true --expert_tensor_parallel_size 1 "
        "--virtual_pipeline_model_parallel_size 2 --recompute_granularity selective --padding_free true --lr 1e-4 "
        "--micro_batch_size 1 --global_batch_size 8 --save_safetensors true --attention_backend flash",
        "virtual_pipeline_model_parallel_size global_batch_size",
    ),
    "models/qwen3_5/mcore_grpo_moe and qwen4_exp/megatron_grpo": (
        "rlhf",
        f"{_MCORE} {_SIZED} --vllm_enable_lora false --tuner_type lora --expert_tensor_parallel_size 1 "
        f"--decoder_first_pipeline_num_layers 12 {_BALANCED} --offload_bridge false --enable_thinking false",
        f"{_MCORE_OFF} {_SIZED_OFF} {_BALANCED_OFF} vllm_enable_lora decoder_first_pipeline_num_layers enable_thinking",
    ),
    "custom/sft": ("sft", f"{_LORA} --custom_register_path dataset.py model.py", ""),
    "custom/infer": (
        "infer",
        "--adapters a --load_data_args true --infer_backend pt --max_batch_size 16 --max_new_tokens 256 "
        "--temperature 0",
        "load_data_args",
    ),
    "full/infer": ("infer", "--model S --stream true --temperature 0 --max_new_tokens 2048", ""),
    "tuners/olora": (
        "sft",
        f"--model S --train_type lora {_TUNED} --learning_rate 1e-4 --init_weights olora",
        f"{_NAMES} init_weights",
    ),
    "tuners/lora-ga": (
        "sft",
        f"--model S --train_type lora {_TUNED} --learning_rate 1e-4 --init_weights lora-ga --lora_ga_batch_size 2",
        f"{_NAMES} init_weights lora_ga_batch_size",
    ),
    "tuners/galore/train_qgalore": (
        "sft",
        f"--model S --train_type full {_TUNED} --use_galore true --galore_quantization true",
        f"{_NAMES} use_galore galore_quantization",
    ),
    **{
        f"tuners/{name}": (
            "sft",
            f"--model S --tuner_type {name} {_TUNED} --learning_rate 1e-4",
            f"{_NAMES} tuner_type",
        )
        for name in _OTHERS.split()
    },
}
