"""Completions and chat: vLLM's JSON, OpenAI's streams, and the text that transformers itself would give."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serve_running import Running, sequences, serving

from limbeck.serve.generate import Row, Sampling
from limbeck.signal import Ask
from limbeck.teachers.wire import Question, decode_answer, encode_question

VALID = 320


def complete(server: Running, **body: Any) -> dict[str, Any]:
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    return response.json()


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.fixture(scope="module")
def exact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The same model served in float64: ranks do not hang on rounding."""
    with serving(tiny / "teacher", tmp_path_factory.mktemp("exact"), dtype="float64") as running:
        yield running


def reference(server: Running, ids: list[int]) -> torch.Tensor:
    """log-softmax of transformers' own logits, over the valid ids, [tokens, valid]."""
    with torch.no_grad():
        return server.served.engine.model(torch.tensor([ids])).logits[0, :, :VALID].log_softmax(-1)


@pytest.mark.parametrize("k", [0, 1, 5, 64])
def test_prompt_logprobs_are_vllms_json(exact: Running, k: int) -> None:
    prompts = sequences(12, 1, 30, seed=k)
    answer = complete(exact, prompt=prompts, max_tokens=1, prompt_logprobs=k, temperature=0)
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")
    assert answer["usage"] == {"prompt_tokens": 43, "completion_tokens": 3, "total_tokens": 46}
    tokenizer = exact.served.tokenizer
    for i, (prompt, choice) in enumerate(zip(prompts, answer["choices"], strict=True)):
        assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (i, choice["finish_reason"], None)
        logprobs = reference(exact, prompt)
        assert logprobs.dtype == torch.float64
        found = choice["prompt_logprobs"]
        assert found[0] is None
        assert len(found) == len(prompt)
        for place, entry in enumerate(found[1:], 1):
            row, token = logprobs[place - 1], prompt[place]
            best = row.topk(k).indices.tolist()
            assert list(entry) == [str(token), *(str(b) for b in best if b != token)]
            for text, value in entry.items():
                rank = int((row >= row[int(text)]).sum())
                assert value["rank"] == rank
                assert value["decoded_token"] == tokenizer.decode([int(text)])
                assert value["logprob"] == pytest.approx(row[int(text)].item(), abs=1e-9)
                assert set(value) == {"logprob", "rank", "decoded_token"}


def test_the_four_forms_of_a_prompt(server: Running) -> None:
    tokenizer = server.served.tokenizer
    text = "the cat sees a dog"
    ids = tokenizer.encode(text)
    asked = {"max_tokens": 3, "temperature": 0, "return_token_ids": True}
    forms = [text, ids, [text, text], [ids, ids]]
    answers = [complete(server, prompt=form, **asked)["choices"] for form in forms]
    assert [len(choices) for choices in answers] == [1, 1, 2, 2]
    assert {str((c["text"], c["token_ids"], c["prompt_token_ids"])) for choices in answers for c in choices} == {
        str((answers[0][0]["text"], answers[0][0]["token_ids"], ids))
    }


def test_the_length_where_a_request_does_not_say(serve) -> None:
    free = {"prompt": "the cat", "ignore_eos": True}
    chat = {"messages": [{"role": "user", "content": "the cat"}], "ignore_eos": True}
    for limits, lengths in (({}, (16, None)), ({"default_max_tokens": 7}, (7, 7))):
        with serve(max_model_len=60, **limits) as running:
            completion = complete(running, **free)["usage"]
            talked = running.post("/v1/chat/completions", chat).json()["usage"]
            assert complete(running, **free, max_tokens=9)["usage"]["completion_tokens"] == 9
        fits = 60 - talked["prompt_tokens"]
        assert completion["completion_tokens"] == lengths[0]
        assert talked["completion_tokens"] == (lengths[1] or fits)


