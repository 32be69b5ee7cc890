"""The commands of the scripts under ms-swift's examples/, as data: script -> its command, its flags with their values,
and the flags that are refused here. Model and data set names are ours; quoted words and JSON are without spaces."""

from __future__ import annotations


def _batch(rows: int) -> str:
    return f"--per_device_train_batch_size {rows} --per_device_eval_batch_size {rows}"


def _every(steps: int) -> str:
    return f"--eval_steps {steps} --save_steps {steps}"


_WORKERS = "--dataloader_num_workers 4 --dataset_num_proc 4"
_KEEP = "--save_total_limit 2 --save_only_model true"
_FLASH = "--torch_dtype bfloat16 --attn_impl flash_attn"
_TWO = "--dataset a#2000 b#2000"

_GKD = "--rlhf_type gkd --model S"
_GKD_RUN = f"--gradient_accumulation_steps 1 --logging_steps 5 --output_dir output --warmup_ratio 0.05 {_WORKERS}"
_GKD_FULL = f"{_GKD} --teacher_model T --train_type full --num_train_epochs 1 --learning_rate 1e-5 {_GKD_RUN} {_KEEP}"
_GKD_FULL = f"{_GKD_FULL} {_FLASH}"
_GKD_SAMPLED = f"{_GKD_FULL} {_TWO} {_batch(4)} {_every(50)} --max_length 2048 --max_completion_length 512"
_GKD_MIXED = f"{_GKD_SAMPLED} --split_dataset_ratio 0.01 --seq_kd false --lmbda 0.5 --deepspeed zero3"
_SERVER_8000 = "--use_vllm true --vllm_mode server --vllm_server_host 127.0.0.1 --vllm_server_port 8000"
_SERVED = (
    f"{_GKD} --teacher_model_server http://localhost:8000 --seq_kd false --beta 0.5 --learning_rate 5e-5 {_WORKERS}"
)
_SERVED = f"{_SERVED} --torch_dtype bfloat16 --save_only_model true"

_IN_TRAINER = "--use_vllm true --vllm_mode colocate --sleep_level"
_OPSD = (
    f"{_GKD} --teacher_model S --tuner_type lora --lora_rank 64 --lora_alpha 128 --target_modules all-linear "
    "--external_plugins plugin.py --dataset d --lmbda 1.0 --beta 0.5 --temperature 1.2 --sft_alpha 0 --max_steps 1000 "
    "--learning_rate 2e-5 --save_steps 100 --save_total_limit 10 --logging_steps 1 --max_length 8192 "
    f"--max_completion_length 2048 --save_only_model true --gradient_checkpointing true {_FLASH} {_IN_TRAINER} 1"
)
_OPD = f"--rlhf_type grpo --model S {_IN_TRAINER} 1 --vllm_gpu_memory_utilization 0.5 --vllm_tensor_parallel_size 1"
_OPD = f"{_OPD} {_WORKERS} {_FLASH} --deepspeed zero2 --log_completions true --report_to tensorboard swanlab"
_OPD_FULL = (
    f"{_OPD} --advantage_estimator grpo --vllm_max_model_len 10240 --tuner_type full --dataset d#5000 "
    "--max_completion_length 8192 --num_train_epochs 1 --per_device_train_batch_size 1 --learning_rate 1e-6 "
    "--gradient_accumulation_steps 8 --save_steps 200 --save_total_limit 2 --logging_steps 1 --warmup_ratio 0.05 "
    "--num_generations 8 --temperature 1.0 --beta 0.0 --num_iterations 1"
)
_INSIDE = "use_vllm vllm_mode vllm_gpu_memory_utilization sleep_level"
_OUTSIDE = "use_vllm vllm_mode vllm_server_host vllm_server_port"
_INSIDE_SIZED = f"{_INSIDE} vllm_tensor_parallel_size vllm_max_model_len"

