"""As `swift_scripts`: GRPO by ms-swift (colocated, served, on several machines, with plugins, by Megatron) and its
commands for training on several machines."""

from __future__ import annotations

from tests.unit.config.swift_scripts import _FLASH, _WORKERS, _batch, _every

_GRPO = "--rlhf_type grpo --model S --torch_dtype bfloat16"
_RUN = "--num_train_epochs 1 --learning_rate 1e-6 --save_total_limit 2 --warmup_ratio 0.05 --dataloader_num_workers 4"
_RUN = f"{_GRPO} {_RUN} --log_completions true"
_MATH = f"{_RUN} --dataset d#1000 --reward_funcs accuracy"
_FORMAT = f"{_RUN} --dataset d#10000 --reward_funcs accuracy format --output_dir output --logging_steps 5"
_PLUGIN = f"{_RUN} --external_plugins plugin.py --dataset d"
_FILTERED = "--temperature 1.0 --top_p 0.9 --top_k 50"
_SERVED = "--use_vllm true --vllm_mode server --vllm_server_host 127.0.0.1 --vllm_server_port 8000"
_SERVED_OFF = "use_vllm vllm_mode vllm_server_host vllm_server_port"
_INSIDE = "--use_vllm true --vllm_mode colocate --sleep_level 1 --vllm_gpu_memory_utilization 0.5"
_INSIDE_OFF = "use_vllm vllm_mode sleep_level vllm_gpu_memory_utilization"
_SIZED = f"{_INSIDE} --vllm_max_model_len 8192 --vllm_tensor_parallel_size 1"
_SIZED_OFF = f"{_INSIDE_OFF} vllm_max_model_len vllm_tensor_parallel_size"
_OFFLOAD = "--offload_model true --offload_optimizer true"
_OFFLOAD_OFF = "offload_model offload_optimizer"
_OLD = "--use_vllm true --vllm_gpu_memory_utilization 0.5 --sleep_level 1 --tensor_parallel_size 4"
_OLD_OFF = "use_vllm vllm_gpu_memory_utilization sleep_level tensor_parallel_size"
_TURNED = "--multi_turn_scheduler gym_scheduler --use_gym_env true --max_turns 20"
_TURNED_OFF = "multi_turn_scheduler use_gym_env max_turns"
_STEPS = f"--save_strategy steps --eval_strategy steps {_every(1000)}"
_GSM8K = (
    f"{_RUN} --external_plugins plugin.py --reward_funcs gsm8k_accuracy gsm8k_format --columns "
    '{"answer":"solution"} --enable_thinking false --dataset d --load_from_cache_file true --max_length 2048 '
    f"--max_completion_length 8192 {_batch(4)} --gradient_accumulation_steps 4 --lr_scheduler_type cosine "
    "--save_steps 10 --logging_steps 1 --num_generations 8 --temperature 1.0 --system Hi --deepspeed zero2 "
    "--report_to tensorboard swanlab --max_grad_norm 1.0 --epsilon 0.2 --epsilon_high 0.28 --scale_rewards none "
    f"{_SIZED}"
)

