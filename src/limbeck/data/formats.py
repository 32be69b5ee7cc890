"""Any known row -> Example: what comes before the response, the response, and every other column.

`FORMATS` is the one table of row formats. To add one, write a reader and a line of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import DataError

Message = dict[str, Any]
"""One turn: "role" (of `ROLES`), "content" (a string), and whatever else the template reads (tool calls, ...)."""

ROLES = ("system", "user", "assistant", "tool")


class RowError(DataError):
    """One row's fault. `what` is short and free of the row's own values, so that rows can be counted by it."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row, whatever it looked like on disk.

    prompt:   messages, or raw text (a user message where the tokenizer has a chat template); ends before the response.
    response: the message after the prompt (the last assistant turn), raw text after a raw prompt, or None: prompt only.
    columns:  every column that is not part of the conversation; "dataset" is always there.
    origin:   "file.jsonl:12" or "hub/id[train]:12".
    """

    prompt: tuple[Message, ...] | str
    response: tuple[Message, ...] | str | None
    columns: dict[str, Any]
    origin: str

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation as messages, raw text taken as one user and one assistant turn."""
        prompt = (_message("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt
        if self.response is None:
            return prompt
        response = (_message("assistant", self.response),) if isinstance(self.response, str) else self.response
        return prompt + response


Side = str | list[Message]
Conversation = tuple[Side, Side | None]  # what the row gives as prompt, and as response


@dataclass(frozen=True, slots=True)
class Format:
    """keys: columns that must be there for a row to be read this way; optional: columns read as well when there."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[dict[str, Any]], Conversation]
    optional: tuple[str, ...] = ()


def to_example(row: Any, *, origin: str, tag: str, system: str | None = None) -> Example:
    """Read one row by the first format of `FORMATS` whose columns it has (a column that is None counts as absent).

    tag is the `dataset` column of rows that have none. system is the system prompt of rows that have none, whether as
    a message or as a `system` column. Raises RowError naming the row, the columns found and the fix.
    """
    if not isinstance(row, dict):
        raise RowError(
            "row is not an object",
            where=f"{origin}  ({type(row).__name__})",
            fix='write each row as an object, such as {"messages": [...]}',
        )
    row = {str(key): value for key, value in row.items()}
    present = {key: value for key, value in row.items() if value is not None}
    kind = next((f for f in FORMATS if all(key in present for key in f.keys)), None)
    if kind is None:
        raise RowError(
            "row has no known columns",
            where=f"{origin}  columns: {', '.join(present) or 'none'}",
            fix=f"name them as one of: {'; '.join(f.name for f in FORMATS)}",
        )
    try:
        prompt, response = kind.read(present)
        prompt, response = _split(prompt, response, system=_system(present, system))
    except RowError as error:
        where = f"{origin}  columns: {', '.join(present)}" + (f"; {error.where}" if error.where else "")
        raise RowError(error.what, where=where, fix=error.fix) from None
    used = {*kind.keys, *kind.optional, "system"}
    columns = {key: value for key, value in row.items() if key not in used}
    if columns.get("dataset") is None:
        columns["dataset"] = tag
    return Example(prompt, response, columns, origin)


# ---------------------------------------------------------------- readers


def _messages(row: dict[str, Any]) -> Conversation:
    messages = _turns(row["messages"], "messages")
    if messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1:]
    return messages, None


def _prompt_completion(row: dict[str, Any]) -> Conversation:
    return _side(row["prompt"], "prompt"), _side(row["completion"], "completion")


def _prompt(row: dict[str, Any]) -> Conversation:
    return _side(row["prompt"], "prompt"), None


def _query_response(row: dict[str, Any]) -> Conversation:
    query = _text(row["query"], "query")
    response = _text(row["response"], "response") if "response" in row else None
    past = row.get("history") or []
    if not past:
        return query, response
    if not isinstance(past, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in past):
        raise RowError("history is not a list of pairs", fix='write it as [["question", "answer"], ...]')
    turns = [
        _message(role, _text(text, "history"))
        for pair in past
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*turns, _message("user", query)], response


def _instruction_output(row: dict[str, Any]) -> Conversation:
    task, data = _text(row["instruction"], "instruction"), _text(row.get("input", ""), "input")
    prompt = "\n".join(part for part in (task, data) if part)
    return prompt, _text(row["output"], "output") if "output" in row else None


FORMATS: tuple[Format, ...] = (
    Format("messages", ("messages",), _messages),
    Format("prompt + completion", ("prompt", "completion"), _prompt_completion),
    Format("prompt", ("prompt",), _prompt),
    Format("query + response", ("query",), _query_response, optional=("response", "history")),
    Format("instruction + input + output", ("instruction",), _instruction_output, optional=("input", "output")),
)


# ---------------------------------------------------------------- pieces


def _split(
    prompt: Side, response: Side | None, *, system: str | None
) -> tuple[tuple[Message, ...] | str, tuple[Message, ...] | str | None]:
    """Both sides as an Example holds them: raw text where nothing needs messages, else cut before the last turn."""
    if isinstance(prompt, str) and not isinstance(response, list) and system is None:
        if response is None and not prompt.strip():
            raise RowError("empty prompt", fix="give the prompt some text")
        if response is not None and not response.strip():
            raise _empty_response()
        return prompt, response

    turns = [_message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    if system is not None and not any(turn["role"] == "system" for turn in turns):
        turns.insert(0, _message("system", system))
    if response is None:
        return _prompt_only(turns), None

    turns += [_message("assistant", response)] if isinstance(response, str) else response
    last = turns.pop()
    if last["role"] != "assistant":
        raise RowError(
            "the completion does not end with an assistant message", fix='end it with {"role": "assistant", ...}'
        )
    if not last["content"].strip() and not last.get("tool_calls"):
        raise _empty_response()
    if not turns:
        raise RowError("nothing comes before the response", fix="begin the conversation with a user message")
    return tuple(turns), (last,)


def _prompt_only(turns: list[Message]) -> tuple[Message, ...]:
    if turns[-1]["role"] not in ("user", "tool"):
        raise RowError(
            f"the prompt ends with the role {turns[-1]['role']!r}",
            fix='end it with a user (or tool) message; a response belongs in "completion" or at the end of "messages"',
        )
    if not any(turn["content"].strip() for turn in turns if turn["role"] != "system"):
        raise RowError("empty prompt", fix="give the prompt some text")
    return tuple(turns)


def _empty_response() -> RowError:
    return RowError("empty response", fix="write a response, or leave it out for a row that is a prompt only")


def _system(row: dict[str, Any], default: str | None) -> str | None:
    """The row's own `system` column, or the run's default; an empty one is none (and says: no default either)."""
    own = row.get("system")
    return (default if own is None else _text(own, "system")) or None


def _side(value: Any, key: str) -> Side:
    return _text(value, key) if isinstance(value, str) else _turns(value, key)


def _turns(value: Any, key: str) -> list[Message]:
    """A column's list of messages, checked. Fields that are None go: Arrow files fill in what a message lacks."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowError(
            f"{key} is neither text nor a list of messages" if key != "messages" else "messages is not a list",
            where=f"{key} is {type(value).__name__}",
            fix=f'write "{key}" as [{{"role": "user", "content": "..."}}, ...]',
        )
    if not value:
        raise RowError(f"{key} is an empty list", fix="give it at least one user message")
    return [_turn(turn, f"{key}[{at}]") for at, turn in enumerate(value)]


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict) or "role" not in turn:
        raise RowError(
            "a message has no role",
            where=f"{place} is {_brief(turn)}",
            fix='write each message as {"role": "user", "content": "..."}',
        )
    message = {key: value for key, value in turn.items() if value is not None}
    if message.get("role") not in ROLES:
        raise RowError(
            "a message has an unknown role", where=f"{place} has {turn['role']!r}", fix=f"use one of {', '.join(ROLES)}"
        )
    if "content" not in message and message.get("tool_calls"):
        message["content"] = ""
    message["content"] = _text(message.get("content"), f"{place} content")
    return message


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise RowError(
            "text expected, something else found",
            where=f"{place} is {_brief(value)}",
            fix="write it as a string (quotes around numbers; text parts joined to one string)",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError("text with half a surrogate pair", where=place, fix="write the row again as UTF-8") from None
    return value


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _brief(value: Any) -> str:
    text = f"{type(value).__name__} {value!r}" if value is not None else "missing"
    return text if len(text) <= 60 else text[:57] + "..."
