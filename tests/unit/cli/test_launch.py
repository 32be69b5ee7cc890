"""Processes that the environment asks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import command, env, metrics

from limbeck.cli.launch import by_torchrun, several, world_size
from limbeck.errors import ConfigError

RUN = ["-m", "limbeck.cli.main", "sft", "--model", "m"]


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ("NPROC_PER_NODE=4", "--nproc_per_node 4 --standalone"),
        ("NPROC_PER_NODE=auto", "--nproc_per_node auto --standalone"),
        ("NPROC_PER_NODE=4 MASTER_PORT=29600", "--nproc_per_node 4 --master_port 29600"),
        (
            "NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 NPROC_PER_NODE=4",
            "--nproc_per_node 4 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29500",
        ),
        ("NNODES=2 NODE_RANK=0 WORLD_SIZE=2 RANK=0", "--nnodes 2 --node_rank 0"),  # a cluster's own names beside ours
    ],
)
def test_what_torchrun_is_told(variables: str, options: str) -> None:
    environ = dict(pair.split("=") for pair in variables.split())
    line = by_torchrun("sft", ["--model", "m"], environ)
    assert line == [sys.executable, "-m", "torch.distributed.run", *options.split(), *RUN]


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("sft", ""),
        ("sft", "NPROC_PER_NODE=1"),
        ("sft", "NPROC_PER_NODE="),
        ("sft", "NNODES=1 NPROC_PER_NODE=1"),
        ("sft", "MASTER_PORT=29500 NODE_RANK=0"),
        ("sft", "NPROC_PER_NODE=4 LOCAL_RANK=0"),  # one of those that torchrun has started
        ("infer", "NPROC_PER_NODE=4"),
    ],
)
def test_one_process_is_this_one(name: str, variables: str) -> None:
    assert by_torchrun(name, [], dict(pair.split("=") for pair in variables.split())) == []


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ("", 1),
        ("NPROC_PER_NODE=4", 4),
        ("NPROC_PER_NODE=4 NNODES=2 WORLD_SIZE=2", 8),
        ("NPROC_PER_NODE=4 LOCAL_RANK=0 WORLD_SIZE=2", 2),
        ("WORLD_SIZE=3", 3),
        ("NPROC_PER_NODE=auto", 1),
    ],
)
def test_how_many_a_plan_counts(variables: str, count: int) -> None:
    assert world_size(dict(pair.split("=") for pair in variables.split())) == count


def test_a_command_that_is_one_process_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("NPROC_PER_NODE", "4")
    for name in ("plan", "infer"):
        several(name, [])
    assert capsys.readouterr().err == "note: NPROC_PER_NODE and NNODES have no effect: limbeck infer is one process\n"


def test_a_number_that_is_none() -> None:
    with pytest.raises(ConfigError) as caught:
        by_torchrun("rlhf", [], {"NPROC_PER_NODE": "four"})
    assert (caught.value.what, caught.value.where) == ("NPROC_PER_NODE is no number", "NPROC_PER_NODE=four")


def test_two_processes_train(tiny: Path, tmp_path: Path) -> None:
    words = ["sft", "--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--use_cpu", "--max_steps", 1]
    words += ["--output_dir", tmp_path / "run", "--gradient_accumulation_steps", 1, "--per_device_train_batch_size", 2]
    done = subprocess.run(
        command(*words), capture_output=True, text=True, env=env() | {"NPROC_PER_NODE": "2"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "note: NPROC_PER_NODE=2: the processes are started by torchrun" in done.stderr
    assert json.loads((tmp_path / "run" / "env.json").read_text())["processes"] == 2
    assert len(metrics(tmp_path / "run")) == 1


def test_a_wrong_flag_is_told_once_and_nothing_is_started(tmp_path: Path) -> None:
    done = subprocess.run(
        command("sft", "--modell", "m"), capture_output=True, text=True, env=env() | {"NPROC_PER_NODE": "2"}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown flag --modell\n") and done.stderr.count("error") == 1
