"""The commands: what each is for, which rooms it has, and which of their fields it reads.

A command takes whole rooms, so that every setting is written once; `fields` names those that it reads. A flag that
the command does not read is refused, a key of a YAML file is skipped with a note: one file can serve several commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from limbeck.config.after import ExportConfig, InferConfig
from limbeck.config.room import Count, Name, Names, Room, listed
from limbeck.config.schema import Config, Data, Method, Model, Optim, Report, Reward, Rollout, Run, Teacher

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
    """What is measured beside --model, and what is written."""

    checkpoints: Names = Field(default=[])
    """Folders to measure one after the other, as a table, instead of --model itself: whole models, adapters of --model,
    or run folders with all their checkpoints."""
    result_path: Path | None = None
    """A .json file for the numbers, which are printed in any case."""


class Pages(Room):
    """Which runs, and the page."""

    runs: Annotated[list[Path], BeforeValidator(listed)]
    """Run folders: one is shown, several are compared."""
    result_path: Path | None = None
    """The page; by default RUN/report.html, or comparison.html here for several runs."""


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


class Serve(Room):
    """The server, its limits and what answers."""

    host: str = "127.0.0.1"
    """Address to listen on. By default only this machine is served: there is no encryption, and no key but --api_key;
    0.0.0.0 serves the network."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    infer_backend: Literal["transformers", "vllm"] = "transformers"
    """transformers answers in this process; vllm starts a vLLM server."""
    served_model_name: str | None = None
    """The model's name in requests; by default --model as it is written."""
    api_key: Annotated[str | None, Field(exclude=True, repr=False)] = None
    """Clients must send it as a bearer token; better put into the environment as LIMBECK_API_KEY."""
    max_logprobs: Annotated[int, Field(ge=-1)] = 64
    """Most log-probabilities that a request may ask for at a position; -1 sets no limit."""
    max_model_len: Count | None = None
    """Longest sequence in tokens; by default the model's max_position_embeddings."""
    default_max_tokens: Count | None = None
    """Length of a completion where a request does not say (ms-swift's --max_new_tokens); by default as vLLM has it: 16
    tokens, in a chat all that fit. With vLLM no request gets more."""
    max_batch_tokens: Count | None = None
    """Tokens in one forward pass, padding included; by default by the device."""
    max_request_mb: Count = 64
    """Largest request in MB."""
    max_request_tokens: Count = 131072
    """Most tokens in the sequences of one request."""
    max_queue: Count = 256
    """Requests that may wait; more are told to come back later."""
    allow_hidden: bool = False
    """Give out last hidden states and the output head: the full vocabulary, and a part of the weights."""
    vllm_python: Name | None = None
    """Interpreter that has vLLM; by default the one that runs Limbeck."""
    vllm_tensor_parallel_size: Count | None = None
    """GPUs that share the model in vLLM."""
    vllm_gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the GPU's memory that vLLM takes."""
    vllm_args: str = ""
    """More for vLLM's own command line: --vllm_args="--enforce-eager --block-size 16"."""


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
    reward: Reward = Reward()
    teacher: Teacher = Teacher()
    rollout: Rollout = Rollout()
    optim: Optim = Optim()
    run: Run = Run()
    output: Findings = Findings()


class ScoreConfig(Room):
    """`limbeck data score`: a teacher scores a data set into its store, without a student."""

    model: Model
    data: Data = Data()
    method: Method = Method()
    teacher: Teacher = Teacher()
    rollout: Rollout = Rollout()
    optim: Optim = Optim()
    run: Run = Run()

    @model_validator(mode="before")
    @classmethod
    def _read_as_the_teacher_does(cls, rooms: dict[str, Any]) -> dict[str, Any]:
        """Without --model the tokenizer and the template are the teacher's."""
        model: dict[str, Any] = dict(rooms.get("model") or {})
        teacher: dict[str, Any] = dict(rooms.get("teacher") or {})
        if model.get("model"):
            return rooms
        name = teacher.get("teacher_model")
        name = name[0] if isinstance(name, list) and len(name) == 1 else name  # type: ignore[reportUnknownVariableType]
        if not isinstance(name, str) or name.startswith("["):
            what = "limbeck data score needs --model, whose tokenizer and chat template make ids of the rows"
            fix = "add --model STUDENT, as in the run that will use the store"
            raise PydanticCustomError("one_of_two", "{what}", {"what": what, "fix": fix})
        return {**rooms, "model": {**model, "model": name, "model_revision": teacher.get("teacher_model_revision")}}


class ReportConfig(Room):
    """`limbeck report`: runs as a page."""

    pages: Pages
    run: Run = Run()


class Look(Room):
    """What is shown."""

    show_rows: Annotated[int, Field(ge=0)] = 3
    """Rows to show with their masks; 0 shows none."""


class CheckConfig(Room):
    """`limbeck data check`: how rows are read, and what would be dropped."""

    model: Model
    data: Data
    look: Look = Look()
    run: Run = Run()

    @model_validator(mode="before")
    @classmethod
    def _no_model_is_needed(cls, rooms: dict[str, Any]) -> dict[str, Any]:
        """Without --model nothing is tokenised."""
        return {**rooms, "model": {"model": "", **dict(rooms.get("model") or {})}}


class CacheInfoConfig(Room):
    """`limbeck data cache-info`: what a store holds."""

    teacher: Teacher
    run: Run = Run()


class DeployConfig(Room):
    """`limbeck deploy`: a server of one model, for teachers above all."""

    model: Model
    serve: Serve = Serve()
    run: Run = Run()


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
