"""argv + YAML -> the command's configuration: default < YAML < flag.

`--flag`, `--flag value`, `--flag=value` and `--flag a b` for lists; dashes and underscores are the same; the first
positional argument, or `--config FILE`, may be a YAML file, flat or by room. The fields of the models are the flags:
there is no other list.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from limbeck.config import swift, trl
from limbeck.config.base_model import name_base
from limbeck.config.commands import ALL, COMMANDS, Command
from limbeck.config.faults import refusal
from limbeck.config.room import Room
from limbeck.config.schema import Run
from limbeck.config.yaml_file import Entry, read_yaml
from limbeck.errors import ConfigError, LimbeckError

Kind = Literal["switch", "list", "table", "value"]


@dataclass(frozen=True, slots=True)
class Flag:
    """A field as the command line sees it."""

    name: str
    room: str
    info: FieldInfo
    kind: Kind
    choices: tuple[str, ...]
    optional: bool


@dataclass(slots=True)
class Parsed:
    """What the command line came to.

    where: flag -> how and where it was given ("run.yaml:7  beta: 3" or "--beta 3"), for errors found later.
    notes: what the user should know about flags that were renamed or have no effect.
    """

    config: Room
    where: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])

    @property
    def debug(self) -> bool:
        """Whether tracebacks are asked for."""
        run: object = getattr(self.config, "run", None)
        return isinstance(run, Run) and run.debug


SKIPPED = 4  # keys of a file that are named where a command does not use them
LINES = 3  # lines of a file that an error repeats whole


def parse(command: str, argv: Sequence[str]) -> Room:
    """The configuration of `limbeck COMMAND *argv`, of the class that `COMMANDS` names. Raises ConfigError."""
    return read(command, argv).config


def read(command: str, argv: Sequence[str]) -> Parsed:
    """As `parse`, with where every value stands and what there is to say about it. Raises ConfigError."""
    spec = COMMANDS[command]
    flags = all_flags() | flags_of(spec.config)
    read_here = {name for name, flag in flags.items() if reads(spec, flag)}
    if spec.positional and argv and not argv[0].startswith("-"):
        argv = [f"--{spec.positional}", *argv]
    path, tokens = _yaml_of(argv)
    entries = read_yaml(path, {flag.room for flag in flags.values()}) if path else []
    given: dict[str, Any] = dict(spec.presets)
    parsed = Parsed(spec.config.model_construct())
    skipped: list[str] = []
    refused: list[tuple[Entry, swift.Refused]] = []
    unused: list[tuple[Entry, Flag]] = []
    for entry in [*sorted(entries, key=lambda entry: entry.name in spec.aliases), *_from_flags(tokens)]:
        if not _by_our_name(entry, spec, parsed.notes):
            continue
        name = entry.name if entry.name in flags else _from_swift(entry, flags, spec, parsed.notes, refused)
        if name is None:
            continue
        _check_room(entry, name, flags[name])
        if name not in read_here:
            if not entry.from_file:
                if isinstance(known := swift.lookup(name), swift.Refused):  # told together with the others
                    refused.append((entry, known))
                    continue
                unused.append((entry, flags[name]))
                continue
            if entry.value != spec.presets.get(name, _default(flags[name])):
                skipped.append(name)
            continue
        given[name] = _value(entry, flags[name])
        if not entry.from_file and parsed.where.get(name, "").startswith("--"):
            parsed.notes.append(f"--{name} is given twice, and the last one counts: {entry.where}")
        parsed.where[name] = entry.where
    if refused or unused:
        raise _refusals(refused, unused, spec)
    if skipped:
        more = f" and {len(skipped) - SKIPPED} other keys" if len(skipped) > SKIPPED + 1 else ""
        named = ", ".join(skipped[:SKIPPED] if more else skipped)
        parsed.notes.append(f"limbeck {command} does not use {named}{more} of {path}")
    parsed.notes += name_base(given, parsed.where) if "adapters" in read_here else []
    parsed.notes += name_base(given, parsed.where, of="other_") if given.get("other_model") else []  # alone: on --model
    _require(spec, given)
    parsed.config = _build(spec, flags, given, parsed.where)
    return parsed


def to_yaml(config: Room) -> str:
    """The whole configuration by room; parsing it again gives an equal one."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def located(error: LimbeckError, where: dict[str, str]) -> LimbeckError:
    """The same error, its flags' values replaced by the place where they were given."""
    names = list(dict.fromkeys(re.findall(r"--([a-z_]+)", error.where)))
    places = [where[name] for name in names if name in where]
    if not error.where.startswith("--") or not places:
        return error
    return type(error)(error.what, where=", ".join(places), fix=error.fix)


