"""Ids and masks against references that are built another way: from the template's whole text, tokenised at once."""

from __future__ import annotations

import random

import pytest
from tiny_tokenizers import (
    CHATML,
    CLOSING,
    EMPTY_THOUGHT,
    FORGETFUL,
    LLAMA,
    OPENING,
    PARTS,
    PLAIN,
    byte_level,
    end_of,
    sentence_piece,
)

from limbeck.data.formats import Example, RowError, to_example
from limbeck.data.render import Rendered, fit, render, render_all, show
from limbeck.errors import DataError


@pytest.fixture(scope="module")
def chatml():
    return byte_level(CHATML)


def row(*contents: str, system: str = "", origin: str = "a.jsonl:1", **columns) -> Example:
    """User and assistant turns by turns."""
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents)]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    return to_example({"messages": turns, **columns}, origin=origin, tag="a")


def whole_text(tokenizer, example: Example, **options) -> str:
    return tokenizer.apply_chat_template(list(example.messages), tokenize=False, **options)


def decode(tokenizer, ids) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def targets(tokenizer, rendered: Rendered) -> list[str]:
    """The text of each run of target tokens."""
    runs: list[list[int]] = []
    before = False
    for token, target in zip(rendered.response_ids, rendered.response_mask, strict=True):
        if target and not before:
            runs.append([])
        if target:
            runs[-1].append(token)
        before = target
    return [decode(tokenizer, run) for run in runs]


ROWS = [
    row("hi", "yo"),
    row("hi", "yo", system="Be brief."),
    row("hi", "yo", "what is two plus two?", "four", "and one?", "five"),
    row("hi", "", "hi", "yo"),
    row("héllo 🙂", "né 🧑‍🚀 à\u0301 中文"),
    row("hi", "yo\n\nthe end\n"),
    row("", "yo"),
    row("<|im_end|>", "yo"),
]


@pytest.mark.parametrize("example", ROWS)
def test_last_turn(chatml, example):
    end_ids = end_of(chatml)
    got = render(example, chatml, end_ids=end_ids)
    prompt = whole_text(chatml, Example(example.prompt, None, {}, ""), add_generation_prompt=True)
    assert list(got.prompt_ids) == chatml(prompt, add_special_tokens=False).input_ids
    answer = example.response[0]["content"]
    assert list(got.response_ids) == [*chatml(answer, add_special_tokens=False).input_ids, *end_ids]
    assert got.response_mask == (True,) * len(got.response_ids)
    # all of the template's text but for the line feed after the end of turn
    assert decode(chatml, got.prompt_ids + got.response_ids) + "\n" == whole_text(chatml, example)


@pytest.mark.parametrize("example", ROWS)
def test_all_turns(chatml, example):
    """Against chatml's own shape: targets are what follows each "<|im_start|>assistant\\n", through <|im_end|>."""
    end_ids = end_of(chatml)
    got = render(example, chatml, end_ids=end_ids, turns="all")
    answers = [turn["content"] + "<|im_end|>" for turn in example.messages if turn["role"] == "assistant"]
    assert targets(chatml, got) == answers
    assert decode(chatml, got.prompt_ids + got.response_ids) + "\n" == whole_text(chatml, example)
    assert decode(chatml, got.prompt_ids).endswith("<|im_start|>assistant\n")
    assert decode(chatml, got.prompt_ids).count("<|im_start|>assistant") == 1
    assert len(got.response_mask) == len(got.response_ids)
    assert got.response_ids[-1] in end_ids
    assert got.response_mask[-1]


def test_all_turns_ids_are_those_of_the_text_tokenised_at_once(chatml):
    """Where no merge crosses a cut, cutting changes no id."""
    example = row("hi", "yo", "what is two plus two?", "four", system="Be brief.")
    got = render(example, chatml, end_ids=end_of(chatml), turns="all")
    at_once = chatml(whole_text(chatml, example), add_special_tokens=False).input_ids
    assert [*got.prompt_ids, *got.response_ids] == at_once[:-1]


def test_last_equals_all_for_one_turn(chatml):
    example = row("hi", "yo", system="Be brief.")
    assert render(example, chatml, end_ids=end_of(chatml)) == render(
        example, chatml, end_ids=end_of(chatml), turns="all"
    )


