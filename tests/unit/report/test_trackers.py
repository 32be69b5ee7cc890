from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from limbeck.errors import ConfigError
from limbeck.report import MetricsFile, check_trackers, log, start_trackers
from limbeck.report.trackers import project_of


def read(path: Path) -> list[dict]:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_lines_are_strict_json_and_numbers_come_back(tmp_path):
    torch = pytest.importorskip("torch")
    file = MetricsFile(tmp_path / "new" / "metrics.jsonl")
    file.write({"step": 1, "loss": math.nan, "a": [math.inf, -math.inf, 1.5], "b": torch.tensor(2.5), "c": {"d": None}})
    file.write({"step": 2, "text": "ü\n</script>", "path": Path("x"), "flag": True, "list": torch.tensor([1, 2])})
    first, second = read(file.path)
    assert first == {"step": 1, "loss": "NaN", "a": ["Infinity", "-Infinity", 1.5], "b": 2.5, "c": {"d": None}}
    assert math.isnan(float(first["loss"]))
    assert float(first["a"][1]) == -math.inf
    assert second == {"step": 2, "text": "ü\n</script>", "path": "x", "flag": True, "list": [1, 2]}


def test_killed_and_resumed_file_equals_an_uninterrupted_one(tmp_path):
    lines = [{"step": step, "kind": kind, "loss": 1 / step} for step in range(1, 11) for kind in ("train", "eval")]
    whole = MetricsFile(tmp_path / "whole.jsonl")
    whole.write_all(lines)

    killed = MetricsFile(tmp_path / "killed.jsonl")
    killed.write_all(lines[:14])  # up to step 7; the last checkpoint is that of step 4
    with killed.path.open("a") as raw:
        raw.write('{"step": 8, "kin')  # torn by the kill

    resumed = MetricsFile(tmp_path / "killed.jsonl")
    assert resumed.rewind(4) == 6
    resumed.write_all(lines[8:])
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_a_torn_last_line_is_dropped_even_without_a_rewind(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    MetricsFile(path).write({"step": 2})
    assert read(path) == [{"step": 1}, {"step": 2}]


def test_rewind_to_the_start_and_of_a_missing_file(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.rewind(0) == 0
    file.write({"step": 1})
    assert file.rewind(0) == 1
    assert file.path.read_text() == ""


def test_other_processes_write_nothing(tmp_path):
    file = MetricsFile(tmp_path / "sub" / "metrics.jsonl", enabled=False)
    file.write({"step": 1})
    file.rewind(0)
    assert not (tmp_path / "sub").exists()


def test_names_of_trackers(monkeypatch):
    monkeypatch.setattr("limbeck.report.trackers._installed", lambda name: name in ("tensorboard", "trackio"))
    assert check_trackers(None) == check_trackers("none") == check_trackers([]) == check_trackers(["none"]) == []
    assert check_trackers("tensorboard") == ["tensorboard"]
    assert check_trackers(["trackio", "tensorboard", "trackio"]) == ["trackio", "tensorboard"]
    assert check_trackers("all") == ["tensorboard", "trackio"]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "wandb",
            [
                "error: --report_to wandb needs a package that is not installed",
                "  where: --report_to tensorboard wandb",
                "  fix:   pip install wandb, or leave it out: metrics.jsonl is written in any case",
            ],
        ),
        (
            "wandbb",
            [
                "error: --report_to wandbb is not a tracker that Limbeck knows",
                "  where: --report_to tensorboard wandbb",
                "  fix:   choose from tensorboard, wandb, swanlab, trackio, all or none; "
                "metrics.jsonl is written in any case",
            ],
        ),
    ],
)
def test_a_tracker_that_cannot_start(monkeypatch, name, lines):
    monkeypatch.setattr("limbeck.report.trackers._installed", lambda name: name == "tensorboard")
    with pytest.raises(ConfigError) as error:
        check_trackers(["tensorboard", name])
    assert str(error.value).splitlines() == lines


def test_a_folder_of_a_trackers_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "swanlab").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "swanlab" not in check_trackers("all") or __import__("swanlab").__file__


def test_every_tracker_is_one_of_accelerates():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from limbeck.report.trackers import TRACKERS

    assert set(TRACKERS) <= set(LOGGER_TYPE_TO_CLASS)


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator(cpu=True)
    config = {"optim": {"learning_rate": 1e-4, "target_modules": ["all-linear"]}, "max_steps": None}
    assert start_trackers(accelerator, ["tensorboard"], "run", config, run_dir=tmp_path) == ["tensorboard"]
    for step in (5, 10):
        log(accelerator, {"step": step, "kind": "train", "loss": 1 / step, "flag": True, "absent": None}, step)
    for tracker in accelerator.trackers:
        tracker.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (5, pytest.approx(0.2)),
        (10, pytest.approx(0.1)),
    ]
    assert events.Tags()["scalars"] == ["loss"]


def test_the_project_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("SWANLAB_PROJECT", "mine")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert [project_of(names) for names in (["wandb"], ["wandb", "swanlab"], [])] == ["limbeck", "mine", "limbeck"]


def test_log_without_trackers_does_nothing():
    class Quiet:
        trackers = ()

    log(Quiet(), {"loss": 1.0}, 1)  # type: ignore[arg-type]
