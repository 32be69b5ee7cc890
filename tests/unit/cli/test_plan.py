"""What `limbeck plan` counts, against what a run leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.test_command_line import gkd, run

from limbeck.cli.plan import _size
from limbeck.train import checkpoint


def bytes_of(tensors: dict) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize(
    ("flags", "count", "copies"),
    [
        (["--tuner_type", "full", "--save_steps", 1], 3, 2),
        (["--save_steps", 2, "--lora_rank", 4], 2, 2),
        (["--save_strategy", "epoch", "--max_steps", 4, "--gradient_accumulation_steps", 20], 2, 2),
    ],
)
def test_checkpoints_on_disk_are_as_many_and_as_large_as_foretold(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list, count: int, copies: int
) -> None:
    argv = [*gkd(tiny, tmp_path / "run"), "--max_steps", 3, *flags]
    assert run("plan", *argv[1:]) == 0
    plan = capsys.readouterr().out
    assert run(*argv) == 0
    found = checkpoint.list_checkpoints(tmp_path / "run")
    assert len(found) == count
    weights = bytes_of(load_file(next((tmp_path / "run" / "last").glob("*.safetensors"))))
    state = torch.load(found[-1] / "rank-0.pt", weights_only=False)["optimizer"]["state"].values()
    optimizer = sum(bytes_of({k: t for k, t in each.items() if k != "step"}) for each in state)
    assert optimizer == copies * weights
    assert f"{count} checkpoints of about {_size(3 * weights)} (weights {_size(weights)}, " in plan
    assert f"optimizer {_size(optimizer)})" in plan
    assert f"together about {_size(count * 3 * weights + weights)}" in plan


def test_who_is_sent_what(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *gkd(tiny, tmp_path)[1:]) == 0
    out = capsys.readouterr().out
    assert f"{tiny / 'teacher'}, in this process: the same rows; answers with the full vocabulary" in out
    assert "nothing leaves this machine" in out
    argv = [word for word in gkd(tiny, tmp_path)[1:] if word not in ("--teacher_model", tiny / "teacher")]
    server = ["--teacher_model_server", "http://localhost:9", "--gkd_logits_topk", 8]
    assert run("plan", *argv, *server, "--report_to", "none", "--save_total_limit", 1, "--save_steps", 1) == 0
    out = capsys.readouterr().out
    assert "http://localhost:9: token ids of prompts and responses (" in out
    assert "answers with the top-8" in out
    assert "nothing leaves" not in out
    assert "1 checkpoints of 2 of about" in out
    assert run("plan", *gkd(tiny, tmp_path)[1:], "--push_to_hub", "--hub_model_id", "me/it") == 0
    out = capsys.readouterr().out
    assert ": the model, its tokenizer and its card, as me/it; no rows, no samples" in out
    assert "nothing leaves" not in out


def test_sizes_as_people_read_them() -> None:
    assert [_size(n) for n in (0, 999, 1000, 1234567, 5.86e9, 2e13)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 MB",
        "5.86 GB",
        "20 TB",
    ]