GKD: dict[str, tuple[str, str, str]] = {
    "gkd": (
        "rlhf",
        f"{_GKD_FULL} {_TWO} --seq_kd true {_batch(4)} {_every(50)} --max_length 4096 --max_new_tokens 1024 "
        "--deepspeed zero2",
        "seq_kd deepspeed",
    ),
    "gkd/full": ("rlhf", f"{_GKD_SAMPLED} --seq_kd true --deepspeed zero3", "seq_kd deepspeed"),
    "gkd/fast and gkd/think_model, the answers": (
        "infer",
        "--model T --infer_backend vllm --val_dataset a#5000 b#5000 --gpu_memory_utilization 0.9 --max_model_len 8192 "
        "--max_new_tokens 2048 --write_batch_size 10000 --result_path new_dataset.jsonl",
        "infer_backend gpu_memory_utilization max_model_len",
    ),
    "gkd/fast": (
        "rlhf",
        f"{_GKD_FULL} --dataset new_dataset.jsonl {_batch(4)} {_every(100)} --max_length 2048 --lmbda 0 "
        "--deepspeed zero3",
        "deepspeed",
    ),
    "gkd/think_model": (
        "rlhf",
        f"{_GKD_FULL} --dataset new_dataset.jsonl {_batch(1)} {_every(100)} --max_length 4096 --packing true "
        "--sft_alpha 0.1 --lmbda 0 --deepspeed zero3",
        "deepspeed",
    ),
    "gkd/gsm8k_teacher_server": (
        "rlhf",
        f"{_SERVED} --gkd_logits_topk 64 --tuner_type lora --lora_rank 64 --lora_alpha 128 --dataset d#train --lmbda 0 "
        f"--num_train_epochs 3 {_batch(2)} --gradient_accumulation_steps 8 {_every(200)} --save_total_limit 3 "
        "--logging_steps 5 --max_length 1024 --warmup_ratio 0.05 --attn_impl flash_attn --deepspeed zero2",
        "deepspeed",
    ),
    "gkd/teacher_server": (
        "rlhf",
        f"{_SERVED} --gkd_logits_topk 64 --vllm_gpu_memory_utilization 0.5 --vllm_tensor_parallel_size 1 "
        f"--vllm_max_model_len 4096 {_IN_TRAINER} 0 --dataset d --lmbda 1 --per_device_train_batch_size 2 "
        "--gradient_accumulation_steps 4 --logging_steps 1 --save_steps 100 --save_total_limit 2 --max_length 2048 "
        "--max_completion_length 2048 --warmup_ratio 0.1 --attn_impl flash_attn --report_to tensorboard swanlab",
        "use_vllm vllm_mode vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_max_model_len",
    ),
    "gkd/teacher_server_multimodal": (
        "rlhf",
        f"{_SERVED} --gkd_logits_topk 20 --lmbda 0 --dataset d:train#200 --per_device_train_batch_size 1 "
        "--gradient_accumulation_steps 4 --logging_steps 1 --save_steps 100 --save_total_limit 2 --max_length 2048 "
        "--max_completion_length 512 --warmup_ratio 0.1 --report_to tensorboard --num_train_epochs 1",
        "",
    ),
    "gkd/vllm_colocate": (
        "rlhf",
        f"{_GKD_MIXED} --teacher_deepspeed zero3_offload {_IN_TRAINER} 1 --vllm_gpu_memory_utilization 0.3",
        f"deepspeed teacher_deepspeed {_INSIDE}",
    ),
    "gkd/vllm_server": ("rlhf", f"{_GKD_MIXED} {_SERVER_8000}", f"deepspeed {_OUTSIDE}"),
    "gkd/multi_turn": (
        "rlhf",
        f"{_GKD} --teacher_model T {_GKD_RUN} --tuner_type lora --dataset d#5000 --lmbda 1 --beta 0.5 "
        "--temperature 1.0 --max_steps 200 --per_device_train_batch_size 4 --learning_rate 5e-6 --save_steps 200 "
        f"--save_total_limit 1 --max_length 4096 --max_completion_length 2048 --save_only_model true {_FLASH} "
        f"--deepspeed zero3 --teacher_deepspeed zero3_offload {_IN_TRAINER} 1 --vllm_gpu_memory_utilization 0.3 "
        "--vllm_max_model_len 8192 --enable_thinking false --loss_scale last_round "
        "--multi_turn_scheduler math_tip_trick --max_turns 2 --truncation_strategy delete --log_completions true",
        f"deepspeed teacher_deepspeed {_INSIDE} vllm_max_model_len multi_turn_scheduler max_turns enable_thinking",
    ),
    "mopd": (
        "rlhf",
        f"{_GKD} --teacher_model_group T,U --use_mopd true --tuner_type full --dataset d#10000 --seq_kd false "
        "--lmbda 1 --beta 1 --torch_dtype bfloat16 --num_train_epochs 1 --per_device_train_batch_size 1 "
        f"--learning_rate 1e-5 --gradient_accumulation_steps 1 --save_steps 1000 {_KEEP} --logging_steps 1 "
        "--max_length 16000 --max_completion_length 8192 --output_dir output --warmup_ratio 0.05 "
        "--dataloader_num_workers 64 --dataset_num_proc 4 --deepspeed zero3 --teacher_deepspeed zero3",
        "teacher_model_group use_mopd deepspeed teacher_deepspeed",
    ),
    "opsd": (
        "rlhf",
        f"{_OPSD} --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --vllm_gpu_memory_utilization 0.7 "
        "--vllm_max_model_len 10240 --deepspeed zero0 --report_to tensorboard swanlab",
        f"{_INSIDE} vllm_max_model_len",
    ),
    "opsd_fixed": (
        "rlhf",
        f"{_OPSD} --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --vllm_gpu_memory_utilization 0.6 "
        "--deepspeed zero1",
        f"{_INSIDE} deepspeed",
    ),
    "opd_rl": (
        "rlhf",
        f"{_OPD} --teacher_model T --enable_thinking false --tuner_type lora --vllm_max_model_len 4096 --dataset d "
        "--num_generations 1 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --learning_rate 5e-5 "
        "--logging_steps 1 --save_steps 100 --save_total_limit 10 --max_length 2048 --max_completion_length 2048 "
        "--warmup_ratio 0.1 --save_only_model true --log_rollout_offpolicy_metrics true",
        f"{_INSIDE_SIZED} deepspeed enable_thinking",
    ),
    "opd_rl/opd_rl": (
        "rlhf",
        f"{_OPD_FULL} --teacher_model S --teacher_deepspeed zero3 --offload_model true --offload_optimizer true "
        "--offload_teacher_model true",
        f"{_INSIDE_SIZED} deepspeed teacher_deepspeed offload_model offload_optimizer",
    ),
    "opd_rl/teacher_server, the teacher": (
        "deploy",
        "--model T --infer_backend vllm --vllm_tensor_parallel_size 2 --port 8000 --max_length 10240 "
        "--vllm_max_model_len 10240",
        "",
    ),
    "opd_rl/teacher_server": (
        "rlhf",
        f"{_OPD_FULL} --teacher_model_server http://localhost:8000 --max_length 2048",
        f"{_INSIDE_SIZED} deepspeed",
    ),
}

