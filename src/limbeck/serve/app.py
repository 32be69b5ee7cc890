"""The HTTP face of the teacher server: its routes, its gate, and one form for every error."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limbeck.serve import openai
from limbeck.serve.engine import Broken, Busy
from limbeck.serve.metrics import Metrics
from limbeck.serve.openai import chat_work, completion_work, render
from limbeck.serve.protocol import ApiError, ChatRequest, CompletionRequest, TokenizeRequest, error_response
from limbeck.serve.score import answer, check, scoring_of
from limbeck.serve.served import Served
from limbeck.teachers.wire import MEDIA_TYPE, WireError, decode_question, encode_answer

logger = logging.getLogger(__name__)
router = APIRouter()
T = TypeVar("T")

GONE = 499  # nginx's: the client went away, and nobody reads the answer
FREE = ("/health",)  # needs no key
GRACE = 5.0  # seconds that the model's thread gets to end


def make_app(served: Served) -> FastAPI:
    """The application; its lifespan starts the model's thread and ends it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served.engine.start()
        yield
        ended = await asyncio.to_thread(served.engine.close, GRACE)
        if not ended:
            logger.warning("a batch was still running; it is left behind")

    app = FastAPI(title="Limbeck", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.served = served
    app.include_router(router)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    paths = frozenset(getattr(route, "path", "") for route in router.routes)
    limits = served.limits
    app.add_middleware(
        Gate, key=limits.api_key, limit=limits.max_request_mb * 1_000_000, metrics=served.metrics, paths=paths
    )
    return app


@router.get("/health")
async def health(request: Request) -> Response:
    served: Served = request.app.state.served
    if not served.engine.alive():
        raise ApiError("the model's thread does not run", status=503)
    return Response(status_code=200)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(request.app.state.served.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [request.app.state.served.card()]}


@router.get("/v1/head")
async def head(request: Request) -> Response:
    """The output head as safetensors; its hash is the ETag."""
    served: Served = request.app.state.served
    if served.head_file is None:
        raise ApiError("hidden states and the head are given out with --allow_hidden only", status=403)
    tag = f'"{served.head}"'
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": tag})
    return FileResponse(served.head_file, media_type="application/octet-stream", headers={"ETag": tag})


@router.post("/v1/score")
async def score(request: Request) -> Response:
    """One of `limbeck.teachers.wire`'s questions."""
    served: Served = request.app.state.served
    body = await request.body()
    question = await asyncio.to_thread(decode_question, body, valid=served.valid)
    check(question, served)
    scoring, kept, refused = scoring_of(question, served)
    found = await while_connected(request, asyncio.wrap_future(served.engine.score(scoring)))
    told = answer(question, served, kept, refused, found)
    return Response(await asyncio.to_thread(encode_answer, told, question.bits), media_type=MEDIA_TYPE)


@router.post("/v1/completions", response_model=None)
async def completions(request: Request, asked: CompletionRequest) -> Response:
    served: Served = request.app.state.served
    _check_model(served, asked.model)
    work = await asyncio.to_thread(completion_work, served, asked)
    if asked.stream:
        stream = openai.completion_stream(openai.start(work), asked)
        return StreamingResponse(stream, media_type="text/event-stream")

    async def whole() -> list[openai.Choice]:
        k = max(
            (k for k in (asked.prompt_logprobs, asked.logprobs if asked.echo else None) if k is not None), default=-1
        )
        if k >= 0:
            await openai.read_prompts(work, k)
        return await openai.start(work).choices()

    choices = await while_connected(request, whole())
    return await asyncio.to_thread(lambda: JSONResponse(openai.completion_answer(work, asked, choices)))


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: Request, asked: ChatRequest) -> Response:
    served: Served = request.app.state.served
    _check_model(served, asked.model)
    work = await asyncio.to_thread(chat_work, served, asked)
    started = openai.start(work)
    if asked.stream:
        return StreamingResponse(openai.chat_stream(started, asked), media_type="text/event-stream")
    return JSONResponse(openai.chat_answer(work, await while_connected(request, started.choices())))


@router.post("/tokenize")
async def tokenize(request: Request, asked: TokenizeRequest) -> dict[str, Any]:
    served: Served = request.app.state.served
    _check_model(served, asked.model)
    asked.check()
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError("give `prompt` or `messages`", param="prompt")
    if asked.messages is not None:
        ids = render(served, asked.messages, add_generation_prompt=asked.add_generation_prompt is not False)
    else:
        special = asked.add_special_tokens is not False
        ids = await asyncio.to_thread(served.tokenizer.encode, asked.prompt, add_special_tokens=special)
    words = served.tokenizer.convert_ids_to_tokens(ids) if asked.return_token_strs else None
    return {"count": len(ids), "max_model_len": served.max_model_len, "tokens": ids, "token_strs": words}


def _check_model(served: Served, name: str | None) -> None:
    if name not in (None, "", served.name):
        raise ApiError(f"the model `{name}` does not exist; this is `{served.name}`", status=404, param="model")


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The outcome of `work`, which is dropped as soon as the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError("the client went away", status=GONE)
        return await task
    finally:
        task.cancel()
        watcher.cancel()


class Gate:
    """What every request passes: the key, the limit on its size, and the count for the metrics.

    limit: bytes of a body. paths: those that are counted by name.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, limit: int, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.key, self.limit, self.metrics, self.paths = app, key, limit, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, started = time.perf_counter(), 500, False

        async def seen(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, seen)
            else:
                await self.app(scope, self._limited(receive), seen)
        except asyncio.CancelledError:  # uvicorn's, where a signal has left the request no more time
            if started:
                raise
            await error_response(503, "the server is going down")(scope, receive, seen)
        finally:
            endpoint = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.request(endpoint, status, time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] not in FREE:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.key.encode()):
                return error_response(401, "the request needs the server's key: Authorization: Bearer KEY")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limit:
            return _too_large(self.limit)
        return None

    def _limited(self, receive: Receive) -> Receive:
        """For bodies that do not say how long they are."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limit:
                raise HTTPException(413, _size(self.limit))
            return message

        return counted


def _size(limit: int) -> str:
    return f"a request has at most {limit // 1_000_000} MB (--max_request_mb)"


def _too_large(limit: int) -> JSONResponse:
    return error_response(413, _size(limit))


async def _on_invalid(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "json_invalid":
        return error_response(400, f"the body is not JSON: {first['ctx']['error']} at {place}")
    if not place:
        return error_response(400, "the body must be a JSON object, sent as application/json")
    return error_response(400, f"{place}: {first['msg']}", str(first["loc"][1]))


async def _on_api_error(request: Request, error: Any) -> Response:
    return error_response(error.status, error.message, error.param)


async def _on_http(request: Request, error: Any) -> Response:
    return error_response(error.status_code, str(error.detail))


async def _on_wire(request: Request, error: Any) -> Response:
    return error_response(400, str(error))


async def _on_busy(request: Request, error: Any) -> Response:
    return error_response(503, str(error))


async def _on_broken(request: Request, error: Any) -> Response:
    return error_response(500, str(error))


async def _on_fault(request: Request, error: Any) -> Response:
    return error_response(500, f"the server failed on this request ({type(error).__name__})")


_HANDLERS: dict[type[Exception], Any] = {
    RequestValidationError: _on_invalid,
    ApiError: _on_api_error,
    HTTPException: _on_http,
    WireError: _on_wire,
    Busy: _on_busy,
    Broken: _on_broken,
    Exception: _on_fault,
}
