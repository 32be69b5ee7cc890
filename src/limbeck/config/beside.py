"""Rooms of the commands beside training, and their configurations; of export and infer see `after`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from limbeck.config.room import Count, Name, Names, Room, listed
from limbeck.config.schema import Config, Data, Method, Model, Optim, Reward, Rollout, Run, Teacher

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

    checkpoints: Names = []
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
    keep_layers: Layers = []
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