_MCORE = "--finetune --no_save_optim --no_save_rng --attention_backend flash --recompute_granularity selective"
_MCORE = f"{_MCORE} --torch_dtype bfloat16 --logging_steps 1 --use_vllm true --tensor_model_parallel_size"
_COLOCATED = "--vllm_mode colocate --sleep_level 1 --vllm_gpu_memory_utilization"
_MCORE_OFF = "global_batch_size use_vllm vllm_mode"
_IN_MCORE = f"{_MCORE_OFF} sleep_level vllm_gpu_memory_utilization vllm_max_model_len"

MEGATRON: dict[str, tuple[str, str, str]] = {
    "megatron/gkd/dense": (
        "rlhf",
        f"{_GKD} --teacher_model T --tuner_type lora {_TWO} {_MCORE} 2 --expert_model_parallel_size 1 "
        "--pipeline_model_parallel_size 2 --context_parallel_size 2 --lmbda 1 --beta 1 --micro_batch_size 2 "
        "--global_batch_size 16 --num_train_epochs 1 --lr 5e-6 --max_length 8192 --max_completion_length 8192 "
        f"{_COLOCATED} 0.5 --vllm_tensor_parallel_size 1 --vllm_max_model_len 16384 --offload_teacher_model true "
        "--temperature 1.0 --padding_free true --sequence_parallel true",
        f"{_IN_MCORE} tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size "
        "vllm_tensor_parallel_size",
    ),
    "megatron/gkd/multi_turn": (
        "rlhf",
        f"{_GKD} --teacher_model T --tuner_type lora --dataset d#2000 {_MCORE} 2 --lmbda 1 --beta 0.5 "
        "--temperature 1.0 --micro_batch_size 2 --global_batch_size 16 --num_train_epochs 1 --lr 5e-6 "
        f"--max_length 2048 --max_completion_length 1024 {_COLOCATED} 0.3 --vllm_tensor_parallel_size 1 "
        "--vllm_max_model_len 4096 --offload_teacher_model true --enable_thinking false --loss_scale last_round "
        "--multi_turn_scheduler math_tip_trick --max_turns 2 --truncation_strategy delete --padding_free true "
        "--sequence_parallel true --output_dir output --save_steps 200 --save_total_limit 2 "
        "--vllm_server_pass_dataset true --remove_unused_columns false",
        f"{_IN_MCORE} tensor_model_parallel_size vllm_tensor_parallel_size enable_thinking multi_turn_scheduler "
        "max_turns vllm_server_pass_dataset",
    ),
    "megatron/gkd/opsd": (
        "rlhf",
        f"{_GKD} --external_plugins plugin.py --dataset d {_MCORE} 1 {_COLOCATED} 0.6 --vllm_max_model_len 10240 "
        "--lmbda 1.0 --beta 0.5 --temperature 1.2 --sft_alpha 0 --micro_batch_size 1 --global_batch_size 32 "
        "--train_iters 1000 --lr 2e-5 --save_steps 100 --save_total_limit 10 --max_length 8192 "
        "--max_completion_length 2048 --pipeline_model_parallel_size 1",
        _IN_MCORE,
    ),
    "megatron/gkd/teacher_server": (
        "rlhf",
        f"{_GKD} --teacher_model_server http://localhost:8000 --gkd_logits_topk 64 --dataset d {_MCORE} 1 "
        "--pipeline_model_parallel_size 1 --context_parallel_size 1 --expert_model_parallel_size 1 --lmbda 1 "
        "--beta 0.5 --micro_batch_size 2 --global_batch_size 32 --train_iters 500 --lr 5e-5 --lr_warmup_fraction 0.1 "
        "--save_steps 100 --save_total_limit 10 --max_length 2048 --max_completion_length 2048 --vllm_mode server "
        "--vllm_server_host 127.0.0.1 --vllm_server_port 8000 --vllm_server_timeout 600 --temperature 1.0 "
        "--padding_free true",
        f"{_MCORE_OFF} vllm_server_host vllm_server_port vllm_server_timeout",
    ),
    "megatron/gkd/teacher_server, the teacher": (
        "deploy",
        "--model T --infer_backend vllm --port 8000 --max_logprobs 64 --max_length 4096 --vllm_max_model_len 4096",
        "",
    ),
    "megatron/opd_rl/dense": (
        "rlhf",
        f"--rlhf_type grpo --model S --teacher_model T --tuner_type full --dataset d#5000 {_MCORE} 2 "
        "--pipeline_model_parallel_size 2 --context_parallel_size 2 --advantage_estimator grpo --beta 0.0 "
        "--micro_batch_size 2 --global_batch_size 16 --num_generations 8 --steps_per_generation 4 "
        f"--num_train_epochs 1 --lr 1e-6 --max_length 8192 --max_completion_length 4096 {_COLOCATED} 0.5 "
        "--vllm_tensor_parallel_size 1 --vllm_max_model_len 16384 --offload_model true --offload_optimizer true "
        "--offload_teacher_model true --temperature 1.0 --padding_free true --sequence_parallel true "
        "--log_completions true --train_iters 200 --save_steps 1000",
        f"{_IN_MCORE} tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size "
        "vllm_tensor_parallel_size offload_model offload_optimizer",
    ),
}

