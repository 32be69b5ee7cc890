from __future__ import annotations

import io
import math

import pytest

from limbeck.report.console import Console, line, sparkline
from limbeck.report.format import duration, number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (0.0432149, "0.04321"),
        (3.14159, "3.142"),
        (1234.6, "1,235"),
        (999.96, "1000"),
        (1e-5, "1e-5"),
        (-2.5e-7, "-2.5e-7"),
        (1.2e9, "1.2e9"),
        (12345, "12,345"),
        (True, "True"),
        (None, "-"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        ("gkd", "gkd"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42s"),
        (7.345, "7.3s"),
        (59.96, "1m 00s"),
        (245, "4m 05s"),
        (11220, "3h 07m"),
        (187200, "2d 04h"),
        (math.inf, "-"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_percent():
    assert (percent(0.71249), percent(math.nan), percent(None)) == ("71.2%", "nan", "-")


def test_one_line_a_step_off_a_terminal():
    out = io.StringIO()
    console = Console(total=40, file=out)
    console.step({"step": 10, "kind": "train", "loss": 0.43214, "learning_rate": 1e-5, "unknown": 3, "ce": None})
    console.tick(11)
    console.step({"step": 10, "kind": "eval", "eval_loss": 0.5, "eval_top1_agreement": 0.25})
    console.step({"step": 11, "kind": "train", "reward": 0.25})
    console.step({"step": 11, "kind": "eval", "eval_loss": 0.5, "eval_teacher_kl": 3.0, "eval_on_policy_reward": 0.75})
    console.close()
    first, second, third, fourth = out.getvalue().splitlines()
    assert first.startswith("step 10/40  loss 0.4321  lr 1e-5  eta ")
    assert second == "eval at 10  loss 0.5  agree 25.0%"
    assert third.startswith("step 11/40  reward 0.25  ")
    assert fourth == "eval at 11  loss 0.5  reward 0.75"


def test_steps_before_a_resume_do_not_enter_the_estimate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("limbeck.report.console.time.monotonic", lambda: now[0])
    out = io.StringIO()
    console = Console(file=out)
    console.begin(total=100, done=80)
    now[0] += 30.0
    console.step({"step": 90, "loss": 1.0})  # 10 steps took 30 s, 10 are left
    assert "eta 30s" in out.getvalue()


def test_a_warning_is_said_once_and_kept():
    out = io.StringIO()
    console = Console(file=out)
    for text in ("a", "b", "a"):
        console.warn(text)
    assert out.getvalue() == "warning: a\nwarning: b\n"
    assert console.warnings == ["a", "b"]


def test_who_has_only_say_can_warn():
    out = io.StringIO()
    console = Console(file=out)
    for text in ("warning: a", "plain", "warning: a"):
        console.say(text)
    assert out.getvalue() == "warning: a\nplain\n"
    assert console.warnings == ["a"]


def test_other_processes_are_silent_but_keep_their_warnings():
    out = io.StringIO()
    console = Console(total=4, enabled=False, live=True, file=out)
    console.say("text")
    console.warn("text")
    console.step({"step": 1, "loss": 1.0})
    console.close()
    assert out.getvalue() == ""
    assert console.warnings == ["text"]


def test_live_display_shows_bar_sparkline_and_metrics():
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with Console(total=10, live=True, file=out) as console:
        console.say("kept [as it is]")
        for step in range(1, 6):
            console.step({"step": step, "loss": 1.0 / step, "grad_norm": 0.25})
        console.begin(total=20)
        console.tick(6)
    console.close()  # a second time is harmless
    out.seek(0)
    text = out.read()
    assert "kept [as it is]" in text
    assert "step 6/20" in text
    assert "loss █▄▂▁▁\n" in text  # 1, 1/2, 1/3, 1/4, 1/5 between 1/5 and 1: 7, 2.6, 1.2, 0.4, 0 of 7
    assert "grad 0.25" in text


def test_sparkline():
    assert sparkline([0.0, 3.5, 7.0]) == "▁▅█"
    assert sparkline([math.nan, 1.0, 1.0, math.inf]) == "▁▁"
    assert sparkline([float(i) for i in range(100)], width=5) == "▁▃▅▆█"
    assert sparkline([]) == ""


def test_line_shows_text_in_place_of_a_number():
    assert line({"step": 3, "loss": "NaN"}) == "step 3  loss NaN"
