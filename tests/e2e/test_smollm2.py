"""The main job on a small real model: SmolLM2-135M-Instruct teaches a student of ten of its layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.models import load_tokenizer
from tests.support import limbeck, metrics

QUESTIONS = [
    "What is a cat?",
    "What is 12 plus 30?",
    "Name a colour.",
    "Is water wet?",
    "Say hello.",
    "Who was Newton?",
]


@pytest.fixture(scope="module")
def still(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the student, and the teacher's answers to the questions."""
    folder = tmp_path_factory.mktemp("still")
    rows = [{"messages": [{"role": "user", "content": q}]} for q in QUESTIONS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limbeck("shrink", "--model", smollm2, "--num_layers", 10, "--output_dir", folder / "student")
    limbeck(
        *("generate", "--model", smollm2, "--dataset", folder / "prompts.jsonl", "--temperature", 0, "--use_cpu"),
        *("--result_path", folder / "answers.jsonl", "--max_completion_length", 16),
    )
    return folder


def test_the_tokenizer_of_the_gguf_file_splits_digits(smollm2: Path) -> None:
    tokenizer = load_tokenizer(str(smollm2))
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345", add_special_tokens=False)] == list("12345")


def test_generate_answers_as_transformers_does(smollm2: Path, still: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), AutoModelForCausalLM.from_pretrained(smollm2)
    row = json.loads((still / "answers.jsonl").read_text().splitlines()[0])
    messages = row["messages"][:-1]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
    assert row["messages"][-1]["content"] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(
            ["--lmbda", 0, "--beta", 0, "--tuner_type", "full", "--learning_rate", 5e-4], id="off-policy, full"
        ),
        pytest.param(
            ["--lmbda", 1, "--beta", 1, "--gkd_logits_topk", 64, "--learning_rate", 2e-3, "--max_steps", 8],
            id="on-policy, lora",
        ),
    ],
)
def test_gkd_brings_the_student_nearer(smollm2: Path, still: Path, tmp_path: Path, more: list[object]) -> None:
    run = tmp_path / "run"
    limbeck(
        *("rlhf", "--rlhf_type", "gkd", "--model", still / "student", "--teacher_model", smollm2, "--use_cpu"),
        *("--dataset", still / "answers.jsonl", "--val_dataset", still / "answers.jsonl", "--output_dir", run),
        *("--per_device_train_batch_size", 6, "--gradient_accumulation_steps", 1, "--max_steps", 5),
        *("--max_completion_length", 12, "--warmup_steps", 0, "--logging_steps", 1, "--per_device_eval_batch_size", 6),
        *("--gradient_checkpointing", "false", "--save_strategy", "no", *more),
    )
    before, after = metrics(run, "eval")
    assert after["eval_loss"] < (0.8 if "full" in more else 0.999) * before["eval_loss"]  # adapters move slowly
    for name in ("config.yaml", "env.json", "metrics.jsonl", "completions.jsonl", "report.html", "README.md"):
        assert (run / name).stat().st_size > 0
    completion = json.loads((run / "completions.jsonl").read_text().splitlines()[0])
    assert len(completion["tokens"]) == len(completion["divergence"]) == len(completion["student_logp"])


def test_a_model_is_its_own_perfect_student(smollm2: Path, still: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    limbeck(
        *("eval", "--model", smollm2, "--teacher_model", smollm2, "--dataset", still / "answers.jsonl"),
        *("--result_path", result, "--use_cpu"),
    )
    values = json.loads(result.read_text())
    assert values["forward_kl"] == values["reverse_kl"] == 0.0
    assert values["top1_agreement"] == 1.0
    assert values["rows"] == len(QUESTIONS)
    assert 0 < values["ce"] < 3  # its own greedy answers
