"""What users get wrong in rows, flags, YAML files and paths, and what they read then: tests/golden/malformed.txt.

After a change of wording: LIMBECK_WRITE_GOLDEN=1 python -m pytest tests/golden/test_malformed.py, and read the diff.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.golden.snapshots import check, error_of, load, three_lines

GOLDEN = Path(__file__).parent / "malformed.txt"


def rows(*found: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in found)


def said(*turns: tuple[object, object]) -> bytes:
    return rows({"messages": [{"role": role, "content": content} for role, content in turns]})


# name -> (file, its bytes): read with `limbeck data check`. No row of any of them can be used.
FILES: dict[str, tuple[str, bytes]] = {
    "half a JSON object": ("a.jsonl", b'{"messages": [{"role": "user", "content": "hi"}\n'),
    "Python's quotes": ("a.jsonl", b"{'prompt': 'hi', 'completion': 'ho'}\n"),
    "NaN for a prompt": ("a.jsonl", b'{"prompt": NaN, "completion": "ho"}\n'),
    "an object over several lines": ("a.jsonl", b'{\n  "prompt": "hi",\n  "completion": "ho"\n}\n'),
    "a comma after the last column": ("a.jsonl", b'{"prompt": "hi",}\n'),
    "a JSON array that is not closed": ("a.json", b'[{"prompt": "hi"}, {"prompt": "ho"}'),
    "JSON that is one object of lists": ("a.json", rows({"prompt": ["hi", "ho"], "completion": ["a", "b"]})),
    "JSON with the rows under a key": ("a.json", rows({"data": [{"prompt": "hi"}]})),
    "an array inside JSON lines": ("a.jsonl", b'[{"prompt": "hi"}]\n'),
    "a list of strings": ("a.json", b'["hi", "ho"]'),
    "numbers for rows": ("a.jsonl", b"1\n2\n3\n"),
    "an empty file": ("a.jsonl", b""),
    "nothing but blank lines": ("a.jsonl", b"\n\n  \n"),
    "an empty array": ("a.json", b"[]"),
    "an empty object": ("a.jsonl", b"{}\n"),
    "messages as text": ("a.jsonl", rows({"messages": "hi"})),
    "messages as JSON text": ("a.jsonl", rows({"messages": '[{"role": "user", "content": "hi"}]'})),
    "messages as one message": ("a.jsonl", rows({"messages": {"role": "user", "content": "hi"}})),
    "no messages": ("a.jsonl", rows({"messages": []})),
    "a message that is text": ("a.jsonl", rows({"messages": ["hi", "ho"]})),
    "a message without a role": ("a.jsonl", rows({"messages": [{"content": "hi"}]})),
    "a message without content": ("a.jsonl", rows({"messages": [{"role": "user"}]})),
    "a role that is not known": ("a.jsonl", said(("User", "hi"), ("Robot", "ho"))),
    "a role that is a number": ("a.jsonl", said((1, "hi"))),
    "a role that is a list": ("a.jsonl", said((["user"], "hi"))),
    "content that is a number": ("a.jsonl", said(("user", 4), ("assistant", 5))),
    "a picture": ("a.jsonl", said(("user", [{"type": "image_url", "image_url": {"url": "a.png"}}]))),
    "an answer to nothing": ("a.jsonl", said(("assistant", "ho"))),
    "a system message alone": ("a.jsonl", said(("system", "be kind"))),
    "an empty answer": ("a.jsonl", said(("user", "hi"), ("assistant", " "))),
    "a tool call that is not JSON": ("a.jsonl", said(("user", "hi"), ("tool_call", "add(1, 2)"))),
    "a tool call without a name": ("a.jsonl", said(("user", "hi"), ("tool_call", '{"arguments": {}}'))),
    "a tool's answer without a call": ("a.jsonl", said(("user", "hi"), ("tool", "3"), ("assistant", "It is 3."))),
    "a tool's answer at the beginning": ("a.jsonl", said(("tool", "3"), ("assistant", "It is 3."))),
    "tools as a number": ("a.jsonl", rows({"prompt": "hi", "completion": "ho", "tools": 3})),
    "a loss that is a share": (
        "a.jsonl",
        rows({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "loss": 0.5}]}),
    ),
    "a loss that is a list": (
        "a.jsonl",
        rows({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "loss": [1]}]}),
    ),
    "a completion that is a number": ("a.jsonl", rows({"prompt": "1+1", "completion": 2})),
    "a history that is text": ("a.jsonl", rows({"query": "hi", "response": "ho", "history": "hello"})),
    "ShareGPT without values": ("a.jsonl", rows({"conversations": [{"from": "human", "text": "hi"}]})),
    "columns of another project": ("a.jsonl", rows({"question": "hi", "answer": "ho"})),
    "half a surrogate pair": ("a.jsonl", b'{"prompt": "\\ud800", "completion": "ho"}\n'),
    "UTF-16": ("a.jsonl", '{"prompt": "hi", "completion": "ho"}\n'.encode("utf-16")),
    "Latin-1": ("a.jsonl", '{"prompt": "für", "completion": "ho"}\n'.encode("latin-1")),
    "a JSON array in UTF-16": ("a.json", '[{"prompt": "hi"}]'.encode("utf-16")),
    "a JSON array in Latin-1": ("a.json", '[{"prompt": "für"}]'.encode("latin-1")),
    "a binary file": ("a.jsonl", bytes(range(256)) * 4),
    "a picture named JSON": ("a.json", b"\x89PNG\r\n\x1a\n" + bytes(64)),
    "nesting without an end": ("a.json", b"[" * 100_000),
    "a gzip file": ("a.jsonl.gz", b"\x1f\x8b\x08\x00" + bytes(16)),
    "CSV without known columns": ("a.csv", b"question;answer\nhi;ho\n"),
    "CSV with a header alone": ("a.csv", b"prompt,completion\n"),
    "CSV with more cells than the header": ("a.csv", b"prompt,completion\nhi, there,ho\n"),
    "CSV in Latin-1": ("a.csv", "prompt,completion\nfür,ho\n".encode("latin-1")),
    "a Parquet file that is text": ("a.parquet", b"prompt,completion\nhi,ho\n"),
    "a text file": ("a.txt", b"hi\nho\n"),
}

# name -> the words after `limbeck`; STUDENT, TEACHER, ROWS, TMP are filled in.
RUN = "plan --model STUDENT --dataset ROWS --teacher_model TEACHER"
FLAGS: dict[str, str] = {
    "no command": "--model STUDENT",
    "a command that is misspelt": "rhlf --model STUDENT",
    "a command of a group that is not there": "data chekc ROWS",
    "a flag that is misspelt": f"{RUN} --learing_rate 1e-5",
    "a flag that is not there": f"{RUN} --wibble 3",
    "a flag of another command": f"{RUN} --port 8000",
    "a flag of ms-swift's": f"{RUN} --deepspeed zero3",
    "a flag without its value": f"{RUN} --beta",
    "a flag without its value, before another": f"{RUN} --beta --lmbda 0",
    "no model": "plan --dataset ROWS",
    "an empty model": "plan --model= --dataset ROWS",
    "no data": "plan --model STUDENT",
    "a data set without a name": "plan --model STUDENT --dataset",
    "no rlhf_type's value": "rlhf --rlhf_type --model STUDENT --dataset ROWS",
    "a number that is a word": f"{RUN} --learning_rate fast",
    "a number with a comma": f"{RUN} --beta 0,5",
    "a number that is none": f"{RUN} --beta nan",
    "a number without an end": f"{RUN} --learning_rate inf",
    "a negative number": f"{RUN} --beta -1",
    "half a step": f"{RUN} --max_steps 1.5",
    "a share above one": f"{RUN} --lmbda 2",
    "two values": f"{RUN} --beta 0 1",
    "neither true nor false": f"{RUN} --gradient_checkpointing maybe",
    "a choice that is misspelt": f"{RUN} --tuner_type loar",
    "columns that are not JSON": f"{RUN} --columns question:query",
    "columns that are no mapping": f"{RUN} --columns [1]",
    "columns that no row has": f'{RUN} --columns {{"question":"query"}}',
    "rows that are not a number": "plan --model STUDENT --teacher_model TEACHER --dataset ROWS#many",
    "no rows at all": "plan --model STUDENT --teacher_model TEACHER --dataset ROWS#0",
    "a teacher here and a server": f"{RUN} --teacher_model_server http://localhost:1",
    "an address that is none": "plan --model STUDENT --dataset ROWS --teacher_model_server nowhere --gkd_logits_topk 4",
    "no teacher": "plan --model STUDENT --dataset ROWS",
    "steps and no steps": f"{RUN} --max_steps 0",
    "more ids than there are": f"{RUN} --gkd_logits_topk 0",
    "a word on its own": "plan --model STUDENT --dataset ROWS --seed 1 extra",
    "a YAML file after a switch": "plan --model STUDENT --dataset ROWS --use_cpu run.yaml",
    "a YAML file after a flag": "plan --model STUDENT --dataset ROWS run.yaml",
    "a time that is none": f"{RUN} --max_time soon",
    "an evaluation without held-out rows": f"{RUN} --eval_strategy steps",
    "a module that is not there": f"{RUN} --target_modules q_prj",
    "an attention that is not there": f"{RUN.replace('plan', 'rlhf')} --output_dir TMP/run --attn_impl fast",
    "no generations": "rlhf --rlhf_type grpo --model STUDENT --dataset ROWS --num_generations 0",
    "a seed below 0": f"{RUN} --seed -1",
    "a seed of 80 bits": f"{RUN} --seed 999999999999999999999999",
    "a batch that no machine has": f"{RUN} --per_device_train_batch_size 99999999999999999999",
    "steps without an end": f"{RUN} --max_steps 99999999999999999999",
    "epochs without an end": f"{RUN} --num_train_epochs 1e18",
    "a weight that overflows": f"{RUN} --sft_alpha 1e300",
    "a rank that no machine has": f"{RUN} --lora_rank 1000000000",
    "patience for ever": f"{RUN} --teacher_patience inf",
    "a temperature of nearly 0": f"{RUN} --temperature 1e-40",
    "a loss temperature of nearly 0": f"{RUN} --loss_temperature 1e-40",
    "a loss temperature that flattens all": f"{RUN} --loss_temperature 1e38",
    "a device that is none": f"{RUN} --teacher_device gpu",
    "a device that is not here": f"{RUN.replace('plan', 'rlhf')} --output_dir TMP/run --teacher_device cuda:7000",
    "a flag without a name": f"{RUN} --",
    "a port above 65535": "plan --model STUDENT --dataset ROWS --teacher_model_server http://a:99999",
    "two teachers without tags": "plan --model STUDENT --dataset ROWS --teacher_model TEACHER TEACHER",
    "a size of files that is none": "export --model STUDENT --output_dir TMP/out --max_shard_size huge",
    "files of no size": "export --model STUDENT --output_dir TMP/out --max_shard_size 0MB",
    "an address that is not this machine's": "deploy --model STUDENT --host nowhere.invalid",
    "a web address for a model": "plan --model https://example.org/a/b --dataset ROWS --teacher_model TEACHER",
    "a web address for rows": "data check https://example.org/rows.jsonl",
    "a template that divides by 0": "plan --model STUDENT --dataset ROWS --lmbda 1 --teacher_prompt_template {{1/0}}",
    "a template that pries": "plan --model STUDENT --dataset ROWS --lmbda 1 "
    "--teacher_prompt_template {{prompt.__class__.__mro__}}",
}

# name -> the bytes of run.yaml, which `limbeck plan` reads.
YAML: dict[str, bytes] = {
    "bad indentation": b"model: m\n   dataset: rows.jsonl\n",
    "a tab": b"model:\n\tmodel: m\n",
    "a bracket that is not closed": b"dataset: [a.jsonl, b.jsonl\n",
    "a room that is not there": b"models:\n  model: m\n",
    "a key that is not there": b"model: m\ndataset: rows.jsonl\nlearing_rate: 1e-5\n",
    "a key of another room": b"model:\n  model: m\n  beta: 0.5\n",
    "a list where a value belongs": b"model: [m, n]\ndataset: rows.jsonl\n",
    "a list where a number belongs": b"model: m\ndataset: rows.jsonl\nbeta: [0.5]\n",
    "a mapping where a value belongs": b"model: m\ndataset: rows.jsonl\nbeta: {a: 1}\n",
    "a mapping where a list belongs": b"model: m\ndataset: {path: rows.jsonl}\n",
    "a value where a room belongs": b"model: m\ndataset: rows.jsonl\noptim: adam\n",
    "a key twice": b"model: m\ndataset: rows.jsonl\nbeta: 0\nbeta: 1\n",
    "a number in quotes that is a word": b"model: m\ndataset: rows.jsonl\nlearning_rate: 'fast'\n",
    "a number that YAML takes for text": b"model: m\ndataset: rows.jsonl\nlearning_rate: 1e-5x\n",
    "true where a number belongs": b"model: m\ndataset: rows.jsonl\nmax_steps: true\n",
    "a list of settings": b"- model: m\n- dataset: rows.jsonl\n",
    "an empty YAML file": b"",
    "a sentence": b"train my model please\n",
    "YAML in UTF-16": "model: m\n".encode("utf-16"),
    "YAML in Latin-1": "model: für\n".encode("latin-1"),
    "a key that is a list": b"? [a, b]\n: 1\n",
    "a tag of Python's": b"model: m\ndataset: !!python/object:os.system {}\n",
    "two documents": b"model: m\n---\ndataset: rows.jsonl\n",
    "an anchor that is not there": b"model: *base\n",
    "settings that are merged from a key of no room": b"base: &b\n  beta: 0\nmodel: m\n<<: *b\n",
    "a date where text belongs": b"model: m\ndataset: rows.jsonl\nrun_name: 2026-11-24\n",
    "a key without its value": b"model: m\ndataset: rows.jsonl\nlmbda:\n",
}

# name -> the words after `limbeck`; of what lies in TMP: empty/, locked/, locked.jsonl, locked.yaml, loop (a link).
PATHS: dict[str, str] = {
    "rows that are not there": "data check TMP/rows.jsnl",
    "a folder that is not there": "data check TMP/gone/rows.jsonl",
    "a hub id without a network": "data check org/name",
    "an empty folder for rows": "data check TMP/empty",
    "rows that may not be read": "data check TMP/locked.jsonl",
    "a YAML file that is not there": "plan TMP/gone.yaml",
    "a folder for a YAML file": "plan TMP/empty",
    "a YAML file that may not be read": "plan TMP/locked.yaml",
    "rows for a YAML file": "plan ROWS",
    "a plugin that is not there": "data check ROWS --external_plugins TMP/gone.py",
    "a plugin that is a folder": "data check ROWS --external_plugins TMP/empty",
    "a plugin that is not Python": "data check ROWS --external_plugins ROWS",
    "rows for a model": "plan --model ROWS --dataset ROWS --teacher_model TEACHER",
    "a plan written into a file's folder": f"{RUN} --write ROWS/plan.yaml",
    "a plan written over a folder": f"{RUN} --write TMP/empty",
    "a plan written where nothing may be": f"{RUN} --write TMP/locked/plan.yaml",
    "held-out rows that are not there": f"{RUN} --val_dataset TMP/gone.jsonl",
    "answers written over a folder": "generate --model STUDENT --dataset ROWS --result_path TMP/empty",
    "answers written into a device": "generate --model STUDENT --dataset ROWS --result_path /dev/null",
    "a page written over a device": "report TMP/empty --result_path /dev/null",
    "figures written over a folder": "eval --model STUDENT --dataset ROWS --result_path TMP/empty",
    "a link to itself for a run folder": f"{RUN.replace('plan', 'rlhf')} --output_dir TMP/loop",
    "rows with too long a name": f"data check {'x' * 300}",
    "a file for a checkpoint": "eval --model STUDENT --dataset ROWS --checkpoints ROWS",
}

# name -> (what differs in TMP/model, a copy of the student's folder; None: not there), the words after `limbeck`
Files = dict[str, bytes | None]
MODEL = "plan --model TMP/model --dataset ROWS --teacher_model TEACHER"
MODELS: dict[str, tuple[Files, str]] = {
    "a config that is a list": ({"config.json": b"[]"}, MODEL),
    "a generation config that is not JSON": ({"generation_config.json": b"{not"}, MODEL),
    "a tokenizer that is an empty object": ({"tokenizer.json": b"{}"}, MODEL),
    "a chat template that is not closed": ({"chat_template.jinja": b"{% for m in messages %}"}, MODEL),
    "a chat template that is empty": ({"chat_template.jinja": b""}, MODEL),
    "weights of no byte": ({"model.safetensors": b""}, f"{MODEL.replace('plan', 'rlhf')} --output_dir TMP/run"),
    "an adapter that is a list": (
        {"config.json": None, "adapter_config.json": b"[]"},
        "plan --model STUDENT --dataset ROWS --teacher_model TMP/model",
    ),
    "an adapter without weights": (
        {"config.json": None, "model.safetensors": None, "adapter_config.json": b"{}"},
        f"{RUN.replace('plan', 'rlhf')} --adapters TMP/model --output_dir TMP/run",
    ),
    "a GGUF file of no byte": ({"a.gguf": b""}, MODEL.replace("TMP/model", "TMP/model/a.gguf")),
}

# name -> (environment, the words after `limbeck`)
ENVIRONMENT: dict[str, tuple[dict[str, str], str]] = {
    "a number of processes that is a word": ({"WORLD_SIZE": "many"}, RUN),
    "no processes": ({"WORLD_SIZE": "0"}, RUN),
    "a rank that is a word": ({"RANK": "x"}, RUN),
    "processes that know no place to meet": (
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
        f"{RUN.replace('plan', 'rlhf')} --output_dir TMP/run",
    ),
}


@pytest.fixture(scope="module")
def golden() -> dict[str, str]:
    return load(GOLDEN)


@pytest.fixture(autouse=True)
def places(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "locked").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("locked.jsonl", "locked.yaml"):
        (tmp_path / name).write_text("{}")


def lock(monkeypatch) -> None:
    """Opening what is called locked fails as it does for a user without rights (root has them all)."""
    real = io.open

    def opened(file, *args, **kwargs):
        if "locked" in str(file):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", opened)


def words(line: str, tiny: Path, tmp: Path) -> list[str]:
    names = {"STUDENT": tiny / "student", "TEACHER": tiny / "teacher", "ROWS": tiny / "rows.jsonl", "TMP": tmp}
    for name, path in names.items():
        line = line.replace(name, str(path))
    return line.split()


def argv_of(name: str, tiny: Path, tmp: Path) -> list[str]:
    if name in FILES:
        file, content = FILES[name]
        (tmp / file).write_bytes(content)
        return ["data", "check", str(tmp / file)]
    if name in YAML:
        (tmp / "run.yaml").write_bytes(YAML[name])
        return ["plan", str(tmp / "run.yaml")]
    if name in MODELS:
        files, line = MODELS[name]
        shutil.copytree(tiny / "student", tmp / "model")
        for file, content in files.items():
            if content is None:
                (tmp / "model" / file).unlink()
            else:
                (tmp / "model" / file).write_bytes(content)
        return words(line, tiny, tmp)
    return words((FLAGS | PATHS)[name] if name not in ENVIRONMENT else ENVIRONMENT[name][1], tiny, tmp)


CASES = [*FILES, *FLAGS, *YAML, *PATHS, *MODELS, *ENVIRONMENT]


@pytest.mark.parametrize("name", CASES)
def test_malformed_input(name: str, tiny: Path, tmp_path: Path, golden: dict[str, str], monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    lock(monkeypatch)
    for variable, value in ENVIRONMENT.get(name, ({}, ""))[0].items():
        monkeypatch.setenv(variable, value)
    status, text = error_of(argv_of(name, tiny, tmp_path), {"TMP": tmp_path, "TINY": tiny}, capsys)
    assert three_lines(text), text
    assert status == 2, text
    check(GOLDEN, name, text, golden)


def test_the_file_holds_no_text_of_a_case_that_is_gone(golden: dict[str, str]) -> None:
    assert len(CASES) == len(set(CASES))
    assert set(golden) <= set(CASES)
