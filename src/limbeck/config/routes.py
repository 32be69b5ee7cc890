"""Several teachers: which rows each one is asked about. Read from a flag's text, a YAML list or a Python list."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

EXAMPLE = '\'[{"KEY": "a", "tags": ["math"]}, {"KEY": "b", "tags": ["code", "chat"]}]\''


class Route(BaseModel):
    """tags: values of the rows' tag column (--teacher_tag_key) that this teacher is asked about."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tags: list[str]


class ModelRoute(Route):
    """A teacher that is loaded here: hub id, folder or .gguf file, with adapters."""

    model: str
    revision: str | None = None
    adapters: list[str] = []

    @property
    def name(self) -> str:
        return self.model


class ServerRoute(Route):
    """A teacher behind an address."""

    url: str

    @property
    def name(self) -> str:
        return self.url


R = TypeVar("R", ModelRoute, ServerRoute)


def _address(value: str, key: str) -> str:
    """A server's address must say how it is spoken to: without http:// it would be waited for in vain."""
    if key == "url" and not value.startswith(("http://", "https://")):
        fix = f"write it as http://{value}" if ":" in value else f"write it as http://{value}:8000"
        raise PydanticCustomError("routes", "{what}", {"what": "is no address that begins with http://", "fix": fix})
    if key == "url":
        try:
            parts = urlsplit(value)
            sound = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", value)
        except ValueError:  # a port that is no number, or above 65535
            sound = False
        if not sound:
            fix = "write it like http://localhost:8000; ports go from 1 to 65535"
            raise PydanticCustomError("routes", "{what}", {"what": "is no address of a server", "fix": fix})
    return value


def one_or_routes(kind: type[R], key: str) -> Any:
    """A validator: one name stays one; a list of mappings, or its JSON, becomes routes with tags that do not meet."""

    def validate(value: Any) -> str | list[R] | None:
        if isinstance(value, list) and len(cast(list[Any], value)) == 1 and isinstance(value[0], str):
            value = value[0]  # as the command line hands it over
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise _refused(f"is not JSON: {error.msg} at character {error.pos}", key) from error
        if value is None or not isinstance(value, list):
            return value if value is None else _address(str(value), key)
        names = [item for item in cast(list[Any], value) if isinstance(item, str)]
        if len(names) > 1:
            raise _refused(f"got {len(names)} names, and several teachers need tags", key)
        routes = [_route(kind, item, key) for item in cast(list[Any], value)]
        if not routes:
            raise _refused("names no teacher", key)
        counts = Counter(tag for route in routes for tag in route.tags)
        if empty := [route.name for route in routes if not route.tags]:
            raise _refused(f"gives {empty[0]} no tags: no row would be sent there", key)
        if shared := [tag for tag, count in counts.items() if count > 1]:
            raise _refused(f"gives the tag {shared[0]!r} to two teachers", key)
        for route in routes:
            _address(route.name, key)
        return routes

    return validate


def _route(kind: type[R], item: Any, key: str) -> R:
    if isinstance(item, kind):
        return item
    try:
        return kind.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "an entry"
        raise _refused(f"has an entry that is no teacher with tags: {place}: {first['msg']}", key) from None


def _refused(what: str, key: str) -> PydanticCustomError:
    fix = "write one name, or " + EXAMPLE.replace("KEY", key)
    return PydanticCustomError("routes", "{what}", {"what": what, "fix": fix})


def routes_of(named: str | list[R] | None) -> list[R]:
    """The routes; none where one teacher, or no teacher, is named."""
    return named if isinstance(named, list) else []
