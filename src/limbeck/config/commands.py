"""The commands: what each is for, which rooms it has, and which of their fields it reads.

A command takes whole rooms, so that every setting is written once; `fields` names those that it reads. A flag that
the command does not read is refused, a key of a YAML file is skipped with a note: one file can serve several commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from limbeck.config.after import ExportConfig, InferConfig
from limbeck.config.beside import (
    CacheInfoConfig,
    CheckConfig,
    DeployConfig,
    EvalConfig,
    GenerateConfig,
    PlanConfig,
    ReportConfig,
    ScoreConfig,
    ShrinkConfig,
)
from limbeck.config.room import Room
from limbeck.config.schema import Config, Data, Report, Run, Teacher

ALL: tuple[str, ...] = ("*",)
_LOADING = ("model", "model_revision", "torch_dtype", "attn_impl", "adapters", "trust_remote_code")
_DRAWING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length")
_SAMPLING = (*_DRAWING, "num_generations", "rollout_batch_size")
_READING = ("dataset", "columns", "external_plugins", "streaming")
_TRAINING: dict[str, tuple[str, ...]] = dict.fromkeys(Config.model_fields, ALL)


@dataclass(frozen=True)
class Command:
    """One command. `fields`: room -> names of its fields that are read. `presets`: field -> value instead of the
    schema's default, whether or not the command reads the field. `required`: fields that must be given,
    each with what to write. `aliases`: other flag -> the field that it sets for this command. `positional`: the field
    that the first argument sets, where it does not name a YAML file. A name of two words is a command of a group."""

    name: str
    summary: str
    config: type[Room]
    fields: Mapping[str, tuple[str, ...]]
    required: Mapping[str, str]
    examples: tuple[str, ...]
    presets: Mapping[str, Any] = field(default_factory=dict[str, Any])
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    positional: str = ""


_MODEL = {"model": "--model Qwen/Qwen3-0.6B"}
_DATASET = {"dataset": "--dataset rows.jsonl"}

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            "rlhf",
            "distil a teacher into a student",
            Config,
            _TRAINING,
            _MODEL | _DATASET | {"rlhf_type": "--rlhf_type gkd; to train on the dataset alone use `limbeck sft`"},
            (
                "limbeck rlhf --rlhf_type gkd --model student --teacher_model teacher --dataset rows.jsonl",
                "limbeck rlhf --rlhf_type gkd ... --lmbda 1 --beta 1          # on-policy, reverse KL",
                "limbeck rlhf run.yaml --learning_rate 2e-5                   # a flag wins over the file",
            ),
            presets={"rlhf_type": "gkd"},
        ),
        Command(
            "sft",
            "train on the dataset's responses",
            Config,
            _TRAINING
            | {
                "method": ("loss_impl",),
                "policy": (),
                "reward": (),
                "teacher": (),
                "rollout": (),
                "run": tuple(n for n in Run.model_fields if n != "eval_on_policy" and "collapse" not in n),
                "report": tuple(n for n in Report.model_fields if n not in ("log_completions", "log_privileged_kl")),
            },
            _MODEL | _DATASET,
            (
                "limbeck sft --model student --dataset rows.jsonl",
                "limbeck sft --model student --dataset rows.jsonl#500 --tuner_type full --max_steps 100",
            ),
            presets={"rlhf_type": None},
        ),
        Command(
            "generate",
            "let a model answer a data set",
            GenerateConfig,
            {
                "model": _LOADING,
                "data": (*_READING, "system", "max_length", "truncation_strategy"),
                "rollout": _SAMPLING,
                "run": ("seed", "use_cpu", "debug"),
                "output": ALL,
            },
            _MODEL | _DATASET | {"result_path": "--result_path answers.jsonl"},
            (
                "limbeck generate --model teacher --dataset prompts.jsonl --result_path answers.jsonl",
                "limbeck generate --model teacher --dataset prompts.jsonl --result_path answers.jsonl --temperature 0",
            ),
        ),
        Command(
            "shrink",
            "cut a smaller student from a model",
            ShrinkConfig,
            {
                "model": ("model", "model_revision", "torch_dtype", "trust_remote_code"),
                "shrink": ALL,
                "run": ("output_dir", "debug"),
            },
            _MODEL | {"output_dir": "--output_dir student"},
            (
                "limbeck shrink --model teacher --num_layers 12 --output_dir student",
                "limbeck shrink --model teacher --keep_layers 0 1 2 14 28 29 --output_dir student",
            ),
        ),
        Command(
            "eval",
            "measure how far a student is from its teacher",
            EvalConfig,
            {
                "model": _LOADING,
                "data": (*_READING, "system", "max_length", "truncation_strategy", "loss_scale"),
                "method": ("loss_temperature", "gkd_logits_topk", "topk_mode"),
                "teacher": ("teacher_model", "teacher_model_revision", "teacher_adapters", "teacher_torch_dtype"),
                "reward": ALL,
                "rollout": _SAMPLING,
                "optim": ("per_device_eval_batch_size",),
                "run": ("seed", "use_cpu", "debug"),
                "output": ALL,
            },
            _MODEL | _DATASET,
            (
                "limbeck eval --model student --teacher_model teacher --dataset heldout.jsonl",
                "limbeck eval --model base --checkpoints output/run --dataset heldout.jsonl     # all of a run's",
                "limbeck eval --model student --dataset problems.jsonl --reward_funcs accuracy  # of sampled answers",
                "limbeck eval output/run/config.yaml --model output/run/last      # its own --val_dataset",
            ),
            presets={"temperature": 0.0},
            aliases={"val_dataset": "dataset"},
        ),
        Command(
            "deploy",
            "serve a model, as a teacher above all",
            DeployConfig,
            {"model": _LOADING, "serve": ALL, "run": ("use_cpu", "debug")},
            _MODEL,
            (
                "limbeck deploy --model teacher --max_logprobs 64",
                "limbeck deploy --model teacher --host 0.0.0.0 --port 8001 --api_key KEY --allow_hidden",
                "limbeck deploy --model teacher --infer_backend vllm --max_logprobs 64",
            ),
            aliases={
                "vllm_max_model_len": "max_model_len",
                "max_length": "max_model_len",
                "max_new_tokens": "default_max_tokens",
                "tensor_parallel_size": "vllm_tensor_parallel_size",
                "gpu_memory_utilization": "vllm_gpu_memory_utilization",
            },
        ),
        Command(
            "infer",
            "talk with a model, or two side by side",
            InferConfig,
            {
                "model": _LOADING,
                "data": ("dataset", "system", "max_length", "truncation_strategy"),
                "rollout": _SAMPLING,
                "run": ("seed", "use_cpu", "debug"),
                "output": ALL,
            },
            _MODEL,
            (
                "limbeck infer --model student                                 # a conversation in the terminal",
                "limbeck infer --model student --other_model teacher           # two answers side by side",
                "limbeck infer --model output/run/last --val_dataset prompts.jsonl --result_path answers.jsonl",
                "limbeck infer --model a --other_model b --val_dataset prompts.jsonl --result_path both.jsonl",
            ),
            aliases={"val_dataset": "dataset"},
        ),
        Command(
            "export",
            "write a model as others take it: merged, cast, GGUF, on the hub",
            ExportConfig,
            {
                "model": _LOADING,
                "export": ALL,
                "hub": ALL,
                "run": ("output_dir", "debug"),
            },
            _MODEL | {"output_dir": "--output_dir FOLDER"},
            (
                "limbeck export --model base --adapters output/run/last --output_dir merged --torch_dtype bfloat16",
                "limbeck export --model output/run/last --output_dir out --gguf_type q8_0",
                "limbeck export --model output/run/last --output_dir out --push_to_hub --hub_model_id me/student",
            ),
        ),
        Command(
            "data score",
            "let a teacher score a data set into its store",
            ScoreConfig,
            {
                "model": ("model", "model_revision", "torch_dtype", "attn_impl", "trust_remote_code", "tuner_type"),
                "data": tuple(n for n in Data.model_fields if n not in ("dataset_shuffle", "data_seed")),
                "method": ("gkd_logits_topk", "topk_support", "loss_temperature"),
                "teacher": tuple(n for n in Teacher.model_fields if n not in ("teacher_ema_decay", "teacher_source")),
                "rollout": ("stop_at_teacher_eos",),
                "optim": ("per_device_eval_batch_size",),
                "run": ("seed", "use_cpu", "debug"),
            },
            _DATASET
            | {
                "teacher_cache": "--teacher_cache FOLDER, where the answers are kept",
                "gkd_logits_topk": "--gkd_logits_topk 64: the store keeps the likeliest ids",
            },
            (
                "limbeck data score --model student --teacher_model teacher --dataset rows.jsonl --gkd_logits_topk 64 "
                "--teacher_cache store",
                "limbeck data score run.yaml          # then `limbeck rlhf run.yaml` asks the teacher nothing",
            ),
        ),
        Command(
            "data check",
            "say how rows are read, what is dropped and why",
            CheckConfig,
            {
                "model": ("model", "model_revision", "trust_remote_code"),
                "data": (*_READING, "system", "max_length", "truncation_strategy", "loss_scale"),
                "look": ALL,
                "run": ("seed", "debug"),
            },
            _DATASET,
            (
                "limbeck data check rows.jsonl",
                "limbeck data check rows.jsonl --model student --show_rows 5",
            ),
            positional="dataset",
        ),
        Command(
            "data cache-info",
            "say what a store holds, and check it",
            CacheInfoConfig,
            {"teacher": ("teacher_cache",), "run": ("debug",)},
            {"teacher_cache": "the store's folder: limbeck data cache-info FOLDER"},
            ("limbeck data cache-info store",),
            positional="teacher_cache",
        ),
        Command(
            "report",
            "show a run, or compare runs, as a page",
            ReportConfig,
            {"pages": ALL, "run": ("debug",)},
            {"runs": "the run's folder: limbeck report RUN [RUN ...]"},
            (
                "limbeck report output/run                          # writes output/run/report.html, while it runs too",
                "limbeck report output/one output/two --result_path comparison.html",
            ),
            positional="runs",
        ),
        Command(
            "plan",
            "say what a run would do, without running it",
            PlanConfig,
            _TRAINING | {"plan": ALL},
            _MODEL | _DATASET,
            (
                "limbeck plan --rlhf_type gkd --model student --teacher_model teacher --dataset rows.jsonl",
                "limbeck plan run.yaml --write resolved.yaml",
            ),
        ),
    )
}
# other names of commands
ALIASES: dict[str, str] = {"serve": "deploy"}
