"""/v1/completions and /v1/chat/completions: from a request to a generation, and from its pieces to JSON or a stream."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2

from limbeck.serve.engine import Broken, Busy, Scoring
from limbeck.serve.generate import Generation, Piece, Sampling
from limbeck.serve.logprobs import Position, chat_form, completion_form, prompt_reader, vllm_form
from limbeck.serve.protocol import ApiError, ChatRequest, CompletionRequest, Message, error_body
from limbeck.serve.served import Served

COMPLETION_TOKENS = 16  # of /v1/completions where neither the request nor a flag says, as in OpenAI's API
MAX_ROWS = 1024  # prompts x n
MAX_ENTRIES = 2_000_000  # log-probabilities in one JSON answer
DONE = "data: [DONE]\n\n"


@dataclass
class Choice:
    """One row of the answer."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    positions: list[Position | None] = field(default_factory=list)
    finish: str | None = None
    stopped_by: str | int | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.ids.append(piece.id)
        self.positions.append(piece.position)
        self.finish, self.stopped_by = piece.finish, piece.stopped_by


@dataclass
class Work:
    """A request that was understood. rows: one prompt a choice. head: what every JSON object of the answer begins with.
    read: positions of the prompts' tokens, where they are asked for."""

    served: Served
    rows: list[list[int]]
    sampling: Sampling
    head: dict[str, Any]
    n: int
    read: list[list[Position]] | None = None

    @property
    def prompts(self) -> list[list[int]]:
        return self.rows[:: self.n]

    def usage(self, generated: int) -> dict[str, int]:
        asked = sum(map(len, self.prompts))
        return {"prompt_tokens": asked, "completion_tokens": generated, "total_tokens": asked + generated}


@dataclass
class Started:
    """A generation that stands in the engine's queue; None in `queue` is its end."""

    work: Work
    queue: asyncio.Queue[Piece | None]
    generation: Generation | None = None

    async def pieces(self) -> AsyncIterator[Piece]:
        """As they are drawn. Leaving the iteration ends the generation. Raises Busy and Broken."""
        if self.generation is None:
            return
        try:
            while (piece := await self.queue.get()) is not None:
                yield piece
            self.generation.future.result()
        finally:
            self.generation.future.cancel()

    async def choices(self) -> list[Choice]:
        """Whole rows."""
        found = [Choice(finish=None if self.generation else "length") for _ in self.work.rows]
        async for piece in self.pieces():
            found[piece.row].add(piece)
        return found


def start(work: Work) -> Started:
    """Puts the generation into the engine's queue. Raises Busy."""
    started = Started(work, asyncio.Queue())
    if work.sampling.max_tokens == 0:
        return started
    loop, served, engine = asyncio.get_running_loop(), work.served, work.served.engine

    def tell(piece: Piece | None) -> None:
        if not loop.is_closed():  # it is when the server has not waited for the model's thread
            loop.call_soon_threadsafe(started.queue.put_nowait, piece)

    def emit(piece: Piece) -> None:
        served.metrics.generated.inc()
        tell(piece)

    generation = started.generation = Generation(
        model=engine.model,
        tokenizer=served.tokenizer,
        valid=served.valid,
        end_ids=served.end_ids,
        prompts=work.rows,
        sampling=work.sampling,
        emit=emit,
        budget=engine.budget,
    )
    generation.future.add_done_callback(lambda _: tell(None))
    engine.generate(generation)
    return started


async def read_prompts(work: Work, k: int) -> None:
    """Fills in `work.read`: the positions of every prompt token but the first, with the k likeliest ids each."""
    prompts = work.prompts
    if (k + 1) * sum(map(len, prompts)) > MAX_ENTRIES:
        raise ApiError(f"more than {MAX_ENTRIES:,} log-probabilities in one answer; ask about fewer prompts at a time")
    places = [range(1, len(prompt)) for prompt in prompts]
    scoring = Scoring(prompts, places, prompt_reader(prompts, k))
    work.read = await asyncio.wrap_future(work.served.engine.score(scoring))


