"""kill -9 and go on: the same metrics as the run that was not interrupted. SIGTERM saves and leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support import command, env, limbeck, metrics, without_times

# lmbda mixes sources; a generation batch lasts for two optimizer steps, and checkpoints fall in its middle too
FLAGS = (
    *("--rlhf_type", "gkd", "--lmbda", 0.5, "--max_completion_length", 6, "--learning_rate", 1e-3, "--max_steps", 9),
    *("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--steps_per_generation", 4),
    *("--logging_steps", 2, "--save_steps", 3, "--eval_steps", 4, "--use_cpu"),
)


def flags(tiny: Path, run: Path, *more: object) -> list[object]:
    named = {"model": "student", "teacher_model": "teacher", "dataset": "rows.jsonl", "val_dataset": "held_out.jsonl"}
    paths = [word for name, file in named.items() for word in (f"--{name}", tiny / file)]
    return ["rlhf", *paths, "--output_dir", run, *FLAGS, *more]


def kill_at(step: int, argv: list[object], run: Path) -> None:
    """Starts a run and kills it without a warning once checkpoint-STEP is there."""
    log = run.with_name(f"{run.name}.log")
    with log.open("w") as out:
        process = subprocess.Popen(command(*argv), env=env(), stdout=out, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 600  # a guard against hanging, not a measure of speed
    try:
        while not (run / f"checkpoint-{step}").exists():
            ended, late = process.poll() is not None, time.monotonic() > deadline
            assert not ended, f"the run ended before it could be killed\n{log.read_text()[-3000:]}"
            assert not late, f"no checkpoint-{step} after 600 s\n{log.read_text()[-3000:]}"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def test_a_checkpoint_that_lacks_something_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    limbeck(*flags(tiny, run, "--max_steps", 3, "--report_html", False, "--preflight", False))
    checkpoint = run / "checkpoint-3"
    for file, name in (("limbeck_state.json", "sharding"), ("generation-0.json", "next_row")):  # an earlier version's
        kept = json.loads((checkpoint / file).read_text())
        del kept[name]
        (checkpoint / file).write_text(json.dumps(kept))
    done = limbeck(*flags(tiny, run, "--resume_from_checkpoint", "auto"), ok=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-3:] == [
        "error: the checkpoint lacks what an exact resume needs: sharding, next_row",
        f"  where: {checkpoint}",
        f"  fix:   start anew from its weights: --model or --adapters {checkpoint}, with another --output_dir",
    ]


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tiny: Path, tmp_path: Path, tuner: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    limbeck(*flags(tiny, whole, "--tuner_type", tuner))
    kill_at(3, flags(tiny, killed, "--tuner_type", tuner), killed)
    generation = json.loads((killed / "checkpoint-3" / "generation-0.json").read_text())
    assert (generation["used"], len(generation["steps"])) == (1, 2)  # in the middle of a buffer
    resumed = limbeck(*flags(tiny, killed, "--tuner_type", tuner, "--resume_from_checkpoint", "auto"))
    assert "resuming from" in resumed.stdout
    for kind in ("train", "eval"):
        assert without_times(metrics(killed, kind)) == without_times(metrics(whole, kind))
    assert {row["step"] for row in metrics(whole)} == {1, 2, 4, 6, 8, 9}
    name = "model.safetensors" if tuner == "full" else "adapter_model.safetensors"
    ours, theirs = (load_file(run / "last" / name) for run in (killed, whole))
    assert all(ours[k].equal(theirs[k]) for k in theirs)


def test_an_existing_folder_is_refused_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    refused = limbeck(*flags(tiny, run), ok=False)
    assert refused.returncode == 2
    assert "exists and is not empty" in refused.stderr
    assert "--resume_from_checkpoint auto" in refused.stderr
    assert [p.name for p in run.iterdir()] == ["notes.txt"]


def test_other_rows_are_refused_on_resume(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    limbeck(*flags(tiny, run, "--max_steps", 3))
    more = ["--dataset", f"{tiny / 'rows.jsonl'}#30", "--resume_from_checkpoint", "auto"]
    refused = limbeck(*flags(tiny, run, *more), ok=False)
    assert refused.returncode == 2
    assert "written with rows 40, this run has 30" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    argv = flags(tiny, run, "--max_steps", 100000, "--save_steps", 100000, "--eval_strategy", "no")
    process = subprocess.Popen(command(*argv), env=env(), stdout=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text().count("\n"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    saved = [p.name for p in run.glob("checkpoint-*")]
    assert len(saved) == 1, out
    assert f"stopped by {number.name}" in out
    assert (run / "last" / "config.json").exists() or (run / "last" / "adapter_config.json").exists()


def test_max_time_and_rotation_and_the_best_checkpoint(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--save_steps", 2, "--eval_steps", 2, "--save_total_limit", 2, "--max_steps", 8, "--tuner_type", "full"]
    limbeck(*flags(tiny, run, *more))
    state = json.loads((run / "checkpoint-8" / "trainer_state.json").read_text())
    losses = {row["step"]: row["eval_loss"] for row in metrics(run, "eval") if row["step"]}
    best = min(losses, key=losses.__getitem__)
    assert state["best_metric"] == losses[best]
    assert {p.name for p in run.glob("checkpoint-*")} == {"checkpoint-8", f"checkpoint-{best}"} | (
        {"checkpoint-6"} if best == 8 else set()
    )
    short = tmp_path / "short"
    out = limbeck(*flags(tiny, short, "--max_steps", 100000, "--max_time", 1, "--save_steps", 100000))
    assert "--max_time reached" in out.stdout
    assert len(list(short.glob("checkpoint-*"))) == 1
