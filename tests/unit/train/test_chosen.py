"""Automatic choices that models, rows and the machine decide: their values, and that plan and run tell of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.e2e.test_command_line import gkd, run
from transformers import AutoTokenizer

from limbeck.config.defaults import OWN_SCALE, Choice
from limbeck.config.flat import from_flat
from limbeck.config.method import resolve_method
from limbeck.config.schema import Config, Model, Rollout
from limbeck.losses import advantage
from limbeck.train import chosen


def config(tiny: Path, **flags: object) -> Config:
    named = {"model": str(tiny / "student"), "teacher_model": str(tiny / "teacher"), "dataset": ["rows.jsonl"]}
    return from_flat(named | flags)


def choices(config: Config, *, told: bool = False) -> dict[str, object]:
    method = resolve_method(config, has_teacher_prompt=told, rows_without_response=0)
    found = chosen.model_choices(config, method)
    assert all(choice.reason for choice in found)
    return {choice.flag: choice.value for choice in found}


@pytest.mark.parametrize(
    ("flags", "told", "source"),
    [
        ({}, False, "model"),
        ({"teacher_model": "STUDENT"}, False, "base"),
        ({"teacher_model": "STUDENT", "tuner_type": "full", "lmbda": 1.0}, True, "model"),
        ({"teacher_model": None, "lmbda": 1.0}, True, "live"),
        ({"teacher_model": None, "teacher_model_server": "http://a:1", "gkd_logits_topk": 4}, False, "server"),
        ({"teacher_model": None, "lmbda": 1.0, "teacher_source": "frozen"}, True, None),  # said by the flag
        ({"teacher_model": None, "rlhf_type": None}, False, None),
    ],
)
def test_who_the_teacher_is(tiny: Path, flags: dict, told: bool, source: str | None) -> None:
    flags = {k: str(tiny / "student") if v == "STUDENT" else v for k, v in flags.items()}
    assert choices(config(tiny, **flags), told=told).get("teacher_source") == source


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"tuner_type": "full"}, "float32"),
        ({"tuner_type": "lora"}, "bfloat16"),
        ({"tuner_type": "lora", "torch_dtype": "float16"}, None),
    ],
)
def test_the_type_of_the_student(tiny: Path, tmp_path: Path, flags: dict, dtype: str | None) -> None:
    saved = json.loads((tiny / "student" / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert choices(config(tiny, model=str(tmp_path), **flags)).get("torch_dtype") == dtype
    held = "float32" if dtype else None  # on a CPU, of a model that is only asked
    asked = chosen.frozen_choices(Model(model=str(tmp_path), **flags), torch.device("cpu"), use_cpu=True)
    assert [choice.value for choice in asked] == ([held] if held else [])


def test_the_type_of_a_teacher(tiny: Path) -> None:
    one = config(tiny)
    assert chosen.teacher_dtype(one, "t", "cpu", "bfloat16") == Choice(
        "teacher_torch_dtype", "bfloat16", "as the student computes, so that equal weights agree"
    )
    assert chosen.teacher_dtype(one, "t", "cuda", "bfloat16").value == "auto"  # type: ignore[union-attr]
    assert chosen.teacher_dtype(one, one.model.model, "cuda", "bfloat16").value == "bfloat16"  # type: ignore[union-attr]
    assert chosen.teacher_dtype(config(tiny, teacher_torch_dtype="float16"), "t", "cpu", "bfloat16") is None


def test_precision_device_and_numbers(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen.precision_of(config(tiny, use_cpu=True, mixed_precision="bf16")) == ("bf16", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    precision, found = chosen.precision_of(config(tiny))
    assert (precision, [(c.flag, c.value) for c in found]) == (
        "bf16",
        [("use_cpu", False), ("mixed_precision", "bf16")],
    )
    precision, found = chosen.precision_of(config(tiny, use_cpu=True))
    assert (precision, [(c.flag, c.value) for c in found]) == ("no", [("mixed_precision", "no")])
    assert [c.value for c in chosen.warmup_choice(config(tiny, warmup_ratio=0.25), 80)] == [20]
    assert chosen.warmup_choice(config(tiny, warmup_steps=3), 80) == []
    assert [c.value for c in chosen.rollout_choice(Rollout())] == [32]
    assert chosen.rollout_choice(Rollout(rollout_batch_size=4)) == []
    assert OWN_SCALE == advantage.OWN_SCALE


def test_where_a_response_ends_is_said(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny / "student")
    text = chosen.reading(tokenizer, 320, frozenset({tokenizer.eos_token_id}))
    assert "320 ids; a response ends at '<|im_end|>' (its tokenizer names it); padded with '<|endoftext|>'" in text
    tokenizer.chat_template = None
    text = chosen.reading(tokenizer, 320, frozenset({0, tokenizer.eos_token_id}), teachers_too=True)
    assert "'<|endoftext|>' or '<|im_end|>' (named by its tokenizer and its generation config, and" in text
    assert text.endswith("no chat template, so prompts are raw text")


TOLD = ("teacher_source", "torch_dtype", "warmup_steps", "mixed_precision", "teacher_torch_dtype", "attn_impl")


def test_plan_and_run_tell_of_them_once(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = gkd(tiny, tmp_path / "run", "--max_completion_length", 500)
    assert run("plan", *argv[1:]) == 0
    plan = capsys.readouterr().out
    assert run(*argv) == 0
    seen = capsys.readouterr().out
    for text, start in ((plan, "--"), (seen, "chosen: --")):
        lines = text.splitlines()
        assert all(
            sum(line.startswith(f"{start}{flag} ") for line in lines) == 1 for flag in (*TOLD, "rollout_batch_size")
        )
        assert sum(line.startswith("tokens: 320 ids") for line in lines) == 1
        assert sum(line.startswith("loss: ") for line in lines) == 1
        assert sum("read 512 tokens at most" in line for line in lines) == 1  # both models
    assert "chosen: --teacher_device cpu: the student's" in seen
    assert "(0.0M trainable), 3 layers" in plan  # the teacher's
    trained = next(line for line in plan.splitlines() if line.startswith("student: "))
    assert trained in seen  # with the adapter that will be trained


def test_commands_that_ask_a_model_tell_of_them(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ("--model", tiny / "student", "--dataset", tiny / "held_out.jsonl", "--use_cpu")
    assert run("eval", *sides) == 0
    said = capsys.readouterr().out
    assert "chosen: --torch_dtype float32: CPUs are fast and exact in it" in said
    assert "chosen: --per_device_eval_batch_size 4: the default of eval" in said
    assert run("generate", *sides, "--result_path", tmp_path / "a.jsonl", "--max_completion_length", 2) == 0
    assert "chosen: --rollout_batch_size 32: the default" in capsys.readouterr().out
    assert run("export", *sides[:2], "--output_dir", tmp_path / "out") == 0
    assert "--torch_dtype float32: what the base was saved in" in capsys.readouterr().out


def test_a_metric_that_no_evaluation_has_is_told_of(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = ("--val_dataset", tiny / "held_out.jsonl", "--lmbda", 0)
    assert run(*gkd(tiny, tmp_path / "one", *held_out, "--metric_for_best_model", "eval_acuracy")) == 0
    seen = capsys.readouterr().out
    assert seen.count("warning: no evaluation here has the metric eval_acuracy") == 1
    assert "eval_forward_kl" in seen
    # transformers' own short form of the name
    argv = gkd(tiny, tmp_path / "two", *held_out, "--metric_for_best_model", "forward_kl", "--eval_steps", 1)
    assert run(*argv) == 0
    assert "no evaluation here" not in capsys.readouterr().out
    state = json.loads((tmp_path / "two" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_metric"] is not None


def test_a_server_is_told_of() -> None:
    from limbeck.teachers.discovery import ServerInfo, described

    info = ServerInfo("http://a:1", "vllm", "m", "vllm:m", max_model_len=4096, others=2)
    assert described(info) == (
        "http://a:1 is a stock server, which speaks as vLLM does; m, the first of the 3 that it serves; "
        "at most 4,096 tokens a sequence"
    )
    own = replace(info, kind="limbeck", others=0, max_logprobs=64)
    assert described(own) == (
        "http://a:1 is limbeck deploy; m; at most 4,096 tokens a sequence, 64 log-probabilities a token"
    )
