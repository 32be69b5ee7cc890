"""OPSD by the loss: the teacher reads another prompt, and both sides speak of the same response ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.cli.main import main
from tests.invariants.test_resume import kill_at
from tests.support import limbeck, metrics, without_times

SHORT = (
    *("--max_completion_length", 6, "--learning_rate", 1e-3, "--logging_steps", 1, "--use_cpu", "--lora_dropout", 0),
    *("--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 2),
)


def rows(tiny: Path, folder: Path, *, told: bool) -> Path:
    """The tiny rows; every other one has a teacher_prompt, the prompt itself or more than that."""
    lines = [json.loads(line) for line in (tiny / "rows.jsonl").read_text().splitlines()]
    for i, row in enumerate(lines):
        prompt = row["messages"][-2]["content"]
        if i % 2 == 0:
            row["teacher_prompt"] = f"the answer: {row['messages'][-1]['content']} now: {prompt}" if told else prompt
    path = folder / "told.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return path


@pytest.mark.parametrize("source", ["auto", "base", "frozen", "ema"])
@pytest.mark.parametrize("lmbda", [0, 1])
def test_the_same_prompt_as_privilege_teaches_nothing(tiny: Path, tmp_path: Path, source: str, lmbda: int) -> None:
    argv = [
        *("rlhf", "--model", tiny / "student", "--dataset", rows(tiny, tmp_path, told=False), "--lmbda", lmbda),
        *("--output_dir", tmp_path / "run", *SHORT, "--teacher_source", source, "--max_steps", 2),
    ]
    assert main([str(word) for word in argv]) == 0
    assert [line["loss"] for line in metrics(tmp_path / "run")] == pytest.approx([0.0, 0.0], abs=1e-7)


@pytest.mark.parametrize("source", ["auto", "frozen"])
def test_how_far_the_privileged_prompt_moves_the_teacher(tiny: Path, tmp_path: Path, source: str) -> None:
    """A learning rate of all but zero leaves the measure nothing but the two views; equal prompts give zero."""
    for told in (False, True):
        path = rows(tiny, tmp_path, told=told)
        path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:1]))
        argv = [
            *("rlhf", "--model", tiny / "student", "--dataset", path, "--lmbda", 0, "--beta", 0, *SHORT),
            *("--output_dir", tmp_path / f"run-{told}", "--max_steps", 1, "--teacher_source", source),
            *("--learning_rate", 1e-12, "--weight_decay", 0, "--log_privileged_kl"),
        ]
        assert main([str(word) for word in argv]) == 0
        line = metrics(tmp_path / f"run-{told}")[0]
        if told:
            assert line["privileged_kl"] == pytest.approx(line["forward_kl"], rel=1e-4)
            assert line["privileged_kl"] > 1e-5
        else:
            assert line["privileged_kl"] == 0


@pytest.mark.parametrize("topk", [(), ("--gkd_logits_topk", 320)])
def test_the_first_loss_against_the_plain_formula(tiny: Path, tmp_path: Path, topk: tuple[object, ...]) -> None:
    path = rows(tiny, tmp_path, told=True)
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:6]))
    argv = [
        *("rlhf", "--model", tiny / "student", "--dataset", path, "--lmbda", 0, "--beta", 0, *SHORT, *topk),
        *("--output_dir", tmp_path / "run", "--max_steps", 1, "--dataset_shuffle", "false"),
    ]
    assert main([str(word) for word in argv]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny / "student")
    model = AutoModelForCausalLM.from_pretrained(tiny / "student", dtype=torch.float64).eval()
    total, count = 0.0, 0
    for line in path.read_text().splitlines():
        row = json.loads(line)
        *before, last, answer = row["messages"]
        sides = []
        for content in (row.get("teacher_prompt", last["content"]), last["content"]):
            messages = [*before, {"role": "user", "content": content}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            response = tokenizer(answer["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            sides.append(logits.log_softmax(-1))
        teacher, student = sides
        total += float((teacher.exp() * (teacher - student)).sum())
        count += len(response)
    first = metrics(tmp_path / "run")[0]
    assert first["tokens"] == count
    assert first["loss"] == pytest.approx(total / count, rel=1e-4)


def test_a_killed_run_goes_on_with_its_privileged_prompts(tiny: Path, tmp_path: Path) -> None:
    path = rows(tiny, tmp_path, told=True)

    def flags(folder: Path) -> list[object]:
        return [
            *("rlhf", "--model", tiny / "student", "--dataset", path, "--output_dir", folder, *SHORT, "--lmbda", 0.5),
            *("--steps_per_generation", 4, "--save_steps", 1, "--max_steps", 6, "--tuner_type", "full"),
        ]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert "OPSD (GKD)" in limbeck(*flags(whole)).stdout
    kill_at(3, flags(killed), killed)
    limbeck(*flags(killed), "--resume_from_checkpoint", killed / "checkpoint-3")
    assert without_times(metrics(killed)) == without_times(metrics(whole))
    ours, theirs = (load_file(folder / "last" / "model.safetensors") for folder in (killed, whole))
    assert all(ours[k].equal(theirs[k]) for k in theirs)


def test_a_template_makes_the_prompt_and_plan_shows_it(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    argv = [
        *("plan", "--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--lmbda", 1),
        *("--teacher_prompt_template", "{{ prompt }} the answer: {{ response }}"),
    ]
    assert main([str(word) for word in argv]) == 0
    out = capsys.readouterr().out
    assert "live with a privileged prompt" in out
    assert "the same row as the teacher reads it" in out
    assert "the answer: " in out.split("the same row as the teacher reads it")[1]
