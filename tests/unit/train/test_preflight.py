"""The look at both models before the first step: what the figures advise, and that it is printed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from limbeck.cli.main import main
from limbeck.config.flat import from_flat
from limbeck.config.method import resolve_method
from limbeck.train.preflight import findings

FINE = {
    "loss": 0.4,
    "refused": 0,
    "top1_agreement": 0.6,
    "teacher_mass": 0.97,
    "topk_teacher_entropy": 1.5,
    "topk_student_entropy": 1.8,
}


def advice(found: dict[str, float], **flags: Any) -> str:
    flags = {"teacher_model": "t", "gkd_logits_topk": 8} | flags
    config = from_flat({"model": "m", "dataset": ["x"], **flags})
    method = resolve_method(config, has_teacher_prompt=False, rows_without_response=0)
    return "\n".join(findings(cast(Any, SimpleNamespace(config=config, method=method)), found))


def test_good_figures_need_no_advice() -> None:
    assert advice(FINE) == ""


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        ({"teacher_mass": 0.85}, {"topk_mode": "renorm"}, "take a larger --gkd_logits_topk, or --topk_mode tail"),
        ({"teacher_mass": 0.7}, {}, "a larger --gkd_logits_topk tells more"),
        ({"top1_agreement": 0.1}, {}, "a warm-up on answers: `limbeck sft`"),
        ({"topk_student_entropy": 4.0}, {}, "the student is 2.5 nats less sure"),
        ({"topk_teacher_entropy": 4.0}, {}, "the student is 2.2 nats surer"),
        ({"refused": 2}, {}, "refused 2 of the rows"),
        ({"loss": 0.0}, {}, "nothing will be learnt"),
    ],
)
def test_each_finding_says_what_to_do(change: dict[str, float], flags: dict[str, Any], words: str) -> None:
    assert words in advice(FINE | change, **flags)
    assert len(advice(FINE | change, **flags).splitlines()) == 1


def test_off_policy_needs_no_warm_up_and_cross_entropy_is_something_to_learn() -> None:
    assert "warm-up" not in advice(FINE | {"top1_agreement": 0.1}, lmbda=0)
    assert advice(FINE | {"loss": 0.0}, sft_alpha=1.0) == ""


@pytest.mark.parametrize("teacher", ["teacher", "student"])
def test_plan_measures_where_it_is_asked_to(tiny: Path, capsys: pytest.CaptureFixture, teacher: str) -> None:
    argv = [
        *("plan", "--preflight", "--model", tiny / "student", "--teacher_model", tiny / teacher, "--use_cpu"),
        *("--dataset", tiny / "rows.jsonl", "--lmbda", 1, "--gkd_logits_topk", 4, "--max_completion_length", 8),
    ]
    assert main([str(word) for word in argv]) == 0
    out = capsys.readouterr().out
    assert "preflight, 4 rows," in out and "of the student's own tokens" in out
    equal = teacher == "student"
    assert ("same favourite token 1," in out) == equal
    assert ("nothing will be learnt" in out) == equal
    wide = "the heads are 320 and 325 wide (student, teacher): the tokenizer's 320 ids are compared"
    assert (wide in out) == (not equal)
    assert main([str(word) for word in argv if word != "--preflight"]) == 0
    assert "preflight," not in capsys.readouterr().out