def test_response_that_would_merge_with_the_prompt(chatml):
    """The header's line feed and the answer's would be one token; a sampler's prompt ends with the header's alone."""
    example = row("hi", "\n\nyo")
    at_once = chatml(whole_text(chatml, example), add_special_tokens=False).input_ids
    got = render(example, chatml, end_ids=end_of(chatml))
    newline, two = chatml.convert_tokens_to_ids(["Ċ", "ĊĊ"])
    assert two in at_once
    assert two not in got.prompt_ids + got.response_ids
    assert got.prompt_ids[-1] == newline
    assert got.response_ids[0] == newline


@pytest.mark.parametrize("turns", ["last", "all"])
def test_prompt_only(chatml, turns):
    example = row("hi", "yo", "hi")
    got = render(example, chatml, end_ids=end_of(chatml), turns=turns)
    prompt = whole_text(chatml, example, add_generation_prompt=True)
    assert got == Rendered(tuple(chatml(prompt, add_special_tokens=False).input_ids), (), ())


def test_text_rows_become_turns_where_there_is_a_template(chatml):
    text = to_example({"prompt": "hi", "completion": "yo"}, origin="", tag="a")
    assert render(text, chatml, end_ids=end_of(chatml)) == render(row("hi", "yo"), chatml, end_ids=end_of(chatml))
    only = to_example({"prompt": "hi"}, origin="", tag="a")
    assert render(only, chatml, end_ids=end_of(chatml)) == render(row("hi"), chatml, end_ids=end_of(chatml))


def test_random_conversations(chatml):
    """The text survives, cut for cut, whatever characters and lengths come."""
    draw = random.Random(0)
    alphabet = "ab \n\t.é🙂中<|>▁\u0301"
    for _ in range(200):
        contents = ["".join(draw.choices(alphabet, k=draw.randrange(1, 9))) for _ in range(2 * draw.randrange(1, 4))]
        contents[-1] += "x"
        example = row(*contents)
        for turns in ("last", "all"):
            got = render(example, chatml, end_ids=end_of(chatml), turns=turns)
            assert decode(chatml, got.prompt_ids + got.response_ids) + "\n" == whole_text(chatml, example)
            expected = contents[1::2] if turns == "all" else contents[-1:]
            assert targets(chatml, got) == [text + "<|im_end|>" for text in expected]


# ---------------------------------------------------------------- end of turn


def test_content_that_brings_its_own_end_token_ends_once(chatml):
    got = render(row("hi", "yo<|im_end|>"), chatml, end_ids=end_of(chatml))
    assert targets(chatml, got) == ["yo<|im_end|>"]


def test_end_token_inside_the_content_does_not_end_the_turn(chatml):
    got = render(row("hi", "a<|im_end|>b"), chatml, end_ids=end_of(chatml))
    assert targets(chatml, got) == ["a<|im_end|>b<|im_end|>"]


@pytest.mark.parametrize("ends", [("<|im_end|>", "<|endoftext|>"), ("<|im_end|>",)])
def test_the_first_of_several_closing_tokens_ends_the_turn(ends):
    """CLOSING writes "<|im_end|>\\n<|endoftext|>" after the last turn; a sampler stops at <|im_end|>."""
    tokenizer = byte_level(CLOSING)
    got = render(row("hi", "yo"), tokenizer, end_ids=end_of(tokenizer, "<|im_end|>", "<|endoftext|>"))
    assert targets(tokenizer, got) == ["yo<|im_end|>"]
    both = render(
        row("hi", "yo", "hi", "four"),
        tokenizer,
        end_ids=end_of(tokenizer, "<|im_end|>", "<|endoftext|>"),
        turns="all",
    )
    assert targets(tokenizer, both) == ["yo<|im_end|>", "four<|im_end|>"]


def test_end_token_is_appended_where_the_template_has_none():
    tokenizer = byte_level(PLAIN)
    got = render(row("hi", "yo"), tokenizer, end_ids=end_of(tokenizer))
    assert decode(tokenizer, got.prompt_ids) == "user: hi\nassistant: "
    assert decode(tokenizer, got.response_ids) == "yo<|im_end|>"
    # the layout's line feed goes, the answer's own stays
    assert targets(tokenizer, render(row("hi", "yo\n"), tokenizer, end_ids=end_of(tokenizer))) == ["yo\n<|im_end|>"]
    every = render(row("hi", "yo", "hi", "four"), tokenizer, end_ids=end_of(tokenizer), turns="all")
    assert targets(tokenizer, every) == ["yo", "four<|im_end|>"]
    assert decode(tokenizer, every.prompt_ids + every.response_ids) == (
        "user: hi\nassistant: yo\nuser: hi\nassistant: four<|im_end|>"
    )


