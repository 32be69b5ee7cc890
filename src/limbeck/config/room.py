"""What rooms are made of: the base class, and the types of their fields."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from limbeck.config.routes import ModelRoute, ServerRoute, one_or_routes

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
RlhfType = Literal["gkd", "grpo"]
TeacherSource = Literal["auto", "model", "server", "live", "base", "frozen", "ema"]
Tracker = Literal["tensorboard", "wandb", "swanlab", "trackio"]
Scheduler = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]

# upper bounds tell a slip of the keyboard before it becomes a loss that is not finite, or a size that no machine has
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
NotNegative = Annotated[float, Field(ge=0, le=1e38, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e38, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _seconds(value: Any) -> Any:
    """ "2h30m", "90m", "45s" or plain seconds -> seconds; anything else is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", value.strip())
    if match is None or not match.group():
        if not re.fullmatch(r"\s*[-+]?[\d.]+(e[-+]?\d+)?\s*|[-+]?(nan|inf).*", value, re.IGNORECASE):
            saying = {"what": "is no time", "fix": "give seconds, or a time such as 90s, 10m or 2h30m"}
            raise PydanticCustomError("saying", "{what}", saying)
        return value
    return sum(int(part or 0) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))


def listed(value: Any) -> object:
    """A single value where a list is meant, as YAML users write it; "none" is the empty list, as in transformers."""
    if value is None or value in ("none", ["none"]):
        return []
    return value if isinstance(value, list) else [value]  # type: ignore[return-value]


def _no(value: Any) -> Any:
    """YAML 1.1 reads a bare `no` as false; where "no" is a choice, that is what was meant."""
    return "no" if value is False else value


def _as_text(value: Any) -> Any:
    """Python callers name files by Path."""
    return str(value) if isinstance(value, Path) else value


def _system(value: Any) -> Any:
    """The text of a .txt file, as ms-swift's --system takes one; other text as it is."""
    if not isinstance(value, str) or not value.endswith(".txt") or "\n" in value:
        return value
    try:
        return Path(value).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        fix = "give the message itself, or the .txt file that holds it"
        raise PydanticCustomError(
            "saying", "{what}", {"what": "names a file that cannot be read", "fix": fix}
        ) from None


def _scale(value: Any) -> Any:
    """ms-swift's A+B; and why its other scales are not there."""
    parts = [part for part in str(value).split("+") if part != "-"]
    name = "+".join(parts)
    other = next((part for part in parts if part == "all" or part in _WEIGHING), None)
    if other is not None:
        why = "trains prompts too" if other == "all" else "weighs the tokens of tool calls more than others"
        what = f"{why}, and here a student is compared with its teacher on what it writes, each token once"
        fix = "take default (every assistant turn) or last_round; a message's own `loss` leaves turns out"
        raise PydanticCustomError("saying", "{what}", {"what": what, "fix": fix})
    return _SCALES.get(name, name) if isinstance(value, str) else value


_WEIGHING = ("react", "hermes", "qwen", "agentflan", "alpha_umi")
_SCALES = {
    "default+ignore_empty_think": "ignore_empty_think",
    "last_round+ignore_empty_think": "last_round_with_ignore_empty_think",
}


def _number(value: Any) -> Any:
    """Words of a command line where a choice is a number."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _warmth(value: float) -> float:
    if value != 0 and not 1e-4 <= value <= 1e4:
        fix = "give a number from 0.0001 to 10000, such as 1"
        raise PydanticCustomError("saying", "{what}", {"what": "would leave nothing of the logits", "fix": fix})
    return value


def _device(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(cpu|cuda|mps|xpu|npu)(:\d+)?", value):
        fix = "write cpu, cuda or cuda:1, or leave it out for the student's device"
        raise PydanticCustomError("saying", "{what}", {"what": "is no device", "fix": fix})
    return value


def shard_size(value: str) -> str:
    """A size as transformers reads it."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]i?B)", value.strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        fix = "write it as 5GB or 500MB"
        raise PydanticCustomError("saying", "{what}", {"what": "is no size of a file", "fix": fix})
    return value


System = Annotated[str, BeforeValidator(_system)]
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_warmth)]
LossTemperature = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_warmth)]
DeviceName = Annotated[str | None, AfterValidator(_device)]
LossScale = Annotated[
    Literal["last_round", "default", "ignore_empty_think", "last_round_with_ignore_empty_think"],
    BeforeValidator(_scale),
]
QuantBits = Annotated[Literal[4, 8], BeforeValidator(_number)]
WireBits = Annotated[Literal[16, 32], BeforeValidator(_number)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=1e9)]
Name = Annotated[str, BeforeValidator(_as_text)]
Names = Annotated[list[Name], BeforeValidator(listed)]
TeacherModel = Annotated[str | list[ModelRoute] | None, BeforeValidator(one_or_routes(ModelRoute, "model"))]
TeacherServer = Annotated[str | list[ServerRoute] | None, BeforeValidator(one_or_routes(ServerRoute, "url"))]
Strategy = Annotated[Literal["steps", "epoch", "no"], BeforeValidator(_no)]
Precision = Annotated[Literal["auto", "no", "bf16"], BeforeValidator(_no)]


def not_zero(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("no_steps", "is 0: there would be nothing to run")
    return value


def ramp(value: list[float]) -> list[float]:
    if value and not (len(value) == 3 and 0 <= value[0] < 1 and value[2] != 0 and all(map(math.isfinite, value))):
        fix = "give LOW (from 0 to below 1), MIDDLE, and WIDTH (not 0), such as 0.25 0.3 0.1; negative WIDTH: falling"
        raise PydanticCustomError("saying", "{what}", {"what": "is not a ramp of three numbers", "fix": fix})
    return value


class Room(BaseModel):
    """A group of settings that one part of the program reads. Immutable: `model_copy(update=...)` makes another."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), validate_default=True
    )


def room_of(config: type[Room], flag: str) -> str:
    """The room of a configuration that a flag lives in. Raises KeyError for an unknown one."""
    for name, field in config.model_fields.items():
        room = field.annotation
        if isinstance(room, type) and issubclass(room, Room) and flag in room.model_fields:
            return name
    raise KeyError(flag)