EXTERNAL: dict[str, tuple[str, str, str]] = {
    "grpo/external/agent": (
        "rlhf",
        f"{_RUN} --tuner_type full --dataset d:grpo --load_from_cache_file true {_SERVED} --max_length 2048 "
        f"{_batch(7)} {_every(2000)} --logging_steps 5 --output_dir output --max_completion_length 1024 "
        "--reward_funcs toolbench react_format --num_generations 49 --deepspeed zero3 --stop_words Observation: "
        "--agent_template react_grpo "
        "--temperature 1.0 --top_p 0.85 --top_k 50 --report_to wandb",
        f"{_SERVED_OFF} deepspeed stop_words agent_template",
    ),
    "grpo/external/grpo_32b_full, grpo_7b and multi_node/Qwen2_5_32B_full": (
        "rlhf",
        f"{_MATH} {_SERVED} --train_type full --max_completion_length 2048 {_batch(1)} --gradient_accumulation_steps 1 "
        f"--logging_steps 1 --dataset_num_proc 4 --num_generations 8 {_FILTERED} --deepspeed zero3 --num_iterations 1 "
        "--report_to tensorboard wandb --beta 0.0",
        f"{_SERVED_OFF} deepspeed",
    ),
    "grpo/external/mllm_lora": (
        "rlhf",
        f"{_PLUGIN} --reward_funcs external_r1v_acc format {_SERVED} --train_type lora --lora_rank 16 --lora_alpha 32 "
        f"--max_completion_length 1024 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 {_STEPS} "
        "--logging_steps 1 --num_generations 16 --temperature 1.0 --system Hi --deepspeed zero3 --num_iterations 1 "
        "--report_to tensorboard swanlab --beta 0.001",
        f"{_SERVED_OFF} deepspeed",
    ),
    "grpo/external/moe_full and moe_lora": (
        "rlhf",
        f"{_MATH} {_SERVED} --tuner_type full --max_length 12000 --max_completion_length 8192 --overlong_filter true "
        f"--per_device_train_batch_size 1 --gradient_accumulation_steps 4 {_STEPS} --num_generations 14 "
        "--temperature 1.0 --deepspeed zero3_offload --num_iterations 1 --beta 0.001 --move_model_batches 5",
        f"{_SERVED_OFF} deepspeed move_model_batches",
    ),
    "grpo/external/vllm_gym": (
        "rlhf",
        f"{_RUN} --train_type full {_SERVED} --dataset d#1000 --split_dataset_ratio 0 --max_completion_length 2048 "
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 --steps_per_generation 2 --logging_steps 1 "
        f"--dataset_num_proc 4 --num_generations 6 {_FILTERED} --num_iterations 1 --beta 0 --loss_scale default",
        _SERVED_OFF,
    ),
    "grpo/external/vllm_multi_turn": (
        "rlhf",
        f"{_MATH} --train_type full --loss_scale last_round {_SERVED} --max_completion_length 8192 "
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 --steps_per_generation 8 "
        '--gradient_checkpointing_kwargs {"use_reentrant":false} --num_generations 8 --temperature 1.0 '
        "--deepspeed zero2 --log_entropy true --importance_sampling_level sequence --top_entropy_quantile 0.2 "
        "--num_iterations 1 --report_to tensorboard swanlab --max_turns 3",
        f"{_SERVED_OFF} deepspeed max_turns",
    ),
    "grpo/external/vllm_tree_rollout": (
        "rlhf",
        f"{_RUN} --reward_funcs format --dataset d#1000 {_SERVED} --train_type full --max_completion_length 1024 "
        f"--per_device_train_batch_size 1 --gradient_accumulation_steps 4 --num_generations 4 {_FILTERED} "
        "--deepspeed zero2 --gradient_checkpointing false --num_iterations 1 --beta 0.04 --tree_rollout true "
        "--multi_turn_scheduler tree_rollout_scheduler --max_tree_deep 4",
        f"{_SERVED_OFF} deepspeed tree_rollout multi_turn_scheduler max_tree_deep",
    ),
    "grpo/multi_node/server_multi_node": (
        "rlhf",
        f"{_MATH} --use_vllm true --vllm_mode server --vllm_server_host a b --vllm_server_port 1 2 "
        "--load_from_cache_file true --max_completion_length 2048 --per_device_train_batch_size 1 "
        "--gradient_accumulation_steps 1 --logging_steps 1 --dataset_num_proc 4 --num_generations 4 --deepspeed zero2",
        f"{_SERVED_OFF} deepspeed",
    ),
    "grpo/plugin/run_external_scheduler": (
        "rlhf",
        f"{_MATH} --train_type full {_SERVED} --load_from_cache_file true --max_completion_length 2048 "
        f"--per_device_train_batch_size 1 --gradient_accumulation_steps 4 {_every(100)} --logging_steps 5 "
        "--output_dir output --dataset_num_proc 4 --num_generations 4 --temperature 0.9 --system Hi --deepspeed zero3 "
        "--stop_words Observation: --report_to swanlab tensorboard",
        f"{_SERVED_OFF} deepspeed stop_words",
    ),
    "grpo/plugin/treepo/tree_rollout": (
        "rlhf",
        f"{_MATH} {_SERVED} --train_type full --external_plugins plugin.py --split_dataset_ratio 0 "
        "--max_completion_length 1024 --per_device_train_batch_size 2 --gradient_accumulation_steps 4 "
        f"--logging_steps 1 --dataset_num_proc 4 --num_generations 4 {_FILTERED} --num_iterations 1 --beta 0.04",
        _SERVED_OFF,
    ),
    "grpo/plugin/deepeyes": (
        "rlhf",
        f"{_RUN} --dataset a.parquet b.parquet c.parquet {_SERVED} {_OFFLOAD} --sleep_level 1 "
        "--external_plugins plugin.py --reward_funcs deepeyes_reward --train_type full --max_completion_length 2048 "
        "--per_device_train_batch_size 1 --deepspeed zero3 --gradient_accumulation_steps 4 --logging_steps 5 "
        "--num_generations 12 --beta 0 --temperature 0.9 --report_to tensorboard swanlab",
        f"{_SERVED_OFF} {_OFFLOAD_OFF} sleep_level deepspeed",
    ),
    "grpo/plugin/deepeyes, the judge": ("deploy", "--model T --vllm_tensor_parallel_size 4", ""),
    "grpo/plugin/openenv/run_grpo_sudoku_server": (
        "rlhf",
        f"{_PLUGIN} --enable_thinking false --max_completion_length 256 --max_length 8192 "
        "--per_device_train_batch_size 1 --num_generations 6 --gradient_accumulation_steps 4 --temperature 1 "
        f"{_SERVED} --gradient_checkpointing true {_TURNED} --save_strategy steps --save_steps 50 --logging_steps 1 "
        "--report_to tensorboard swanlab",
        f"{_SERVED_OFF} {_TURNED_OFF} enable_thinking",
    ),
}

