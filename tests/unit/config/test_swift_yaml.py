"""ms-swift's files, given as its users give them: each key is ours, has a note, or is refused with what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tests.unit.config.swift_yaml import FILES, RAY

from limbeck.config.flags import Parsed, read
from limbeck.errors import ConfigError


def write(path: Path, settings: object) -> str:
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def refused_by(command: str, file: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(command, ["--config", str(file)])
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_taken_noted_or_refused(name: str, tmp_path: Path) -> None:
    command, text, off = FILES[name]
    file = tmp_path / "run.yaml"
    file.write_text(text)
    lacking = set(off.split())
    if lacking:
        error = refused_by(command, file)
        told = re.split(r" is a flag| are flags", error.what)[0].replace("--", "").split(", ")
        assert set(told) == lacking
        assert str(file) in error.where
        assert error.fix
    parsed = kept(command, text, lacking, tmp_path)
    assert parsed.config is not None
    said = " ".join(parsed.notes)
    assert ("use_ray has no effect" in said) == ("use_ray: true" in text)
    skipped = "limbeck rlhf does not use vllm_tensor_parallel_size, vllm_gpu_memory_utilization"
    assert (skipped in said) == ("vllm_gpu_memory_utilization" in text)  # ours, of `limbeck deploy`


def kept(command: str, text: str, lacking: set[str], folder: Path) -> Parsed:
    """The file without what is refused."""
    settings = yaml.safe_load(text)
    for name in lacking:
        role, _, key = name.rpartition(".")
        for mapping in [settings[role]] if role else [settings, *(v for v in settings.values() if isinstance(v, dict))]:
            mapping.pop(key, None)
    return read(command, ["--config", write(folder / "kept.yaml", settings)])


def test_the_roles_of_a_file_for_ray(tmp_path: Path) -> None:
    command, text, off = RAY["ray/gkd/rollout_colocate_teacher_standalone"]
    parsed = kept(command, text, set(off.split()), tmp_path)
    config = parsed.config
    assert (config.model.tuner_type, config.model.lora_alpha, str(config.run.output_dir)) == ("lora", 32, "out")
    assert config.teacher.teacher_model == "T"
    assert config.method.gkd_logits_topk == 64
    assert "teacher.model is --teacher_model T here" in parsed.notes
    alone = [note.split()[0] for note in parsed.notes if "NPROC_PER_NODE" in note]
    assert sorted(alone) == ["--colocate_groups", "rollout.gpus", "teacher.gpus", "train.gpus"]


def test_the_places_of_many_keys_are_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: S\ndataset: d\nuse_vllm: true\nsleep_level: 1\ntrain:\n  gpus: 2\n  deepspeed: zero3\nENV: {A: 1}\n"
    )
    error = refused_by("sft", file)
    assert error.where == f"{file}:3, 4, 7, 8"
    assert "--use_vllm, --sleep_level: leave it out" in error.fix
    assert "ENV: set them before the command" in error.fix


def test_our_own_room_is_no_role(tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", {"model": "S", "dataset": "d", "rollout": {"temperature": 0.5}})
    assert read("rlhf", ["--config", file]).config.rollout.temperature == 0.5


@pytest.mark.parametrize("words", [["--config", "FILE"], ["--config=FILE"], ["--beta", "0", "--config", "FILE"]])
def test_a_file_after_config(words: list[str], tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", {"model": "S", "dataset": "d", "beta": 1, "lmbda": 1})
    config = read("rlhf", [word.replace("FILE", file) for word in words]).config
    assert (config.method.lmbda, config.method.beta) == (1, 0 if "--beta" in words else 1)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["FILE", "--config", "FILE"], "one YAML file at most, and 2 are given"),
        (["--model", "m", "--config"], "--config needs a value"),
        (["--config", "--model", "m"], "--config needs a value"),
        (["--config="], "--config needs a value"),
    ],
)
def test_one_file_at_most(words: list[str], what: str, tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", {"model": "S"})
    with pytest.raises(ConfigError) as caught:
        read("rlhf", [word.replace("FILE", file) for word in words])
    assert caught.value.what == what
    assert caught.value.fix
