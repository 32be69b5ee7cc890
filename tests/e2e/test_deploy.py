"""`limbeck deploy` as a process: what it says, what it answers, how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from limbeck.cli.main import main
from limbeck.signal import Ask, TopK
from limbeck.teachers.wire import Question, decode_answer, encode_question
from tests.support import command, env


@contextmanager
def deployed(*argv: object, name: str = "deploy") -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, its address, and what it said before."""
    said: list[str] = []
    with subprocess.Popen(
        command(name, *argv, "--port", 0), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env()
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said.append(line)
                if line.startswith("serving on "):
                    break
            else:
                raise AssertionError("".join(said))
            yield process, line.split()[2], said
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_what_is_served_answers_and_ends_with_0(tiny: Path, number: int) -> None:
    with deployed("--model", tiny / "teacher", "--use_cpu", "--max_model_len", 300, name="serve") as (
        process,
        url,
        said,
    ):
        text = "".join(said)
        assert "LlamaForCausalLM" in text
        assert "320 of 325 rows" in text
        assert "chosen   --max_batch_tokens 4096: the default on a CPU" in text
        assert "max_model_len" not in text.split("chosen")[1]
        assert url.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            assert http.get("/health").status_code == 200
            name = http.get("/v1/models").json()["data"][0]["id"]
            assert name == str(tiny / "teacher")
            body = {"model": name, "prompt": "the cat", "max_tokens": 3, "temperature": 0}
            assert http.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] >= 1
            process.send_signal(number)
            assert process.wait(30) == 0
            with pytest.raises(httpx.TransportError):
                http.get("/health")


@contextmanager
def smollm2_client(smollm2: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    with (
        deployed("--model", smollm2, "--use_cpu", "--max_batch_tokens", 50) as (process, url, _),
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        yield process, http


def test_what_is_scored_at_the_signal_is_finished(smollm2: Path) -> None:
    ids = [list(range(100, 150))] * 8
    question = Question(Ask("topk", 4), ids, [list(range(1, 50))] * 8)
    with smollm2_client(smollm2) as (process, http), ThreadPoolExecutor(1) as pool:
        pending = pool.submit(http.post, "/v1/score", content=encode_question(question))
        while "limbeck_queue_requests 1.0" not in http.get("/metrics").text:
            assert not pending.done()
        process.send_signal(signal.SIGTERM)
        answer = decode_answer(pending.result(60).content, [49] * 8, valid=49152)
        assert answer.refused == {}
        assert process.wait(60) == 0


def test_a_generation_that_would_go_on_for_long_is_cut_off_at_the_signal(smollm2: Path) -> None:
    asked = {"prompt": "The", "max_tokens": 8000, "ignore_eos": True}
    with smollm2_client(smollm2) as (process, http), ThreadPoolExecutor(1) as pool:
        pending = pool.submit(http.post, "/v1/completions", json=asked)
        while "limbeck_queue_requests 1.0" not in http.get("/metrics").text:
            assert not pending.done()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        response = pending.result(60)
        assert response.status_code == 503
        assert response.json()["error"]["message"] == "the server is going down"


def test_smollm2_in_both_forms_is_transformers_own(smollm2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with (
        deployed("--model", smollm2, "--use_cpu", "--max_logprobs", 20) as (_, url, _),
        httpx.Client(base_url=url, trust_env=False, timeout=120) as http,
    ):
        texts = ["The capital of France is Paris.", "One, two, three, four, five"]
        ids = [http.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
        body = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 20, "temperature": 0}
        choices = http.post("/v1/completions", json=body).json()["choices"]
        question = Question(Ask("topk", 20), ids, [list(range(1, len(i))) for i in ids])
        wire = decode_answer(
            http.post("/v1/score", content=encode_question(question)).content, [len(i) - 1 for i in ids], valid=49152
        )
    assert choices[0]["text"] == "\n"
    for prompt, choice, signal_ in zip(ids, choices, wire.signals, strict=True):
        with torch.no_grad():
            right = model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
        assert isinstance(signal_, TopK)
        torch.testing.assert_close(signal_.logprobs, right.gather(-1, signal_.ids), rtol=0, atol=1e-4)
        for row, entry in zip(right, choice["prompt_logprobs"][1:], strict=True):
            found = torch.tensor([[int(i), e["logprob"]] for i, e in entry.items()], dtype=torch.float64)
            torch.testing.assert_close(found[:, 1].float(), row[found[:, 0].long()], rtol=0, atol=1e-4)


def test_a_port_that_is_taken_is_told_in_three_lines(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["deploy", "--model", str(tiny / "student"), "--port", str(port), "--use_cpu"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith(f"error: cannot listen on 127.0.0.1 port {port}")
    assert err[1] == f"  where: --port {port}"
    assert err[2].startswith("  fix: ")


def test_a_flag_of_vllm_without_vllm(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "--model", str(tiny / "student"), "--vllm_args=--enforce-eager"]) == 2
    assert "add --infer_backend vllm" in capsys.readouterr().err
