"""The gate, the errors, and what the server says of itself; 200 malformed requests."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from serve_running import Running, sequences

from limbeck.models import tokenizer_fingerprint
from limbeck.serve.protocol import WITHOUT_EFFECT
from limbeck.signal import Ask
from limbeck.teachers.wire import Question, decode_answer, encode_question, seal

JSON = {"content-type": "application/json"}
CHAT = [{"role": "user", "content": "the cat"}]


def test_what_it_says_of_itself(server: Running) -> None:
    assert server.http.get("/health").status_code == 200
    answer = server.http.get("/v1/models").json()
    (card,) = answer["data"]
    assert answer["object"] == "list"
    assert (card["id"], card["object"], card["owned_by"], card["max_model_len"]) == ("tiny", "model", "limbeck", 200)
    tokenizer = server.served.tokenizer
    facts = card["limbeck"]
    assert facts["tokenizer"] == tokenizer_fingerprint(tokenizer)
    assert (facts["valid"], facts["head"], facts["wire"], facts["hidden"]) == (320, 325, "limbeck1", True)
    assert facts["end_ids"] == [tokenizer.eos_token_id]
    assert facts["max_logprobs"] == 64
    assert len(facts["identity"]) == 32
    assert len(facts["chat_template"]) == 64


def test_tokenize_is_vllms(server: Running) -> None:
    tokenizer = server.served.tokenizer
    answer = server.post(
        "/tokenize", {"prompt": "the cat", "add_special_tokens": False, "return_token_strs": True}
    ).json()
    ids = tokenizer.encode("the cat", add_special_tokens=False)
    strings = tokenizer.convert_ids_to_tokens(ids)
    assert answer == {"count": len(ids), "max_model_len": 200, "tokens": ids, "token_strs": strings}
    rendered = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert server.post("/tokenize", {"messages": CHAT}).json()["tokens"] == rendered


def test_the_key(serve) -> None:
    with serve(api_key="s3cret") as server:
        assert server.http.get("/v1/models").status_code == 200
        with httpx.Client(base_url=server.url, trust_env=False) as stranger:
            assert stranger.get("/health").status_code == 200
            for path in ("/v1/models", "/metrics", "/v1/head", "/openapi.json"):
                for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
                    response = stranger.get(path, headers=headers)
                    assert response.status_code == 401
                    assert response.json()["error"]["type"] == "authentication_error"
            assert stranger.post("/v1/completions", json={"prompt": "a"}).status_code == 401


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(serve, chunked: bool) -> None:
    with serve(max_request_mb=1) as server:
        big = b'{"prompt": "' + b"a" * 1_100_000 + b'"}'
        for path in ("/v1/completions", "/v1/score"):
            content = (big[i : i + 50_000] for i in range(0, len(big), 50_000)) if chunked else big
            response = server.http.post(path, content=content, headers=JSON)
            assert response.status_code == 413
            assert "--max_request_mb" in response.json()["error"]["message"]
        assert works(server)


def test_a_full_queue_says_when_to_come_back(serve, monkeypatch) -> None:
    from limbeck.serve import engine

    real, busy, go = engine.hidden_states, threading.Event(), threading.Event()

    def held(*args: Any) -> Any:
        busy.set()
        go.wait(30)
        return real(*args)

    monkeypatch.setattr(engine, "hidden_states", held)
    with serve(max_queue=1) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(works, server)
        assert busy.wait(30)
        one = {"prompt": "a", "max_tokens": 1}
        refused = [server.post("/v1/completions", one), server.post("/v1/completions", {**one, "stream": True})]
        refused += [
            server.http.post("/v1/score", content=good()),
            server.post("/v1/chat/completions", {"messages": CHAT}),
        ]
        go.set()
        assert first.result(30)
        for response in refused:
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert response.json()["error"]["type"] == "overloaded_error"
        assert works(server)


def test_metrics_count(serve) -> None:
    with serve() as server:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: works(server), range(4)))
        server.http.get("/no/such/path")
        server.post("/v1/completions", {"prompt": "the cat", "max_tokens": 5, "ignore_eos": True})
        text = server.http.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['limbeck_requests_total{endpoint="/v1/score",status="200"}'] == "4.0"
    assert lines['limbeck_requests_total{endpoint="other",status="404"}'] == "1.0"
    assert (lines["limbeck_tokens_scored_total"], lines["limbeck_tokens_generated_total"]) == ("8.0", "5.0")
    assert lines["limbeck_tokens_read_total"] == "32.0"
    assert 1 <= float(lines["limbeck_batch_sequences_count"]) <= 4
    assert lines["limbeck_batch_sequences_sum"] == "4.0"
    assert lines["limbeck_queue_requests"] == "0.0"


@pytest.mark.parametrize("name", ["chat_template", "tools", "logit_bias", "response_format", "presence_penalty"])
def test_what_would_change_the_answer_and_is_not_supported_is_refused(server: Running, name: str) -> None:
    assert name in WITHOUT_EFFECT
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": CHAT})):
        response = server.post(path, {**body, "max_tokens": 1, name: "{{ 7 * 7 }}"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == name
        neutral = server.post(path, {**body, "max_tokens": 1, name: WITHOUT_EFFECT[name][0]})
        assert neutral.status_code == 200
    assert (
        server.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "user": "x", "whatever": 3}).status_code == 200
    )


def test_another_model_is_not_here(server: Running) -> None:
    response = server.post("/v1/completions", {"model": "gpt-4", "prompt": "a"})
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"


def test_a_fault_of_the_model_is_told_without_a_traceback(serve, monkeypatch) -> None:
    with serve() as server:
        from limbeck.serve import engine

        def broken(*args: Any) -> Any:
            raise RuntimeError("a secret")

        monkeypatch.setattr(engine, "hidden_states", broken)
        response = server.http.post("/v1/score", content=good())
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "the model failed on this request (RuntimeError)"
        monkeypatch.undo()
        assert works(server)


def good() -> bytes:
    return encode_question(Question(Ask("topk", 4), sequences(9), [[3, 8]]))


def works(server: Running) -> bool:
    response = server.http.post("/v1/score", content=good())
    (signal,) = decode_answer(response.content, [2], valid=320).signals
    assert not isinstance(signal, torch.Tensor)
    return response.status_code == 200 and signal is not None and signal.logprobs.shape == (2, 4)


WRONG: list[Any] = [True, -1, 1.5, "x", [], {}, [None], "1", 1e400, 10**30, {"a": [1]}, [[]]]
NUMBERS = ("max_tokens", "temperature", "top_p", "n", "seed", "min_p", "top_k")


def malformed() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, path, what httpx sends): every one of them is the client's fault."""
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "the cat"},
        "/v1/chat/completions": {"messages": CHAT},
        "/tokenize": {"prompt": "the cat"},
    }
    fields = {
        "/v1/completions": (*NUMBERS, "prompt", "logprobs", "prompt_logprobs", "echo", "stream", "stop", "model"),
        "/v1/chat/completions": (*NUMBERS, "messages", "stream", "top_logprobs", "model"),
        "/tokenize": ("prompt", "messages", "add_special_tokens"),
    }
    accepted = {  # pairs of WRONG that are right after all
        *(("prompt", w) for w in ("'x'", "'1'")),
        *(("stop", w) for w in ("'x'", "'1'", "[]")),
        *(("seed", "-1"), ("echo", "True"), ("stream", "True"), ("add_special_tokens", "True")),
        *((name, "1.5") for name in ("temperature",)),
        ("top_k", "-1"),
    }
    for path, names in fields.items():
        for name in names:
            for wrong in WRONG:
                if (name, repr(wrong)) not in accepted:
                    yield "POST", path, {"content": json.dumps({**bodies[path], name: wrong}), "headers": JSON}
    for path in (*bodies, "/v1/score"):
        for content in (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{" * 5000, b'{"prompt":'):
            yield "POST", path, {"content": content, "headers": JSON}
        yield "POST", path, {"content": b"a=b", "headers": {"content-type": "application/x-www-form-urlencoded"}}
        yield "GET", path, {}
    for prompt in ([], [[]], "", [1, "a"], [-1], [320], [[1], []], [1] * 201, [[2**40]], [0] * 200):
        yield "POST", "/v1/completions", {"json": {"prompt": prompt, "max_tokens": 1}}
    for messages in (
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": 1, "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
    ):
        yield "POST", "/v1/chat/completions", {"json": {"messages": messages}}
    for path in ("/", "/v1", "/v1/nothing", "/v1/models/../score", "/admin"):
        yield "GET", path, {}
        yield "DELETE", path, {}
    yield from (("POST", "/v1/score", {"content": body}) for body in spoiled())


def spoiled() -> Iterator[bytes]:
    """Questions that are cut, changed, or sealed with what cannot be."""
    rng, whole = random.Random(0), good()
    for _ in range(20):
        yield whole[: rng.randrange(len(whole))]
        at = rng.randrange(len(whole))
        yield whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
    right = {"kind": "topk", "k": "4", "temperature": "1.0", "bits": "32"}
    i32 = {"dtype": torch.int32}
    arrays = {
        "tokens": torch.tensor([5, 6, 7], **i32),
        "lengths": torch.tensor([3], **i32),
        "places": torch.tensor([1, 2], **i32),
        "counts": torch.tensor([2], **i32),
    }
    metas = ({"kind": "all"}, {"k": "0"}, {"k": "-4"}, {"k": "x"}, {"k": "9" * 5000}, {"k": "65"}, {"k": "321"})
    metas += (
        {"temperature": "0"},
        {"temperature": "nan"},
        {"temperature": "inf"},
        {"temperature": "-1"},
        {"bits": "8"},
    )
    metas += ({"kind": "named", "k": "0"}, {"kind": "union"}, {"kind": "hidden"}, {"temperature": "1e-9"})
    for meta in metas:
        yield seal(arrays, right | meta)
    for name in arrays:
        yield seal({k: v for k, v in arrays.items() if k != name}, right)
        for bad in ([], [-1], [2**31 - 1], [0], [3, 3, 3], [1, 1]):
            if (name, bad) != ("tokens", [3, 3, 3]):
                yield seal(arrays | {name: torch.tensor(bad, **i32)}, right)
        yield seal(arrays | {name: arrays[name].float()}, right)
        yield seal(arrays | {name: arrays[name].view(1, -1)}, right)


def test_malformed_requests_are_answered_as_such_and_hurt_nobody(server: Running) -> None:
    requests = list(malformed())
    assert len(requests) >= 200
    for number, (method, path, sent) in enumerate(requests):
        response = server.http.request(method, path, **sent)
        about = f"{method} {path} {str(sent)[:300]}: {response.status_code} {response.text[:200]}"
        assert 400 <= response.status_code < 500, about
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, about
        assert error["message"], about
        assert len(error["message"]) < 500, about
        assert "Traceback" not in error["message"], about
        if number % 25 == 0:
            assert works(server)
    assert works(server)
    assert server.served.engine.alive()
