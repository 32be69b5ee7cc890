"""A configuration as one flat mapping of flags, for Python callers and for whoever reads flags without rooms."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from limbeck.config.faults import refusal
from limbeck.config.flags import flags_of
from limbeck.config.room import room_of
from limbeck.config.schema import Config
from limbeck.errors import ConfigError


def from_flat(values: Mapping[str, Any]) -> Config:
    """The configuration of these flags. Raises ConfigError for an unknown name, a bad value or no model."""
    rooms: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        try:
            rooms.setdefault(room_of(Config, name), {})[name] = value
        except KeyError:
            near = difflib.get_close_matches(name, to_flat(Config.model_construct()), n=1)
            raise ConfigError(
                f"there is no flag {name}",
                where=f"{name}={value!r}",
                fix=f"did you mean {near[0]}?" if near else "`limbeck rlhf --help_all` lists the flags",
            ) from None
    try:
        return Config.model_validate(rooms)
    except ValidationError as error:
        given = {name: f"{name}={value!r}" for name, value in values.items()}
        raise refusal(error, given, {name: flag.choices for name, flag in flags_of(Config).items()}) from error


def to_flat(config: Config) -> dict[str, Any]:
    """Flag -> value, JSON types only. Unique: no two rooms share a flag's name."""
    flat: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        room = getattr(config, name, None)
        values = room.model_dump(mode="json") if room is not None else getattr(field.annotation, "model_fields", {})
        flat |= values
    return flat
