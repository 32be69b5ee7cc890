"""Two processes at their ends: a bug on one of them, one that is killed, and a script that trains twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import env, metrics

BUG = """
import os, sys
import limbeck.train.loop as loop
from limbeck.cli.main import main

step = loop.train_step

def broken(parts, generation, *, stats):
    if parts.accelerator.process_index == 1 and parts.scheduler.last_epoch == 1:
        {fault}
    return step(parts, generation, stats=stats)

loop.train_step = broken
sys.exit(main(sys.argv[1:]))
"""

TWICE = """
import sys
import limbeck

folder, out = sys.argv[1:]
flags = dict(
    model=f"{folder}/student", teacher_model=f"{folder}/teacher", dataset=[f"{folder}/rows.jsonl"], lmbda=0.0,
    max_steps=2, logging_steps=1, use_cpu=True, preflight=False, report_html=False, report_to=["tensorboard"],
)
for name in ("one", "two"):
    limbeck.distil(output_dir=f"{out}/{name}", **flags)
"""

# gloo's threads get what nobody else wants of one core, so that they still hold tensors as the script ends
LATE = """
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from limbeck.train import parallel

accelerator = Accelerator(cpu=True)
parallel.keep_group()
model = accelerator.prepare_model(torch.nn.Linear(8, 8))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for task in map(int, os.listdir("/proc/self/task")):
    os.sched_setaffinity(task, os.sched_getaffinity(0))
    if task != os.getpid():
        os.sched_setscheduler(task, os.SCHED_IDLE, os.sched_param(0))
for i in range(5):
    model(torch.randn(3, 8)).sum().backward()
    gather_object([i])
"""


def torchrun(folder: Path, script: str, *argv: object) -> subprocess.CompletedProcess[str]:
    file = folder / "script.py"
    file.write_text(script)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, file, *argv]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, env=env(), timeout=300)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise ValueError('a bug')", "error: ValueError: a bug"),
        ("os._exit(9)", "error: another process of this run has ended"),  # as one that the system kills
    ],
)
def test_a_process_that_fails_ends_the_others_and_one_says_why(
    tiny: Path, tmp_path: Path, fault: str, said: str
) -> None:
    done = torchrun(
        *(tmp_path, BUG.format(fault=fault), "rlhf", "--model", tiny / "student", "--teacher_model", tiny / "teacher"),
        *("--dataset", tiny / "rows.jsonl", "--output_dir", tmp_path / "run", "--use_cpu", "--lmbda", 0),
        *("--max_steps", 4, "--logging_steps", 1, "--preflight", False, "--report_html", False),
    )
    ours = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and ours == [said], done.stderr[-4000:]
    assert len(metrics(tmp_path / "run")) == 1


def test_a_script_may_train_twice(tiny: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path, TWICE, tiny, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    assert [row["loss"] for row in two] == [row["loss"] for row in one] and len(one) == 2
    for name in ("one", "two"):
        assert list((tmp_path / name / "tensorboard").glob("events*")), name


@pytest.mark.skipif(sys.platform != "linux", reason="sets the scheduling of threads by Linux's means")
def test_a_process_that_ends_before_its_threads_does_not_abort(tmp_path: Path) -> None:
    done = torchrun(tmp_path, LATE)
    assert done.returncode == 0, done.stderr[-4000:]


def test_what_is_wrong_with_a_flag_is_said_once(tmp_path: Path) -> None:
    script = "import sys; from limbeck.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = torchrun(tmp_path, script, "rlhf", "--model", "student", "--betta", 1)
    assert done.returncode != 0 and done.stderr.count("error: unknown flag --betta") == 1, done.stderr