def test_greedy_is_transformers_own_within_the_valid_ids(server: Running) -> None:
    model = server.served.engine.model
    prompts = sequences(5, 9, seed=7)
    choices = complete(server, prompt=prompts, max_tokens=20, temperature=0, ignore_eos=True, return_token_ids=True)
    for prompt, choice in zip(prompts, choices["choices"], strict=True):
        ids = list(prompt)
        for _ in range(20):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1, :VALID].argmax()))
        assert choice["token_ids"] == ids[len(prompt) :]
        assert choice["finish_reason"] == "length"


def test_a_seed_repeats_and_n_rows_differ(server: Running) -> None:
    asked = {"prompt": "the cat", "max_tokens": 12, "n": 3, "return_token_ids": True, "ignore_eos": True}
    first, again, other = ([c["token_ids"] for c in complete(server, **asked, seed=s)["choices"]] for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({str(row) for row in first}) == 3
    assert all(0 <= token < VALID for row in first for token in row)


def test_logprobs_of_what_was_drawn(exact: Running) -> None:
    prompt = sequences(6, seed=9)[0]
    asked = {"prompt": prompt, "max_tokens": 8, "temperature": 2.0, "seed": 3, "ignore_eos": True}
    choice = complete(exact, **asked, logprobs=2, echo=True, return_token_ids=True)["choices"][0]
    ids = prompt + choice["token_ids"]
    logprobs = reference(exact, ids)
    found = choice["logprobs"]
    words = [exact.served.tokenizer.decode([i]) for i in ids]
    assert found["tokens"] == words
    assert found["text_offset"] == [sum(map(len, words[:i])) for i in range(len(words))]
    assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
    right = [logprobs[i - 1, token].item() for i, token in enumerate(ids) if i]  # at temperature 1, as in vLLM
    assert found["token_logprobs"][1:] == pytest.approx(right, abs=1e-6)
    for i, top in enumerate(found["top_logprobs"][1:], 1):
        best = [b for b in logprobs[i - 1].topk(2).indices.tolist() if b != ids[i]]
        keyed = {exact.served.tokenizer.decode([b]): logprobs[i - 1, b].item() for b in (ids[i], *best)}
        assert top == pytest.approx(keyed, abs=1e-6)


def test_more_than_max_logprobs_is_refused(server: Running) -> None:
    for name in ("prompt_logprobs", "logprobs"):
        response = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1, name: 65})
        assert response.status_code == 400
        assert "--max_logprobs" in response.json()["error"]["message"]
        assert response.json()["error"]["param"] == name


def test_a_prompt_without_a_completion(server: Running) -> None:
    answer = complete(server, prompt=[3, 4, 5], max_tokens=0, prompt_logprobs=1)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("", "length")
    assert len(answer["choices"][0]["prompt_logprobs"]) == 3
    echo = complete(server, prompt="the cat", max_tokens=0, echo=True)
    assert echo["choices"][0]["text"] == "the cat"


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_says_what_the_whole_answer_says(server: Running, seed: int) -> None:
    asked = {"prompt": ["the cat", "a small red"], "n": 2, "max_tokens": 25, "seed": seed, "temperature": 1.5}
    whole = complete(server, **asked)
    with server.http.stream(
        "POST", "/v1/completions", json={**asked, "stream": True, "stream_options": {"include_usage": True}}
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *parts, last = events(response)
    texts, ends = ["", "", "", ""], {}
    for event in parts:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            ends[choice["index"]] = choice["finish_reason"]
    assert texts == [c["text"] for c in whole["choices"]]
    assert [ends[i] for i in range(4)] == [c["finish_reason"] for c in whole["choices"]]
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


def test_text_comes_in_whole_characters_and_ends_before_a_stop(server: Running) -> None:
    tokenizer = server.served.tokenizer
    ids = tokenizer.encode("naïve 🙂 cat sees 日本 dog", add_special_tokens=False)
    row = Row(tokenizer, [5, 6], Sampling(max_tokens=len(ids)), frozenset())
    pieces = [row.push(i) for i in ids]
    assert "".join(pieces) == "naïve 🙂 cat sees 日本 dog"
    assert not any("\ufffd" in piece for piece in pieces)
    assert row.finish == "length"

    row = Row(tokenizer, [5, 6], Sampling(max_tokens=99, stop=("xyzzy", "sees 日")), frozenset())
    text = ""
    for i in ids:
        text += row.push(i)
        if row.finish:
            break
    assert (text, row.finish, row.stopped_by) == ("naïve 🙂 cat ", "stop", "sees 日")

    ended = Row(tokenizer, [5], Sampling(max_tokens=9), frozenset([ids[1]]))
    assert (ended.push(ids[0]), ended.finish) == (tokenizer.decode(ids[:1]), None)
    assert (ended.push(ids[1]), ended.finish, ended.stopped_by) == ("", "stop", None)


def test_a_stop_string_over_http(server: Running) -> None:
    asked = {"prompt": "the cat", "max_tokens": 30, "seed": 5, "ignore_eos": True}
    text = complete(server, **asked)["choices"][0]["text"]
    stop = text[8:11]
    cut = complete(server, **asked, stop=["never to be seen", stop])["choices"][0]
    assert (cut["text"], cut["finish_reason"], cut["stop_reason"]) == (text[: text.index(stop)], "stop", stop)


def chat(server: Running, **body: Any) -> httpx.Response:
    return server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "the cat"}], **body})


