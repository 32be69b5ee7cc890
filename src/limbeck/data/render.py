"""Chat template -> prompt ids, response ids and the response mask, by construction.

A conversation's text is cut where the template itself says that a turn begins: text(messages before the turn, with the
generation prompt) is a prefix of text(messages up to and with the turn). Each piece is tokenised alone, so the prompt's
ids are those that a sampler would be given, and the response's ids begin where sampling would begin. Nothing is ever
looked for in the text or in the ids. Text that spells a special token inside a message becomes that token, as it does
wherever the template's text is tokenised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from limbeck.data.dropped import Dropped
from limbeck.data.formats import Example
from limbeck.data.privileged import aligned, privileged
from limbeck.data.rendered import Rendered
from limbeck.data.turns import Message, RowError
from limbeck.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Turns = Literal["last", "all"]
TruncationStrategy = Literal["delete", "left", "right", "raise"]

BATCH = 2048  # rows tokenised in one call
EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*")


def render(
    example: Example,
    tokenizer: Tokenizer,
    *,
    end_ids: frozenset[int],
    turns: Turns = "last",
    ignore_empty_think: bool = False,
) -> Rendered:
    """Tokenise one example. end_ids: every token at which a sampler would stop.

    turns: which assistant turns are trained, where the message itself does not say so by its `loss`.
    ignore_empty_think: a thought without words at the beginning of a trained turn is context, no target.
    Raises RowError for a row that this template refuses, DataError for a template that cannot be cut (see `_pieces`).
    """
    _check_template(tokenizer)
    pieces = _pieces(example, tokenizer, _end_texts(tokenizer, end_ids), turns, ignore_empty_think)
    return _assemble(pieces, _encode_all(tokenizer, [pieces]), tokenizer, end_ids, example.origin)


def render_all(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    end_ids: frozenset[int],
    turns: Turns = "last",
    ignore_empty_think: bool = False,
    max_length: int | None = None,
    truncation_strategy: TruncationStrategy = "delete",
) -> tuple[list[tuple[Example, Rendered]], Dropped]:
    """Render examples in their order; count those that the template refuses, that are empty or over max_length.

    max_length bounds prompt + response ids (the prompt alone where there is no response); None: no bound.
    truncation_strategy: delete drops an over-long row, left cuts the prompt's beginning, right the response's end (and
    its end-of-turn token with it), raise stops at the first row that would be dropped or cut.
    Raises DataError as `render` does for templates, and for any row under "raise".
    """
    _check_template(tokenizer)
    strict = truncation_strategy == "raise"
    ends = _end_texts(tokenizer, end_ids)
    rows: list[tuple[Example, Rendered]] = []
    dropped = Dropped()
    for start in range(0, len(examples), BATCH):
        cut: list[tuple[Example, _Pieces, _Pieces | None]] = []
        for example in examples[start : start + BATCH]:
            try:
                told = privileged(example)
                theirs = None if told is None else _pieces(told, tokenizer, ends, turns, ignore_empty_think)
                cut.append((example, _pieces(example, tokenizer, ends, turns, ignore_empty_think), theirs))
            except RowError as error:
                if strict:
                    raise
                dropped.add(error.what, example.origin, error.fix)
        ids = _encode_all(tokenizer, [pieces for _, *both in cut for pieces in both if pieces is not None])
        for example, pieces, theirs in cut:
            try:
                whole = _assemble(pieces, ids, tokenizer, end_ids, example.origin)
                if example.columns.get("truncated") is True and whole.response_ids:
                    whole = _unended(whole, end_ids, example.origin)
                    dropped.cut("when they were generated (no end of turn is taught)", example.origin)
                kept = fit(whole, example.origin, max_length, truncation_strategy)
                if theirs is not None:
                    told = _assemble(theirs, ids, tokenizer, end_ids, example.origin)
                    rows.append((example, replace(kept, teacher=aligned(told, kept, example.origin))))
                else:
                    rows.append((example, kept))
            except RowError as error:
                if strict:
                    raise
                dropped.add(error.what, example.origin, error.fix)
                continue
            if kept is not whole:
                dropped.cut(f"on the {truncation_strategy} to max_length {max_length}", example.origin)
    return rows, dropped


def fit(row: Rendered, origin: str, max_length: int | None, strategy: TruncationStrategy) -> Rendered:
    """The row within max_length (the very same object where it fits already). Raises RowError where it cannot be."""
    prompt, response = len(row.prompt_ids), len(row.response_ids)
    if max_length is None or prompt + response <= max_length:
        return row
    too_long = RowError(
        f"longer than max_length {max_length}",
        where=f"{origin}  prompt {prompt} + response {response} = {prompt + response} tokens",
        fix="raise --max_length, or choose --truncation_strategy delete, left or right",
    )
    if strategy == "left" and response < max_length:  # at least one token must stay before the response
        return Rendered(row.prompt_ids[response - max_length :], row.response_ids, row.response_mask)
    room = max_length - prompt
    if strategy == "right" and room > 0 and any(row.response_mask[:room]):
        return Rendered(row.prompt_ids, row.response_ids[:room], row.response_mask[:room])
    raise too_long


def show(rendered: Rendered, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The row as (text, is target) pieces, one a token, or one for several tokens that make up a single character."""
    ids = [*rendered.prompt_ids, *rendered.response_ids]
    mask = [False] * len(rendered.prompt_ids) + list(rendered.response_mask)

    def text(start: int, stop: int) -> str:
        decoded: Any = tokenizer.decode(ids[start:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded

    pieces: list[tuple[str, bool]] = []
    before, read = 0, 0  # ids[before:read] are decoded as context, since some decoders strip a leading space
    for stop in range(1, len(ids) + 1):
        context, longer = text(before, read), text(before, stop)
        last = stop == len(ids) or mask[stop] != mask[stop - 1]
        if last or (len(longer) > len(context) and not longer.endswith("\ufffd")):
            pieces.append((longer[len(context) :], mask[stop - 1]))
            before, read = read, stop
    return [piece for piece in pieces if piece[0]]


# ---------------------------------------------------------------- text


@dataclass(frozen=True, slots=True)
class _Pieces:
    """texts[0] is the prompt; after it targets (odd places) and what stands between them (even places) take turns."""

    texts: list[str]
    raw: bool  # no template: the prompt gets the tokenizer's own special tokens


def _pieces(
    example: Example, tokenizer: Tokenizer, ends: Sequence[str], turns: Turns, ignore_empty_think: bool
) -> _Pieces:
    """Cut the example's text before and after each assistant turn that is trained.

    Raises DataError where the template writes a turn otherwise once later turns follow it, so that no cut is right.
    """
    if not tokenizer.chat_template:
        return _raw(example, tokenizer, ends)
    messages = example.messages
    if example.response is None:
        return _Pieces([_text(tokenizer, messages, example, open_turn=True)], raw=False)

    texts: list[str] = []
    done = ""
    for at in _trained(example, turns):
        before = _text(tokenizer, messages[:at], example, open_turn=True)
        if not before.startswith(done):
            raise _rewritten(tokenizer, example, done, before)
        turn = _turn(tokenizer, messages[: at + 1], before, example, ends)
        texts += [before[len(done) :], turn]
        done = before + turn
        if ignore_empty_think and (thought := EMPTY_THOUGHT.match(turn)):
            texts[-1:] = ["", thought.group(), turn[thought.end() :]]  # no target, context, target
    return _Pieces(texts, raw=False)


def _trained(example: Example, turns: Turns) -> list[int]:
    """Places of the messages that are trained: as their `loss` says, else all of the assistant's, or the last one."""
    messages = example.messages
    last = len(messages) - 1
    own = {at: turn.get("loss", turns == "all" or at == last) for at, turn in enumerate(messages)}
    trained = [at for at, turn in enumerate(messages) if turn["role"] == "assistant" and own[at]]
    if not trained:
        raise RowError(
            "no message of the row is to be trained",
            where=f"{example.origin}  loss is false on every assistant message",
            fix="leave the row out, or set loss to true on one of them",
        )
    return trained


def _turn(tokenizer: Tokenizer, messages: Sequence[Message], before: str, example: Example, ends: Sequence[str]) -> str:
    """The last message's text from the generation prompt through its end-of-turn token."""
    content = messages[-1]["content"]
    whole = _text(tokenizer, messages, example, open_turn=False)
    if whole.startswith(before):
        return _closed(whole[len(before) :], content, ends)
    if not whole.startswith(_text(tokenizer, messages[:-1], example, open_turn=False)):
        raise _rewritten(tokenizer, example, before, whole)
    # The template opens the answer in the generation prompt ("<think>\n") and writes finished turns without that.
    shared = _shared(before, whole)
    opener = before[shared:]
    if opener.isspace():
        return _closed(whole[shared:].lstrip(), content, ends)
    # What follows the generation prompt is then the answer itself, if it begins with what the template has opened.
    answer = content.lstrip()
    if not answer.startswith(opener.strip()):
        raise RowError(
            "the response does not begin as the chat template opens it",
            where=f"{example.origin}  the generation prompt ends with {before[-24:]!r}",
            fix="begin the response with the same, or use a chat template whose generation prompt is the header alone",
        )
    answer = answer.removeprefix(opener.strip()).removeprefix(opener[len(opener.rstrip()) :])
    closed = _closed(whole, content, ends)
    return _closed(answer + next((end for end in ends if closed.endswith(end)), ""), content, ends)


def _closed(text: str, content: str, ends: Sequence[str]) -> str:
    """The text through its end-of-turn token: the first of the end tokens (and blanks) with which it closes.

    The template's own blanks go where it has no end token; those that the message's content ends with stay.
    """
    kept, rest = None, text.rstrip()
    while end := next((end for end in ends if rest.endswith(end)), None):
        kept, rest = rest, rest.removesuffix(end).rstrip()
    if kept is not None:
        return kept
    bare, own = text.rstrip(), content[len(content.rstrip()) :]
    return bare + own if text[len(bare) :].startswith(own) else bare


def _raw(example: Example, tokenizer: Tokenizer, ends: Sequence[str]) -> _Pieces:
    if not isinstance(example.prompt, str) or isinstance(example.response, tuple):
        raise DataError(
            f"the tokenizer of {_name(tokenizer)} has no chat template, and the row holds messages",
            where=example.origin,
            fix="use a model with a chat template, or rows of prompt and completion as strings without a system prompt",
        )
    if example.response is None:
        return _Pieces([example.prompt], raw=True)
    return _Pieces([example.prompt, _closed(example.response, example.response, ends)], raw=True)


def _text(tokenizer: Tokenizer, messages: Sequence[Message], example: Example, *, open_turn: bool) -> str:
    """The template's text. Whatever a template raises about a conversation is that row's fault."""
    tools = example.columns.get("tools")
    try:
        text: Any = tokenizer.apply_chat_template(
            [{key: value for key, value in message.items() if key != "loss"} for message in messages],
            tools=tools if isinstance(tools, list) and tools else None,
            tokenize=False,
            add_generation_prompt=open_turn,
        )
    except jinja2.TemplateSyntaxError as error:
        what = f"the chat template of {_name(tokenizer)} is not valid Jinja"
        raise DataError(what, where=f"line {error.lineno}: {error}", fix="mend the template") from error
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise RowError(
            f"refused by the chat template: {error}",
            where=f"{example.origin}  roles: {', '.join(message['role'] for message in messages)}",
            fix="write the row's turns in the order that the model's template allows",
        ) from error
    return text


def _check_template(tokenizer: Tokenizer) -> None:
    """Refuse templates that leave text out without a word: they want it in parts, as models of pictures do."""
    if not tokenizer.chat_template:
        return
    probe = Example(({"role": "user", "content": "limbeck"},), None, {}, "")
    try:
        text = _text(tokenizer, probe.messages, probe, open_turn=True)
    except RowError:  # it wants a system prompt, or the like: then the rows will tell
        return
    if "limbeck" not in text:
        raise DataError(
            f"the chat template of {_name(tokenizer)} leaves out messages that are plain text",
            where=f"it wrote {text[:80]!r}",
            fix="use a model of text, or a chat template that writes message['content'] as it is",
        )


def _rewritten(tokenizer: Tokenizer, example: Example, once: str, later: str) -> DataError:
    at = _shared(once, later)
    return DataError(
        f"the chat template of {_name(tokenizer)} rewrites earlier turns when later ones follow",
        where=f"{example.origin}  {once[at : at + 40]!r} becomes {later[at : at + 40]!r}",
        fix="train the last assistant turn only, or use a chat template that leaves earlier turns as they were",
    )


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _name(tokenizer: Tokenizer) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _end_texts(tokenizer: Tokenizer, end_ids: Iterable[int]) -> list[str]:
    """How the end tokens are spelt, longest first; blank ones cannot be told from layout and are left to the ids."""
    texts = {str(tokenizer.decode([end], skip_special_tokens=False)) for end in end_ids}
    return sorted((text for text in texts if text.strip()), key=lambda text: (-len(text), text))


# ---------------------------------------------------------------- ids


@dataclass(frozen=True, slots=True)
class _Ids:
    first: dict[str, tuple[int, ...]]  # texts that begin a sequence
    later: dict[str, tuple[int, ...]]  # texts that go on with one
    prefix: tuple[int, ...]  # what the tokenizer itself puts before raw text (BOS)


def _encode_all(tokenizer: Tokenizer, rows: Sequence[_Pieces]) -> _Ids:
    """Tokenise every distinct text of the rows once."""
    first = list(dict.fromkeys(row.texts[0] for row in rows))
    later = list(dict.fromkeys(text for row in rows for text in row.texts[1:]))
    anchor = _anchor(tokenizer)
    joined = dict(zip(later, _encode(tokenizer, [anchor + text for text in later]), strict=True))
    if anchor:
        mark = _encode(tokenizer, [anchor])[0]
        whole = [text for text, ids in joined.items() if ids[: len(mark)] != mark]  # merged with the anchor: as it is
        joined = {text: ids[len(mark) :] for text, ids in joined.items()}
        joined |= zip(whole, _encode(tokenizer, whole), strict=True)
    prefix = _prefix(tokenizer) if any(row.raw for row in rows) else ()
    return _Ids(dict(zip(first, _encode(tokenizer, first), strict=True)), joined, prefix)


def _encode(tokenizer: Tokenizer, texts: list[str], *, special: bool = False) -> list[tuple[int, ...]]:
    if not texts:
        return []
    batch: Any = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
    return [tuple(ids) for ids in batch["input_ids"]]


def _anchor(tokenizer: Tokenizer) -> str:
    """A line feed where the tokenizer puts a space before every text (SentencePiece), else nothing.

    Such a tokenizer would begin the response with a space that is not in the template's text; with the anchor in front,
    whose ids are taken away again, the text is tokenised as one that goes on.
    """
    probe = "a b"
    mark, alone, after = _encode(tokenizer, ["\n", probe, "\n" + probe])
    return "" if after == mark + alone or after[: len(mark)] != mark else "\n"


def _prefix(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text (those after it would end the prompt)."""
    plain, full = _encode(tokenizer, ["a"])[0], _encode(tokenizer, ["a"], special=True)[0]
    return next((full[:at] for at in range(len(full)) if full[at : at + len(plain)] == plain), ())


def _assemble(pieces: _Pieces, ids: _Ids, tokenizer: Tokenizer, end_ids: frozenset[int], origin: str) -> Rendered:
    prompt = (ids.prefix if pieces.raw else ()) + ids.first[pieces.texts[0]]
    if not prompt:
        raise RowError("empty prompt", where=origin, fix="give the prompt some text")
    response: list[int] = []
    mask: list[bool] = []
    for place, text in enumerate(pieces.texts[1:], start=1):
        response += ids.later[text]
        mask += [place % 2 == 1] * len(ids.later[text])
    if len(pieces.texts) > 1 and (not response or response[-1] not in end_ids):
        response.append(_end_id(tokenizer, end_ids))
        mask.append(True)
    return Rendered(prompt, tuple(response), tuple(mask))


def _unended(row: Rendered, end_ids: frozenset[int], origin: str) -> Rendered:
    """The row without its end of turn: `limbeck generate` marks answers that ran out of tokens as `truncated`, and
    whoever learns to end there learns to stop in the middle of a sentence."""
    if row.response_ids[-1] not in end_ids:
        return row
    if len(row.response_ids) == 1:
        raise RowError("empty response", where=origin, fix="leave the row out")
    return Rendered(row.prompt_ids, row.response_ids[:-1], row.response_mask[:-1])


def _end_id(tokenizer: Tokenizer, end_ids: frozenset[int]) -> int:
    eos: Any = tokenizer.eos_token_id
    if eos is None and not end_ids:
        raise DataError(f"the tokenizer of {_name(tokenizer)} has no end token", fix="set its eos_token")
    return min(end_ids) if eos is None else eos
