"""Whoever the teacher is, a run learns the same from the same numbers; and who moves is resumed as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from limbeck.cli.main import main
from tests.invariants.test_resume import kill_at
from tests.support import limbeck, make_rows, metrics, without_times

SHORT = (
    *("--max_completion_length", 6, "--max_steps", 3, "--learning_rate", 1e-3, "--logging_steps", 1, "--use_cpu"),
    *("--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 2, "--lora_dropout", 0),
)


def run(folder: Path, tiny: Path, *more: object) -> list[dict]:
    argv = [
        "rlhf",
        "--model",
        tiny / "student",
        "--dataset",
        tiny / "rows.jsonl",
        "--output_dir",
        folder,
        *SHORT,
        *more,
    ]
    assert main([str(word) for word in argv]) == 0
    return metrics(folder)


@pytest.mark.parametrize("lmbda", [0, 1])
def test_on_all_ids_every_support_is_the_full_vocabulary(tiny: Path, tmp_path: Path, lmbda: int) -> None:
    """k = all ids: the teacher's, the student's and both sides' choice are the whole vocabulary."""
    teacher = ("--teacher_model", tiny / "teacher", "--lmbda", lmbda)
    full = run(tmp_path / "full", tiny, *teacher)
    for support in ("teacher", "student", "union"):
        some = run(tmp_path / support, tiny, *teacher, "--gkd_logits_topk", 320, "--topk_support", support)
        for a, b in zip(full, some, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_a_tail_bounds_the_full_divergence_whosever_the_support_is(tiny: Path, tmp_path: Path, beta: float) -> None:
    """A support with a tail is a coarser distribution, so that its divergence is at most the full one; the union of
    two supports is finer than either."""
    common = ("--teacher_model", tiny / "teacher", "--lmbda", 0, "--beta", beta, "--max_steps", 1)
    full = run(tmp_path / "full", tiny, *common)[0]["loss"]
    each = {
        support: run(tmp_path / support, tiny, *common, "--gkd_logits_topk", 8, "--topk_support", support)[0]["loss"]
        for support in ("teacher", "student", "union")
    }
    assert 0 < each["teacher"] < full
    assert 0 < each["student"] < full
    assert max(each["teacher"], each["student"]) < each["union"] < full


def two_sets(tmp_path: Path) -> tuple[Path, Path]:
    for seed, name in enumerate(("math", "code")):
        make_rows(tmp_path / f"{name}.jsonl", 12, seed=seed)
    return tmp_path / "math.jsonl", tmp_path / "code.jsonl"


def tagged(tiny: Path, *pairs: tuple[str, str]) -> str:
    return json.dumps([{"model": str(tiny / model), "tags": [tag]} for model, tag in pairs])


@pytest.mark.parametrize("topk", [(), ("--gkd_logits_topk", 8)])
def test_one_teacher_under_two_tags_is_one_teacher(tiny: Path, tmp_path: Path, topk: tuple[object, ...]) -> None:
    common = ("--dataset", *two_sets(tmp_path), "--lmbda", 0, *topk)
    one = run(tmp_path / "one", tiny, *common, "--teacher_model", tiny / "teacher")
    names = [json.loads((tmp_path / f"{tag}.jsonl").read_text().splitlines()[0]) for tag in ("math", "code")]
    assert all("dataset" not in row for row in names)
    tags = tagged(tiny, ("teacher", "math"), ("teacher", "code"))
    two = run(tmp_path / "two", tiny, *common, "--teacher_model", tags)
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)