def test_end_token_of_the_template_that_is_no_end_id():
    """A base model with chatml: sampling stops at <|endoftext|> only, so that is what the response must end with."""
    tokenizer = byte_level(CHATML)
    tokenizer.eos_token = "<|endoftext|>"
    got = render(row("hi", "yo"), tokenizer, end_ids=end_of(tokenizer))
    assert targets(tokenizer, got) == ["yo<|im_end|><|endoftext|>"]


def test_no_end_token_at_all():
    tokenizer = byte_level(PLAIN)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end token"):
        render(row("hi", "yo"), tokenizer, end_ids=frozenset())


# ---------------------------------------------------------------- other templates


def test_template_that_forgets_thoughts():
    tokenizer = byte_level(FORGETFUL)
    end_ids = end_of(tokenizer)
    example = row("hi", "<think>\nhm\n</think>\nyo", "hi", "<think>\nah\n</think>\nfour")
    got = render(example, tokenizer, end_ids=end_ids)
    assert "hm" not in decode(tokenizer, got.prompt_ids)
    assert targets(tokenizer, got) == ["<think>\nah\n</think>\nfour<|im_end|>"]
    with pytest.raises(DataError) as caught:
        render(example, tokenizer, end_ids=end_ids, turns="all")
    assert "rewrites earlier turns" in caught.value.what
    assert "PreTrainedTokenizerFast" in caught.value.what or "TokenizersBackend" in caught.value.what
    assert "a.jsonl:1" in caught.value.where and "<think>" in caught.value.where
    assert not isinstance(caught.value, RowError)
    with pytest.raises(DataError, match="rewrites earlier turns"):  # the template's fault is not dropped row by row
        render_all([example], tokenizer, end_ids=end_ids, turns="all")
    # without thoughts to forget, every turn can be trained
    plain = render(row("hi", "yo", "hi", "four"), tokenizer, end_ids=end_ids, turns="all")
    assert targets(tokenizer, plain) == ["yo<|im_end|>", "four<|im_end|>"]


@pytest.mark.parametrize(
    "answer", ["<think>\nhm\n</think>\nyo", "<think>hm\n</think>\nyo", "\n<think>\nhm\n</think>\nyo"]
)
def test_template_that_opens_a_thought(answer):
    tokenizer = byte_level(OPENING)
    got = render(row("hi", answer), tokenizer, end_ids=end_of(tokenizer))
    assert decode(tokenizer, got.prompt_ids).endswith("<|im_start|>assistant\n<think>\n")
    assert targets(tokenizer, got) == ["hm\n</think>\nyo<|im_end|>"]


def test_answer_without_the_thought_that_the_template_opens():
    tokenizer = byte_level(OPENING)
    with pytest.raises(RowError, match=r"does not begin as .* opens it\n.*a\.jsonl:1 .*<think>"):
        render(row("hi", "yo"), tokenizer, end_ids=end_of(tokenizer))


def test_template_whose_opener_differs_in_blanks_alone():
    """The sampler's prompt ends with "<think>\\n"; what closes the thought belongs to the response."""
    tokenizer = byte_level(EMPTY_THOUGHT)
    got = render(row("hi", "yo"), tokenizer, end_ids=end_of(tokenizer))
    assert decode(tokenizer, got.prompt_ids).endswith("<think>\n")
    assert targets(tokenizer, got) == ["</think>yo<|im_end|>"]


def test_template_that_leaves_text_out():
    tokenizer = byte_level(PARTS)
    with pytest.raises(DataError, match="leaves out messages that are plain text"):
        render(row("hi", "yo"), tokenizer, end_ids=end_of(tokenizer))
    with pytest.raises(DataError, match="leaves out messages that are plain text"):
        render_all([row("hi", "yo")], tokenizer, end_ids=end_of(tokenizer))


