"""ms-swift's published commands, as flags and values: each flag is ours, is renamed or set aside with a note, or is
refused with what to do instead."""

from __future__ import annotations

import pytest

from limbeck.config.commands import COMMANDS
from limbeck.config.flags import all_flags, flags_of, parse, read, reads
from limbeck.config.swift import VALUES, NotNeeded, Refused, Renamed, lookup
from limbeck.errors import ConfigError

_PACE = "--save_only_model true --dataloader_num_workers 4 --dataset_num_proc 4 --save_total_limit 2 --logging_steps 5"
_FULL = "--train_type full --torch_dtype bfloat16 --attn_impl flash_attn --warmup_ratio 0.05"
_GKD = f"--rlhf_type gkd --model S --dataset d --max_length 2048 --per_device_train_batch_size 4 {_PACE}"
_COLOCATE = "--use_vllm true --vllm_mode colocate --vllm_gpu_memory_utilization 0.3 --sleep_level 1"
_OPD = f"--rlhf_type grpo --model S --dataset d#5000 --advantage_estimator grpo --beta 0.0 --num_iterations 1 {_PACE}"

_ASKED = "--val_dataset d#1000 --max_new_tokens"
_VLLM = "--model S --infer_backend vllm --vllm_gpu_memory_utilization 0.9"
_LIMITS = "vllm_gpu_memory_utilization vllm_max_model_len"

# script -> command, its flags, the flags that are refused
SCRIPTS: dict[str, tuple[str, str, str]] = {
    "gkd/full": ("rlhf", f"{_GKD} {_FULL} --teacher_model T --seq_kd true --deepspeed zero3", "seq_kd deepspeed"),
    "gkd/fast": ("rlhf", f"{_GKD} {_FULL} --teacher_model T --lmbda 0 --deepspeed zero3", "deepspeed"),
    "gkd/think_model": (
        "rlhf",
        f"{_GKD} {_FULL} --teacher_model T --lmbda 0 --sft_alpha 0.1 --packing true --deepspeed zero3",
        "deepspeed",
    ),
    "gkd/gsm8k_teacher_server": (
        "rlhf",
        f"{_GKD} --teacher_model_server http://localhost:8000 --gkd_logits_topk 64 --tuner_type lora --lora_rank 64 "
        "--lora_alpha 128 --seq_kd false --lmbda 0 --beta 0.5 --eval_steps 200 --deepspeed zero2",
        "deepspeed",
    ),
    "gkd/vllm_colocate": (
        "rlhf",
        f"{_GKD} {_FULL} --teacher_model T --split_dataset_ratio 0.01 --teacher_deepspeed zero3_offload {_COLOCATE}",
        "teacher_deepspeed use_vllm vllm_mode vllm_gpu_memory_utilization sleep_level",
    ),
    "gkd/vllm_server": (
        "rlhf",
        f"{_GKD} {_FULL} --teacher_model T --use_vllm true --vllm_mode server --vllm_server_host 127.0.0.1 "
        "--vllm_server_port 8000",
        "use_vllm vllm_mode vllm_server_host vllm_server_port",
    ),
    "gkd/multi_turn": (
        "rlhf",
        f"{_GKD} --teacher_model T --loss_scale last_round --multi_turn_scheduler math_tip_trick --max_turns 2 "
        "--truncation_strategy delete --log_completions true --enable_thinking false",
        "multi_turn_scheduler max_turns enable_thinking",
    ),
    "mopd": (
        "rlhf",
        f"{_GKD} --teacher_model_group A,B --use_mopd true --lmbda 1 --beta 1",
        "teacher_model_group use_mopd",
    ),
    "opsd": (
        "rlhf",
        f"{_GKD} --teacher_model S --external_plugins plugin.py --temperature 1.2 --lmbda 1.0 --max_steps 1000 "
        f"--gradient_checkpointing true --deepspeed zero0 --report_to tensorboard swanlab {_COLOCATE}",
        "use_vllm vllm_mode vllm_gpu_memory_utilization sleep_level",
    ),
    "opd_rl": (
        "rlhf",
        f"{_OPD} --teacher_model T --offload_model true --offload_teacher_model true --num_generations 8",
        "offload_model",
    ),
    "opd_rl/teacher_server": (
        "rlhf",
        f"{_OPD} --teacher_model_server http://localhost:8000 --tuner_type full --max_completion_length 8192",
        "",
    ),
    "sft": (
        "sft",
        "--model S --train_type lora --dataset a#500 b#500 --torch_dtype bfloat16 --target_modules all-linear "
        "--system Hi --model_author swift --model_name robot --output_dir output",
        "model_author model_name",
    ),
    "deploy": ("deploy", "--model T --infer_backend vllm --port 8000 --vllm_tensor_parallel_size 2", ""),
    "infer/cli_demo": ("infer", "--model S --infer_backend pt", ""),
    "infer/lora": (
        "infer",
        "--adapters a --infer_backend transformers --stream true --temperature 0 --max_new_tokens 2048",
        "",
    ),
    "infer/batch_ddp": ("infer", f"--model S --infer_backend transformers --max_batch_size 16 {_ASKED} 512", ""),
    "infer/vllm_ddp": ("infer", f"{_VLLM} --vllm_max_model_len 8192 {_ASKED} 2048", f"infer_backend {_LIMITS}"),
    "infer/vllm_dp_tp": (
        "infer",
        f"{_VLLM} --vllm_max_model_len 8192 --vllm_tensor_parallel_size 2 --write_batch_size 1000 {_ASKED} 2048",
        f"infer_backend {_LIMITS} vllm_tensor_parallel_size",
    ),
    "infer/distill_sglang": (
        "infer",
        "--model S --infer_backend sglang --sglang_context_length 12000 --sglang_tp_size 8 --write_batch_size 1000 "
        "--val_dataset d",
        "infer_backend sglang_context_length sglang_tp_size",
    ),
    "infer/multimodal": (
        "infer",
        f"{_VLLM} --vllm_limit_mm_per_prompt {{}} --max_pixels 1003520 {_ASKED} 2048",
        "infer_backend vllm_gpu_memory_utilization vllm_limit_mm_per_prompt max_pixels",
    ),
}