_SFT_LORA = "--train_type lora --torch_dtype bfloat16 --lora_rank 8 --lora_alpha 32 --learning_rate 1e-4"
_SELF = "--model_author swift --model_name robot"
_ONE = "--dataset d#1000 --num_train_epochs 1 --save_total_limit 2 --logging_steps 5"
_THREE = "--dataset a#500 b#500 c --logging_steps 5"
_DDP = f"--model S {_SFT_LORA} {_ONE} {_every(100)} --per_device_train_batch_size 1 --gradient_accumulation_steps 8"
_LONG = "--max_length 2048 --output_dir output --system Hi --warmup_ratio 0.05 --dataloader_num_workers 4"
_DDP_LONG = f"{_DDP} {_LONG} {_SELF} --per_device_eval_batch_size 1 --target_modules all-linear"
_REENTRANT = '--gradient_checkpointing_kwargs {"use_reentrant":false}'
_NAMES = "model_author model_name"

_THINK = f"--model S {_SFT_LORA} --num_train_epochs 1 {_batch(1)} --target_modules all-linear {_every(50)} {_SELF}"
_THINK = f"{_THINK} --gradient_accumulation_steps 16 --save_total_limit 2 --logging_steps 5 --max_length 2048"
_THINK = f"{_THINK} --output_dir output --warmup_ratio 0.05 --dataloader_num_workers 4 --use_liger_kernel true"

SFT: dict[str, tuple[str, str, str]] = {
    "lora_sft": (
        "sft",
        "--model S --tuner_type lora --dataset a#500 b#500 c#500 --torch_dtype bfloat16 --num_train_epochs 1 "
        f"{_batch(1)} --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 --target_modules all-linear "
        f"--gradient_accumulation_steps 16 {_every(50)} --save_total_limit 2 --logging_steps 5 {_LONG} {_SELF}",
        _NAMES,
    ),
    "lora/train": (
        "sft",
        f"--model S --train_type lora {_ONE} --per_device_train_batch_size 1 --learning_rate 1e-4 --lora_rank 8 "
        f"--lora_alpha 32 --gradient_accumulation_steps 16 {_every(100)} {_SELF}",
        _NAMES,
    ),
    "think_model/qwen3_demo1 and deepseek_r1": (
        "sft",
        f"{_THINK} --dataset a#2000 b:empty_think#600 --loss_scale ignore_empty_think",
        _NAMES,
    ),
    "think_model/qwen3_demo2": (
        "sft",
        f"{_THINK} --dataset a#2000 b:qwen3#600 --load_from_cache_file false",
        _NAMES,
    ),
    "packing/llm": (
        "sft",
        f"--model S {_SFT_LORA} --packing true --dataset a#500 b#500 c#500 --split_dataset_ratio 0.01 "
        f"--num_train_epochs 3 --attn_impl flash_attn {_batch(1)} --target_modules all-linear "
        f"--gradient_accumulation_steps 4 {_every(50)} --save_total_limit 2 --logging_steps 5 {_LONG} "
        f"--dataset_num_proc 4 {_SELF}",
        _NAMES,
    ),
    "packing/streaming": (
        "sft",
        f"--model S {_SFT_LORA.replace('1e-4', '3e-4')} --dataset HF::d:human#20000 --max_steps 1000 "
        f"--attn_impl flash_attn --streaming true --packing true {_batch(1)} --target_modules all-linear "
        f"--gradient_accumulation_steps 1 {_every(100)} --save_total_limit 5 --logging_steps 5 --max_length 8192 "
        "--output_dir output --warmup_ratio 0.05 --dataloader_num_workers 0 --dataset_num_proc 8 --deepspeed zero2",
        "deepspeed",
    ),
    "full/train": (
        "sft",
        f"--model S --train_type full {_ONE} --per_device_train_batch_size 1 --learning_rate 1e-5 "
        f"--gradient_accumulation_steps 16 {_every(100)} {_SELF}",
        _NAMES,
    ),
    "full/dft": (
        "sft",
        "--model S --train_type full --dataset d#100000 --torch_dtype bfloat16 --enable_dft_loss true "
        "--num_train_epochs 1 --per_device_train_batch_size 8 --learning_rate 5e-5 --gradient_accumulation_steps 32 "
        "--save_total_limit 2 --logging_steps 5 --max_length 2048 --output_dir output --system Hi --warmup_ratio 0.1 "
        "--deepspeed zero2 --dataloader_num_workers 4",
        "enable_dft_loss deepspeed",
    ),
    "full/qwen2_5_32b": (
        "sft",
        f"--model S --train_type full --dataset d {_FLASH} --max_steps 2000 --streaming true {_batch(1)} "
        f"--learning_rate 1e-5 --gradient_accumulation_steps 2 --packing true {_every(200)} --logging_steps 5 "
        f"--max_length 8192 --warmup_ratio 0.05 --dataloader_num_workers 8 --dataset_num_proc 8 {_KEEP} "
        "--output_dir output/S --deepspeed zero3 --use_liger_kernel true",
        "deepspeed",
    ),
    "base_to_chat/lora": (
        "sft",
        f"--model S {_SFT_LORA} {_THREE} --template default --num_train_epochs 10 {_batch(1)} "
        f"--target_modules all-linear --gradient_accumulation_steps 8 {_every(50)} --save_total_limit 5 {_LONG} "
        f"{_SELF} --deepspeed zero2",
        f"{_NAMES} deepspeed",
    ),
    "base_to_chat/full": (
        "sft",
        f"--model S --train_type full {_THREE} --torch_dtype bfloat16 --num_train_epochs 10 {_batch(1)} "
        f"--learning_rate 1e-5 --gradient_accumulation_steps 8 {_every(200)} --save_total_limit 5 {_LONG} {_SELF} "
        "--deepspeed zero2",
        f"{_NAMES} deepspeed",
    ),
    "multi-gpu/ddp": ("sft", f"{_DDP} {_REENTRANT} {_SELF}", _NAMES),
    "multi-gpu/ddp_device_map": ("sft", f"{_DDP_LONG} {_REENTRANT}", _NAMES),
    "multi-gpu/deepspeed/train_zero2": ("sft", f"{_DDP} {_SELF} --deepspeed zero2", f"{_NAMES} deepspeed"),
    "multi-gpu/deepspeed/train_zero3": ("sft", f"{_DDP_LONG} --deepspeed zero3", f"{_NAMES} deepspeed"),
    "multi-gpu/device_map": (
        "sft",
        f"--model S --dataset d:validation#20000 --split_dataset_ratio 0.01 {_SFT_LORA} --num_train_epochs 1 "
        f"{_batch(1)} --target_modules all-linear --freeze_vit true --gradient_accumulation_steps 16 {_every(100)} "
        "--save_total_limit 2 --logging_steps 5 --max_length 2048 --output_dir output --warmup_ratio 0.05 "
        "--dataloader_num_workers 4",
        "",
    ),
    "multi-gpu/fsdp2_lora": ("sft", f"{_DDP_LONG} --gradient_checkpointing false --weight_decay 0.1", _NAMES),
    "multi-gpu/fsdp2_lora/train_offload": (
        "sft",
        f"{_DDP_LONG} --fsdp fsdp2_offload --gradient_checkpointing true --weight_decay 0.1",
        f"{_NAMES} fsdp",
    ),
    "multi-gpu/fsdp_qlora": (
        "sft",
        f"{_DDP_LONG} --quant_bits 4 --bnb_4bit_compute_dtype bfloat16 --bnb_4bit_quant_storage bfloat16 "
        "--gradient_checkpointing true --weight_decay 0.1",
        f"{_NAMES} quant_bits bnb_4bit_compute_dtype bnb_4bit_quant_storage",
    ),
}