def test_template_that_rewrites_the_prompt_itself():
    tokenizer = byte_level("{{ messages | length }} turns\n" + CHATML)
    with pytest.raises(DataError, match="rewrites earlier turns"):
        render(row("hi", "yo"), tokenizer, end_ids=end_of(tokenizer))


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_llama(make):
    tokenizer = make(LLAMA)
    end_ids = end_of(tokenizer)
    example = row("the fox", "the dog é🙂", "hi", "yo")
    got = render(example, tokenizer, end_ids=end_ids, turns="all")
    assert got.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert targets(tokenizer, got)[0].strip() == "the dog é🙂 </s>"
    text = decode(tokenizer, got.prompt_ids + got.response_ids)
    assert text.replace(" ", "") == whole_text(tokenizer, example).replace(" ", "")
    last = render(example, tokenizer, end_ids=end_ids)
    assert last.prompt_ids[0] == tokenizer.bos_token_id
    assert last.response_ids[-1] in end_ids


def test_sentence_piece_adds_no_space_before_the_response():
    """ids("yo") would begin with a space of the tokenizer's own; what follows "[/INST]" is " yo", one space."""
    tokenizer = sentence_piece(LLAMA)
    example = row("the fox", "the dog")
    got = render(example, tokenizer, end_ids=end_of(tokenizer))
    at_once = tokenizer(whole_text(tokenizer, example), add_special_tokens=False).input_ids
    assert [*got.prompt_ids, *got.response_ids] == at_once
    raw = sentence_piece(None)
    text = to_example({"prompt": "the fox", "completion": "dog"}, origin="", tag="a")
    got = render(text, raw, end_ids=end_of(raw))
    assert decode(raw, got.prompt_ids + got.response_ids) == "the foxdog</s>"


def test_rows_that_the_template_refuses_are_counted():
    tokenizer = byte_level(LLAMA)
    good = row("hi", "yo")
    bad = to_example({"messages": [{"role": "assistant", "content": "yo"}] * 2}, origin="a.jsonl:5", tag="a")
    rows, dropped = render_all([bad, good], tokenizer, end_ids=end_of(tokenizer))
    assert [example for example, _ in rows] == [good]
    assert str(dropped) == (
        "1 row dropped: 1 refused by the chat template: Conversation roles must alternate user/assistant (a.jsonl:5)"
    )
    with pytest.raises(DataError, match=r"a\.jsonl:5  roles: assistant"):
        render_all([bad, good], tokenizer, end_ids=end_of(tokenizer), truncation_strategy="raise")


def test_template_that_is_not_jinja():
    tokenizer = byte_level("{% for %}")
    with pytest.raises(DataError, match="not valid Jinja"):
        render_all([row("hi", "yo")], tokenizer, end_ids=end_of(tokenizer))


def test_tools_reach_the_template():
    tokenizer = byte_level("{% if tools %}tools: {{ tools[0].name }}\n{% endif %}" + CHATML)
    got = render(row("hi", "yo", tools=[{"name": "add"}]), tokenizer, end_ids=end_of(tokenizer))
    assert decode(tokenizer, got.prompt_ids).startswith("tools: add\n")
    assert decode(tokenizer, render(row("hi", "yo"), tokenizer, end_ids=end_of(tokenizer)).prompt_ids).startswith(
        "<|im"
    )


# ---------------------------------------------------------------- raw text


def test_raw_text():
    tokenizer = byte_level(None)
    example = to_example({"prompt": "2+2=", "completion": "4\n"}, origin="", tag="a")
    got = render(example, tokenizer, end_ids=end_of(tokenizer))
    assert list(got.prompt_ids) == tokenizer("2+2=").input_ids
    assert list(got.response_ids) == [*tokenizer("4\n").input_ids, *end_of(tokenizer)]
    only = render(to_example({"prompt": "2+2="}, origin="", tag="a"), tokenizer, end_ids=end_of(tokenizer))
    assert only == Rendered(got.prompt_ids, (), ())
    ended = to_example({"prompt": "2+2=", "completion": "4<|im_end|>"}, origin="", tag="a")
    assert decode(tokenizer, render(ended, tokenizer, end_ids=end_of(tokenizer)).response_ids) == "4<|im_end|>"


def test_raw_text_gets_the_bos_of_the_tokenizer_but_not_its_eos():
    tokenizer = byte_level(None, bos=True)
    assert decode(tokenizer, tokenizer("2+2=").input_ids) == "<s>2+2=</s>"
    example = to_example({"prompt": "2+2=", "completion": "4"}, origin="", tag="a")
    got = render(example, tokenizer, end_ids=end_of(tokenizer))
    assert decode(tokenizer, got.prompt_ids) == "<s>2+2="
    assert decode(tokenizer, got.response_ids) == "4</s>"
    empty = to_example({"prompt": "", "completion": "4"}, origin="", tag="a")
    assert render(empty, tokenizer, end_ids=end_of(tokenizer)).prompt_ids == (tokenizer.bos_token_id,)


