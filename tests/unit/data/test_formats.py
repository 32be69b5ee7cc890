"""Rows of every known format, and the malformed ones by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from limbeck.data.formats import FORMATS, rename_columns, to_example
from limbeck.data.turns import RowError
from limbeck.errors import DataError

USER = {"role": "user", "content": "2+2?"}
FOUR = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}
ADD = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}


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
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, (USER,), (FOUR,)),
        ({"conversations": [USER, FOUR]}, (USER,), (FOUR,)),
        ({"conversation": [{"human": "2+2?", "assistant": "4"}]}, (USER,), (FOUR,)),
        ({"conversation": [{"human": "2+2?", "assistant": "4"}, {"human": "2+2?"}]}, (USER, FOUR, USER), None),
        (
            {
                "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
                "system": "Be brief.",
            },
            (SYSTEM, USER),
            (FOUR,),
        ),
        ({"messages": [{"role": "developer", "content": "Be brief."}, USER, FOUR]}, (SYSTEM, USER), (FOUR,)),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"text": "2?"}]}, FOUR]},
            (USER,),
            (FOUR,),
        ),
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
    call = {"role": "assistant", "content": None, "tool_calls": [ADD]}
    result = {"role": "tool", "content": "4"}
    example = read({"messages": [USER, call, result, FOUR]})
    assert [turn["role"] for turn in example.prompt] == ["user", "assistant", "tool"]
    assert example.prompt[1]["content"] == ""
    assert read({"messages": [USER, call]}).response[0]["tool_calls"] == call["tool_calls"]
    assert read({"messages": [USER, call, result]}).response is None


CALL = {"role": "assistant", "content": "", "tool_calls": [ADD]}
RESULT = {"role": "tool", "content": "4"}
JSON_CALL = '{"name": "add", "arguments": {"a": 2, "b": 2}}'


@pytest.mark.parametrize(
    "messages",
    [
        [USER, CALL, RESULT, FOUR],
        [USER, CALL | {"content": None}, RESULT, FOUR],
        # OpenAI: arguments are JSON text
        [
            USER,
            {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}]},
            RESULT,
            FOUR,
        ],
        # ms-swift: turns of their own
        [USER, {"role": "tool_call", "content": JSON_CALL}, {"role": "tool_response", "content": "4"}, FOUR],
        # Arrow: every field that another call has, as None
        [
            USER,
            CALL | {"tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "b": 2, "city": None}}}]},
            RESULT | {"tool_calls": None},
            FOUR,
        ],
    ],
)
def test_tool_turns_of_every_spelling_are_the_same(messages):
    assert read({"messages": messages}).messages == (USER, CALL, RESULT, FOUR)


def test_calls_that_follow_one_another_are_one_turn():
    call = {"role": "tool_call", "content": JSON_CALL}
    words = {"role": "assistant", "content": "I add."}
    got = read({"messages": [USER, words, call, call, RESULT, FOUR]}).messages
    assert got == (USER, words | {"tool_calls": [ADD, ADD]}, RESULT, FOUR)
    sharegpt = [
        {"from": "human", "value": "2+2?"},
        {"from": "function_call", "value": JSON_CALL},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "4"},
    ]
    assert read({"conversations": sharegpt}).messages == (USER, CALL, RESULT, FOUR)


def test_tools_may_be_json_text():
    tools = [{"type": "function", "function": {"name": "add"}}]
    for written in (tools, json.dumps(tools)):
        assert read({"messages": [USER, FOUR], "tools": written}).columns["tools"] == tools
    assert read({"messages": [USER, FOUR], "tools": ""}).columns["tools"] is None


def test_loss_of_messages():
    def losses(*turns):
        return [turn.get("loss") for turn in read({"messages": list(turns)}).messages]

    no, yes = FOUR | {"loss": False}, FOUR | {"loss": True}
    assert losses(USER, no, USER, yes) == [None, False, None, True]
    assert losses(USER, FOUR | {"weight": 0}, USER, FOUR | {"weight": 1}) == [None, False, None, True]
    assert losses(USER | {"loss": False}, FOUR) == [None, None]
    assert losses(USER, {"role": "tool_call", "content": JSON_CALL, "loss": False}, RESULT, FOUR)[1] is False


def test_columns_are_renamed():
    row = {"question": "2+2?", "answer": "4", "note": "x"}
    example = read(rename_columns(row, {"question": "query", "answer": "response", "absent": "system"}, "a.jsonl:7"))
    assert (example.prompt, example.response) == ("2+2?", "4")
    assert example.columns == {"note": "x", "dataset": "a"}
    with pytest.raises(RowError, match="two columns of one name"):
        rename_columns(row | {"query": "3+3?"}, {"question": "query"}, "a.jsonl:7")
    assert rename_columns(row | {"query": None}, {"question": "query"}, "")["query"] == "2+2?"
    assert rename_columns(["no row"], {"question": "query"}, "") == ["no row"]


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
        ({"messages": [{"role": "narrator", "content": "2+2?"}]}, "a message has an unknown role"),
        ({"messages": [{"role": None, "content": "2+2?"}]}, "a message has an unknown role"),
        ({"messages": [{"role": ["user"], "content": "2+2?"}]}, "a message has an unknown role"),
        ({"messages": [{"role": "user"}]}, "text expected, something else found"),
        ({"messages": [{"role": "user", "content": 4}]}, "text expected, something else found"),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "text"}]}]},
            "a message has a part that is not text",
        ),
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
        ({"conversations": "2+2?"}, "conversations is not a list"),
        ({"conversations": [{"from": "human"}]}, "text expected"),
        ({"conversations": [{"value": "2+2?"}]}, "a message has no role"),
        ({"conversation": [{"human": "2+2?"}, "4"]}, "a turn has no human side"),
        ({"messages": [USER, {"role": "tool_call", "content": "add(2, 2)"}]}, "tools or tool calls that are not JSON"),
        ({"messages": [USER, {"role": "tool_call", "content": "{}"}]}, "a tool call has no name"),
        ({"messages": [USER, CALL | {"tool_calls": [{"name": "add", "arguments": "2"}]}]}, "the arguments of a tool"),
        ({"messages": [USER, FOUR | {"loss": "maybe"}]}, "a message's loss is neither true nor false"),
        ({"messages": [USER | {"loss": True}, FOUR]}, "loss is true on a message that is not the assistant's"),
        ({"messages": [USER | {"content": [{"type": "image_url"}]}, FOUR]}, "a message has a part that is not text"),
        ({"messages": [USER, FOUR], "tools": "[{"}, "tools or tool calls that are not JSON"),
        ({"messages": [USER, FOUR], "tools": {"a": 1}}, "tools is not a list"),
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
    assert len(rows) == 8
    assert sum(read(row).response is not None for row in rows) == 6
