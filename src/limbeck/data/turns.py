"""A conversation's turns as any of the known formats writes them -> messages that a chat template reads.

ms-swift writes a call as a turn of its own (`tool_call`), OpenAI as a field of the assistant's (`tool_calls`) with its
arguments as JSON text, ShareGPT names the roles otherwise. Here all become the second, with arguments as a mapping.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from limbeck.errors import DataError

Message = dict[str, Any]
"""One turn: "role" (of `ROLES`), "content" (a string), perhaps "loss" (whether the turn is trained, for assistant
turns), and whatever else the template reads (tool calls, ...)."""

ROLES = ("system", "user", "assistant", "tool")
CALL = "tool_call"  # an assistant turn of which the content is the call
OTHER_ROLES = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool_call": CALL,
    "function_call": CALL,
    "tool_response": "tool",
    "function": "tool",
    "observation": "tool",
}
TRUE, FALSE = (True, 1, "true", "True", "1"), (False, 0, "false", "False", "0")


class RowError(DataError):
    """One row's fault. `what` is short and free of the row's own values, so that rows can be counted by it."""


def turns(value: Any, key: str, *, role: str = "role", content: str = "content") -> list[Message]:
    """A column's list of messages, checked. Fields that are None go: Arrow files fill in what a message lacks.

    role, content: the fields that hold them. Raises RowError.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowError(
            f"{key} is neither text nor a list of messages"
            if key in ("prompt", "completion")
            else f"{key} is not a list",
            where=f"{key} is {type(value).__name__}",
            fix=("write it as text in quotes, or" if key in ("prompt", "completion") else f'write "{key}"')
            + f' as [{{"{role}": "user", "{content}": "..."}}, ...]',
        )
    if not value:
        raise RowError(f"{key} is an empty list", fix="give it at least one user message")
    return _joined([_turn(turn, f"{key}[{at}]", role, content) for at, turn in enumerate(value)])


def tools(value: Any) -> list[Any] | None:
    """The column `tools` as a list: written as one, or as JSON text (ms-swift). None where it is empty."""
    if isinstance(value, str):
        value = _json(value, "tools") if value.strip() else []
    if not isinstance(value, list):
        raise RowError(
            "tools is not a list",
            where=f"tools is {brief(value)}",
            fix='write tools as a list: [{"type": "function", "function": {...}}]',
        )
    return without_none(value) or None


def text(value: Any, place: str) -> str:
    """The value, which must be text that UTF-8 can hold; text parts (OpenAI) are joined. Raises RowError."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = "".join(_part(part, f"{place}[{at}]") for at, part in enumerate(value))
    if not isinstance(value, str):
        raise RowError(
            "text expected, something else found",
            where=f"{place} is {brief(value)}",
            fix="write it as a string (quotes around numbers; text parts joined to one string)",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError("text with half a surrogate pair", where=place, fix="write the row again as UTF-8") from None
    return value


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def brief(value: Any) -> str:
    shown = f"{type(value).__name__} {value!r}" if value is not None else "missing"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def without_none(value: Any) -> Any:
    """The value with all that is None left out: Arrow gives every call the arguments of all the others, as None."""
    if isinstance(value, dict):
        return {key: without_none(part) for key, part in value.items() if part is not None}
    return [without_none(part) for part in value] if isinstance(value, list) else value


def _turn(turn: Any, place: str, role: str, content: str) -> Message:
    if not isinstance(turn, dict) or role not in turn:
        raise RowError(
            "a message has no role",
            where=f"{place} is {brief(turn)}",
            fix=f'write each message as {{"{role}": "user", "{content}": "..."}}',
        )
    found = without_none(turn)
    named = found.pop(role, None)
    own = OTHER_ROLES.get(named, named) if isinstance(named, str) else named
    if own not in (*ROLES, CALL):
        raise RowError(
            "a message has an unknown role", where=f"{place} has {turn[role]!r}", fix=f"use one of {', '.join(ROLES)}"
        )
    said = found.pop(content, None)
    if own == CALL:
        return {"role": CALL, "content": "", "tool_calls": _calls(said, place)} | _loss(found, own, place)
    if said is None and found.get("tool_calls"):
        said = ""
    made = {"role": own, "content": text(said, f"{place} {content}")} | found
    if "tool_calls" in found:
        made["tool_calls"] = [_call(call, place) for call in _listed(found["tool_calls"])]
    return made | _loss(made, own, place)


def _joined(found: list[Message]) -> list[Message]:
    """Calls that follow one another, or the assistant's words before them, are one assistant turn."""
    joined: list[Message] = []
    for turn in found:
        last = joined[-1] if joined else None
        if turn["role"] == CALL:
            if last is not None and last["role"] == "assistant":
                joined[-1] = last | {"tool_calls": [*last.get("tool_calls", []), *turn["tool_calls"]]}
                if "loss" in turn:
                    joined[-1]["loss"] = turn["loss"]
                continue
            turn = turn | {"role": "assistant"}
        if turn["role"] == "tool" and (last is None or last["role"] not in ("assistant", "tool")):
            raise RowError(
                "a tool's answer that nobody asked for",
                where=f"it follows {'nothing' if last is None else 'the ' + last['role']}",
                fix="write the call before it: an assistant's turn, or one of the role tool_call",
            )
        joined.append(turn)
    return joined


