"""`limbeck infer`: conversations through a pipe, two models, and the answers to a data set."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.cli.infer import beside
from limbeck.cli.main import main
from limbeck.config.flags import parse

DRAW = ("--temperature", "0", "--max_completion_length", "8", "--use_cpu")


def talk(monkeypatch, lines: list[str], *argv: object) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
    return main(["infer", *map(str, argv), *DRAW])


def greedy(folder: Path, messages: list[dict[str, str]]) -> str:
    """What plain transformers says."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    logits_end = model.generate(ids, max_new_tokens=8, do_sample=False, suppress_tokens=[*range(len(tokenizer), 325)])
    return tokenizer.decode(logits_end[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_conversation_remembers_until_it_is_cleared(tiny: Path, monkeypatch, capsys) -> None:
    lines = ["a cat", "then", "/clear", "then", "/system the house", "a cat", "/quit", "never read"]
    assert talk(monkeypatch, lines, "--model", tiny / "student") == 0
    said = capsys.readouterr().out
    first = greedy(tiny / "student", [{"role": "user", "content": "a cat"}])
    memory = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": first.strip()}]
    then = {"role": "user", "content": "then"}
    expected = [first, greedy(tiny / "student", [*memory, then]), greedy(tiny / "student", [then])]
    system = [{"role": "system", "content": "the house"}, {"role": "user", "content": "a cat"}]
    expected.append(greedy(tiny / "student", system))
    assert said == "".join(text + "\n" for text in expected)


def test_two_models_answer_each_with_its_own_memory(tiny: Path, monkeypatch, capsys) -> None:
    two = ("--model", tiny / "student", "--other_model", tiny / "teacher")
    assert talk(monkeypatch, ["a cat"], *two) == 0
    said = capsys.readouterr().out
    asked = [{"role": "user", "content": "a cat"}]
    assert said == "".join(f"{name}: {greedy(tiny / name, asked)}\n" for name in ("student", "teacher"))


def test_the_other_model_may_be_an_adapter(tiny: Path, tmp_path: Path) -> None:
    fact = {"base_model_name_or_path": str(tiny / "student")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fact))
    config = parse("infer", ["--model", str(tiny / "teacher"), "--other_model", str(tmp_path)])
    assert (config.model.model, config.model.adapters) == (str(tiny / "teacher"), [])
    assert (config.output.other_model, config.output.other_adapters) == (str(tiny / "student"), [str(tmp_path)])


def test_a_data_set_is_answered_as_generate_does(tiny: Path, tmp_path: Path) -> None:
    files = [tmp_path / "infer.jsonl", tmp_path / "generate.jsonl"]
    argv = ["--model", str(tiny / "student"), *DRAW, "--val_dataset"]
    assert main(["infer", *argv, str(tiny / "held_out.jsonl"), "--result_path", str(files[0])]) == 0
    argv[-1] = "--dataset"
    assert main(["generate", *argv, str(tiny / "held_out.jsonl"), "--result_path", str(files[1])]) == 0
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 6


def test_two_models_answer_a_data_set_side_by_side(tiny: Path, tmp_path: Path, capsys) -> None:
    both = tmp_path / "both.jsonl"
    two = ("--model", tiny / "student", "--other_model", tiny / "teacher")
    argv = [*map(str, two), *DRAW, "--val_dataset", str(tiny / "held_out.jsonl"), "--result_path", str(both)]
    for _ in range(2):  # the second time nothing is asked again
        assert main(["infer", *argv]) == 0
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in both.read_text().splitlines()]
    assert len(rows) == 6
    assert "holds 6 answers; 0 are left" in said
    same = 0
    for row in rows:
        *asked, answered = row["messages"]
        one, other = (greedy(tiny / name, asked) for name in ("student", "teacher"))
        assert (answered["content"].strip(), row["other_response"].strip()) == (one.strip(), other.strip())
        same += answered["content"] == row["other_response"]
    assert f"6 rows with both answers, {same} of them the same; written: {both}" in said


def test_rows_that_only_one_model_answered_are_counted(tmp_path: Path, capsys) -> None:
    files = [tmp_path / f"{name}.jsonl" for name in ("one", "other", "both")]
    for file, origins in zip(files, (["r:1", "r:2"], ["r:2", "r:3"]), strict=False):
        rows = [
            {"prompt": "a", "completion": file.stem, "origin": origin, "copy": 0, "truncated": False}
            for origin in origins
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    beside(*files)
    assert [json.loads(line)["origin"] for line in files[2].read_text().splitlines()] == ["r:2"]
    assert "warning: 2 answers have no other beside them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "limbeck infer needs --model"),
        (["--model", "{tiny}/student", "--result_path", "a.jsonl"], "no rows to answer"),
        (["--model", "{tiny}/student", "--val_dataset", "{tiny}/rows.jsonl"], "no place for the answers"),
        (["--model", "{tiny}/student", "--infer_backend", "vllm"], "no choice 'vllm'"),
    ],
)
def test_refusals(tiny: Path, argv: list[str], said: str, capsys) -> None:
    assert main(["infer", *(word.format(tiny=tiny) for word in argv)]) == 2
    assert said in capsys.readouterr().err


def test_an_adapter_is_read_on_its_base(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    for argv in (["--model", str(tmp_path / "adapter")], ["--adapters", str(tmp_path / "adapter")]):
        model = parse("infer", argv).model
        assert (model.model, model.adapters) == ("org/base", [str(tmp_path / "adapter")])


def test_what_a_conversation_cannot_do_is_told(tiny: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny / "student", base)
    (base / "chat_template.jinja").unlink()
    assert talk(monkeypatch, ["the cat"], "--model", base, "--system", "be kind") == 0
    seen = capsys.readouterr()
    assert "note: base has no chat template: it goes on with the conversation as plain text" in seen.err
    assert "a system message is not read" in seen.err
    assert "chosen: --torch_dtype float32: CPUs are fast and exact in it" in seen.err
    whole = len(AutoTokenizer.from_pretrained(base)(seen.out)["input_ids"])
    assert ("(base was cut off at --max_completion_length 8)" in seen.err) == (whole >= 8)
