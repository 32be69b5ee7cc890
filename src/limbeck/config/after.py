"""What comes after training: rooms and configurations of `limbeck export` and `limbeck infer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from limbeck.config.room import Name, Names, Room, shard_size
from limbeck.config.schema import Data, Hub, Model, Rollout, Run

GgufType = Literal["f32", "f16", "bf16", "q8_0"]


class Export(Room):
    """What is written."""

    merge_lora: bool = True
    """Merge the adapters into the weights; false writes the last adapter alone."""
    max_shard_size: Annotated[str, AfterValidator(shard_size)] = "5GB"
    """Largest .safetensors file; a larger model is written as several."""
    gguf_type: GgufType | None = None
    """Write a .gguf file of this type too, by llama.cpp's convert_hf_to_gguf.py: from $LLAMA_CPP or the PATH."""


class Talk(Room):
    """Who answers beside --model, and what is written."""

    other_model: Name | None = None
    """A second model that answers beside the first; with --other_adapters alone it is --model again."""
    other_adapters: Names = Field(default=[])
    """Adapters of the second model."""
    result_path: Path | None = None
    """With a data set: the .jsonl file of the answered rows; an unfinished one is gone on with. With a second model
    each row also has its answer, as other_response."""
    infer_backend: Literal["transformers"] = "transformers"
    """What answers; for vLLM see `limbeck deploy --infer_backend vllm`."""


class ExportConfig(Room):
    """`limbeck export`: a model in the form in which others take it."""

    model: Model
    export: Export = Export()
    hub: Hub = Hub()
    run: Run = Run()


class InferConfig(Room):
    """`limbeck infer`: talk with a model, or let it answer a data set."""

    model: Model
    data: Data = Data()
    rollout: Rollout = Rollout()
    run: Run = Run()
    output: Talk = Talk()