def test_empty_raw_prompt_without_bos_is_counted():
    tokenizer = byte_level(None)
    empty = to_example({"prompt": "", "completion": "4"}, origin="a.jsonl:3", tag="a")
    rows, dropped = render_all([empty], tokenizer, end_ids=end_of(tokenizer))
    assert (rows, str(dropped)) == ([], "1 row dropped: 1 empty prompt (a.jsonl:3)")


def test_messages_without_a_template():
    tokenizer = byte_level(None)
    with pytest.raises(DataError, match="has no chat template") as caught:
        render_all([row("hi", "yo")], tokenizer, end_ids=end_of(tokenizer))
    assert not isinstance(caught.value, RowError)


# ---------------------------------------------------------------- many rows


def test_render_all_is_render_for_each(chatml):
    examples = [*ROWS, row("hi"), *ROWS]
    for turns in ("last", "all"):
        rows, dropped = render_all(examples, chatml, end_ids=end_of(chatml), turns=turns)
        assert [example for example, _ in rows] == examples
        assert [got for _, got in rows] == [render(e, chatml, end_ids=end_of(chatml), turns=turns) for e in examples]
        assert not str(dropped)


def test_render_all_tokenises_each_text_once(chatml, monkeypatch):
    seen: list[str] = []
    plain = type(chatml).__call__
    monkeypatch.setattr(
        type(chatml), "__call__", lambda self, text, **k: (seen.extend(text), plain(self, text, **k))[1]
    )
    examples = [row("hi", "yo"), row("hi", "four"), row("hi", "yo")]
    render_all(examples, chatml, end_ids=end_of(chatml))
    assert seen.count("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n") == 1
    assert seen.count("yo<|im_end|>") == 1


@pytest.mark.parametrize("strategy", ["delete", "left", "right", "raise"])
def test_max_length(chatml, strategy):
    end_ids = end_of(chatml)
    short, long = row("hi", "yo", origin="a.jsonl:1"), row("hi", "the quick brown fox", origin="a.jsonl:2")
    full = render(long, chatml, end_ids=end_ids)
    size = len(full.prompt_ids) + len(full.response_ids)

    def run(limit):
        options = {"max_length": limit, "truncation_strategy": strategy}
        return render_all([short, long], chatml, end_ids=end_ids, **options)

    rows, dropped = run(size)  # exactly as long as allowed
    assert [got for _, got in rows][1] == full
    assert str(dropped) == ""
    if strategy == "raise":
        with pytest.raises(DataError) as caught:
            run(size - 1)
        where = f"a.jsonl:2  prompt {len(full.prompt_ids)} + response {len(full.response_ids)} = {size} tokens"
        assert caught.value.where == where
        return
    rows, dropped = run(size - 1)
    if strategy == "delete":
        assert [example for example, _ in rows] == [short]
        assert str(dropped) == f"1 row dropped: 1 longer than max_length {size - 1} (a.jsonl:2)"
        return
    assert dropped.total == 0
    assert str(dropped) == f"1 row cut: 1 on the {strategy} to max_length {size - 1} (a.jsonl:2)"
    got = rows[1][1]
    if strategy == "left":
        assert got == Rendered(full.prompt_ids[1:], full.response_ids, full.response_mask)
    else:
        assert got == Rendered(full.prompt_ids, full.response_ids[:-1], full.response_mask[:-1])
        assert got.response_ids[-1] not in end_ids


def test_fit_keeps_a_prompt_token_and_a_target():
    whole = Rendered((1, 2, 3), (4, 5, 6, 7), (True, False, False, True))
    assert fit(whole, "", None, "delete") is whole
    assert fit(whole, "", 7, "delete") is whole
    assert fit(whole, "", 5, "left") == Rendered((3,), whole.response_ids, whole.response_mask)
    assert fit(whole, "", 4, "right") == Rendered((1, 2, 3), (4,), (True,))
    masked = Rendered((1, 2), (3, 4, 5), (False, False, True))
    for row_, limit, strategy in ((whole, 4, "left"), (whole, 3, "right"), (masked, 4, "right")):
        with pytest.raises(RowError, match=f"longer than max_length {limit}"):
            fit(row_, "a:1", limit, strategy)


