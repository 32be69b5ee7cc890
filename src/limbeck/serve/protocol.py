"""What clients may send, in OpenAI's and vLLM's words, and how they are told of a fault.

Fields that are not known are let pass, as OpenAI does. Known ones that would change the answer and have no effect here
are refused: an answer to another question would be worse than none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.responses import JSONResponse

from limbeck.serve.generate import Sampling

# Field -> values at which it changes nothing. Everything else is refused.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "repetition_penalty": (1, None),
    "logit_bias": ({}, None),
    "best_of": (1, None),
    "suffix": ("", None),
    "use_beam_search": (False, None),
    "tools": ([], None),
    "functions": ([], None),
    "tool_choice": ("none", "auto", None),
    "response_format": ({"type": "text"}, None),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "allowed_token_ids": (None,),
    "bad_words": ([], None),
    "min_tokens": (0, None),
    "truncate_prompt_tokens": (None,),
    "prompt_embeds": (None,),
    "lora_request": (None,),
    "continue_final_message": (False, None),
    "chat_template": (None,),
    "chat_template_kwargs": ({}, None),
    "documents": ([], None),
    "skip_special_tokens": (True, None),
    "include_stop_str_in_output": (False, None),
    "modalities": (["text"], None),
}

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}
SECONDS_TO_WAIT = 1


class ApiError(Exception):
    """A fault of the request: the HTTP status, what is wrong, and the field that it is about."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param = message, status, param


def error_response(status: int, message: str, param: str | None = None) -> JSONResponse:
    """OpenAI's form of an error."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    headers = {"Retry-After": str(SECONDS_TO_WAIT)} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    return JSONResponse(body, status, headers)


def error_body(status: int, message: str) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


class Asked(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    model: str | None = None

    def check(self) -> None:
        """Raises ApiError for a field that would change the answer and is not supported."""
        for name, value in (self.model_extra or {}).items():
            if name in WITHOUT_EFFECT and value not in WITHOUT_EFFECT[name]:
                raise ApiError(f"`{name}` is not supported by this server", param=name)


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None


Number = Annotated[float, Field(allow_inf_nan=False)]
Prompt = str | list[int] | list[str] | list[list[int]]


class Sampled(Asked):
    """What completions and chat have in common."""

    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self, max_tokens: int, logprobs: int | None) -> Sampling:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else self.seed % 2**62,
            stop=tuple(stop for stop in stops if stop),
            stop_ids=frozenset(self.stop_token_ids or ()),
            ignore_end=bool(self.ignore_eos),
            logprobs=logprobs,
        )

    @property
    def wants_usage(self) -> bool:
        """A stream that ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionRequest(Sampled):
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    role: str
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ChatRequest(Sampled):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    prompt_logprobs: JsonValue = None
    add_generation_prompt: bool | None = None


class TokenizeRequest(Asked):
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
