"""What a user reads when something is missing, broken or full, word for word: tests/golden/errors.txt.

After a change of wording: LIMBECK_WRITE_GOLDEN=1 python -m pytest tests/golden/test_error_texts.py, and read the diff.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from limbeck.cli.main import main
from limbeck.rollouts import HFSampler
from limbeck.teachers import LocalTeacher
from limbeck.train.student import StudentStep
from tests.golden.snapshots import check, error_of, load, three_lines
from tests.support import make_folder, make_model, make_tokenizer

GOLDEN = Path(__file__).parent / "errors.txt"


def sides(tiny: Path, **more: object) -> list[object]:
    flags = {"model": tiny / "student", "teacher_model": tiny / "teacher", "dataset": tiny / "rows.jsonl", "lmbda": 0}
    flags |= {"output_dir": tiny.parent / "never", "max_steps": 1, "preflight": "false", **more}
    return ["rlhf", *(word for name, value in flags.items() if value is not None for word in (f"--{name}", value))]


def no_config(tiny: Path, tmp: Path) -> list[object]:
    (tmp / "empty").mkdir()
    (tmp / "empty" / "notes.txt").write_text("x")
    return sides(tiny, model=tmp / "empty")


def an_adapter(tiny: Path, tmp: Path) -> list[object]:
    model = get_peft_model(make_model(make_tokenizer()), LoraConfig(target_modules="all-linear"))
    model.peft_config["default"].base_model_name_or_path = str(tmp / "base")
    model.save_pretrained(tmp / "adapter")
    return sides(tiny, model=tmp / "adapter")


def lost_base(tiny: Path, tmp: Path) -> list[object]:
    (tmp / "adapter").mkdir()
    (tmp / "adapter" / "adapter_config.json").write_text("{}")
    return ["infer", "--adapters", tmp / "adapter"]


def cut_weights(tiny: Path, tmp: Path) -> list[object]:
    shutil.copytree(tiny / "student", tmp / "cut")
    whole = (tmp / "cut" / "model.safetensors").read_bytes()
    (tmp / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return ["eval", "--model", tmp / "cut", "--dataset", tiny / "rows.jsonl"]


def broken_config(tiny: Path, tmp: Path) -> list[object]:
    shutil.copytree(tiny / "student", tmp / "broken")
    (tmp / "broken" / "config.json").write_text("{")
    return ["eval", "--model", tmp / "broken", "--dataset", tiny / "rows.jsonl"]


def no_tokenizer(tiny: Path, tmp: Path) -> list[object]:
    shutil.copytree(tiny / "student", tmp / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp / "mute" / name).unlink()
    return sides(tiny, model=tmp / "mute")


def other_tokenizer(tiny: Path, tmp: Path) -> list[object]:
    make_folder(tmp / "foreign")
    make_tokenizer(300).save_pretrained(tmp / "foreign")
    return sides(tiny, teacher_model=tmp / "foreign")


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def taken_port(tiny: Path, tmp: Path) -> list[object]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    taken_port.kept = sock  # type: ignore[attr-defined]  (until the process ends)
    return ["deploy", "--model", tiny / "student", "--port", sock.getsockname()[1]]


def no_server(tiny: Path, tmp: Path) -> list[object]:
    url = f"http://127.0.0.1:{closed_port()}"
    return sides(tiny, teacher_model=None, teacher_model_server=url, teacher_patience=1, gkd_logits_topk=4)


def damaged_checkpoint(tiny: Path, tmp: Path) -> list[object]:
    argv = sides(tiny, output_dir=tmp / "run", save_steps=1)
    assert main([*map(str, argv), "--use_cpu"]) == 0
    weights = tmp / "run" / "checkpoint-1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    return [*argv, "--resume_from_checkpoint", "auto"]


def used_folder(tiny: Path, tmp: Path) -> list[object]:
    (tmp / "used").mkdir()
    (tmp / "used" / "mine.txt").write_text("x")
    return sides(tiny, output_dir=tmp / "used")


def under_a_file(tiny: Path, tmp: Path) -> list[object]:
    (tmp / "file").write_text("x")
    return sides(tiny, output_dir=tmp / "file" / "run")


def full_disk(tiny: Path, tmp: Path) -> list[object]:
    return ["eval", "--model", tiny / "student", "--dataset", tiny / "held_out.jsonl", "--result_path", "/dev/full"]


def rewarded(tiny: Path, tmp: Path, **more: object) -> list[object]:
    (tmp / "prompts.jsonl").write_text(json.dumps({"prompt": "a cat"}) + "\n")
    return sides(
        tiny,
        rlhf_type="grpo",
        dataset=tmp / "prompts.jsonl",
        lmbda=None,
        num_generations=2,
        gradient_accumulation_steps=2,
        **more,
    )


Case = Callable[[Path, Path], list[object]]
CASES: dict[str, Case] = {
    "a model that is not there": lambda tiny, tmp: sides(tiny, model=tmp / "gone"),
    "a model folder without a config": no_config,
    "an adapter whose base is not there": an_adapter,
    "an adapter that does not say its base": lost_base,
    "weights cut short": cut_weights,
    "a config that is not JSON": broken_config,
    "a model without its tokenizer": no_tokenizer,
    "adapters that are not there": lambda tiny, tmp: sides(tiny, adapters=tmp / "gone"),
    "a teacher that is not there": lambda tiny, tmp: sides(tiny, teacher_model=tmp / "gone"),
    "a teacher with another tokenizer": other_tokenizer,
    "a server that does not answer": no_server,
    "a server without top-k": lambda tiny, tmp: sides(
        tiny, teacher_model=None, teacher_model_server="http://127.0.0.1:1"
    ),
    "a server's address without http": lambda tiny, tmp: sides(
        tiny, teacher_model=None, teacher_model_server="teacher", gkd_logits_topk=4
    ),
    "a port that is taken": taken_port,
    "rows that are not there": lambda tiny, tmp: sides(tiny, dataset=tmp / "gone.jsonl"),
    "a configuration that is not there": lambda tiny, tmp: ["rlhf", tmp / "gone.yaml"],
    "a store that is not there": lambda tiny, tmp: ["data", "cache-info", tmp / "gone"],
    "a plugin that is not there": lambda tiny, tmp: rewarded(
        tiny, tmp, reward_funcs="exact", external_plugins=tmp / "gone.py"
    ),
    "a reward that is not there": lambda tiny, tmp: rewarded(tiny, tmp, reward_funcs="acuracy"),
    "a reward without its column": lambda tiny, tmp: rewarded(tiny, tmp, reward_funcs="exact"),
    "a checkpoint that is not there": lambda tiny, tmp: sides(tiny, resume_from_checkpoint=tmp / "gone"),
    "a checkpoint that is damaged": damaged_checkpoint,
    "a run folder that is in use": used_folder,
    "a run folder under a file": under_a_file,
    "a full disk": full_disk,
    "a checkpoint to measure that is not there": lambda tiny, tmp: [
        *("eval", "--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--checkpoints", tmp / "gone"),
    ],
    "a converter that is not installed": lambda tiny, tmp: [
        *("export", "--model", tiny / "student", "--output_dir", tmp / "out", "--gguf_type", "q8_0"),
    ],
}


def no_memory(*args: object, **kwargs: object) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def no_cuda_memory(*args: object, **kwargs: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB in all.")


# what runs out of memory -> (where, how, the flags of the run)
MEMORY: dict[str, tuple[object, str, Callable[..., None], dict[str, object]]] = {
    "no memory while learning": (StudentStep, "forward", no_memory, {"per_device_train_batch_size": 4}),
    "no memory while learning row by row": (StudentStep, "forward", no_cuda_memory, {"tuner_type": "full"}),
    "no memory while the teacher scores": (LocalTeacher, "score", no_cuda_memory, {"max_length": 512}),
    "no memory while sampling": (HFSampler, "draw", no_memory, {"lmbda": 1}),
}


def text_of(argv: list[object], tiny: Path, tmp: Path, capsys) -> str:
    words = [*argv, *([] if argv[0] == "export" or argv[0] == "data" else ["--use_cpu"])]
    return error_of(words, {"TMP": tmp, "TINY": tiny}, capsys)[1]


@pytest.fixture(scope="module")
def golden() -> dict[str, str]:
    return load(GOLDEN)


@pytest.mark.parametrize("name", CASES)
def test_text(name: str, tiny: Path, tmp_path: Path, golden: dict[str, str], monkeypatch, capsys) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    text = text_of(CASES[name](tiny, tmp_path), tiny, tmp_path, capsys)
    assert three_lines(text), text
    check(GOLDEN, name, text, golden)


@pytest.mark.parametrize("name", MEMORY)
def test_out_of_memory(name: str, tiny: Path, tmp_path: Path, golden: dict[str, str], monkeypatch, capsys) -> None:
    place, function, failing, flags = MEMORY[name]
    monkeypatch.setattr(place, function, failing)
    argv = sides(tiny, output_dir=tmp_path / "run", **flags)
    check(GOLDEN, name, text_of(argv, tiny, tmp_path, capsys), golden)


def test_the_file_holds_no_text_of_a_case_that_is_gone(golden: dict[str, str]) -> None:
    assert list(golden) == [*CASES, *MEMORY]
