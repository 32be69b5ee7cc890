"""Sequences longer than a model reads: told before the run, with counts that a tokenizer alone gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.support import make_folder, make_rows
from tests.support_servers import deployed
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from limbeck.cli.main import main
from limbeck.config.flat import from_flat
from limbeck.models import position_limit
from limbeck.train.lengths import Reads
from limbeck.train.prepare import prepare


def limited(folder: Path, limit: int, **kwargs: Any) -> Path:
    """A tiny model whose config names that limit."""
    make_folder(folder, **kwargs)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": limit}))
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    limited(tmp_path / "student", 40, seed=1)
    limited(tmp_path / "teacher", 44, seed=2)
    make_rows(tmp_path / "rows.jsonl", 30, seed=5)
    return tmp_path


def lengths(folder: Path, rows: Path) -> tuple[list[int], list[int]]:
    """Prompt, and prompt and response, by the template alone (which ends a turn with a newline that is not learnt)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talks = [json.loads(line)["messages"] for line in rows.read_text().splitlines()]
    shared: dict[str, Any] = {"return_dict": False}
    prompts = [tokenizer.apply_chat_template(talk[:-1], add_generation_prompt=True, **shared) for talk in talks]
    return [len(ids) for ids in prompts], [len(tokenizer.apply_chat_template(talk, **shared)) - 1 for talk in talks]


def flags(here: Path, **more: Any) -> dict[str, Any]:
    sides = {"model": str(here / "student"), "teacher_model": str(here / "teacher")}
    return sides | {"dataset": [str(here / "rows.jsonl")], "output_dir": here / "run", "use_cpu": True} | more


def warned(here: Path, **more: Any) -> list[str]:
    return [text for text in prepare(from_flat(flags(here, **more))).method.warnings if "tokens at most" in text]


def test_counts_of_both_sides_are_those_of_the_tokenizer(here: Path) -> None:
    prompts, whole = lengths(here / "student", here / "rows.jsonl")
    student, teacher = warned(here, max_completion_length=25, lmbda=0.5)
    for text, limit in ((student, 40), (teacher, 44)):
        assert f"reads {limit} tokens at most" in text
        found = re.search(r"(\d+) of (\d+) prompts leave no room .* \(the longest has (\d+) tokens\)", text)
        assert found is not None
        assert tuple(map(int, found.groups())) == (sum(n + 25 > limit for n in prompts), 30, max(prompts))
        found = re.search(r"(\d+) of (\d+) rows with their responses are longer \(up to (\d+) tokens\)", text)
        assert found is not None
        assert tuple(map(int, found.groups())) == (sum(n > limit for n in whole), 30, max(whole))
        assert f"--max_length {limit} drops these rows" in text
    assert f"--max_completion_length {44 - max(prompts)}" in teacher
    assert student.startswith(f"the student {here / 'student'}")
    assert teacher.startswith(f"the teacher {here / 'teacher'}")


def test_what_it_advises_helps(here: Path) -> None:
    prompts, _ = lengths(here / "student", here / "rows.jsonl")
    assert "rows with" not in "".join(warned(here, max_completion_length=25, lmbda=1))  # no responses are read
    room = 40 - max(prompts)
    assert room > 0
    assert warned(here, max_completion_length=room, lmbda=1) == []
    assert len(warned(here, max_completion_length=room + 1, lmbda=1)) == 1
    assert warned(here, max_completion_length=10_000, lmbda=0, max_length=40) == []  # nothing is sampled
    assert len(warned(here, lmbda=0, max_length=41)) <= 1


def test_models_that_are_alike_are_told_together(here: Path) -> None:
    other = limited(here / "other", 40, seed=4)
    (text,) = warned(here, teacher_model=str(other), max_completion_length=60, lmbda=1)
    assert text.startswith(f"the student {here / 'student'} and the teacher {other} read 40 tokens")


def test_what_only_the_teacher_reads_counts_for_it(here: Path) -> None:
    prompts, _ = lengths(here / "student", here / "rows.jsonl")
    rows = [json.loads(line) | {"teacher_prompt": "the river " * 12} for line in (here / "rows.jsonl").open()]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    room = 40 - max(prompts)
    (text,) = warned(here, teacher_model=None, lmbda=1, max_completion_length=room)
    assert text.startswith("the teacher (the student itself) reads 40 tokens at most")
    assert "30 of 30 prompts leave no room" in text