_TUNED = f"{_ONE} --per_device_train_batch_size 1 --gradient_accumulation_steps 16 {_every(100)} {_SELF}"
_LORA_TUNED = f"--model S --train_type lora {_TUNED} --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32"
_FULL_TUNED = f"--model S --train_type full {_TUNED} --learning_rate 1e-5"
_PACKED = (
    f"--model S --dataset d --torch_dtype bfloat16 --learning_rate 1e-5 {_every(200)} --logging_steps 5 "
    f"--warmup_ratio 0.05 --dataloader_num_workers 8 --dataset_num_proc 8 {_KEEP} --output_dir output/S "
    "--deepspeed zero3 --use_liger_kernel true"
)
_MUON = f"{_DDP_LONG} --dataset a#500 b#500 c#500"

TUNERS: dict[str, tuple[str, str, str]] = {
    "tuners/dora": ("sft", f"{_LORA_TUNED} --use_dora true", f"{_NAMES} use_dora"),
    "tuners/neftune": ("sft", f"{_LORA_TUNED} --neftune_noise_alpha 15", f"{_NAMES} neftune_noise_alpha"),
    "tuners/pissa": ("sft", f"{_LORA_TUNED} --init_lora_weights pissa", f"{_NAMES} init_lora_weights"),
    "tuners/qlora": (
        "sft",
        f"{_LORA_TUNED} --quant_bits 4 --quant_method bnb",
        f"{_NAMES} quant_bits quant_method",
    ),
    "tuners/unsloth": ("sft", f"{_LORA_TUNED} --tuner_backend unsloth", f"{_NAMES} tuner_backend"),
    "tuners/lisa": ("sft", f"{_FULL_TUNED} --lisa_activated_layers 2", f"{_NAMES} lisa_activated_layers"),
    "tuners/galore": (
        "sft",
        f"{_FULL_TUNED} --use_galore true --galore_optim_per_parameter true",
        f"{_NAMES} use_galore galore_optim_per_parameter",
    ),
    "tuners/adalora": ("sft", f"--model S --tuner_type adalora {_TUNED} --learning_rate 1e-4", f"{_NAMES} tuner_type"),
    "tuners/llamapro": (
        "sft",
        f"--model S --tuner_type llamapro {_TUNED} --learning_rate 1e-4 --llamapro_num_new_blocks 4",
        f"{_NAMES} tuner_type llamapro_num_new_blocks",
    ),
    "streaming/lazy_tokenize": ("sft", f"{_LORA_TUNED} --lazy_tokenize true", _NAMES),
    "streaming/streaming": ("sft", f"{_LORA_TUNED} --streaming true --max_steps 1000", _NAMES),
    "optimizer/muon": ("sft", f"{_MUON} --optimizer muon", f"{_NAMES} optimizer"),
    "early_stop/lora_sft": (
        "sft",
        f"{_MUON} --split_dataset_ratio 0.1 --early_stop_interval 3 --metric_for_best_model loss",
        f"{_NAMES} early_stop_interval",
    ),
    "cached_dataset/sft": (
        "sft",
        f"{_PACKED} --tuner_type full --cached_dataset c/train --cached_val_dataset c/val {_batch(1)} --packing true "
        "--num_train_epochs 3 --gradient_accumulation_steps 4 --max_length 8192 --attn_impl flash_attn",
        "cached_dataset cached_val_dataset deepspeed",
    ),
    "flash_attention_3/transformers": (
        "sft",
        f"{_PACKED} --tuner_type full --load_from_cache_file true --attn_impl flash_attention_3 --num_train_epochs 3 "
        f"--split_dataset_ratio 0.01 {_batch(1)} --gradient_accumulation_steps 4 --packing true --max_length 16384",
        "deepspeed",
    ),
    "padding_free/sft": (
        "sft",
        f"{_PACKED} --train_type full {_batch(8)} --gradient_accumulation_steps 1 --max_length 8192 "
        "--attn_impl flash_attn --padding_free true",
        "deepspeed",
    ),
    "sequence_parallel": (
        "sft",
        f"--model S --dataset d --train_type lora {_FLASH} --per_device_train_batch_size 4 --target_modules all-linear "
        f"--gradient_accumulation_steps 8 {_KEEP} --save_steps 50 --max_length 65536 --warmup_ratio 0.05 "
        "--sequence_parallel_size 8 --logging_steps 1 --use_logits_to_keep false --padding_free true",
        "sequence_parallel_size",
    ),
    "eaft": (
        "sft",
        "--model S --train_type full --dataset d --torch_dtype bfloat16 --num_train_epochs 1 "
        "--per_device_train_batch_size 2 --learning_rate 1e-5 --gradient_accumulation_steps 16 --save_steps 100 "
        "--save_total_limit 2 --logging_steps 5 --max_length 16384 --output_dir output --system Hi --warmup_ratio 0.05 "
        "--dataloader_num_workers 4 --enable_eaft_loss true --eaft_alpha 1.0 --deepspeed zero3 "
        "--report_to tensorboard --logging_dir logs",
        "enable_eaft_loss eaft_alpha deepspeed",
    ),
    "activation_cpu_offload": (
        "sft",
        f"--model S --train_type lora --dataset d#1000 {_FLASH} --per_device_train_batch_size 10 "
        "--gradient_accumulation_steps 2 --gradient_checkpointing false --max_length 1200 --num_train_epochs 2 "
        f"--eval_strategy no --save_steps 500 --logging_steps 1 {_WORKERS} {_KEEP} --output_dir output --packing true "
        "--activation_cpu_offload true",
        "activation_cpu_offload",
    ),
    "cce/sft": ("sft", f"--model S --dataset d#1024 --train_type lora {_batch(64)} --use_hf true --use_cce true", ""),
    "plugins/channel_loss": (
        "sft",
        f"--model S --dataset d --train_type full --torch_dtype bfloat16 --num_train_epochs 1 {_batch(1)} "
        f"--learning_rate 1e-5 --gradient_accumulation_steps 8 {_every(100)} --save_total_limit 2 --logging_steps 1 "
        f"{_LONG} --loss_type channel_loss --channel_list chat math code",
        "loss_type channel_list",
    ),
    "agent/qwen2_5": (
        "sft",
        f"--model S --train_type full --dataset d --split_dataset_ratio 0.01 --agent_template hermes {_FLASH} "
        f"--num_train_epochs 2 {_batch(1)} --learning_rate 1e-5 --gradient_accumulation_steps 8 {_every(100)} {_KEEP} "
        f"--logging_steps 5 --max_length 8192 --packing true --use_liger_kernel true --output_dir output "
        f"--warmup_ratio 0.05 {_WORKERS}",
        "agent_template",
    ),
    "agent/loss_scale": (
        "sft",
        f"--model S {_SFT_LORA} --dataset d#10000 --split_dataset_ratio 0.01 --loss_scale hermes "
        f"--agent_template hermes --num_train_epochs 2 {_batch(1)} --target_modules all-linear "
        f"--modules_to_save embed_tokens lm_head --gradient_accumulation_steps 16 {_every(100)} --save_total_limit 2 "
        f"--logging_steps 5 --max_length 2048 --use_liger_kernel true --output_dir output "
        f"--warmup_ratio 0.05 {_WORKERS}",
        "loss_scale agent_template modules_to_save",
    ),
    "predict_with_generate": (
        "sft",
        f"--model S --dataset d:human#20000 --load_from_cache_file true --split_dataset_ratio 0.01 {_SFT_LORA} "
        "--num_train_epochs 1 --per_device_train_batch_size 1 --per_device_eval_batch_size 2 "
        f"--target_modules all-linear --freeze_vit true --gradient_accumulation_steps 16 {_every(100)} "
        "--save_total_limit 2 --logging_steps 5 --max_length 2048 --output_dir output --warmup_ratio 0.05 "
        "--dataloader_num_workers 4 --predict_with_generate true --metric_for_best_model rouge-l "
        "--greater_is_better true",
        "predict_with_generate",
    ),
    "grpo/internal/transformers": (
        "rlhf",
        "--rlhf_type grpo --model S --reward_funcs accuracy format --train_type lora --lora_rank 8 --lora_alpha 32 "
        "--target_modules all-linear --torch_dtype bfloat16 --dataset d#1000 --load_from_cache_file true "
        f"--max_completion_length 1024 --num_train_epochs 1 {_batch(4)} --learning_rate 1e-5 "
        f"--gradient_accumulation_steps 1 {_every(100)} --save_total_limit 2 --logging_steps 5 --max_length 2048 "
        f"--output_dir output --warmup_ratio 0.05 {_WORKERS} --num_generations 4 --temperature 0.9 --system Hi "
        "--log_completions true",
        "",
    ),
    "grpo/internal/rloo": (
        "rlhf",
        "--rlhf_type grpo --model S --external_plugins plugin.py --reward_funcs external_r1v_acc format "
        f"{_IN_TRAINER} 1 --vllm_gpu_memory_utilization 0.4 --vllm_tensor_parallel_size 1 --vllm_max_model_len 16384 "
        "--vllm_enable_lora true --train_type lora --torch_dtype bfloat16 --dataset d --overlong_filter false "
        "--epsilon 3e-4 --epsilon_high 4e-4 --max_completion_length 1024 --num_train_epochs 1 "
        f"--per_device_train_batch_size 2 --learning_rate 1e-6 --gradient_accumulation_steps 4 {_every(1000)} "
        "--save_total_limit 10 --offload_model true --offload_optimizer true --logging_steps 1 "
        "--dataloader_num_workers 4 --num_generations 16 --temperature 1.0 --system Hi --deepspeed zero2 "
        "--log_completions true --report_to tensorboard swanlab --num_iterations 1 --async_generate false --beta 0.001 "
        "--attn_impl flash_attention_2 --padding_free true --loss_type grpo",
        f"{_INSIDE_SIZED} vllm_enable_lora offload_model offload_optimizer deepspeed",
    ),
    "export/merge_lora": ("export", "--adapters a --merge_lora true --output_dir merged", ""),
    "export/push_to_hub": (
        "export",
        "--adapters a --push_to_hub true --hub_model_id me/m --hub_token X --use_hf false --output_dir merged",
        "hub_token",
    ),
}

