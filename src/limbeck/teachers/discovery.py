"""What stands behind an address: which kind of server, its model and limits, and whether it can teach this student."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from limbeck.errors import ConfigError
from limbeck.models import tokenizer_fingerprint, valid_ids
from limbeck.models.tokenizer import PROBES
from limbeck.signal import Ask
from limbeck.teachers import vllm, wire
from limbeck.teachers.connection import KEY_VARIABLE, Connection, Denied, Refused

MODELS = "/v1/models"
_SAME_IDS = "serve a teacher with the student's tokenizer: distillation compares distributions over the same ids"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server of Limbeck's own, or a stock one that speaks as vLLM does; None where it does not say.

    identity: what makes the teacher's answers what they are. max_model_len: tokens of a sequence. max_logprobs: the
    largest k. valid: number of the tokenizer's ids. tokenizer: its fingerprint. end_ids: tokens that end a response.
    hidden: gives out hidden states and the head. others: models that it serves beside this one, the first.
    """

    url: str
    kind: Literal["vllm", "limbeck"]
    model: str
    identity: str
    max_model_len: int | None = None
    max_logprobs: int | None = None
    valid: int | None = None
    tokenizer: str | None = None
    end_ids: frozenset[int] = frozenset()
    hidden: bool = False
    others: int = 0


def discover(
    url: str, *, key: str | None = None, patience: float = 600.0, say: Callable[[str], None] = print
) -> ServerInfo:
    """Asks the server for its models; waits up to `patience` seconds for one that is still starting.

    Raises ConfigError for an address that is no such server or wants another key, TeacherError where none answers.
    """
    connection = Connection(url, key=key, patience=patience, say=say)
    try:
        body = connection.get(MODELS, bytes)
    except Denied as denied:
        raise _denied(denied, connection.url) from denied
    except Refused as refused:
        raise _no_server(connection.url, str(refused)) from refused
    finally:
        connection.close()
    try:
        models = json.loads(body)["data"]
        info = replace(_info(connection.url, models[0]), others=len(models) - 1)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _no_server(connection.url, f"{MODELS} answers something else ({error!r})") from error
    return info


def described(info: ServerInfo) -> str:
    """For a person: which kind of server, which of its models is asked, and its limits."""
    kind = "limbeck deploy" if info.kind == "limbeck" else "a stock server, which speaks as vLLM does"
    first = f", the first of the {info.others + 1} that it serves" if info.others else ""
    limits = [f"{info.max_model_len:,} tokens a sequence"] if info.max_model_len is not None else []
    limits += [f"{info.max_logprobs:,} log-probabilities a token"] if info.max_logprobs is not None else []
    return f"{info.url} is {kind}; {info.model}{first}" + (f"; at most {', '.join(limits)}" if limits else "")


def _info(url: str, first: dict[str, Any]) -> ServerInfo:
    own = first.get("limbeck")
    model, longest = str(first["id"]), first.get("max_model_len")
    longest = None if longest is None else int(longest)
    if own is None:
        return ServerInfo(url, "vllm", model, f"vllm:{model}", longest)
    if own["wire"] != wire.MAGIC.decode():
        raise ConfigError(
            f"the teacher server speaks {own['wire']}, and this Limbeck {wire.MAGIC.decode()}",
            where=f"--teacher_model_server {url}",
            fix="install the same version of Limbeck on both sides",
        )
    return ServerInfo(
        url,
        "limbeck",
        model,
        str(own["identity"]),
        longest,
        own["max_logprobs"],
        int(own["valid"]),
        str(own["tokenizer"]),
        frozenset(map(int, own["end_ids"])),
        bool(own["hidden"]),
    )