INTERNAL: dict[str, tuple[str, str, str]] = {
    "grpo/internal/chord": (
        "rlhf",
        f"{_RUN} --dataset d#1000 --beta 0.0 --steps_per_generation 4 --per_device_train_batch_size 4 "
        "--gradient_accumulation_steps 8 --chord_sft_per_device_train_batch_size 1 --chord_sft_dataset d#2000 "
        "--chord_enable_phi_function false --chord_mu_warmup_steps 0 --chord_mu_decay_steps 200 --chord_mu_peak 0.9 "
        "--chord_mu_valley 0.05 --num_generations 8 --train_type full --reward_funcs accuracy format --system Hi "
        f"{_SIZED} --max_completion_length 4096 --overlong_filter true {_OFFLOAD} --save_steps 1000 --deepspeed zero3",
        f"{_SIZED_OFF} {_OFFLOAD_OFF} deepspeed chord_sft_per_device_train_batch_size chord_sft_dataset "
        "chord_enable_phi_function chord_mu_warmup_steps chord_mu_decay_steps chord_mu_peak chord_mu_valley",
    ),
    "grpo/internal/fipo": (
        "rlhf",
        f"{_MATH} {_SERVED} --tuner_type full --load_from_cache_file true --max_completion_length 4096 "
        "--per_device_train_batch_size 8 --gradient_accumulation_steps 2 --save_steps 500 --logging_steps 1 "
        "--num_generations 8 --temperature 1.0 --system Hi --num_iterations 3 --padding_free true "
        "--sequence_parallel_size 2 --attn_impl flash_attn --beta 0 --dynamic_sample true --loss_type fipo "
        "--epsilon_high 0.28 --fipo_decay_rate 32 --fipo_clip_range 0.2 --fipo_clip_high_only true "
        "--fipo_detach_weight true --fipo_safety_threshold 10.0",
        f"{_SERVED_OFF} sequence_parallel_size loss_type fipo_decay_rate fipo_clip_range fipo_clip_high_only "
        "fipo_detach_weight fipo_safety_threshold",
    ),
    "grpo/internal/full_lmdeploy": (
        "rlhf",
        f"{_FORMAT} --use_lmdeploy true --train_type full --max_completion_length 1536 {_batch(10)} {_every(1000)} "
        f"--max_length 2048 --dataset_num_proc 4 --num_generations 60 {_FILTERED} --async_generate true --system Hi "
        "--deepspeed zero3 --num_iterations 2 --num_infer_workers 2",
        "use_lmdeploy async_generate deepspeed num_infer_workers",
    ),
    "grpo/internal/gdpo": (
        "rlhf",
        f"{_MATH} --load_from_cache_file true --beta 0.0 --scale_rewards gdpo --per_device_train_batch_size 2 "
        f"--gradient_accumulation_steps 8 --num_generations 16 --train_type full {_SIZED} {_OFFLOAD} "
        "--max_completion_length 8192 --save_steps 1000 --deepspeed zero3",
        f"{_SIZED_OFF} {_OFFLOAD_OFF} deepspeed scale_rewards",
    ),
    "grpo/internal/gspo": (
        "rlhf",
        f"{_MATH} --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --num_generations 16 "
        f"--train_type full {_SIZED} {_OFFLOAD} --max_completion_length 8192 --save_steps 1000 --deepspeed zero3",
        f"{_SIZED_OFF} {_OFFLOAD_OFF} deepspeed",
    ),
    "grpo/internal/moe_lora and moe_full": (
        "rlhf",
        f"{_MATH} {_SIZED} {_OFFLOAD} --train_type lora --max_length 12000 --max_completion_length 8192 "
        f"--overlong_filter true --per_device_train_batch_size 1 --gradient_accumulation_steps 4 {_STEPS} "
        "--num_generations 16 --temperature 1.0 --deepspeed zero3 --num_iterations 1 --beta 0.001 "
        "--move_model_batches 10",
        f"{_SIZED_OFF} {_OFFLOAD_OFF} deepspeed move_model_batches",
    ),
    "grpo/internal/multi_gpu_mp_colocate": (
        "rlhf",
        f"{_FORMAT} --train_type lora --system Hi --max_length 2048 {_batch(1)} --gradient_accumulation_steps 1 "
        f"--max_completion_length 1024 --num_generations 8 {_OLD} --temperature 1.0 --top_p 0.85",
        _OLD_OFF,
    ),
    "grpo/internal/qlora": (
        "rlhf",
        f"{_GSM8K} --vllm_enable_lora true --tuner_type lora --quant_method bnb --quant_bits 4 "
        "--bnb_4bit_quant_type nf4",
        f"{_SIZED_OFF} vllm_enable_lora enable_thinking deepspeed quant_method quant_bits bnb_4bit_quant_type",
    ),
    "grpo/plugin/gsm8k": ("rlhf", f"{_GSM8K} --train_type full", f"{_SIZED_OFF} enable_thinking deepspeed"),
    "grpo/internal/real": (
        "rlhf",
        f"{_MATH} --enable_thinking false {_SERVED} --tuner_type full --load_from_cache_file true "
        "--max_completion_length 2048 --per_device_train_batch_size 8 --gradient_accumulation_steps 1 --save_steps 500 "
        "--num_generations 8 --temperature 0.6 --system Hi --num_iterations 1 --beta 0 --loss_type real "
        "--deepspeed zero2",
        f"{_SERVED_OFF} enable_thinking loss_type deepspeed",
    ),
    "grpo/internal/reinforce_plus_plus": (
        "rlhf",
        f"{_PLUGIN} --advantage_estimator reinforce_plus_plus --scale_rewards batch --kl_in_reward true "
        f"--reward_funcs external_r1v_acc format {_SIZED} {_OFFLOAD} --train_type lora --overlong_filter false "
        "--importance_sampling_level sequence --epsilon 3e-4 --epsilon_high 4e-4 --max_completion_length 1024 "
        f"--per_device_train_batch_size 2 --gradient_accumulation_steps 4 {_every(1000)} --num_generations 16 "
        "--temperature 1.0 --system Hi --deepspeed zero1 --report_to tensorboard swanlab --num_iterations 1 "
        "--async_generate false --beta 0.001 --attn_impl flash_attention_2",
        f"{_SIZED_OFF} {_OFFLOAD_OFF} kl_in_reward deepspeed",
    ),
    "grpo/internal/sapo": (
        "rlhf",
        f"{_PLUGIN} --loss_type sapo --tau_pos 1 --tau_neg 1.05 --reward_funcs external_r1v_acc format {_SIZED} "
        f"{_OFFLOAD} --tuner_type full --overlong_filter false --importance_sampling_level token --max_length 4096 "
        "--max_completion_length 4096 --per_device_train_batch_size 4 --gradient_accumulation_steps 4 "
        "--num_generations 8 --steps_per_generation 32 --save_steps 1000 --temperature 1.0 --system Hi "
        "--deepspeed zero1 --report_to tensorboard swanlab --beta 0.001 --attn_impl flash_attention_2",
        f"{_SIZED_OFF} {_OFFLOAD_OFF} deepspeed",
    ),
    "grpo/internal/vllm_72b_4gpu and multi_node/colocate_multi_node1": (
        "rlhf",
        f"{_FORMAT} --train_type lora {_SIZED} {_OFFLOAD} --max_length 2048 {_batch(1)} "
        f"--gradient_accumulation_steps 1 {_every(1000)} --max_completion_length 1024 --num_generations 4 --system Hi "
        "--deepspeed zero3_offload --temperature 1.0 --top_p 1.0 --top_k 80 --async_generate false "
        "--move_model_batches 16",
        f"{_SIZED_OFF} {_OFFLOAD_OFF} deepspeed move_model_batches",
    ),
    "grpo/internal/vllm_lora_qwenvl72b": (
        "rlhf",
        f"{_PLUGIN} --train_type lora {_SIZED} {_OFFLOAD} --reward_funcs external_r1v_acc format "
        f"--reward_weights 1 0.1 --attn_impl flash_attn --max_length 8192 {_batch(1)} --gradient_accumulation_steps 1 "
        f"{_every(500)} --max_completion_length 2048 --num_generations 8 --deepspeed zero3 --temperature 1.1 "
        "--top_p 1.0 --top_k 80 --async_generate false --gc_collect_after_offload true --move_model_batches 40 "
        "--report_to wandb --system Hi",
        f"{_SIZED_OFF} {_OFFLOAD_OFF} deepspeed gc_collect_after_offload move_model_batches",
    ),
    "grpo/internal/vllm_multi_turn": (
        "rlhf",
        f"{_FORMAT} --train_type full {_SIZED} {_OFFLOAD} --max_length 2048 {_batch(4)} "
        f"--gradient_accumulation_steps 1 {_every(1000)} --max_completion_length 2048 --num_generations 32 "
        "--deepspeed zero3 --temperature 1.0 --top_p 1.0 --top_k 80 --async_generate false "
        "--multi_turn_scheduler math_tip_trick --max_turns 3",
        f"{_SIZED_OFF} {_OFFLOAD_OFF} deepspeed multi_turn_scheduler max_turns",
    ),
    "grpo/multi_node/train_dlc and multi_gpu_hybrid": (
        "rlhf",
        f"{_FORMAT} --train_type full --system Hi --max_length 2048 --vllm_max_model_len 2048 {_batch(4)} "
        "--gradient_accumulation_steps 1 --max_completion_length 2048 --num_generations 48 "
        f"{_OLD} --deepspeed zero3_offload --num_infer_workers 8 --temperature 1.0 --top_p 0.85",
        f"{_OLD_OFF} vllm_max_model_len deepspeed num_infer_workers",
    ),
    "grpo/plugin/run_external_reward_func": (
        "rlhf",
        f"{_PLUGIN} --reward_funcs external_math_acc external_math_format --train_type lora --lora_rank 8 "
        f"--lora_alpha 32 --target_modules all-linear --max_completion_length 1024 {_batch(4)} "
        f"--gradient_accumulation_steps 1 {_every(100)} --max_length 2048 --num_generations 4 --temperature 0.9",
        "",
    ),
    "grpo/plugin/run_external_reward_model": (
        "rlhf",
        f"{_PLUGIN} {_INSIDE} {_OFFLOAD} --reward_funcs format --reward_model R Q --reward_model_plugin genrm mine "
        "--reward_weights 0.1 1 1 --gc_collect_after_offload true --deepspeed zero2",
        f"{_INSIDE_OFF} {_OFFLOAD_OFF} reward_model reward_model_plugin gc_collect_after_offload deepspeed",
    ),
    "grpo/plugin/openenv/run_grpo_sudoku": (
        "rlhf",
        f"{_PLUGIN} --enable_thinking false --max_completion_length 256 --max_length 8192 "
        "--per_device_train_batch_size 1 --num_generations 4 --generation_batch_size 4 "
        f"--gradient_accumulation_steps 4 --temperature 1 {_SIZED} --gradient_checkpointing true {_TURNED} "
        "--save_strategy steps --save_steps 50 --logging_steps 1 --report_to tensorboard swanlab",
        f"{_SIZED_OFF} {_TURNED_OFF} enable_thinking generation_batch_size",
    ),
    "grpo/plugin/agentark": (
        "rlhf",
        f"{_GRPO} --dataset d --split_dataset_ratio 0 --tuner_type lora {_TURNED} --gym_env agentark "
        "--num_generations 4 --generation_batch_size 4 --per_device_train_batch_size 1 "
        "--gradient_accumulation_steps 1 --max_length 6144 --max_completion_length 512 "
        f"{_INSIDE} --max_steps 1 --save_steps 1 --logging_steps 1 --report_to none --output_dir output",
        f"{_INSIDE_OFF} {_TURNED_OFF} gym_env generation_batch_size",
    ),
    "grpo/qwen2_5_omni": (
        "rlhf",
        f"{_PLUGIN} --reward_funcs external_r1v_acc format --reward_weights 1 0.5 --tuner_type lora --lora_rank 8 "
        f"--max_completion_length 2048 {_batch(2)} --gradient_accumulation_steps 1 {_every(100)} --max_length 8192 "
        "--num_generations 8 --temperature 1. --top_p 0.99 --top_k 50 --system Hi --deepspeed zero2",
        "deepspeed",
    ),
    "grpo/qwen2_5_omni, the answers": (
        "infer",
        "--adapters a --load_data_args true --stream true --max_new_tokens 2048",
        "load_data_args",
    ),
    "grpo/geo3k_vlm": (
        "rlhf",
        f"{_RUN} --reward_funcs accuracy format --reward_weights 1.0 0.1 --enable_thinking false {_SIZED} "
        "--tuner_type lora --target_modules all-linear --dataset hf::d:train --val_dataset hf::d:test "
        f"--load_from_cache_file true --max_length 2048 --max_completion_length 1024 {_batch(2)} "
        "--gradient_accumulation_steps 4 --lr_scheduler_type cosine --eval_strategy steps --eval_steps 50 "
        "--save_steps 50 --num_generations 4 --temperature 1.0 --system Hi --max_grad_norm 1.0 --beta 0.001",
        f"{_SIZED_OFF} enable_thinking",
    ),
}