def completion_work(served: Served, request: CompletionRequest) -> Work:
    """Raises ApiError for a prompt or a number that cannot be."""
    request.check()
    default = served.limits.default_max_tokens or COMPLETION_TOKENS
    max_tokens = default if request.max_tokens is None else request.max_tokens
    for name in ("logprobs", "prompt_logprobs"):
        _check_logprobs(served, getattr(request, name), name)
    if request.stream and (request.prompt_logprobs is not None or (request.echo and request.logprobs is not None)):
        raise ApiError("log-probabilities of the prompt are not available with `stream`", param="stream")
    prompts = _prompts(served, request)
    n = request.n or 1
    _check_lengths(served, prompts, max_tokens, n)
    rows = [prompt for prompt in prompts for _ in range(n)]
    return Work(served, rows, request.sampling(max_tokens, request.logprobs), _head(served, "cmpl"), n)


def chat_work(served: Served, request: ChatRequest) -> Work:
    """Raises ApiError as `completion_work` does, and for messages that the model's chat template refuses."""
    request.check()
    if request.prompt_logprobs is not None:
        raise ApiError("`prompt_logprobs` is answered by /v1/completions only", param="prompt_logprobs")
    if request.top_logprobs and not request.logprobs:
        raise ApiError("`top_logprobs` needs `logprobs`: true", param="top_logprobs")
    _check_logprobs(served, request.top_logprobs, "top_logprobs")
    prompt = render(served, request.messages, add_generation_prompt=request.add_generation_prompt is not False)
    room = served.max_model_len - len(prompt)
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    default = min(room, served.limits.default_max_tokens or room)
    max_tokens = max(default, 1) if asked is None else asked
    n = request.n or 1
    _check_lengths(served, [prompt], max_tokens, n)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return Work(served, [prompt] * n, request.sampling(max_tokens, logprobs), _head(served, "chatcmpl"), n)


