"""What the teacher reads instead: whose message is replaced, and that both sides learn the very same ids."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import make_tokenizer

from limbeck.data.formats import Example
from limbeck.data.privileged import aligned, privileged, with_template
from limbeck.data.render import Rendered, render_all
from limbeck.errors import ConfigError, DataError

TOKENIZER = make_tokenizer()
END = frozenset({TOKENIZER.eos_token_id})


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


TALK = (turn("system", "the house"), turn("user", "a cat"), turn("assistant", "a dog"), turn("user", "the bird"))


def example(prompt: Any = TALK, response: str | None = "sees the tree", **columns: Any) -> Example:
    answer = None if response is None else (turn("assistant", response),)
    return Example(prompt, answer if not isinstance(prompt, str) else response, {"dataset": "x"} | columns, "x:1")


def rendered(e: Example, **more: Any) -> Rendered:
    rows, dropped = render_all([e], TOKENIZER, end_ids=END, **more)
    assert len(rows) == 1, str(dropped)
    return rows[0][1]


def test_the_last_user_message_is_replaced_and_the_answer_stays() -> None:
    row = rendered(example(teacher_prompt="the bird, red and small"))
    assert row.teacher is not None
    plain = rendered(example((*TALK[:3], turn("user", "the bird, red and small"))))
    assert row.teacher == plain
    assert row.teacher.targets == row.targets == row.response_ids
    assert row.prompt_ids == rendered(example()).prompt_ids


def test_whole_messages_and_raw_prompts() -> None:
    told = [turn("system", "a river"), turn("user", "a large red bird")]
    assert rendered(example(teacher_prompt=told)).teacher == rendered(example(tuple(told)))
    assert rendered(example("a cat", teacher_prompt="a blue cat")).teacher == rendered(example("a blue cat"))
    prompt_only = rendered(example(response=None, teacher_prompt="a blue cat"))
    assert prompt_only.teacher == rendered(example((*TALK[:3], turn("user", "a blue cat")), response=None))


@pytest.mark.parametrize("nothing", [None, "", []])
def test_a_row_without_one_is_read_by_both(nothing: Any) -> None:
    assert rendered(example(teacher_prompt=nothing)).teacher is None


def test_all_turns_are_learnt_alike_on_both_sides() -> None:
    row = rendered(example(teacher_prompt="the bird, red and small"), turns="all")
    assert row.teacher is not None
    assert row.teacher.targets == row.targets
    assert len(row.teacher.response_ids) > len(row.response_ids)  # the message that was replaced stands between turns


def test_a_response_that_is_cut_is_cut_on_both_sides() -> None:
    whole = rendered(example(teacher_prompt="the bird, red and small"))
    room = len(whole.prompt_ids) + len(whole.response_ids) - 1
    row = rendered(example(teacher_prompt="the bird, red and small"), max_length=room, truncation_strategy="right")
    assert row.teacher is not None
    assert row.targets == row.teacher.targets == whole.targets[:-1]


@pytest.mark.parametrize(
    ("told", "what"),
    [(7, "neither text nor messages but int"), (["a"], "no list of messages"), ([{"role": "user"}], "no list of")],
)
def test_what_is_no_prompt_drops_the_row_with_a_count(told: Any, what: str) -> None:
    rows, dropped = render_all([example(teacher_prompt=told), example()], TOKENIZER, end_ids=END)
    assert len(rows) == 1
    assert what in str(dropped)


def test_no_user_message_to_replace() -> None:
    with pytest.raises(DataError, match="the prompt has none"):
        privileged(example((turn("system", "a"),), teacher_prompt="b"))


def test_other_ids_on_the_two_sides_stop_the_run_with_both_shown() -> None:
    row, told = Rendered((1,), (5, 6, 7), (True,) * 3), Rendered((1, 2), (5, 9, 7), (True,) * 3)
    with pytest.raises(DataError, match=r"from target 1 on: \[6, 7\] for the student, \[9, 7\] for the teacher"):
        aligned(told, row, "x:1")
    assert aligned(told, Rendered((1,), (5,), (True,)), "x:1") == Rendered((1, 2), (5,), (True,))


def test_a_template_over_the_columns() -> None:
    made = with_template([example(solution="4")], "{{ prompt }} Hint: {{ solution }}, not {{ response }}")
    assert made[0].columns["teacher_prompt"] == "the bird Hint: 4, not sees the tree"
    with pytest.raises(DataError, match="'solution' is undefined") as caught:
        with_template([example()], "{{ solution }}")
    assert "the row has: dataset, messages, prompt, response" in str(caught.value)
    with pytest.raises(ConfigError, match="not valid Jinja"):
        with_template([example()], "{{ solution")
