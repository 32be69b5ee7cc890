"""What the teacher reads that the student does not: a `teacher_prompt`, in place of the last user message (OPSD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from limbeck.data.formats import Example
from limbeck.data.rendered import Rendered
from limbeck.data.turns import ROLES, RowError
from limbeck.errors import ConfigError, DataError


def privileged(example: Example) -> Example | None:
    """The row as its teacher reads it: the last user message of the prompt says `teacher_prompt` instead, or all of the
    prompt does, where that is a list of messages. None for a row without one. Raises RowError."""
    told: Any = example.columns.get("teacher_prompt")
    if told is None or told in ("", []):
        return None
    if isinstance(told, list):
        return replace(example, prompt=_messages(cast(list[Any], told), example.origin))
    if not isinstance(told, str):
        raise RowError(
            f"teacher_prompt is neither text nor messages but {type(told).__name__}",
            where=example.origin,
            fix="write what the teacher reads in place of the last user message",
        )
    if isinstance(example.prompt, str):
        return replace(example, prompt=told)
    at = max((i for i, message in enumerate(example.prompt) if message["role"] == "user"), default=None)
    if at is None:
        raise RowError(
            "teacher_prompt replaces the last user message, and the prompt has none",
            where=example.origin,
            fix="give teacher_prompt as whole messages, or the row a user message",
        )
    turn = example.prompt[at] | {"content": told}
    return replace(example, prompt=(*example.prompt[:at], turn, *example.prompt[at + 1 :]))


def _messages(told: list[Any], origin: str) -> tuple[dict[str, Any], ...]:
    for message in told:
        if not (isinstance(message, dict) and isinstance(message.get("content"), str) and message.get("role") in ROLES):
            raise RowError(
                "teacher_prompt is no list of messages",
                where=origin,
                fix='write it as text, or as messages: [{"role": "user", "content": "..."}]',
            )
    return tuple(told)


def with_template(examples: Sequence[Example], template: str) -> list[Example]:
    """Examples whose `teacher_prompt` is the template filled in: Jinja over the row's columns, and besides `prompt`
    (the last user message), `response` (the row's own answer, empty where there is none) and `messages`.

    Raises ConfigError for a template that is not valid, DataError for a row that lacks what it names.
    """
    try:
        compiled = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
            template
        )
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"--teacher_prompt_template is not valid Jinja: {error}",
            where=f"--teacher_prompt_template {template!r}",
            fix="write it as '{{ prompt }} Here is a solution: {{ solution }}'",
        ) from error
    return [replace(e, columns=e.columns | {"teacher_prompt": _filled(compiled, e)}) for e in examples]


def _filled(template: jinja2.Template, example: Example) -> str:
    prompt, response = example.prompt, example.response
    asked = [m["content"] for m in prompt if m["role"] == "user"] if not isinstance(prompt, str) else [prompt]
    answer = response if isinstance(response, str) else response[-1]["content"] if response else ""
    given = {"prompt": asked[-1] if asked else "", "response": answer, "messages": example.messages}
    try:
        return template.render(example.columns | given)
    except Exception as error:  # a template is a program of the user's: whatever it comes to is told as such
        names = ", ".join(sorted({*example.columns, *given}))
        raise DataError(
            f"--teacher_prompt_template cannot be filled in: {error}", where=example.origin, fix=f"the row has: {names}"
        ) from error


def aligned(told: Rendered, row: Rendered, origin: str) -> Rendered:
    """The teacher's side of a row, cut to the row's own targets. Raises DataError where they are other ids."""
    count, ends = len(row.targets), [i + 1 for i, on in enumerate(told.response_mask) if on]
    end = ends[count - 1] if 0 < count <= len(ends) else min(count, 1) * len(told.response_ids)
    kept = Rendered(told.prompt_ids, told.response_ids[:end], told.response_mask[:end])
    if kept.targets != row.targets:
        pairs = enumerate(zip(row.targets, kept.targets, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(count, len(kept.targets)))
        raise DataError(
            "the response has other ids after the teacher's prompt than after the student's",
            where=f"{origin}  from target {at} on: {list(row.targets[at : at + 5])} for the student, "
            f"{list(kept.targets[at : at + 5])} for the teacher",
            fix="use a chat template that writes an answer alike whatever stands before it",
        )
    return kept
