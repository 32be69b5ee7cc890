"""A real vLLM server as the teacher, started by `limbeck deploy --infer_backend vllm`, on SmolLM2-135M.

Runs where the environment variable LIMBECK_VLLM_PYTHON names an interpreter that can import vllm, or this one can:

    LIMBECK_VLLM_PYTHON=/path/to/bin/python pytest tests/e2e/test_vllm.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import ConfigError
from limbeck.models import load_model, load_tokenizer, valid_ids
from limbeck.signal import Ask, Sample, Signal, TopK
from limbeck.teachers import LocalTeacher
from limbeck.teachers.server import ServerInfo, ServerTeacher, check_server, discover
from tests.e2e.test_smollm2 import QUESTIONS
from tests.support import command, env, limbeck, metrics
from tests.support_servers import chat_samples, free_port

PYTHON = os.environ.get("LIMBECK_VLLM_PYTHON") or (sys.executable if importlib.util.find_spec("vllm") else "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="no vLLM: name its interpreter in LIMBECK_VLLM_PYTHON"),
]
K, LIMIT = 20, 64
TEXTS = (
    "The capital of France is Paris, and the capital of Germany is Berlin. 1234 + 4321 = 5555.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))",
    "Once upon a time there was a small house near the river, where a cat and a dog lived together.",
    "Water boils at 100 degrees, and freezes at 0 degrees; what lies between is a liquid.",
)


@pytest.fixture(scope="module")
def info(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInfo]:
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "log"
    argv = command(
        *("deploy", "--model", smollm2, "--infer_backend", "vllm", "--vllm_python", PYTHON, "--port", port),
        *("--max_model_len", 512, "--max_logprobs", LIMIT, "--torch_dtype", "float32", "--vllm_args=--enforce-eager"),
    )
    with log.open("w") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env=env() | {"VLLM_CPU_KVCACHE_SPACE": "1"})
        try:
            yield discover(f"http://127.0.0.1:{port}", patience=400)
        except Exception:
            print(log.read_text()[-4000:])
            raise
        finally:
            process.terminate()  # `limbeck deploy` passes it on
            assert process.wait(60) in (0, 143, -15), log.read_text()[-4000:]


@pytest.fixture(scope="module")
def here(smollm2: Path) -> tuple[Any, Any]:
    return load_model(str(smollm2), dtype="float32", trainable=False), load_tokenizer(str(smollm2))


@pytest.fixture(scope="module")
def samples(here: tuple[Any, Any]) -> list[Sample]:
    return chat_samples(here[1], TEXTS)


def both(info: ServerInfo, here: tuple[Any, Any], samples: list[Sample], ask: Ask, named: Any = None) -> Any:
    model, tokenizer = here
    check_server(info, ask, tokenizer)
    server = ServerTeacher(info, ask, valid_ids(tokenizer))
    local = LocalTeacher(model, name="here", ask=ask, valid=valid_ids(tokenizer), pad_id=tokenizer.pad_token_id)
    (got,), (want,) = server.score([samples], named), local.score([samples], named)
    assert server.counts()["teacher/refused"] == 0
    return got, want


def compare(got: list[Signal], want: list[Signal]) -> tuple[float, float, float]:
    """Share of the k ids in common, mean and largest |difference| of their log-probabilities."""
    shared, differences = [], []
    for a, b in zip(got, want, strict=True):
        assert isinstance(a, TopK) and isinstance(b, TopK)
        for *one, ids, logprobs in zip(
            a.ids.tolist(), a.logprobs.tolist(), b.ids.tolist(), b.logprobs.tolist(), strict=True
        ):
            ours, theirs = dict(zip(*one, strict=True)), dict(zip(ids, logprobs, strict=True))
            both = ours.keys() & theirs.keys()
            shared.append(len(both) / len(theirs))
            differences += [abs(ours[i] - theirs[i]) for i in both]
    return sum(shared) / len(shared), sum(differences) / len(differences), max(differences)


def test_the_likeliest_ids(info: ServerInfo, here: tuple[Any, Any], samples: list[Sample]) -> None:
    overlap, mean, worst = compare(*both(info, here, samples, Ask("topk", K)))
    print(f"top-{K} overlap {overlap:.4f}, |difference| mean {mean:.4f}, largest {worst:.3f}")
    assert overlap >= 0.99 and mean <= 1e-3  # in bfloat16 0.95 and 0.1


def test_the_tokens_themselves(info: ServerInfo, here: tuple[Any, Any], samples: list[Sample]) -> None:
    got, want = both(info, here, samples, Ask("sampled"))
    _, mean, worst = compare(got, want)
    print(f"tokens themselves: |difference| mean {mean:.4f}, largest {worst:.3f}")
    assert all(a.ids.equal(b.ids) for a, b in zip(got, want, strict=True)) and mean <= 1e-3


def test_what_it_refuses(info: ServerInfo, here: tuple[Any, Any], samples: list[Sample]) -> None:
    with pytest.raises(ConfigError, match=r"at most 64 log-probabilities a token, and 65 (.|\n)*--max-logprobs 65"):
        check_server(info, Ask("topk", 65), here[1])
    long = chat_samples(here[1], ["again and " * 400])
    said: list[str] = []
    (got,) = ServerTeacher(info, Ask("topk", K), valid_ids(here[1]), say=said.append).score([[*samples, *long]])
    assert got[-1] is None and None not in got[:-1] and len(said) == 1


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        pytest.param(("--rlhf_type", "gkd", "--lmbda", 0, "--gkd_logits_topk", K), 2, id="dataset"),
        # after a step the samples are others, where the two teachers' rounding tips a draw
        pytest.param(("--rlhf_type", "gkd", "--gkd_logits_topk", 64, "--lmbda", 1, "--beta", 1), 1, id="student"),
        pytest.param(("--rlhf_type", "grpo"), 1, id="OPD-RL"),
    ],
)
def test_a_run(info: ServerInfo, smollm2: Path, tmp_path: Path, recipe: tuple[Any, ...], steps: int) -> None:
    """The same losses as with the teacher here."""
    limbeck("shrink", "--model", smollm2, "--num_layers", 4, "--output_dir", tmp_path / "student")
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": q}]} for q in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def losses(name: str, *more: Any) -> list[float]:
        limbeck(
            *("rlhf", "--model", tmp_path / "student", "--dataset", tmp_path / "rows.jsonl"),
            *("--output_dir", tmp_path / name, *recipe, "--max_steps", 2, "--use_cpu", "--max_completion_length", 16),
            *("--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 1, "--logging_steps", 1, *more),
        )
        return [row["loss"] for row in metrics(tmp_path / name)]

    here = losses("here", "--teacher_model", smollm2)
    there = losses("there", "--teacher_model_server", info.url)
    print("losses here", here, "there", there)
    assert len(there) == 2 and there[:steps] == pytest.approx(here[:steps], rel=1e-3)
