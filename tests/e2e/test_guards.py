"""Through the command line: a collapse pauses the run, rewards see the run's state, advantages are written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.cli.main import main
from limbeck.data.formats import Example
from tests.support import metrics

SHORT = (
    *("--max_completion_length", 6, "--max_steps", 6, "--learning_rate", 1e-3, "--logging_steps", 1, "--use_cpu"),
    *("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--preflight", "false"),
)


def run(tiny: Path, output: Path, *flags: Any, kind: str = "gkd") -> int:
    named = ("--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--output_dir", output)
    return main([str(word) for word in ("rlhf", "--rlhf_type", kind, *named, *SHORT, *flags)])


def test_a_collapse_pauses_with_a_checkpoint(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    flags = ("--teacher_model", tiny / "teacher", "--lmbda", 1)
    guard = ("--stop_on_collapse", "--collapse_entropy", 100, "--collapse_window", 2)  # nats: any student is below
    assert run(tiny, output, *flags, *guard) == 3
    said = capsys.readouterr()
    assert "saved checkpoint-2 (collapse)" in said.out
    lines = metrics(output)
    assert [line["step"] for line in lines] == [1, 2]
    values = ", ".join(f"{line['student_entropy']:.3g}" for line in lines)
    assert f"student_entropy was {values} in the last 2 lines of the log, below 100" in said.err
    assert "fix:   lower --learning_rate" in said.err and "Traceback" not in said.err
    assert (output / "checkpoint-2" / "trainer_state.json").exists() and (output / "last").exists()
    summary = json.loads((output / "summary.json").read_text())
    assert summary["stopped_by"] == "collapse"
    assert summary["collapse"]["what"] in said.err and summary["collapse"]["fix"] in said.err
    assert "stopped: the student collapses" in (output / "report.html").read_text()

    resume = ("--resume_from_checkpoint", "auto")
    assert run(tiny, output, *flags, *guard, *resume) == 3  # nothing was changed: the next line says the same
    assert [line["step"] for line in metrics(output)] == [1, 2, 3]
    assert run(tiny, output, *flags, *resume) == 0
    assert [line["step"] for line in metrics(output)] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["resumed_at"], summary["stopped_by"], "collapse" in summary) == ([2, 3], "end", False)
    assert "collapses" not in (output / "report.html").read_text()


def test_a_sound_run_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    flags = ("--teacher_model", tiny / "teacher", "--lmbda", 1, "--stop_on_collapse", "--collapse_truncated", 1)
    assert run(tiny, tmp_path / "run", *flags) == 0
    shares = [line["repeated_share"] for line in metrics(tmp_path / "run")]
    assert len(shares) == 6 and all(0 <= share < 1 for share in shares)


PLUGIN = """
import json, limbeck

@limbeck.register_reward("by_state")
def by_state(completions, trainer_state):
    with open({path!r}, "a") as file:
        json.dump([trainer_state.global_step, trainer_state.max_steps, trainer_state.epoch], file)
        file.write("\\n")
    return [float(i % 2) for i in range(len(completions))]
"""


def test_rewards_see_the_state_and_advantages_are_written_down(tiny: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.jsonl"
    (tmp_path / "plugin.py").write_text(PLUGIN.format(path=str(seen)))
    flags = ("--external_plugins", tmp_path / "plugin.py", "--reward_funcs", "by_state", "--num_generations", 2)
    output = tmp_path / "run"
    assert run(tiny, output, *flags, "--teacher_model", tiny / "teacher", "--teacher_kl_coef", 0.5, kind="grpo") == 0
    states = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [step for step, *_ in states] == [0, 1, 2, 3, 4, 5] and all(most == 6 for _, most, _ in states)
    epochs = [epoch or 0.0 for *_, epoch in states]
    assert epochs == pytest.approx([line["epoch"] for line in [{"epoch": 0.0}, *metrics(output)[:-1]]], abs=1e-4)

    lines = [json.loads(line) for line in (output / "completions.jsonl").read_text().splitlines()]
    # two samples, rewards 0 and 1: -+ 1/2 over a deviation of sqrt(1/2) + 1e-4
    base = 0.5 / (0.5**0.5 + 1e-4)
    for line in lines:
        advantage, ratio = torch.tensor(line["advantage"]), torch.tensor(line["logratio"])
        assert len(line["tokens"]) == len(advantage) == len(ratio)
        rest = (advantage - 0.5 * ratio).abs()
        torch.testing.assert_close(rest, torch.full_like(rest, base), rtol=0, atol=2e-5)  # five places are written


def test_the_loss_path_has_no_advantages(tiny: Path, tmp_path: Path) -> None:
    assert run(tiny, tmp_path / "run", "--teacher_model", tiny / "teacher", "--max_steps", 1) == 0
    line = json.loads((tmp_path / "run" / "completions.jsonl").read_text().splitlines()[0])
    assert line["advantage"] is None and line["logratio"] is None


def test_the_number_of_comparing_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.config.flat import from_flat
    from limbeck.rewards import named
    from limbeck.train.prepare import rewards_of

    asked: list[tuple[float, int]] = []
    pool = named.math_pool
    monkeypatch.setattr(named, "math_pool", lambda *settings: asked.append(settings) or pool(*settings))
    config = from_flat({"model": "m", "rlhf_type": "grpo", "reward_funcs": ["accuracy"], "accuracy_workers": 3})
    example = Example("1 + 1", None, {"solution": "2"}, "rows.jsonl:1")
    rewards_of(config, [(example, None)])  # type: ignore[list-item]
    assert asked == [(5.0, 3)]
