"""Rows of every known format, and the malformed ones by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from limbeck.data.formats import FORMATS, RowError, to_example
from limbeck.errors import DataError

USER = {"role": "user", "content": "2+2?"}
FOUR = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}


def read(row, **options):
    return to_example(row, origin="a.jsonl:7", tag="a", **options)


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"messages": [USER, FOUR]}, (USER,), (FOUR,)),
        ({"messages": [SYSTEM, USER, FOUR, USER, FOUR]}, (SYSTEM, USER, FOUR, USER), (FOUR,)),
        ({"messages": [USER, FOUR, USER]}, (USER, FOUR, USER), None),
        ({"messages": [USER, FOUR, FOUR]}, (USER, FOUR), (FOUR,)),
        ({"prompt": "2+2="}, "2+2=", None),
        ({"prompt": [SYSTEM, USER]}, (SYSTEM, USER), None),
        ({"prompt": "2+2=", "completion": "4"}, "2+2=", "4"),
        ({"prompt": "2+2?", "completion": [FOUR]}, (USER,), (FOUR,)),
        ({"prompt": [USER], "completion": "4"}, (USER,), (FOUR,)),
        ({"prompt": [USER], "completion": [FOUR, USER, FOUR]}, (USER, FOUR, USER), (FOUR,)),
        ({"prompt": "", "completion": "once upon a time"}, "", "once upon a time"),
        ({"query": "2+2?"}, "2+2?", None),
        ({"query": "2+2?", "response": "4"}, "2+2?", "4"),
        ({"query": "2+2?", "response": "4", "history": [["2+2?", "4"]]}, (USER, FOUR, USER), (FOUR,)),
        ({"instruction": "2+2?", "output": "4"}, "2+2?", "4"),
        ({"instruction": "Add.", "input": "2, 2", "output": "4"}, "Add.\n2, 2", "4"),
        ({"instruction": "Add.", "input": ""}, "Add.", None),
    ],
)
def test_known_rows(row, prompt, response):
    example = read(row)
    assert (example.prompt, example.response) == (prompt, response)
    assert example.columns == {"dataset": "a"}
    assert example.origin == "a.jsonl:7"


def test_every_format_has_its_keys_read_by_itself():
    """No line of the table is hidden behind an earlier one."""
    for kind in FORMATS:
        row = dict.fromkeys(kind.keys, "x")
        assert next(f for f in FORMATS if all(key in row for key in f.keys)) is kind


def test_other_columns_are_kept_and_the_rows_dataset_wins():
    example = read(
        {"prompt": "2+2=", "solution": 4, "teacher_prompt": None, "dataset": "sums", "tools": [{"name": "f"}]}
    )
    assert example.columns == {"solution": 4, "teacher_prompt": None, "dataset": "sums", "tools": [{"name": "f"}]}
    assert read({"prompt": "2+2=", "dataset": None}).columns == {"dataset": "a"}
    assert read({"prompt": "2+2=", "response": "4"}).columns == {"dataset": "a", "response": "4"}


def test_columns_and_fields_that_arrow_filled_with_none_count_as_absent():
    filled = {**FOUR, "name": None, "tool_calls": None}
    example = read({"messages": None, "prompt": [{**USER, "name": None}], "completion": [filled]})
    assert example.prompt == (USER,)
    assert example.response == (FOUR,)


def test_system_prompt_of_the_row_wins_over_the_default():
    assert read({"prompt": "2+2?", "completion": "4"}, system="Be brief.").prompt == (SYSTEM, USER)
    assert read({"messages": [SYSTEM, USER, FOUR]}, system="Be long.").prompt == (SYSTEM, USER)
    own = read({"query": "2+2?", "system": "Be brief."}, system="Be long.")
    assert own.prompt == (SYSTEM, USER)
    assert "system" not in own.columns
    assert read({"query": "2+2?", "system": ""}, system="Be long.").prompt == "2+2?"


def test_tool_turns():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    result = {"role": "tool", "content": "4"}
    example = read({"messages": [USER, call, result, FOUR]})
    assert [turn["role"] for turn in example.prompt] == ["user", "assistant", "tool"]
    assert example.prompt[1]["content"] == ""
    assert read({"messages": [USER, call]}).response[0]["tool_calls"] == call["tool_calls"]
    assert read({"messages": [USER, call, result]}).response is None


def test_messages_of_an_example():
    assert read({"prompt": "2+2?", "completion": "4"}).messages == (USER, FOUR)
    assert read({"prompt": "2+2?"}).messages == (USER,)
    assert read({"messages": [SYSTEM, USER, FOUR]}).messages == (SYSTEM, USER, FOUR)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (["2+2?", "4"], "row is not an object"),
        (None, "row is not an object"),
        ({}, "row has no known columns"),
        ({"question": "2+2?", "answer": "4"}, "row has no known columns"),
        ({"messages": "2+2?"}, "messages is not a list"),
        ({"messages": []}, "messages is an empty list"),
        ({"messages": ["2+2?"]}, "a message has no role"),
        ({"messages": [{"content": "2+2?"}]}, "a message has no role"),
        ({"messages": [{"role": "human", "content": "2+2?"}]}, "a message has an unknown role"),
        ({"messages": [{"role": None, "content": "2+2?"}]}, "a message has an unknown role"),
        ({"messages": [{"role": ["user"], "content": "2+2?"}]}, "a message has an unknown role"),
        ({"messages": [{"role": "user"}]}, "text expected, something else found"),
        ({"messages": [{"role": "user", "content": 4}]}, "text expected, something else found"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text"}]}]}, "text expected"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty response"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "empty response"),
        ({"messages": [FOUR]}, "nothing comes before the response"),
        ({"messages": [USER, SYSTEM]}, "the prompt ends with the role 'system'"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty prompt"),
        ({"prompt": 4}, "prompt is neither text nor a list of messages"),
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": [USER, FOUR]}, "the prompt ends with the role 'assistant'"),
        ({"prompt": "2+2=", "completion": 4}, "completion is neither text nor a list of messages"),
        ({"prompt": "2+2=", "completion": ""}, "empty response"),
        ({"prompt": "2+2=", "completion": [USER]}, "the completion does not end with an assistant message"),
        ({"prompt": "2+2=\ud83d"}, "text with half a surrogate pair"),
        ({"query": "2+2?", "response": "4", "history": [["2+2?"]]}, "history is not a list of pairs"),
        ({"query": "2+2?", "response": ["4"]}, "text expected"),
        ({"query": "2+2?", "system": 4}, "text expected"),
        ({"instruction": "2+2?", "output": 4}, "text expected"),
    ],
)
def test_malformed_rows_are_refused_by_name(row, what):
    with pytest.raises(RowError) as caught:
        read(row)
    error = caught.value
    assert isinstance(error, DataError)
    assert error.what.startswith(what)
    lines = str(error).splitlines()
    assert len(lines) == 3
    assert "a.jsonl:7" in lines[1]
    assert lines[2].startswith("  fix:   ")
    for key in row or () if isinstance(row, dict) else ():
        assert key in lines[1]


def test_a_response_that_is_none_is_a_prompt_only_row():
    assert read({"prompt": "2+2=", "completion": None}).response is None


def test_rows_of_the_docs_are_read():
    page = Path(__file__).parents[3] / "docs" / "data.md"
    section = page.read_text(encoding="utf-8").split("## Rows")[1].split("## ")[0]
    rows = [json.loads(text) for text in re.findall(r"`(\{.*?\})`", section)]
    assert len(rows) == 6
    assert sum(read(row).response is not None for row in rows) == 4