_SGLANG = "--model S --infer_backend sglang --max_new_tokens 2048"
_OPEN = "--host 0.0.0.0 --port 8000"

SERVE: dict[str, tuple[str, str, str]] = {
    "deploy/server/demo": ("deploy", "--model S --infer_backend vllm", ""),
    "infer/vllm/serve": ("deploy", "--model_id_or_path S --infer_backend vllm", ""),
    "deploy/server/sglang": (
        "deploy",
        f"{_SGLANG} --sglang_context_length 8192 --sglang_tp_size 2 --served_model_name S",
        "infer_backend sglang_context_length sglang_tp_size",
    ),
    "deploy/vllm_dp": (
        "deploy",
        "--model S --infer_backend vllm --served_model_name S --vllm_max_model_len 8192 "
        "--vllm_gpu_memory_utilization 0.9 --vllm_data_parallel_size 2",
        "vllm_data_parallel_size",
    ),
    "deploy/agent/server": (
        "deploy",
        "--model S --infer_backend vllm --gpu_memory_utilization 0.9 --max_model_len 8192 --max_new_tokens 2048 "
        "--agent_template hermes --served_model_name S",
        "agent_template",
    ),
    "deploy/reward_model/server": ("deploy", f"{_OPEN} --model S --infer_backend pt", ""),
    "deploy/embedding/server": (
        "deploy",
        f"{_OPEN} --task_type embedding --model S --infer_backend sglang",
        "task_type infer_backend",
    ),
    "deploy/bert/server": (
        "deploy",
        f"{_OPEN} --model S --adapters a --served_model_name S --infer_backend pt --truncation_strategy right "
        "--max_length 512",
        "truncation_strategy",
    ),
    "deploy/lora/server": ("deploy", f"{_OPEN} --adapters swift-lora=a --infer_backend vllm", ""),
    "deploy/reranker/server": (
        "deploy",
        f"{_OPEN} --model S --infer_backend vllm --task_type reranker --vllm_enforce_eager true",
        "task_type vllm_enforce_eager",
    ),
    "infer/pt/serve": ("deploy", "--model_id_or_path S --infer_backend pt", ""),
    "infer/lmdeploy/serve": ("deploy", "--model_id_or_path S --infer_backend lmdeploy", "infer_backend"),
    "deploy/lmdeploy/serve": (
        "deploy",
        "--model S --hub_token X --infer_backend lmdeploy",
        "hub_token infer_backend",
    ),
    "deploy/seq_cls/server": (
        "deploy",
        f"{_OPEN} --model S --infer_backend vllm --task_type seq_cls --num_labels 2",
        "task_type num_labels",
    ),
}