_MCORE = (
    "--rlhf_type grpo --model S --tensor_model_parallel_size 1 --pipeline_model_parallel_size 1 "
    "--context_parallel_size 1 --dataset d --global_batch_size 128 --micro_batch_size 4 --steps_per_generation 4 "
    "--num_generations 8 --reward_funcs accuracy --max_length 8192 --max_completion_length 2048 --lr 1e-6 --bf16 true "
    "--beta 0.001 --importance_sampling_level token --epsilon 0.2 --epsilon_high 0.2 --dynamic_sample false "
    "--overlong_filter true --loss_type grpo --recompute_granularity selective --finetune --dataset_num_proc 8 "
    "--no_save_optim --no_save_rng --attention_backend flash --temperature 1.0 --padding_free true "
    f"--log_completions true {_OFFLOAD}"
)
_OLD_MCORE = (
    f"{_MCORE} --load_safetensors true --save_safetensors true --max_epochs 1 --train_type full --log_interval 1 "
    "--num_workers 8 --wandb_project p --wandb_exp_name e --train_iters 100 --eval_interval 1000 --save_interval 1000"
)
_MCORE_SFT = (
    "--model S --dataset d --load_from_cache_file true --split_dataset_ratio 0.01 --micro_batch_size 1 "
    "--global_batch_size 16 --packing true --recompute_granularity full --recompute_method uniform "
    "--recompute_num_layers 1 --finetune true --cross_entropy_loss_fusion true --lr 1e-5 --lr_warmup_fraction 0.05 "
    "--min_lr 1e-6 --max_length 8192 --dataset_num_proc 8 --no_save_optim true --no_save_rng true "
    "--sequence_parallel true --attention_backend flash"
)
_MCORE_OFF = f"global_batch_size {_OFFLOAD_OFF}"
_SFT_OFF = "global_batch_size min_lr"