def flags_of(config: type[Room]) -> dict[str, Flag]:
    """Every field of every room, by name. Names are unique over the rooms, which the tests check."""
    found: dict[str, Flag] = {}
    for room_name, room in rooms_of(config).items():
        for name, info in room.model_fields.items():
            arms = list(_arms(info.annotation))
            inner = [part for arm in arms if get_origin(arm) is list for part in _arms(get_args(arm)[0])]
            literals = [arm for arm in [*arms, *inner] if get_origin(arm) is Literal]
            choices = tuple(str(value) for arm in literals for value in get_args(arm))
            found[name] = Flag(name, room_name, info, _kind(arms), choices, type(None) in arms)
    return found


def all_flags() -> dict[str, Flag]:
    """Every flag of every command."""
    return {name: flag for command in COMMANDS.values() for name, flag in flags_of(command.config).items()}


def rooms_of(config: type[Room]) -> dict[str, type[Room]]:
    """The rooms of a command's configuration, by name."""
    return {
        name: info.annotation
        for name, info in config.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Room)
    }


def reads(spec: Command, flag: Flag) -> bool:
    """Whether the command reads this field."""
    names = spec.fields.get(flag.room, ())
    return names == ALL or flag.name in names


def _arms(annotation: Any) -> Iterable[Any]:
    """The alternatives of a type, with Annotated and unions taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _arms(get_args(annotation)[0])
    elif origin is Union or str(origin) == "<class 'types.UnionType'>":
        for arm in get_args(annotation):
            yield from _arms(arm)
    else:
        yield annotation


def _kind(arms: Sequence[Any]) -> Kind:
    if bool in arms:
        return "switch"
    origins = {get_origin(arm) for arm in arms}
    return "list" if list in origins else "table" if dict in origins else "value"


def _yaml_of(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The YAML file, which comes first or after --config as ms-swift and TRL have it; and the other words."""
    rest = list(argv)
    paths = [rest.pop(0)] if rest and not rest[0].startswith("-") else []
    while at := next((i for i, word in enumerate(rest, 1) if word.partition("=")[0] == "--config"), 0):
        _, equals, value = rest.pop(at - 1).partition("=")
        if not equals:
            value = rest.pop(at - 1) if rest[at - 1 :] and not rest[at - 1].startswith("-") else ""
        if not value:
            raise ConfigError("--config needs a value", where="--config", fix="write --config run.yaml")
        paths.append(value)
    if len(paths) > 1:
        fix = "put their settings into one file, or give some of them as flags"
        raise ConfigError(f"one YAML file at most, and {len(paths)} are given", where=" ".join(paths), fix=fix)
    return next(iter(paths), ""), rest


def _from_flags(tokens: Sequence[str]) -> list[Entry]:
    """Splits the command line at its flags. A negative number is a value."""
    entries: list[Entry] = []
    words: list[str] = []
    for token in tokens:
        if re.match(r"--?[A-Za-z]", token):
            flag, equals, value = token.partition("=")
            words = [value] if equals else []
            entries.append(Entry(flag.lstrip("-").replace("-", "_"), words, token))
        elif re.match(r"--(=|$)", token):
            raise ConfigError(f"{token} names no flag", where=token, fix="write --flag value, or leave it out")
        elif not entries:
            fix = "a YAML file must come first, before the flags" if token != tokens[0] else "write --flag value"
            raise ConfigError(f"unexpected argument {token}", where=token, fix=fix)
        else:
            words.append(token)
    for entry in entries:
        entry.where = " ".join([f"--{entry.name}", *entry.value])
    return entries


def _by_our_name(entry: Entry, spec: Command, notes: list[str]) -> bool:
    """Gives an alias of the command its field's name, and says so; False for one that sets nothing."""
    ours = spec.aliases.get(entry.name)
    if ours is None:
        return True
    if entry.value and not entry.name.endswith(ours):  # --val_dataset is --dataset for whoever has one data set
        notes.append(f"--{entry.name} is --{ours} {_text(entry.value)} here")
    entry.name = ours
    return bool(entry.value)