_ASKED = "--val_dataset d#1000 --max_new_tokens"
_VLLM = "--model S --infer_backend vllm"
_SIZED = f"{_VLLM} --vllm_gpu_memory_utilization 0.9 --vllm_max_model_len 8192"
_LIMITS = "infer_backend vllm_gpu_memory_utilization vllm_max_model_len"

INFER: dict[str, tuple[str, str, str]] = {
    "infer/cli_demo": ("infer", "--model S --infer_backend pt", ""),
    "infer/infer": ("infer", "--model_id_or_path S --infer_backend pt --eval_human true", ""),
    "infer/transformers/lora": (
        "infer",
        "--adapters a --infer_backend transformers --stream true --temperature 0 --max_new_tokens 2048",
        "",
    ),
    "infer/transformers/batch_ddp and mllm_device_map": (
        "infer",
        f"--model S --infer_backend transformers --max_batch_size 16 {_ASKED} 512",
        "",
    ),
    "infer/transformers/bert": ("infer", "--adapters a --truncation_strategy right --max_length 512", ""),
    "infer/transformers/prm": ("infer", "--model S --infer_backend transformers", ""),
    "infer/pt/reward_model": ("infer", "--model S", ""),
    "infer/pt/all_to_all": (
        "infer",
        "--model S --infer_backend pt --stream False --use_chat_template False --top_k 2048 --max_new_tokens 40960",
        "use_chat_template",
    ),
    "infer/vllm/ddp": (
        "infer",
        f"{_VLLM} --gpu_memory_utilization 0.9 --max_model_len 8192 {_ASKED} 2048",
        "infer_backend gpu_memory_utilization max_model_len",
    ),
    "infer/vllm/dp_tp": (
        "infer",
        f"{_VLLM} --gpu_memory_utilization 0.9 --max_model_len 8192 --tensor_parallel_size 2 --write_batch_size 1000 "
        f"{_ASKED} 2048",
        "infer_backend gpu_memory_utilization max_model_len tensor_parallel_size",
    ),
    "infer/vllm/mtp": (
        "infer",
        f'{_SIZED} {_ASKED} 2048 --vllm_tensor_parallel_size 4 --vllm_speculative_config {{"method":"qwen3_next_mtp"}}',
        f"{_LIMITS} vllm_tensor_parallel_size vllm_speculative_config",
    ),
    "infer/vllm/mllm_tp": (
        "infer",
        f"{_VLLM} --gpu_memory_utilization 0.9 --tensor_parallel_size 2 --max_model_len 32768 {_ASKED} 2048 "
        '--limit_mm_per_prompt {"image":5}',
        "infer_backend gpu_memory_utilization tensor_parallel_size max_model_len limit_mm_per_prompt",
    ),
    "infer/vllm/mllm_ddp": (
        "infer",
        f'{_SIZED} {_ASKED} 2048 --vllm_engine_kwargs {{}} --vllm_limit_mm_per_prompt {{"audio":5}}',
        f"{_LIMITS} vllm_engine_kwargs vllm_limit_mm_per_prompt",
    ),
    "infer/sglang/demo": ("infer", f"{_SGLANG} --stream true", "infer_backend"),
    "infer/sglang/demo_tp": (
        "infer",
        f"{_SGLANG} --stream true --sglang_context_length 8192 --sglang_tp_size 2",
        "infer_backend sglang_context_length sglang_tp_size",
    ),
    "infer/sglang/tp": (
        "infer",
        f"{_SGLANG} --val_dataset d#2000 --sglang_context_length 8192 --sglang_tp_size 2 --write_batch_size 1000",
        "infer_backend sglang_context_length sglang_tp_size",
    ),
    "infer/sglang/mtp": (
        "infer",
        f"{_SGLANG} --val_dataset d#100 --sglang_context_length 8192 --sglang_tp_size 4 "
        "--sglang_mem_fraction_static 0.7 --sglang_speculative_algorithm EAGLE --sglang_speculative_eagle_topk 1 "
        "--sglang_speculative_num_steps 3 --sglang_speculative_num_draft_tokens 4",
        "infer_backend sglang_context_length sglang_tp_size sglang_mem_fraction_static sglang_speculative_algorithm "
        "sglang_speculative_eagle_topk sglang_speculative_num_steps sglang_speculative_num_draft_tokens",
    ),
    "infer/sglang/distill_qwen3_235b": (
        "infer",
        "--model S --infer_backend sglang --sglang_context_length 12000 --sglang_tp_size 8 --write_batch_size 1000 "
        "--val_dataset d",
        "infer_backend sglang_context_length sglang_tp_size",
    ),
    "infer/lmdeploy/batch_ddp": ("infer", f"--model S --infer_backend lmdeploy {_ASKED} 512", "infer_backend"),
    "infer/lmdeploy/ddp": ("infer", f"--model S --infer_backend lmdeploy {_ASKED} 2048", "infer_backend"),
    "infer/lmdeploy/mllm_tp": (
        "infer",
        "--model S --infer_backend lmdeploy --val_dataset d#1000 --tp 2 --vision_batch_size 8 --hub_token X",
        "infer_backend tp vision_batch_size hub_token",
    ),
}

