"""What an evaluation's line holds where there is little to tell."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.train import loop


def test_fresh_samples_that_the_teacher_refused_have_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"tokens": 0, "rows": 0, "refused": 3})
    monkeypatch.setattr(loop, "log", lambda *_: None)
    judge = SimpleNamespace(reward=None, sampled=True)
    parts: Any = SimpleNamespace(judge=judge, whole=nullcontext, accelerator=None, teacher=None, pad_id=0)
    progress: Any = SimpleNamespace(state=SimpleNamespace(global_step=0, epoch=0.0, log_history=[]))
    lines: list[dict[str, Any]] = []
    console = SimpleNamespace(step=lines.append, warn=lambda _: None)
    metrics = SimpleNamespace(write=lambda _: None)
    book: Any = SimpleNamespace(eval_batch=1, metrics=metrics, console=console, metric_for_best="eval_loss")
    found = loop._evaluate(parts, progress, book, lambda _: {"eval_on_policy_": []})
    assert found == {"eval_on_policy_tokens": 0, "eval_on_policy_rows": 0, "eval_on_policy_refused": 3}
    assert lines[0]["kind"] == "eval"