def _from_swift(
    entry: Entry, flags: dict[str, Flag], spec: Command, notes: list[str], refused: list[tuple[Entry, swift.Refused]]
) -> str | None:
    """The field that a flag of ms-swift sets; None for one that sets nothing. Says so in `notes` or `refused`."""
    name, text = entry.name, _text(entry.value)
    if name not in swift.FLAGS and (instead := trl.instead(name)):
        refused.append((entry, swift.Refused(instead)))
        return None
    match swift.lookup(name):
        case swift.Renamed(to=to, values=values) if to in flags:
            if (ours := values.get(text.lower())) == "":
                return None
            if ours is not None:
                entry.value = ours if entry.from_file else [ours]
            notes.append(f"{swift.spelled(name)} is --{to} {_text(entry.value)} here".rstrip())
            return to
        case swift.NotNeeded(why=why, off=off):
            if text.lower() not in off:
                notes.append(f"{swift.spelled(name)} has no effect: {why}")
            return None
        case swift.Refused() as known:
            if text.lower() not in known.off:
                refused.append((entry, known))
            return None
        case _:
            raise _unknown(entry, flags, spec)


def _check_room(entry: Entry, name: str, flag: Flag) -> None:
    """Raises ConfigError for a key of the file under a room that is not its own, in this command or another."""
    if entry.room in ("", flag.room):
        return
    homes = {known[name].room for spec in COMMANDS.values() if name in (known := flags_of(spec.config))}
    if entry.room not in homes:
        what = f"{entry.name} does not belong under {entry.room}"
        raise ConfigError(what, where=entry.where, fix=f"put it under {flag.room}, or leave the rooms out")


def _refusals(
    refused: Sequence[tuple[Entry, swift.Refused]], unused: Sequence[tuple[Entry, Flag]], spec: Command
) -> ConfigError:
    """All of them at once: who brings a command from ms-swift does not want to meet them one by one."""
    advice: dict[str, list[str]] = {}
    for entry, instead in [*((e, r.instead) for e, r in refused), *((e, _elsewhere(flag)) for e, flag in unused)]:
        advice.setdefault(instead, []).append(swift.spelled(entry.name))
    of_trl = [e for e, _ in refused if e.name not in swift.FLAGS and trl.instead(e.name)]
    whats: list[str] = []
    for entries, one, more in (
        ([e for e, _ in refused if e not in of_trl], "is a flag of ms-swift", "are flags of ms-swift"),
        (of_trl, "is a name of TRL's", "are names of TRL's"),
    ):
        names = [swift.spelled(entry.name) for entry in entries]
        whats += [f"{', '.join(names)} {one if len(names) == 1 else more} that Limbeck has not"] if names else []
    idle = ", ".join(f"--{entry.name}" for entry, _ in unused)
    whats += [f"limbeck {spec.name} does not use {idle}"] if idle else []
    each = [f"{', '.join(names)}: {instead}" for instead, names in advice.items()]
    fix = next(iter(advice)) if len(advice) == 1 else "\n         ".join(each)
    return ConfigError("; ".join(whats), where=_places([entry for entry, _ in [*refused, *unused]]), fix=fix)


def _places(entries: Sequence[Entry]) -> str:
    """Where they stand; many lines of a file by their numbers, since what they say is in the error already."""
    lines = [entry for entry in entries if entry.from_file]
    if len(lines) <= LINES:
        return ", ".join(entry.where for entry in entries)
    path = lines[0].where.partition(":")[0]
    numbers = ", ".join(entry.where.removeprefix(f"{path}:").partition(" ")[0] for entry in lines)
    return ", ".join([f"{path}:{numbers}", *(entry.where for entry in entries if not entry.from_file)])


def _unknown(entry: Entry, flags: dict[str, Flag], spec: Command) -> ConfigError:
    known = [name for name, flag in flags.items() if reads(spec, flag)]
    rooms = list(rooms_of(spec.config)) if entry.from_file else []
    near = difflib.get_close_matches(entry.name, known + rooms, n=1, cutoff=0.6)
    kind, dashes = ("key", "") if entry.from_file else ("flag", "--")
    fix = f"did you mean {dashes}{near[0]}?" if near else f"see `limbeck {spec.name} --help` for all that there are"
    return ConfigError(f"unknown {kind} {dashes}{entry.name}", where=entry.where, fix=fix)


