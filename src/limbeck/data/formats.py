"""Any known row -> Example: what comes before the response, the response, and every other column.

`FORMATS` is the one table of row formats. To add one, write a reader and a line of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.data.turns import Message, RowError, brief, message, text, tools, turns


@dataclass(frozen=True, slots=True)
class Example:
    """One row, whatever it looked like on disk.

    prompt:   messages, or raw text (a user message where the tokenizer has a chat template); ends before the response.
    response: the message after the prompt (the last assistant turn), raw text after a raw prompt, or None: prompt only.
    columns:  every column that is not part of the conversation; "dataset" is always there.
    origin:   "file.jsonl:12" or "hub/id[train]:12".
    kind:     the name of the format that it was read by.
    """

    prompt: tuple[Message, ...] | str
    response: tuple[Message, ...] | str | None
    columns: dict[str, Any]
    origin: str
    kind: str = ""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation as messages, raw text taken as one user and one assistant turn."""
        prompt = (message("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt
        if self.response is None:
            return prompt
        response = (message("assistant", self.response),) if isinstance(self.response, str) else self.response
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
    a message or as a `system` column. Raises RowError naming the row, the
    columns found and the fix.
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
            fix=f"name them as one of: {'; '.join(f.name for f in FORMATS)}; --columns "
            '\'{"question": "query", "answer": "response"}\' renames them',
        )
    try:
        prompt, response = kind.read(present)
        prompt, response = _split(prompt, response, system=_system(present, system))
        own_tools = tools(present.get("tools", []))
    except RowError as error:
        where = f"{origin}  columns: {', '.join(present)}" + (f"; {error.where}" if error.where else "")
        raise RowError(error.what, where=where, fix=error.fix) from None
    used = {*kind.keys, *kind.optional, "system"}
    columns = {key: value for key, value in row.items() if key not in used}
    if columns.get("dataset") is None:
        columns["dataset"] = tag
    if row.get("tools") is not None:
        columns["tools"] = own_tools
    return Example(prompt, response, columns, origin, kind.name)


def rename_columns(row: Any, rename: Mapping[str, str], origin: str) -> Any:
    """The row with its columns renamed (old name -> new); what is no row is left for `to_example` to refuse.
    Raises RowError where two columns that are there would have one name."""
    if not rename or not isinstance(row, dict):
        return row
    renamed: dict[str, Any] = {}
    for key, value in row.items():
        name = rename.get(str(key), str(key))
        if renamed.get(name) is not None and value is not None:
            raise RowError(
                "two columns of one name after --columns",
                where=f"{origin}  columns: {', '.join(map(str, row))}; {name} twice",
                fix="leave that column out of --columns, or rename the other one too",
            )
        renamed[name] = value if value is not None else renamed.get(name)
    return renamed


# ---------------------------------------------------------------- readers


def _messages(row: dict[str, Any]) -> Conversation:
    return _cut(turns(row["messages"], "messages"))


def _conversations(row: dict[str, Any]) -> Conversation:
    """ShareGPT: turns of from and value, of role and content, or (ms-swift) pairs of human and assistant."""
    key = "conversations" if "conversations" in row else "conversation"
    value = row[key]
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict) and "human" in first:
        return _cut(turns([turn for at, pair in enumerate(value) for turn in _pair(pair, f"{key}[{at}]")], key))
    if isinstance(first, dict) and "role" in first:
        return _cut(turns(value, key))
    return _cut(turns(value, key, role="from", content="value"))


def _pair(pair: Any, place: str) -> list[Message]:
    if not isinstance(pair, dict) or "human" not in pair:
        raise RowError(
            "a turn has no human side",
            where=f"{place} is {brief(pair)}",
            fix='write each turn as {"human": "...", "assistant": "..."}',
        )
    sides = (("user", pair["human"]), ("assistant", pair.get("assistant")))
    return [message(role, words) for role, words in sides if words is not None]


def _cut(messages: list[Message]) -> Conversation:
    if messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1:]
    return messages, None


def _prompt_completion(row: dict[str, Any]) -> Conversation:
    return _side(row["prompt"], "prompt"), _side(row["completion"], "completion")


def _prompt(row: dict[str, Any]) -> Conversation:
    return _side(row["prompt"], "prompt"), None


def _query_response(row: dict[str, Any]) -> Conversation:
    query = text(row["query"], "query")
    response = text(row["response"], "response") if "response" in row else None
    past = row.get("history") or []
    if not past:
        return query, response
    if not isinstance(past, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in past):
        raise RowError("history is not a list of pairs", fix='write it as [["question", "answer"], ...]')
    said = [
        message(role, text(words, "history"))
        for pair in past
        for role, words in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*said, message("user", query)], response


def _instruction_output(row: dict[str, Any]) -> Conversation:
    task, data = text(row["instruction"], "instruction"), text(row.get("input", ""), "input")
    prompt = "\n".join(part for part in (task, data) if part)
    return prompt, text(row["output"], "output") if "output" in row else None


FORMATS: tuple[Format, ...] = (
    Format("messages", ("messages",), _messages),
    Format("conversations", ("conversations",), _conversations),
    Format("conversation", ("conversation",), _conversations),
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

    said = [message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    if system is not None and not any(turn["role"] == "system" for turn in said):
        said.insert(0, message("system", system))
    if response is None:
        return _prompt_only(said), None

    said += [message("assistant", response)] if isinstance(response, str) else response
    last = said.pop()
    if last["role"] != "assistant":
        raise RowError(
            "the completion does not end with an assistant message", fix='end it with {"role": "assistant", ...}'
        )
    if not last["content"].strip() and not last.get("tool_calls"):
        raise _empty_response()
    if not said:
        raise RowError("nothing comes before the response", fix="begin the conversation with a user message")
    return tuple(said), (last,)


def _prompt_only(said: list[Message]) -> tuple[Message, ...]:
    if said[-1]["role"] not in ("user", "tool"):
        raise RowError(
            f"the prompt ends with the role {said[-1]['role']!r}",
            fix='end it with a user (or tool) message; a response belongs in "completion" or at the end of "messages"',
        )
    if not any(turn["content"].strip() for turn in said if turn["role"] != "system"):
        raise RowError("empty prompt", fix="give the prompt some text")
    return tuple(said)


def _empty_response() -> RowError:
    return RowError("empty response", fix="write a response, or leave it out for a row that is a prompt only")


def _system(row: dict[str, Any], default: str | None) -> str | None:
    """The row's own `system` column, or the run's default; an empty one is none (and says: no default either)."""
    own = row.get("system")
    return (default if own is None else text(own, "system")) or None


def _side(value: Any, key: str) -> Side:
    return text(value, key) if isinstance(value, str) else turns(value, key)