def test_two_teachers_are_counted_routed_and_measured(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The student itself is one of them: its rows have no divergence, the other's have."""
    common = ("--dataset", *two_sets(tmp_path), "--lmbda", 0, "--max_steps", 1, "--tuner_type", "full")
    tags = tagged(tiny, ("teacher", "math"), ("student", "code"))
    first = run(tmp_path / "run", tiny, *common, "--teacher_model", tags)[0]
    own, other = first[f"divergence/{tiny / 'student'}"], first[f"divergence/{tiny / 'teacher'}"]
    assert own == pytest.approx(0.0, abs=1e-7)
    assert other > 0.1
    argv = ["plan", "--model", tiny / "student", *common, "--teacher_model", tags]
    assert main([str(word) for word in argv]) == 0
    out = capsys.readouterr().out
    assert f"12 rows are sent to {tiny / 'teacher'}" in out
    assert f"12 rows are sent to {tiny / 'student'}" in out


def test_a_tag_that_no_teacher_has_is_refused_before_anything_runs(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tags = tagged(tiny, ("teacher", "math"))
    argv = [
        "plan",
        "--model",
        tiny / "student",
        "--dataset",
        *two_sets(tmp_path),
        "--teacher_model",
        tags,
        "--lmbda",
        0,
    ]
    assert main([str(word) for word in argv]) == 2
    error = capsys.readouterr().err
    assert "12 rows have a dataset that no teacher has a tag for: 'code' (12 rows, first" in error
    assert "they have: math" in error


SELF = ("--sft_alpha", 0.5, "--lmbda", 0.5, "--topk_mode", "tail")


@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("topk", [(), ("--gkd_logits_topk", 8)])
def test_self_teachers_begin_at_zero_and_part_as_they_should(
    tiny: Path, tmp_path: Path, tuner: str, topk: tuple[object, ...]
) -> None:
    """Cross-entropy pulls the student away: from its live weights never, from a copy at once, from a slow average
    more than from a quick one."""
    name = "topk_forward_kl" if topk else "forward_kl"
    found = {}
    for source, more in {
        "live": (),
        "frozen": (),
        "ema": ("--teacher_ema_decay", 0.5),
        "slow": ("--teacher_ema_decay", 0.999),
    }.items():
        named = ("--teacher_source", "ema" if source == "slow" else source, "--tuner_type", tuner)
        lines = run(tmp_path / source, tiny, *named, *SELF, *more, *topk, "--lmbda", 0, "--learning_rate", 1e-2)
        assert lines[0][name] == pytest.approx(0.0, abs=1e-7)
        found[source] = lines[-1][name]
    assert found["live"] == pytest.approx(0.0, abs=1e-7)
    assert 0 < found["ema"] < found["slow"]
    assert found["slow"] == pytest.approx(found["frozen"], rel=0.05)


@pytest.mark.parametrize(
    ("tuner", "more"),
    [
        ("full", ("--teacher_source", "live", *SELF)),
        ("full", ("--teacher_source", "ema", "--gkd_logits_topk", 8, *SELF)),
        ("lora", ("--teacher_source", "ema", *SELF)),
        ("lora", ("--teacher_source", "frozen", *SELF)),
        ("full", ("--teacher_model", "TEACHER", "--gkd_logits_topk", 8, "--topk_support", "student", "--lmbda", 0.5)),
    ],
    ids=["live", "ema", "ema, lora", "frozen, lora", "student's support"],
)
def test_what_moves_is_resumed_as_it_was(tiny: Path, tmp_path: Path, tuner: str, more: tuple[object, ...]) -> None:
    """Killed in the middle of a generation batch: its signals come from weights that are gone."""
    more = tuple(tiny / "teacher" if word == "TEACHER" else word for word in more)

    def flags(folder: Path) -> list[object]:
        return [
            *("rlhf", "--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--output_dir", folder, *SHORT),
            *("--tuner_type", tuner, "--steps_per_generation", 4, "--save_steps", 1, "--max_steps", 6, *more),
        ]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    limbeck(*flags(whole))
    kill_at(3, flags(killed), killed)
    assert (killed / "checkpoint-3" / "signals-0.pt").exists() == (more[1] != "frozen")
    limbeck(*flags(killed), "--resume_from_checkpoint", killed / "checkpoint-3")
    assert without_times(metrics(killed)) == without_times(metrics(whole))
    name = "model.safetensors" if tuner == "full" else "adapter_model.safetensors"
    ours, theirs = (load_file(folder / "last" / name) for folder in (killed, whole))
    assert all(ours[k].equal(theirs[k]) for k in theirs)