def pairs(line: str) -> list[tuple[str, str]]:
    return [(words[0], " ".join(words[1:])) for part in line.split("--")[1:] if (words := part.split())]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_taken_noted_or_refused(name):
    command, line, refused = SCRIPTS[name]
    spec = COMMANDS[command]
    flags = all_flags() | flags_of(spec.config)
    found = []
    for flag, value in pairs(line):
        flag = spec.aliases.get(flag, flag)
        if flag in flags and reads(spec, flags[flag]):
            choices = flags[flag].choices if flags[flag].kind == "value" else ()
            found += [flag] if choices and VALUES.get((flag, value), value) not in choices else []
            continue
        entry = lookup(flag)
        assert isinstance(entry, Renamed | NotNeeded | Refused), flag
        if isinstance(entry, Refused) and value not in entry.off:
            found.append(flag)
    assert sorted(set(found)) == sorted(refused.split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_command_runs_without_what_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text('{"base_model_name_or_path": "S"}')
    command, line, refused = SCRIPTS[name]
    off = set(refused.split())
    if off:
        with pytest.raises(ConfigError) as caught:
            parse(command, line.split())
        unknown = {flag for flag in off if flag not in all_flags()}
        for flag in unknown or off:  # a value that is refused is told once the flags are right
            assert f"--{flag}" in caught.value.what
        assert caught.value.fix
    kept = [f"--{flag} {value}" for flag, value in pairs(line) if flag not in off]
    parsed = read(command, " ".join(kept).split())
    said = " ".join(parsed.notes)
    for flag, value in pairs(line):
        entry = None if flag in all_flags() else lookup(flag)
        if isinstance(entry, Renamed) or (isinstance(entry, NotNeeded) and value not in entry.off):
            assert f"--{flag} " in said