def test_chat_goes_through_the_template(server: Running) -> None:
    asked = {"max_tokens": 10, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    answer = chat(server, **asked).json()
    prompt = server.served.tokenizer.apply_chat_template(
        [{"role": "user", "content": "the cat"}], add_generation_prompt=True, return_dict=False
    )
    same = complete(server, prompt=prompt, max_tokens=10, temperature=0, logprobs=2)["choices"][0]
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": same["text"]}
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == same["logprobs"]["tokens"]
    assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == same["logprobs"]["token_logprobs"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in choice["logprobs"]["content"])
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    parts = [{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]}]
    assert chat(server, **asked, messages=parts).json()["choices"] == answer["choices"]


def test_a_chat_stream(server: Running) -> None:
    asked = {"max_completion_tokens": 10, "temperature": 0}
    whole = chat(server, **asked).json()
    parts = events(chat(server, **asked, stream=True))
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(part["object"] == "chat.completion.chunk" for part in parts)
    assert "".join(p["choices"][0]["delta"]["content"] for p in parts) == whole["choices"][0]["message"]["content"]
    assert parts[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_without_a_number_a_chat_may_fill_the_context(server: Running) -> None:
    answer = chat(server, ignore_eos=True).json()
    assert answer["usage"]["total_tokens"] == server.served.max_model_len


def score_one(server: Running) -> int:
    question = Question(Ask("topk", 4), sequences(9), [[8]])
    response = server.http.post("/v1/score", content=encode_question(question))
    decode_answer(response.content, [1], valid=VALID)
    return response.status_code


def test_scoring_goes_on_while_clients_generate_and_a_client_that_leaves_is_dropped(serve) -> None:
    with serve() as server, ThreadPoolExecutor(1) as pool:
        long = {"prompt": "the cat", "max_tokens": 480, "ignore_eos": True, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=long) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert pool.submit(score_one, server).result(30) == 200
            assert server.served.engine.queued() == 1  # the generation was not over: it gave way
        wait_until(lambda: server.served.engine.queued() == 0)
        generated = server.served.metrics.generated._value.get()
        assert generated < 480
        with pytest.raises(httpx.ReadTimeout):  # one that waits for the whole answer, and then does not
            server.http.post("/v1/completions", json={**long, "stream": False}, timeout=0.3)
        wait_until(lambda: server.served.engine.queued() == 0)
        assert server.served.metrics.generated._value.get() < generated + 480
        assert score_one(server) == 200


def wait_until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