MEGATRON_GRPO: dict[str, tuple[str, str, str]] = {
    "megatron/grpo/dense_colocate and sapo": (
        "rlhf",
        f"{_OLD_MCORE} {_INSIDE} --vllm_max_model_len 10240 --external_plugins plugin.py",
        f"{_MCORE_OFF} {_INSIDE_OFF} vllm_max_model_len wandb_project",
    ),
    "megatron/grpo/dense_server and moe_server_lora": (
        "rlhf",
        f"{_OLD_MCORE} {_SERVED} --sleep_level 2 --external_plugins plugin.py --scale_rewards group",
        f"{_MCORE_OFF} {_SERVED_OFF} sleep_level wandb_project",
    ),
    "megatron/grpo/moe_colocate_lora and moe_colocate_full": (
        "rlhf",
        f"{_MCORE} {_SIZED} --tuner_type lora --merge_lora false --expert_model_parallel_size 4 --offload_bridge false "
        "--log_interval 1 --max_epochs 1 --num_workers 8 --sequence_parallel true --report_to wandb",
        f"{_MCORE_OFF} {_SIZED_OFF} merge_lora expert_model_parallel_size",
    ),
    "megatron/grpo/deepseek_v41_colocate_full and lora": (
        "rlhf",
        f"{_MCORE} {_SIZED} --tuner_type full --expert_model_parallel_size 8 --moe_permute_fusion true "
        "--moe_grouped_gemm true --offload_bridge false --optimizer_cpu_offload true --use_precision_aware_optimizer "
        "--num_train_epochs 1 --logging_steps 1 --dataloader_num_workers 8 --report_to wandb",
        f"{_MCORE_OFF} {_SIZED_OFF} expert_model_parallel_size optimizer_cpu_offload",
    ),
    "megatron/grpo/real": (
        "rlhf",
        f"{_MCORE.replace('--loss_type grpo', '--loss_type real')} {_SERVED} --gradient_accumulation_fusion false",
        f"{_MCORE_OFF} {_SERVED_OFF} loss_type",
    ),
    "megatron/grpo/multi_turn/frozen_lake": (
        "rlhf",
        f"{_MCORE} {_INSIDE} --vllm_max_model_len 6632 {_TURNED} --gym_env frozen_lake --enable_thinking false "
        "--tuner_type lora --top_p 1.0 --top_k 80 --train_iters 120",
        f"{_MCORE_OFF} {_INSIDE_OFF} {_TURNED_OFF} vllm_max_model_len gym_env enable_thinking",
    ),
    "megatron/sft, dense/qwen3_32b and multi-node": (
        "sft",
        f"{_MCORE_SFT} --load_safetensors true --save_safetensors true --tensor_model_parallel_size 4 --max_epochs 3 "
        "--save out --eval_interval 200 --save_interval 200 --num_workers 8",
        f"{_SFT_OFF} tensor_model_parallel_size",
    ),
    "megatron/long_text": (
        "sft",
        f"{_MCORE_SFT} --save_safetensors true --tensor_model_parallel_size 4 --train_iters 1000 --eval_iters 50 "
        f"--output_dir out {_every(200)}",
        f"{_SFT_OFF} tensor_model_parallel_size eval_iters",
    ),
    "megatron/moe/qwen3_moe": (
        "sft",
        f"{_MCORE_SFT.replace('--model S', '--load m')} --pipeline_model_parallel_size 2 --moe_permute_fusion true "
        "--moe_grouped_gemm true --moe_shared_expert_overlap true --moe_aux_loss_coeff 1e-3 --model S",
        f"{_SFT_OFF} load pipeline_model_parallel_size moe_aux_loss_coeff",
    ),
    "megatron/lora/dense and loss_scale": (
        "sft",
        f"{_MCORE_SFT} --merge_lora false --tuner_type lora --lora_rank 8 --target_modules all-linear --system Hi "
        "--loss_scale hermes --agent_template hermes --modules_to_save word_embeddings output_layer --model_author me",
        f"{_SFT_OFF} merge_lora loss_scale agent_template modules_to_save model_author",
    ),
    "megatron/export/lora": (
        "export",
        "--model S --adapter_load a --save out --merge_lora false --to_hf true --tensor_model_parallel_size 2 "
        "--expert_model_parallel_size 2 --pipeline_model_parallel_size 2 --test_convert_precision true",
        "tensor_model_parallel_size expert_model_parallel_size pipeline_model_parallel_size",
    ),
    "megatron/export/full": (
        "export",
        "--model S --save out --to_mcore true --tensor_model_parallel_size 2 --test_convert_precision true",
        "to_mcore tensor_model_parallel_size",
    ),
}

