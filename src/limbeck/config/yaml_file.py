"""A YAML file -> entries that know their line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import ConfigError


@dataclass(slots=True)
class Entry:
    """One setting as it was given: a key of the file with its value, or a flag with its words.

    where: "run.yaml:7  beta: 3" or "--beta 3". room: the one that the file puts it under, where it names one.
    """

    name: str
    value: Any
    where: str
    from_file: bool = False
    room: str = ""


def read_yaml(path: str, rooms: set[str]) -> list[Entry]:
    """The settings of a file, flat or by room: a mapping under a room's name holds that room's fields.

    Dashes in keys are underscores. In a file for ms-swift's Ray a mapping with `gpus` is a role, no room: its settings
    count as if they stood alone, but for `gpus` and those of its teacher, which are named `ROLE.KEY`.
    Raises ConfigError for a file that cannot be read, for what is not a mapping, and for a key that is given twice.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        fix = "the first argument is a YAML file; flags begin with --"
        raise ConfigError(f"cannot read {path}: {reason}", where=path, fix=fix) from None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return []
        entries = list(_entries(loader, root, path, text.splitlines(), rooms))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else path
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        is_rows = Path(path).suffix in (".jsonl", ".json", ".csv", ".parquet")
        fix = f"give rows as --dataset {path}" if is_rows else "check indentation and quotes"
        raise ConfigError(f"{path} is not YAML: {problem}", where=where, fix=fix) from None
    _refuse_twice(entries)
    return entries


def _entries(loader: Any, node: Any, path: str, lines: list[str], rooms: set[str], inside: str = "") -> list[Entry]:
    """The entries of a mapping, those of rooms in place."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        where = f"{path}:{node.start_mark.line + 1}"
        what = f"{inside} holds settings, one a line" if inside else f"{path} must be settings, one a line"
        raise ConfigError(what, where=where, fix="write `key: value`, flat or under a room's name")
    loader.flatten_mapping(node)  # <<: *base
    found: list[Entry] = []
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            where = f"{path}:{key_node.start_mark.line + 1}"
            raise ConfigError("a key of the file is no word", where=where, fix="write `key: value`")
        name = str(loader.construct_object(key_node)).replace("-", "_")
        if not inside and _is_role(value_node):
            found += _of_role(name, _entries(loader, value_node, path, lines, rooms, inside=name))
            continue
        if name in rooms and not inside and isinstance(value_node, yaml.MappingNode):
            found += _entries(loader, value_node, path, lines, rooms, inside=name)
            continue
        line: int = key_node.start_mark.line
        value = loader.construct_object(value_node, deep=True)
        found.append(Entry(name, value, f"{path}:{line + 1}  {lines[line].strip()}", from_file=True, room=inside))
    return found


def _is_role(node: Any) -> bool:
    return any(getattr(key, "value", None) == "gpus" for key, _ in node.value) if node.id == "mapping" else False


def _of_role(role: str, entries: list[Entry]) -> list[Entry]:
    for entry in entries:
        entry.room = ""
        if role == "teacher" or entry.name == "gpus":
            entry.name = f"{role}.{entry.name}"
    return entries


def _refuse_twice(entries: list[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in first:
            where = f"{first[entry.name].where}, {entry.where}"
            raise ConfigError(f"{entry.name} is given twice", where=where, fix="keep one of the two")
        first[entry.name] = entry
