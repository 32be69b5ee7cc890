"""/v1/score and /v1/head: the same numbers as `signal_of` on the same model, whoever asks for what."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load
from serve_running import Running, sequences, serving

from limbeck.losses import Head
from limbeck.models import add_lora, hidden_states, load_model, model_head
from limbeck.signal import Ask, Hidden, TopK, signal_of
from limbeck.teachers.wire import MEDIA_TYPE, Question, decode_answer, encode_question

VALID = 320


def expected(server: Running, ask: Ask, ids: list[int], places: list[int], named=None):
    """Without padding, one sequence at a time."""
    model = server.served.engine.model
    cols = torch.tensor(places) - 1
    with torch.no_grad():
        hidden = hidden_states(model, torch.tensor([ids]), (torch.zeros_like(cols), cols))
        return signal_of(ask, hidden, model_head(model, server.served.valid), named)


def ask(server: Running, question: Question, client: httpx.Client | None = None):
    response = (client or server.http).post("/v1/score", content=encode_question(question))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    return decode_answer(response.content, [len(p) for p in question.places], valid=server.served.valid)


ASKS = [
    Ask("topk", 5),
    Ask("topk", 64, 2.0),
    Ask("named"),
    Ask("named", 0, 0.5),
    Ask("union", 3),
    Ask("union", 7, 1.3),
    Ask("hidden"),
]


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("what", ASKS, ids=str)
def test_the_numbers_are_those_of_the_model(server: Running, what: Ask, bits: int) -> None:
    ids = sequences(9, 2, 40, 17, seed=3)
    places = [[1, 2, 5, 8], [1], list(range(20, 40)), [4, 16]]
    generator = torch.Generator().manual_seed(1)
    named = [torch.randint(-1, VALID, (len(p), 4), generator=generator) for p in places] if what.names else None
    answer = ask(server, Question(what, ids, places, named, bits))
    assert answer.teacher == server.served.identity
    for i, signal in enumerate(answer.signals):
        echo = answer.echo[i]
        assert echo is not None
        assert echo.tolist() == [ids[i][p] for p in places[i]]
        right = expected(server, what, ids[i], places[i], named[i] if named else None)
        if isinstance(right, Hidden):
            torch.testing.assert_close(signal, right.hidden, rtol=1e-5, atol=1e-5)
            assert answer.head == server.served.head
            continue
        assert signal is not None
        assert not isinstance(signal, torch.Tensor)
        # float32 to 1e-5; 16 bits to a step of the widest code
        torch.testing.assert_close(signal.logprobs, right.logprobs, rtol=1e-5, atol=1e-5 if bits == 32 else 2e-3)
        torch.testing.assert_close(signal.log_tail, right.log_tail, rtol=1e-5, atol=1e-5)
        assert signal.ids.tolist() == right.ids.tolist()


def test_ten_clients_get_each_their_own_answer(server: Running) -> None:
    asks = [ASKS[i % 3] for i in range(10)]

    def one(i: int) -> None:
        ids = sequences(*(5 + (7 * i + j) % 30 for j in range(6)), seed=100 + i)
        places = [list(range(1, len(s))) for s in ids]
        named = [torch.randint(0, VALID, (len(p), 2)) for p in places] if asks[i].names else None
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            for _ in range(3):
                answer = ask(server, Question(asks[i], ids, places, named), client)
                for j, signal in enumerate(answer.signals):
                    right = expected(server, asks[i], ids[j], places[j], named[j] if named else None)
                    assert not isinstance(right, Hidden)
                    torch.testing.assert_close(signal.logprobs, right.logprobs, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(one, range(10)))


def test_a_sequence_that_is_too_long_is_refused_and_the_others_are_answered(server: Running) -> None:
    ids = sequences(10, 201, 12)
    answer = ask(server, Question(Ask("topk", 4), ids, [[1, 9], [5], [11]]))
    assert list(answer.refused) == [1]
    assert "201 tokens" in answer.refused[1]
    assert "--max_model_len" in answer.refused[1]
    assert [s is None for s in answer.signals] == [False, True, False]
    all_refused = ask(server, Question(Ask("topk", 4), sequences(300), [[5]]))
    assert all_refused.signals == [None]


def test_sequences_with_nothing_to_ask_about(server: Running) -> None:
    answer = ask(server, Question(Ask("topk", 4), sequences(6, 5), [[], [2]]))
    first, second = answer.signals
    assert first is not None
    assert second is not None
    assert (first.logprobs.shape, second.logprobs.shape) == ((0, 4), (1, 4))  # type: ignore[union-attr]


def question(**changes) -> Question:
    given = {"ask": Ask("topk", 4), "sequences": sequences(6), "places": [[1, 5]]} | changes
    return Question(**given)


@pytest.mark.parametrize(
    ("wrong", "status", "said"),
    [
        (question(ask=Ask("topk", 65)), 400, "k is 65, and this server gives at most 64 (--max_logprobs)"),
        (question(ask=Ask("topk", 321)), 400, "321"),
        (question(ask=Ask("named"), named=[torch.zeros(2, 65, dtype=torch.long)]), 400, "named is 65"),
        (question(ask=Ask("topk", 4, 1e-4)), 400, "temperature 0.0001 is outside"),
        (question(sequences=[[1, 2, 400]], places=[[2]]), 400, "id 400"),
        (question(sequences=[[1, 2, 4]], places=[[3]]), 400, "places of sequence 0"),
        (question(sequences=[[1] * 190] * 700, places=[[1]] * 700), 400, "133000 tokens in one request"),
    ],
)
def test_what_goes_over_the_limits(server: Running, wrong: Question, status: int, said: str) -> None:
    response = server.http.post("/v1/score", content=encode_question(wrong))
    assert response.status_code == status
    assert said in response.json()["error"]["message"]


def test_hidden_states_and_the_head_are_given_out_only_where_allowed(serve) -> None:
    with serve() as closed:
        response = closed.http.post("/v1/score", content=encode_question(question(ask=Ask("hidden"))))
        head = closed.http.get("/v1/head")
        assert closed.http.get("/v1/models").json()["data"][0]["limbeck"]["hidden"] is False
    for refused in (response, head):
        assert refused.status_code == 403
        assert "--allow_hidden" in refused.json()["error"]["message"]


def test_the_head_gives_the_logits_of_the_model(server: Running) -> None:
    response = server.http.get("/v1/head")
    assert response.headers["etag"] == f'"{server.served.head}"'
    tensors = load(response.content)
    assert tensors["weight"].shape[0] == server.served.valid
    answer = ask(server, Question(Ask("hidden"), sequences(12), [list(range(1, 12))]))
    logits = Head(tensors["weight"], tensors.get("bias")).logits(answer.signals[0])  # type: ignore[arg-type]
    ids = torch.tensor(sequences(12))
    with torch.no_grad():
        right = server.served.engine.model(input_ids=ids).logits[0, :-1, : server.served.valid]
    torch.testing.assert_close(logits, right, rtol=0, atol=1e-4)
    again = server.http.get("/v1/head", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_on_its_base_and_other_types(tiny: Path, tmp_path: Path, dtype: Any) -> None:
    base = load_model(str(tiny / "student"), trainable=False)
    tuned = add_lora(base, seed=3)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    tuned.save_pretrained(tmp_path / "adapter")
    adapters = [str(tmp_path / "adapter")]
    with serving(tiny / "student", tmp_path, dtype=dtype, adapters=adapters, allow_hidden=True) as server:
        answer = ask(server, Question(Ask("topk", 8), sequences(20), [list(range(1, 20))]))
        hidden = ask(server, Question(Ask("hidden"), sequences(20), [list(range(1, 20))]))
        text = server.post("/v1/completions", {"prompt": "the cat", "max_tokens": 4, "ignore_eos": True})
    assert text.json()["usage"]["completion_tokens"] == 4
    assert isinstance(hidden.signals[0], torch.Tensor)
    assert hidden.signals[0].dtype == getattr(torch, dtype)
    signal = answer.signals[0]
    assert isinstance(signal, TopK)
    with torch.no_grad():
        right = tuned(torch.tensor(sequences(20))).logits[0, :-1].log_softmax(-1)
        with tuned.disable_adapter():
            untuned = tuned(torch.tensor(sequences(20))).logits[0, :-1].log_softmax(-1)
    off = (signal.logprobs - right.gather(-1, signal.ids)).abs()
    assert off.max() < (1e-4 if dtype == "float32" else 1.0)
    assert off.mean() < 0.2 * (signal.logprobs - untuned.gather(-1, signal.ids)).abs().mean()