_NODES = f"--model S {_WORKERS} --num_train_epochs 1 --save_total_limit 2 --logging_steps 5 {_every(100)}"
_LORA_NODES = (
    f"{_NODES} --train_type lora --torch_dtype bfloat16 --dataset d#1000 --lora_rank 8 --lora_alpha 32 "
    '--learning_rate 1e-4 --gradient_accumulation_steps 16 --gradient_checkpointing_kwargs {"use_reentrant":false} '
    "--model_author me --model_name robot"
)

NODES: dict[str, tuple[str, str, str]] = {
    "multi-node/swift and dlc": (
        "sft",
        f"{_NODES} --tuner_type full --dataset a#20000 b#20000 --load_from_cache_file true --split_dataset_ratio 0.01 "
        f"{_FLASH} {_batch(1)} --learning_rate 1e-5 --gradient_accumulation_steps 4 --max_length 8192 "
        "--output_dir output --system Hi --warmup_ratio 0.05 --deepspeed zero2",
        "deepspeed",
    ),
    "multi-node/torchrun, accelerate and deepspeed": ("sft", _LORA_NODES, "model_author model_name"),
}

SCRIPTS: dict[str, tuple[str, str, str]] = EXTERNAL | INTERNAL | MEGATRON_GRPO | NODES