def test_max_length_of_prompts_alone():
    only = Rendered((1, 2, 3), (), ())
    assert fit(only, "", 3, "delete") is only
    assert fit(only, "", 2, "left") == Rendered((2, 3), (), ())
    for strategy in ("delete", "right", "raise"):
        with pytest.raises(RowError, match="longer than max_length 2"):
            fit(only, "", 2, strategy)


# ---------------------------------------------------------------- show


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_show_is_the_text_in_pieces(make):
    tokenizer = make(LLAMA)
    example = row("the fox é", "the dog 🙂 中", "hi", "yo")
    got = render(example, tokenizer, end_ids=end_of(tokenizer), turns="all")
    pieces = show(got, tokenizer)
    assert "".join(text for text, _ in pieces) == decode(tokenizer, got.prompt_ids + got.response_ids)
    assert "".join(text for text, target in pieces if target).replace(" ", "") == "thedog🙂中</s>yo</s>"
    assert any(text.strip() == "🙂" for text, _ in pieces)
    assert len(pieces) > 10


def test_show_of_a_response_cut_inside_a_character(chatml):
    got = render(row("hi", "a🙂"), chatml, end_ids=end_of(chatml))
    cut = Rendered(got.prompt_ids, got.response_ids[:-2], got.response_mask[:-2])
    assert "".join(text for text, target in show(cut, chatml) if target) == "a\ufffd"
    assert show(Rendered((), (), ()), chatml) == []


def test_an_answer_that_was_cut_off_when_generated_teaches_no_end_of_turn(chatml) -> None:
    ends = end_of(chatml)
    whole, cut = row("hi", "one two three"), row("hi", "one two three", truncated=True)
    rows, dropped = render_all([whole, cut], chatml, end_ids=ends)
    assert rows[1][1].response_ids == rows[0][1].response_ids[:-1]
    assert rows[1][1].response_mask == rows[0][1].response_mask[:-1]
    assert rows[0][1].response_ids[-1] in ends
    assert "1 row cut: 1 when they were generated" in str(dropped)
    rows, dropped = render_all([row("hi", "one", truncated=False)], chatml, end_ids=ends)
    assert rows[0][1].response_ids[-1] in ends
    assert not str(dropped)


def conversation(*losses) -> Example:
    """As many questions as losses, each with an answer that says whether it is trained (None: nothing)."""
    turns = []
    for at, loss in enumerate(losses):
        turns += [{"role": "user", "content": f"q{at}"}, {"role": "assistant", "content": f"a{at}"}]
        turns[-1] |= {} if loss is None else {"loss": loss}
    return Example(tuple(turns[:-1]), (turns[-1],), {}, "a.jsonl:1")


@pytest.mark.parametrize(
    ("losses", "turns", "trained"),
    [
        ((None, None), "last", ["a1"]),
        ((None, None), "all", ["a0", "a1"]),
        ((True, None), "last", ["a0", "a1"]),
        ((True, False, None), "all", ["a0", "a2"]),
        ((None, False), "all", ["a0"]),
        ((True, False), "last", ["a0"]),
    ],
)
def test_a_message_says_itself_whether_it_is_trained(chatml, losses, turns, trained):
    got = render(conversation(*losses), chatml, end_ids=end_of(chatml), turns=turns)
    assert targets(chatml, got) == [f"{answer}<|im_end|>" for answer in trained]


def test_a_row_of_which_nothing_is_trained_is_counted(chatml):
    rows, dropped = render_all([conversation(False), conversation(None)], chatml, end_ids=end_of(chatml))
    assert len(rows) == 1
    assert str(dropped) == "1 row dropped: 1 no message of the row is to be trained (a.jsonl:1)"


@pytest.mark.parametrize("thought", ["<think></think>", "<think>\n\n</think>\n\n"])
def test_empty_thoughts_are_context_where_asked(chatml, thought):
    example = row("hi", thought + "yo", "hi", "<think>hm</think>four")
    for turns in ("last", "all"):
        plain = render(example, chatml, end_ids=end_of(chatml), turns=turns)
        got = render(example, chatml, end_ids=end_of(chatml), turns=turns, ignore_empty_think=True)
        answers = ["yo<|im_end|>", "<think>hm</think>four<|im_end|>"]
        assert targets(chatml, got) == answers[turns == "last" :]
        assert decode(chatml, plain.prompt_ids + plain.response_ids) == decode(
            chatml, got.prompt_ids + got.response_ids
        )