def _elsewhere(flag: Flag) -> str:
    """What to do with a flag that the command does not use."""
    others = [f"`limbeck {other.name}`" for other in COMMANDS.values() if reads(other, flag)]
    return (
        f"leave it out ({', '.join(others)} {'uses' if len(others) == 1 else 'use'} it)" if others else "leave it out"
    )


def _default(flag: Flag) -> object:
    """The default as a YAML file spells it."""
    value: object = flag.info.get_default(call_default_factory=True, validated_data={})
    return str(value) if isinstance(value, Path) else value


def _text(value: Any) -> str:
    return " ".join(str(word) for word in value) if isinstance(value, list) else str(value)  # type: ignore[misc]


def _value(entry: Entry, flag: Flag) -> Any:
    """The value for pydantic to check: words of the command line become what the field's kind asks for."""
    if entry.from_file:
        if isinstance(entry.value, bool) and {int, float} & set(_arms(flag.info.annotation)):  # Python's True is a 1
            raise ConfigError(f"--{flag.name} is not a number", where=entry.where, fix="give a number such as 4")
        return _spelled(flag.name, entry.value)
    words: list[str] = entry.value
    if flag.kind == "switch" and not words:
        return True
    if len(words) > (flag.kind != "switch") and words[-1].endswith((".yaml", ".yml")):
        fix = f"a YAML file must come first, before the flags: limbeck COMMAND {words[-1]} ..."
        raise ConfigError(f"--{flag.name} got a YAML file as well", where=entry.where, fix=fix)
    if flag.kind == "list":
        own = str in _arms(flag.info.annotation)  # a name or a list: the field's own validator tells
        return _json(entry, list) if len(words) == 1 and words[0].startswith("[") and not own else words
    if not words:
        raise ConfigError(f"--{flag.name} needs a value", where=entry.where, fix=_example(flag))
    if len(words) > 1:
        text = str in _arms(flag.info.annotation)
        fix = f'put a value with spaces in quotes: --{flag.name} "{" ".join(words)}"' if text else _example(flag)
        raise ConfigError(f"--{flag.name} takes one value and got {len(words)}", where=entry.where, fix=fix)
    if flag.kind == "table":
        return _json(entry, dict)
    if flag.optional and words[0].lower() in ("none", "null") and str not in _arms(flag.info.annotation):
        return None
    return _spelled(flag.name, words[0])


def _spelled(name: str, value: Any) -> Any:
    return swift.VALUES.get((name, value), value) if isinstance(value, str) else value


def _json(entry: Entry, kind: type) -> Any:
    try:
        value = json.loads(entry.value[0])
    except json.JSONDecodeError:
        value = None
    if isinstance(value, kind):
        return value
    shape = {dict: '\'{"question": "query"}\'', list: '\'["a", "b"]\''}[kind]
    example = "'{\"min_lr\": 1e-6}'" if entry.name == "lr_scheduler_kwargs" else shape
    wrong = "not JSON" if value is None else f"no JSON {'object' if kind is dict else 'list'}"
    what = f"--{entry.name} is {wrong}"
    raise ConfigError(what, where=entry.where, fix=f"write it as --{entry.name} {example}")


def _example(flag: Flag) -> str:
    if flag.choices:
        return f"choose one of: {', '.join(flag.choices)}"
    return f"write --{flag.name} VALUE"


def _require(spec: Command, given: dict[str, Any]) -> None:
    for name, example in spec.required.items():
        if given.get(name) in (None, [], ""):
            raise ConfigError(f"limbeck {spec.name} needs --{name}", where=f"limbeck {spec.name}", fix=f"add {example}")


def _build(spec: Command, flags: dict[str, Flag], given: dict[str, Any], where: dict[str, str]) -> Room:
    rooms: dict[str, dict[str, Any]] = {name: {} for name in rooms_of(spec.config)}
    for name, value in given.items():
        rooms[flags[name].room][name] = value
    try:
        return spec.config.model_validate(rooms)
    except ValidationError as error:
        raise refusal(error, where, {name: flag.choices for name, flag in flags.items()}) from None