def test_several_teachers_are_told_of_their_own_rows(here: Path) -> None:
    make_rows(here / "more.jsonl", 7, seed=6)
    limited(here / "roomy", 4000, seed=3)
    teachers = [{"model": str(here / "teacher"), "tags": ["more"]}, {"model": str(here / "roomy"), "tags": ["rows"]}]
    data = {"dataset": [str(here / "rows.jsonl"), str(here / "more.jsonl")]}
    student, teacher = warned(here, teacher_model=teachers, **data, max_completion_length=60, lmbda=1)
    assert "37 of 37 prompts" in student
    assert "7 of 7 prompts" in teacher


def test_it_is_said_in_the_plan_and_once_in_the_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"max_completion_length": 45, "max_steps": 2, "lmbda": 1, "preflight": "false"}
    argv = [
        str(word) for key, value in flags(here, **given).items() if key != "use_cpu" for word in (f"--{key}", value)
    ]
    argv = [word.removeprefix("['").removesuffix("']") for word in argv] + ["--use_cpu"]
    for command in ("plan", "rlhf"):
        assert main([command, *argv]) == 0
        said, err = capsys.readouterr()
        assert len(re.findall(r"warning: the student \S+ reads 40 tokens at most", said)) == 1
        assert "friendly reminder" not in err
        assert "Token indices" not in err
    assert any("40 tokens at most" in text for text in json.loads((here / "run/summary.json").read_text())["warnings"])


def test_a_server_with_less_room_is_told_at_the_start(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limited(here / "served", 500, seed=2)
    _, whole = lengths(here / "student", here / "rows.jsonl")
    with deployed(here / "served", "--max_logprobs", 8, "--max_model_len", 30) as (url, _):
        argv = ["rlhf", "--model", here / "student", "--teacher_model_server", url, "--gkd_logits_topk", 8]
        argv += ["--dataset", here / "rows.jsonl", "--output_dir", here / "run", "--lmbda", 0, "--max_steps", 1]
        assert main([*map(str, argv), "--use_cpu", "--preflight", "false"]) == 0
    said = capsys.readouterr().out
    (text,) = re.findall(rf"warning: the teacher at {re.escape(url)} takes 30 tokens at most, and (.*)", said)
    count = sum(n > 30 for n in whole)
    assert 0 < count < 30
    assert text.startswith(f"{count} of 30 rows with their responses are longer (up to {max(whole)} tokens)")
    assert "refused and counted" in text
    assert "--max_model_len there" in text


def test_generate_and_eval_say_it_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, whole = lengths(here / "student", here / "rows.jsonl")
    shared = ["--model", str(here / "student"), "--dataset", str(here / "rows.jsonl"), "--use_cpu"]
    longest = ["--max_completion_length", "20", "--result_path", str(here / "answers.jsonl")]
    assert main(["generate", *shared, *longest]) == 0
    said, err = capsys.readouterr()
    count = sum(n + 20 > 40 for n in prompts)
    assert f"warning: {here / 'student'} reads 40 tokens at most (max_position_embeddings), and {count} of 30" in said
    assert "friendly reminder" not in err
    assert main(["eval", *shared]) == 0
    assert f"and {sum(n > 40 for n in whole)} of 30 rows with their responses are longer" in capsys.readouterr().out


def test_nothing_to_say() -> None:
    assert Reads([], [], 512).beyond(1) is None
    assert Reads([5], [10], 5).beyond(10) is None
    fault, fix = Reads([5, 6], [], 5).beyond(10) or ("", "")
    assert fault.startswith("1 of 2 prompts")
    assert fix == "--max_completion_length 4"
    assert "a lower --max_completion_length" in (Reads([10], [], 5).beyond(10) or ("", ""))[1]
    assert (Reads([10], [], 5, privileged=True).beyond(10) or ("", ""))[1] == "a shorter teacher_prompt"


def test_the_limit_of_a_config(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}
    LlamaConfig(max_position_embeddings=128, rope_parameters=yarn).save_pretrained(tmp_path)
    assert position_limit(AutoConfig.from_pretrained(tmp_path)) == 512
    assert position_limit(LlamaConfig(max_position_embeddings=128)) == 128
    assert position_limit(AutoConfig.for_model("bloom")) is None  # ALiBi has no end