ROLLOUT: dict[str, str] = {
    "gkd/vllm_server": "--model S --vllm_max_model_len 2560",
    "grpo/external/vllm_multi_turn": "--model S --vllm_use_async_engine true --multi_turn_scheduler tips "
    "--vllm_max_model_len 32768 --vllm_gpu_memory_utilization 0.8 --max_turns 3",
    "grpo/external/vllm_tree_rollout": "--model S",
    "grpo/external/vllm_gym": "--model S --model_type qwen2_5 --max_turns 3 --multi_turn_scheduler gym_scheduler "
    "--use_gym_env true --gym_env math_env",
    "grpo/external/grpo_7b": "--model S --data_parallel_size 2",
    "grpo/external/grpo_32b_full": "--model S --tensor_parallel_size 2",
    "grpo/external/mllm_lora": "--model S --vllm_data_parallel_size 2 --vllm_tensor_parallel_size 2 "
    "--vllm_enable_lora true --vllm_max_lora_rank 16",
    "grpo/external/moe_full": "--model S --vllm_max_model_len 16384 --vllm_enable_prefix_caching true",
    "grpo/plugin/openenv/run_grpo_sudoku_server": "--model S --external_plugins plugin.py --enable_thinking false "
    "--max_length 8192 --vllm_max_model_len 12288 --vllm_gpu_memory_utilization 0.9 --use_gym_env true "
    "--multi_turn_scheduler sudoku_scheduler --max_turns 20",
    "grpo/multi_node/server_multi_node": "--model S --vllm_tensor_parallel_size 2 --vllm_data_parallel_size 2 --port 1",
    "grpo/plugin/treepo/tree_rollout": "--model S --vllm_use_async_engine true --external_plugins plugin.py "
    "--multi_turn_scheduler tree_rollout_scheduler --max_turns 6 --vllm_data_parallel_size 2",
}

SCRIPTS: dict[str, tuple[str, str, str]] = GKD | MEGATRON | SFT | TUNERS | SERVE | INFER