def check_server(
    info: ServerInfo,
    ask: Ask,
    tokenizer: Any,
    *,
    topk_mode: Literal["tail", "renorm"] = "tail",
    key: str | None = None,
    patience: float = 600.0,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Raises ConfigError, naming the way out, where this server cannot answer `ask` for a student with this tokenizer.

    Returns what the user should know. A stock server is sent a question of a few tokens, and texts to tokenise.
    """
    if info.kind == "limbeck":
        _check_own(info, ask, tokenizer)
        return []
    _check_stock(info, ask, topk_mode)
    connection = Connection(info.url, key=key, patience=patience, say=say)
    try:
        _probe(connection, info, ask, tokenizer)
        notes = _compare_tokens(connection, info, tokenizer)
    except Denied as denied:
        raise _denied(denied, info.url) from denied
    finally:
        connection.close()
    if ask.kind == "topk" and topk_mode == "tail":
        notes.append(
            f"{info.url} is a stock server: the mass off the {ask.k} ids is what is left to 1, "
            "to the rounding of its numbers"
        )
    return notes


def _check_own(info: ServerInfo, ask: Ask, tokenizer: Any) -> None:
    valid = valid_ids(tokenizer)
    if info.valid != valid or info.tokenizer != tokenizer_fingerprint(tokenizer):
        sizes = f"{info.valid} ids there, {valid} here" if info.valid != valid else "the same number of ids, other ids"
        raise ConfigError(
            "the teacher's tokenizer is not the student's",
            where=f"{info.url} serves {info.model} ({sizes})",
            fix=_SAME_IDS,
        )
    if ask.kind == "hidden" and not info.hidden:
        raise ConfigError(
            "the teacher server does not give out hidden states",
            where=info.url,
            fix="start it with `limbeck deploy --allow_hidden`, or take the k likeliest with --gkd_logits_topk 64",
        )
    most = info.max_logprobs
    asked = max(ask.k, ask.named_k)
    if most is not None and most >= 0 and asked > most:
        raise _too_many(info, asked, most, "--max_logprobs")


def _check_stock(info: ServerInfo, ask: Ask, topk_mode: str) -> None:
    own = "serve the teacher with `limbeck deploy`, which can"
    if ask.kind == "hidden":
        raise ConfigError(
            "a stock vLLM server gives the likeliest ids and not the full vocabulary",
            where=info.url,
            fix="add --gkd_logits_topk 64 (the server must allow --max-logprobs 64)",
        )
    if ask.names:
        raise ConfigError(
            "a stock vLLM server does not give the log-probabilities of ids that the student names",
            where=info.url,
            fix=f"use --topk_support teacher, or {own}",
        )
    if ask.temperature != 1 and (ask.kind != "topk" or topk_mode != "renorm"):
        raise ConfigError(
            "a stock vLLM server gives log-probabilities at temperature 1 only",
            where=f"{info.url}, --loss_temperature {ask.temperature:g}",
            fix=f"use --loss_temperature 1, --topk_mode renorm (rescaled exactly), or {own}",
        )


def _probe(connection: Connection, info: ServerInfo, ask: Ask, tokenizer: Any) -> None:
    """One question of the kind that the run will ask: is it understood, and is k allowed?"""
    ids = tokenizer.encode(PROBES[0], add_special_tokens=False)[:2]
    body = vllm.encode(info.model, [ids], ask.k)
    try:
        answer = connection.post(vllm.PATH, body, bytes)
        vllm.decode(answer, [ids], [[1]], ask, valid=valid_ids(tokenizer))
    except Refused as refused:
        most = re.search(r"max allowed: (\d+)", str(refused))
        if most:
            raise _too_many(info, ask.k, int(most[1]), "--max-logprobs") from refused
        raise ConfigError(
            f"the teacher server refuses a question of two tokens: {refused}",
            where=f"{info.url} serves {info.model}",
            fix="see whether it is a vLLM server of a language model with the student's tokenizer",
        ) from refused
    except (ValueError, vllm.Mismatch) as error:
        raise ConfigError(
            f"the teacher server does not answer as vLLM does: {error}",
            where=f"{info.url}{vllm.PATH} with prompt_logprobs {ask.k}",
            fix="use a vLLM server or `limbeck deploy`; other OpenAI-compatible servers rarely give prompt_logprobs",
        ) from error


def _compare_tokens(connection: Connection, info: ServerInfo, tokenizer: Any) -> list[str]:
    """Texts that tokenizers disagree about, cut into ids there and here."""
    for text in (*PROBES, "a".join(tokenizer.get_added_vocab())):
        ours = tokenizer.encode(text, add_special_tokens=False)
        question = {"model": info.model, "prompt": text, "add_special_tokens": False}
        try:
            theirs = connection.post("/tokenize", json.dumps(question).encode(), _token_ids)
        except (Refused, Denied) as error:
            return [f"{info.url} does not say how it tokenises ({error}): see that its tokenizer is the student's"]
        if theirs != ours:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
            raise ConfigError(
                "the teacher's tokenizer is not the student's",
                where=f"{info.url} serves {info.model}; {text[:40]!r} gives {theirs[at : at + 4]} there, "
                f"{ours[at : at + 4]} here, from token {at} on",
                fix=_SAME_IDS,
            )
    return []


def _token_ids(body: bytes) -> list[int]:
    found = json.loads(body)
    if not isinstance(found, dict) or not isinstance(found.get("tokens"), list):
        raise ValueError("the answer has no list of tokens")
    return found["tokens"]


def _too_many(info: ServerInfo, k: int, most: int, flag: str) -> ConfigError:
    return ConfigError(
        f"the teacher server gives at most {most} log-probabilities a token, and {k} are asked for",
        where=f"{info.url} serves {info.model}",
        fix=f"start it with {flag} {k}, or use --gkd_logits_topk {most}",
    )


def _denied(denied: Denied, url: str) -> ConfigError:
    if denied.status in (401, 403, 407):
        return ConfigError(
            f"the teacher server does not let this run in: {denied.reason}",
            where=url,
            fix=f"put its key into the environment variable {KEY_VARIABLE}, or give --teacher_api_key",
        )
    return _no_server(url, denied.reason)


def _no_server(url: str, reason: str) -> ConfigError:
    return ConfigError(
        f"no teacher server answers at this address: {reason}",
        where=f"--teacher_model_server {url}",
        fix="give the address of `limbeck deploy` or of vLLM's OpenAI-compatible server, such as http://localhost:8000",
    )
