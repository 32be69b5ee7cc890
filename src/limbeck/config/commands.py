"""The commands: what each is for, which rooms it has, and which of their fields it reads.

A command takes whole rooms, so that every setting is written once; `fields` names those that it reads. A flag that
the command does not read is refused, a key of a YAML file is skipped with a note: one file can serve several commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from limbeck.config.schema import Config, Count, Data, Method, Model, Optim, Report, Rollout, Room, Run, Teacher, listed

Layers = Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(listed)]


class Plan(Room):
    """The plan."""

    write: Path | None = None
    """Write the resolved configuration to this YAML file; `limbeck rlhf FILE` runs it."""


class Answers(Room):
    """What is written."""

    result_path: Path
    """The .jsonl file of the answered rows; an unfinished one is gone on with."""


class Findings(Room):
    """What is written."""

    result_path: Path | None = None
    """A .json file for the numbers, which are printed in any case."""


class Shrink(Room):
    """The layers that stay."""

    num_layers: Count | None = None
    """Layers to keep, spread evenly, the first and the last among them."""
    keep_layers: Layers = Field(default=[])
    """Layers to keep by number, counted from 0, instead of --num_layers."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Shrink:
        if (self.num_layers is None) == (not self.keep_layers):
            both = "--num_layers and --keep_layers both say which layers stay"
            raise PydanticCustomError(
                "one_of_two",
                "{what}",
                {
                    "what": "limbeck shrink needs --num_layers" if self.num_layers is None else both,
                    "fix": "add --num_layers 12, or --keep_layers 0 1 2 11" if self.num_layers is None else "keep one",
                },
            )
        return self


class PlanConfig(Config):
    """`limbeck plan`: a training run that is described and not run."""

    plan: Plan = Plan()


class GenerateConfig(Room):
    """`limbeck generate`: a model answers the prompts of a data set."""

    model: Model
    data: Data = Data()
    rollout: Rollout = Rollout()
    run: Run = Run()
    output: Answers


class ShrinkConfig(Room):
    """`limbeck shrink`: a smaller student from some layers of a model."""

    model: Model
    shrink: Shrink
    run: Run = Run()


class EvalConfig(Room):
    """`limbeck eval`: how far a student is from its teacher on held-out rows."""

    model: Model
    data: Data = Data()
    method: Method = Method()
    teacher: Teacher = Teacher()
    optim: Optim = Optim()
    run: Run = Run()
    output: Findings = Findings()


ALL: tuple[str, ...] = ("*",)
_LOADING = ("model", "model_revision", "torch_dtype", "attn_impl", "adapters", "trust_remote_code")
_TRAINING: dict[str, tuple[str, ...]] = dict.fromkeys(Config.model_fields, ALL)


@dataclass(frozen=True)
class Command:
    """One command. `fields`: room -> names of its fields that are read. `presets`: field -> value instead of the
    schema's default, whether or not the command reads the field. `required`: fields that must be given,
    each with what to write. `aliases`: other flag -> the field that it sets for this command."""

    name: str
    summary: str
    config: type[Room]
    fields: Mapping[str, tuple[str, ...]]
    required: Mapping[str, str]
    examples: tuple[str, ...]
    presets: Mapping[str, Any] = field(default_factory=dict[str, Any])
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])


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
                "teacher": (),
                "rollout": (),
                "run": tuple(name for name in Run.model_fields if name != "eval_on_policy"),
                "report": tuple(name for name in Report.model_fields if name != "log_completions"),
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
                "data": ("dataset", "system", "max_length", "truncation_strategy"),
                "rollout": (
                    "temperature",
                    "top_p",
                    "top_k",
                    "min_p",
                    "repetition_penalty",
                    "max_completion_length",
                    "num_generations",
                    "rollout_batch_size",
                ),
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
                "data": ("dataset", "system", "max_length", "truncation_strategy", "loss_scale"),
                "method": ("loss_temperature", "gkd_logits_topk", "topk_mode"),
                "teacher": ("teacher_model", "teacher_model_revision", "teacher_adapters", "teacher_torch_dtype"),
                "optim": ("per_device_eval_batch_size",),
                "run": ("use_cpu", "debug"),
                "output": ALL,
            },
            _MODEL | _DATASET,
            (
                "limbeck eval --model student --teacher_model teacher --dataset heldout.jsonl",
                "limbeck eval output/run/config.yaml --model output/run/last      # its own --val_dataset",
            ),
            aliases={"val_dataset": "dataset"},
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