def render(served: Served, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
    """Ids of a conversation, through the model's own chat template. Raises ApiError."""
    if not served.tokenizer.chat_template:
        raise ApiError("the model has no chat template; use /v1/completions", param="messages")
    try:
        return served.tokenizer.apply_chat_template(
            [message.plain() for message in messages],
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=False,
        )
    except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ApiError(f"the chat template refuses these messages: {reason}", param="messages") from error


def completion_answer(work: Work, request: CompletionRequest, choices: Sequence[Choice]) -> dict[str, Any]:
    shown = [_completion_choice(work, request, i, choice) for i, choice in enumerate(choices)]
    usage = work.usage(sum(len(choice.ids) for choice in choices))
    return {**work.head, "object": "text_completion", "choices": shown, "usage": usage}


def _completion_choice(work: Work, request: CompletionRequest, index: int, choice: Choice) -> dict[str, Any]:
    served, prompt = work.served, work.rows[index]
    text, ids, found = choice.text, choice.ids, choice.positions
    read = None if work.read is None else work.read[index // work.n]
    if request.echo:
        text, ids = served.tokenizer.decode(prompt, skip_special_tokens=True) + text, [*prompt, *ids]
        if read is not None and request.logprobs is not None:
            cut = [Position(p.id, p.logprob, p.rank, p.top[: request.logprobs]) for p in read]
            found = [None, *cut, *found]
    shown: dict[str, Any] = {
        "index": index,
        "text": text,
        "logprobs": None if request.logprobs is None else completion_form(found, ids, served.word),
        "finish_reason": choice.finish,
        "stop_reason": choice.stopped_by,
        "prompt_logprobs": None,
    }
    if read is not None and request.prompt_logprobs is not None:
        k = request.prompt_logprobs
        cut = [Position(p.id, p.logprob, p.rank, p.top[:k]) for p in read]
        shown["prompt_logprobs"] = [None, *(vllm_form(p, served.word) for p in cut)]
    if request.return_token_ids:
        shown |= {"token_ids": choice.ids, "prompt_token_ids": prompt}
    return shown


def chat_answer(work: Work, choices: Sequence[Choice]) -> dict[str, Any]:
    shown = [
        {
            "index": i,
            "message": {"role": "assistant", "content": choice.text},
            "logprobs": _chat_logprobs(work, choice.positions),
            "finish_reason": choice.finish,
            "stop_reason": choice.stopped_by,
        }
        for i, choice in enumerate(choices)
    ]
    usage = work.usage(sum(len(choice.ids) for choice in choices))
    return {**work.head, "object": "chat.completion", "choices": shown, "usage": usage}


def _chat_logprobs(work: Work, found: Sequence[Position | None]) -> dict[str, Any] | None:
    if work.sampling.logprobs is None:
        return None
    return {"content": [chat_form(p, work.served.word) for p in found if p is not None]}


def completion_stream(started: Started, request: CompletionRequest) -> AsyncIterator[str]:
    work, served = started.work, started.work.served
    shown = [0] * len(work.rows)  # characters of tokens so far, for the offsets

    def choice(piece: Piece) -> dict[str, Any]:
        logprobs = None
        if work.sampling.logprobs is not None:
            logprobs = completion_form([piece.position], [piece.id], served.word, shown[piece.row])
            shown[piece.row] += len(logprobs["tokens"][0])
        ends = {"finish_reason": piece.finish, "stop_reason": piece.stopped_by}
        return {"index": piece.row, "text": piece.text, "logprobs": logprobs, **ends}

    first = []
    if request.echo:
        texts = [served.tokenizer.decode(prompt, skip_special_tokens=True) for prompt in work.rows]
        end = "length" if work.sampling.max_tokens == 0 else None
        first = [{"index": i, "text": t, "logprobs": None, "finish_reason": end} for i, t in enumerate(texts)]
    return _stream(started, {**work.head, "object": "text_completion"}, first, choice, usage=request.wants_usage)


def chat_stream(started: Started, request: ChatRequest) -> AsyncIterator[str]:
    work = started.work

    def choice(piece: Piece) -> dict[str, Any]:
        logprobs = _chat_logprobs(work, [piece.position])
        ends = {"finish_reason": piece.finish, "stop_reason": piece.stopped_by}
        return {"index": piece.row, "delta": {"content": piece.text}, "logprobs": logprobs, **ends}

    opening = {"role": "assistant", "content": ""}
    first = [{"index": i, "delta": opening, "logprobs": None, "finish_reason": None} for i in range(len(work.rows))]
    return _stream(started, {**work.head, "object": "chat.completion.chunk"}, first, choice, usage=request.wants_usage)


async def _stream(
    started: Started,
    head: dict[str, Any],
    first: Sequence[dict[str, Any]],
    choice: Callable[[Piece], dict[str, Any]],
    *,
    usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events: one a choice in `first`, one a piece that has something to say, the usage, and [DONE]."""
    count = 0
    for item in first:
        yield _event({**head, "choices": [item]})
    try:
        async for piece in started.pieces():
            count += 1
            if piece.text or piece.finish or piece.position is not None:
                yield _event({**head, "choices": [choice(piece)]})
    except (Busy, Broken) as error:
        yield _event(error_body(503 if isinstance(error, Busy) else 500, str(error)))
    if usage:
        yield _event({**head, "choices": [], "usage": started.work.usage(count)})
    yield DONE


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _head(served: Served, kind: str) -> dict[str, Any]:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}


def _prompts(served: Served, request: CompletionRequest) -> list[list[int]]:
    prompt: Any = request.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    if len(prompt) * (request.n or 1) > MAX_ROWS:
        raise ApiError(f"at most {MAX_ROWS} completions in one request", param="prompt")
    special = request.add_special_tokens is not False
    prompts = [
        served.tokenizer.encode(p, add_special_tokens=special) if isinstance(p, str) else list(p) for p in prompt
    ]
    for ids in prompts:
        if ids and (min(ids) < 0 or max(ids) >= served.valid):
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise ApiError(f"token id {wrong} is outside 0..{served.valid - 1}", param="prompt")
    if not prompts or not all(prompts):
        raise ApiError("the prompt is empty", param="prompt")
    return prompts


def _check_logprobs(served: Served, k: int | None, name: str) -> None:
    if k is not None and k > served.max_logprobs:
        raise ApiError(
            f"`{name}` is {k}, and this server gives at most {served.max_logprobs} (--max_logprobs)", param=name
        )


def _check_lengths(served: Served, prompts: Sequence[Sequence[int]], max_tokens: int, n: int) -> None:
    longest, total = max(map(len, prompts)), sum(map(len, prompts)) * n
    if longest + max_tokens > served.max_model_len:
        raise ApiError(
            f"the longest sequence here is {served.max_model_len} tokens, and {longest} of the prompt and "
            f"{max_tokens} of the completion are more"
        )
    if total > served.limits.max_request_tokens:
        raise ApiError(f"{total} tokens in one request; at most {served.limits.max_request_tokens}")
