"""What comes after training: rooms and configurations of `limbeck export` and `limbeck infer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from limbeck.config.room import Name, Names, Room, listed
from limbeck.config.schema import Data, Hub, Model, Rollout, Run

GgufType = Literal["f32", "f16", "bf16", "q8_0"]


class Export(Room):
    """What is written."""

    merge_lora: bool = True
    """Merge the adapters into the weights; false writes the last adapter alone."""
    max_shard_size: str = "5GB"
    """Largest .safetensors file; a larger model is written as several."""
    gguf_type: GgufType | None = None
    """Write a .gguf file of this type too, by llama.cpp's convert_hf_to_gguf.py: from $LLAMA_CPP or the PATH."""


class Talk(Room):
    """Who answers beside --model, and what is written."""

    other_model: Name | None = None
    """A second model that answers in the terminal beside the first; with --other_adapters alone it is --model again."""
    other_adapters: Names = Field(default=[])
    """Adapters of the second model."""
    result_path: Path | None = None
    """With a data set: the .jsonl file of the answered rows; an unfinished one is gone on with."""
    infer_backend: Literal["transformers"] = "transformers"
    """What answers; for vLLM see `limbeck deploy --infer_backend vllm`."""


def _is_adapter(path: Path) -> bool:
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def _with_base(rooms: dict[str, Any]) -> dict[str, Any]:
    return {**rooms, "model": _based(dict(rooms.get("model") or {}))}


def _with_other_base(rooms: dict[str, Any]) -> dict[str, Any]:
    """--other_model may be an adapter's folder as --model may."""
    output: dict[str, Any] = dict(rooms.get("output") or {})
    if output.get("other_model") and not output.get("other_adapters"):
        found = _based({"model": output["other_model"]})
        output |= {"other_model": found["model"], "other_adapters": found.get("adapters", [])}
    return {**rooms, "output": output}


def _based(model: dict[str, Any]) -> dict[str, Any]:
    """Without --model it is the one that the first adapter was trained on, as its own file says; a --model that is an
    adapter's folder is read as one on its base."""
    named = model.get("model")
    if named and not model.get("adapters") and _is_adapter(Path(str(named))):
        model = {**model, "model": None, "adapters": [str(named)]}
    if model.get("model"):
        return model
    adapters: Any = listed(model.get("adapters"))
    file = Path(str(adapters[0])) / "adapter_config.json" if adapters else None
    base = json.loads(file.read_text()).get("base_model_name_or_path") if file and file.is_file() else None
    if not base:
        what = "there is no model" if not adapters else f"{adapters[0]} does not say which model it is an adapter of"
        where = f"--adapters {' '.join(map(str, adapters))}" if adapters else "--model"
        fix = "add --model FOLDER, or a hub id; for adapters it is their base"
        raise PydanticCustomError("one_of_two", "{what}", {"what": what, "where": where, "fix": fix})
    return {**model, "model": base}


class ExportConfig(Room):
    """`limbeck export`: a model in the form in which others take it."""

    model: Model
    export: Export = Export()
    hub: Hub = Hub()
    run: Run = Run()
    _base = model_validator(mode="before")(_with_base)


class InferConfig(Room):
    """`limbeck infer`: talk with a model, or let it answer a data set."""

    model: Model
    data: Data = Data()
    rollout: Rollout = Rollout()
    run: Run = Run()
    output: Talk = Talk()
    _base = model_validator(mode="before")(_with_base)
    _other = model_validator(mode="before")(_with_other_base)
