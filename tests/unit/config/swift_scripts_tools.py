"""As `swift_scripts`: ms-swift's commands for sampling, evaluating, exporting and rejection sampling."""

from __future__ import annotations

_DRAWN = "--model S --dataset d#16 --max_length 2048 --system Hi --max_new_tokens 768 --top_p 1.0 --temperature 1.0"
_JUDGED = "--orm_model math --prm_model P --prm_threshold 0.8"
_CALIBRATED = "--dataset a#500 b#500 --quant_n_samples 256 --quant_batch_size 1 --max_length 2048 --quant_bits 4"
_CALIBRATED_OFF = "dataset quant_n_samples quant_batch_size max_length quant_bits quant_method"

# `swift sample` is `limbeck generate`
SAMPLE: dict[str, tuple[str, str, str]] = {
    "sampler/sample and sampler/ray": (
        "generate",
        f"{_DRAWN} --num_return_sequences 4 --load_args false --sampler_engine vllm {_JUDGED} "
        "--override_exist_file true --num_sampling_batch_size 4 --output_file sampling.jsonl",
        "sampler_engine orm_model prm_model prm_threshold override_exist_file",
    ),
    "sampler/distill": (
        "generate",
        "--sampler_type distill --sampler_engine client --model T --stream true --dataset d#5 --temperature 0.6 "
        '--num_return_sequences 1 --top_p 0.95 --engine_kwargs {"base_url":"http://host/v1"} --output_file o.jsonl',
        "sampler_type sampler_engine engine_kwargs",
    ),
    "sampler/mcts": (
        "generate",
        "--model S --orm_model math --sampler_type mcts --sampler_engine vllm --output_dir out --system Hi "
        "--stop_words x --dataset d.jsonl --num_return_sequences 2 --process_reward_rate 0 --max_new_tokens 2048 "
        "--output_file o.jsonl",
        "orm_model sampler_type sampler_engine output_dir stop_words process_reward_rate",
    ),
    "rft, the samples": (
        "generate",
        f"{_DRAWN} --model_type llama3_1 --data_range 0 8 --load_args false --sampler_engine lmdeploy "
        "--override_exist_file true --num_sampling_per_gpu_batch_size 1 --num_return_sequences 64 "
        "--cache_files c.jsonl --output_file o.jsonl",
        "data_range sampler_engine override_exist_file cache_files",
    ),
    "rft, the training": (
        "sft",
        "--model S --model_type llama3_1 --dataset o.jsonl --max_length 2048 --num_train_epochs 1 --load_args false "
        "--train_type full --eval_strategy no --split_dataset_ratio 0 --per_device_train_batch_size 2 "
        "--gradient_accumulation_steps 8 --save_steps 1 --save_strategy epoch --deepspeed zero3 --learning_rate 4e-6",
        "deepspeed",
    ),
    "rft, the measure": (
        "eval",
        "--model S --model_type llama3_1 --eval_dataset math --infer_backend lmdeploy --eval_limit 500 --system Hi "
        "--val_dataset d",
        "eval_dataset infer_backend eval_limit",
    ),
}

# each with rows, which `limbeck eval` asks for
EVAL: dict[str, tuple[str, str, str]] = {
    "eval/llm/eval and eval/vlm": (
        "eval",
        "--model S --infer_backend vllm --eval_limit 100 --eval_dataset gsm8k --val_dataset d",
        "infer_backend eval_limit eval_dataset",
    ),
    "eval/llm/vllm and sglang": (
        "eval",
        "--model S --eval_backend OpenCompass --infer_backend sglang --eval_limit 100 --eval_dataset gsm8k "
        "--val_dataset d",
        "eval_backend infer_backend eval_limit eval_dataset",
    ),
    "eval/custom": (
        "eval",
        "--custom_eval_config c.json --model_id_or_path S --val_dataset d",
        "custom_eval_config",
    ),
    "eval/eval_url": (
        "eval",
        "--model S --eval_url http://host/v1 --eval_limit 10 --eval_dataset gsm8k --val_dataset d",
        "eval_url eval_limit eval_dataset",
    ),
    "eval/train_eval": (
        "sft",
        "--model S --tuner_type lora --dataset d#100 --torch_dtype bfloat16 --num_train_epochs 1 --save_steps 50 "
        "--per_device_train_batch_size 1 --learning_rate 1e-4 --target_modules all-linear --eval_strategy steps "
        "--eval_steps 5 --per_device_eval_batch_size 5 --eval_use_evalscope --eval_dataset gsm8k "
        '--eval_dataset_args {"gsm8k":{"few_shot_num":0}} --eval_limit 10',
        "eval_use_evalscope eval_dataset eval_dataset_args eval_limit",
    ),
}

EXPORT: dict[str, tuple[str, str, str]] = {
    "export/quantize/gptq, gptq_v2 and moe": (
        "export",
        f"--model S {_CALIBRATED} --quant_method gptq --output_dir q",
        _CALIBRATED_OFF,
    ),
    "export/quantize/awq": (
        "export",
        f"--model S {_CALIBRATED} --quant_method awq --device_map cpu --output_dir q",
        f"{_CALIBRATED_OFF} device_map",
    ),
    "export/quantize/bnb": (
        "export",
        "--model S --ckpt_dir c --merge_lora true --quant_method bnb --output_dir q",
        "ckpt_dir quant_method",
    ),
    "export/quantize/fp8": ("export", "--model S --quant_method fp8 --output_dir q", "quant_method"),
    "export/ollama": (
        "export",
        "--model S --ckpt_dir c --merge_lora true --to_ollama true --output_dir o",
        "ckpt_dir to_ollama",
    ),
    "export/cached_dataset": (
        "export",
        "--model S --dataset d --dataset_num_proc 64 --split_dataset_ratio 0.01 --to_cached_dataset true "
        "--output_dir c",
        "dataset split_dataset_ratio to_cached_dataset",
    ),
    "export/model_summary": (
        "export",
        "--model S --to_model_summary true --load_model true --return_dummy_model true --device_map meta "
        "--torch_dtype bfloat16 --output_dir o --exist_ok true",
        "to_model_summary load_model return_dummy_model device_map exist_ok",
    ),
}

SCRIPTS: dict[str, tuple[str, str, str]] = SAMPLE | EVAL | EXPORT
