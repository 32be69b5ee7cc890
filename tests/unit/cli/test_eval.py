"""`limbeck eval` with rewards and with several checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support import make_folder, make_tokenizer

from limbeck.cli.main import main

PLUGIN = """
import limbeck

@limbeck.register_reward("letters")
def letters(completions, solution, **columns):
    return [float(len(text) == len(text.strip()) and text == gold) for text, gold in zip(completions, solution)]

@limbeck.register_reward("length")
def length(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]
"""


@pytest.fixture
def problems(tiny: Path, tmp_path: Path) -> Path:
    """Four prompts; the solution of the first is what the student really says, greedily."""
    prompts = ["a cat", "the red house", "then", "a dog sees the river"]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    argv = ["generate", "--model", tiny / "student", "--dataset", asked, "--result_path", tmp_path / "said.jsonl"]
    assert main([str(x) for x in [*argv, "--temperature", 0, "--max_completion_length", 6, "--use_cpu"]]) == 0
    said = {}
    for line in (tmp_path / "said.jsonl").read_text().splitlines():
        row = json.loads(line)
        said[row["messages"][0]["content"]] = row["messages"][-1]["content"]
    file = tmp_path / "problems.jsonl"
    rows = [{"prompt": text, "solution": said[text] if i == 0 else "no such answer"} for i, text in enumerate(prompts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    return file


def evaluate(*argv: object) -> int:
    return main(["eval", *map(str, argv), "--use_cpu"])


def test_rewards_of_greedy_answers(tiny: Path, tmp_path: Path, problems: Path, capsys) -> None:
    result = tmp_path / "result.json"
    rewards = ("--reward_funcs", "letters", "length", "--external_plugins", tmp_path / "plugin.py")
    more = (*rewards, "--max_completion_length", 6, "--result_path", result)
    assert evaluate("--model", tiny / "student", "--dataset", problems, *more) == 0
    found = json.loads(result.read_text())
    assert found["rewards/letters/mean"] == 0.25  # one of four, which is what the student says greedily
    assert found["answers"] == 4
    assert found["rewards/length/mean"] <= found["completion_length"] <= 6
    assert "ce" not in found  # no row has a response
    said = capsys.readouterr().out
    assert "4 sampled answers" in said
    assert "letters" in said


def test_several_checkpoints_as_a_table(tiny: Path, tmp_path: Path, capsys) -> None:
    run, result = tmp_path / "run", tmp_path / "result.json"
    train = ["sft", "--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--output_dir", run, "--use_cpu"]
    train += ["--max_steps", 2, "--save_steps", 1, "--learning_rate", 0.05, "--report_html", "false"]
    assert main([str(x) for x in train]) == 0
    sides = ("--teacher_model", tiny / "teacher", "--dataset", tiny / "held_out.jsonl")
    many = ("--checkpoints", run, tiny / "teacher", "--result_path", result)
    capsys.readouterr()
    assert evaluate("--model", tiny / "student", *sides, *many) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(result.read_text())
    names = [str(run / "checkpoint-1"), str(run / "checkpoint-2"), str(run / "last"), str(tiny / "teacher")]
    assert list(found) == names
    assert found[names[1]]["forward_kl"] == found[names[2]]["forward_kl"] != found[names[0]]["forward_kl"]
    assert abs(found[names[3]]["forward_kl"]) < 1e-6  # the teacher from itself
    table = [line for line in lines if line.startswith(str(tmp_path)) or line.startswith(str(tiny / "teacher"))]
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1  # columns stand under each other
    # one of them alone gives the very numbers
    alone = ("--adapters", run / "checkpoint-1", "--result_path", tmp_path / "one.json")
    assert evaluate("--model", tiny / "student", *sides, *alone) == 0
    assert json.loads((tmp_path / "one.json").read_text()) == found[names[0]]


def test_packed_and_padded_rows_give_the_same_numbers(tiny: Path, tmp_path: Path) -> None:
    found = []
    for attention in ("sdpa", "eager"):  # only sdpa packs
        more = ("--attn_impl", attention, "--result_path", tmp_path / f"{attention}.json")
        assert evaluate("--model", tiny / "student", "--dataset", tiny / "held_out.jsonl", *more) == 0
        found.append(json.loads((tmp_path / f"{attention}.json").read_text()))
    assert found[0]["ce"] == pytest.approx(found[1]["ce"], rel=1e-5)
    assert found[0]["tokens"] == found[1]["tokens"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--checkpoints", "gone/away/far"], "does not exist"),
        (["--checkpoints", "{tiny}"], "has no config.json"),
        (["--checkpoints", "{other}"], "another tokenizer"),
        (["--teacher_model", "{tiny}/teacher", "--reward_funcs", "exact"], "asked about responses"),
    ],
)
def test_refusals(tiny: Path, tmp_path: Path, argv: list[str], said: str, capsys) -> None:
    other = make_folder(tmp_path / "other")
    make_tokenizer(300).save_pretrained(other)
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "a cat", "answer": "b"}\n')
    data = rows if "--reward_funcs" in argv else tiny / "held_out.jsonl"
    argv = [word.format(tiny=tiny, other=other) for word in argv]
    assert evaluate("--model", tiny / "student", "--dataset", data, *argv) == 2
    assert said in capsys.readouterr().err