def _loss(found: Message, role: str, place: str) -> Message:
    """Whether the turn is trained: `loss` (ms-swift), or `weight` 0 or 1 (OpenAI)."""
    name = next((name for name in ("loss", "weight") if name in found), None)
    if name is None:
        return {}
    value = found.pop(name)
    if value not in (*TRUE, *FALSE):
        raise RowError(
            f"a message's {name} is neither true nor false",
            where=f"{place} has {name} {brief(value)}",
            fix=f"write {name} as true or false",
        )
    if value in TRUE and role not in ("assistant", CALL):
        raise RowError(
            f"{name} is true on a message that is not the assistant's",
            where=f"{place} is the {role}'s",
            fix=f"leave {name} to assistant messages: a student learns what it is to write",
        )
    return {"loss": value in TRUE} if role in ("assistant", CALL) else {}


def _part(part: dict[str, Any], place: str) -> str:
    if isinstance(part.get("text"), str):
        return part["text"]
    raise RowError(
        "a message has a part that is not text",
        where=f"{place} is {brief(part.get('type'))}",
        fix="leave out rows with pictures or sound: text models only",
    )


def _calls(content: Any, place: str) -> list[Any]:
    """The calls of a `tool_call` turn: its content is one of them, or a list, perhaps as JSON text."""
    if isinstance(content, str):
        content = _json(content, f"{place} content")
    return [_call(call, place) for call in _listed(content)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _call(call: Any, place: str) -> dict[str, Any]:
    """A call as templates read it: {"type": "function", "function": {"name", "arguments"}}, arguments as a mapping."""
    inner = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowError(
            "a tool call has no name",
            where=f"{place} calls {brief(call)}",
            fix='write a call as {"name": "...", "arguments": {...}}',
        )
    arguments = inner.get("arguments", inner.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{place} arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise RowError(
            "the arguments of a tool call are not an object",
            where=f"{place} arguments are {brief(arguments)}",
            fix='write them as {"name": value}, or as JSON text of that',
        )
    outer = {"type": "function"} | ({key: call[key] for key in ("id",) if key in call})
    return outer | {"function": {"name": inner["name"], "arguments": arguments}}


def _json(value: str, place: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(
            "tools or tool calls that are not JSON",
            where=f"{place}: {getattr(error, 'msg', error)} at column {getattr(error, 'colno', 1)}",
            fix="write them as JSON, with double quotes",
        ) from None
