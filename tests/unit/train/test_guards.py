"""When a run counts as collapsed: a figure beyond its limit in each of several lines of the log."""

from __future__ import annotations

from typing import Any

from limbeck.config.schema import Run
from limbeck.train.guards import Collapse, collapse_of, guards_of

RUN = Run(stop_on_collapse=True, collapse_entropy=0.1, collapse_truncated=0.5, collapse_repeated=0.25)


def found(*lines: dict[str, Any], window: int = 3) -> Collapse | None:
    history = [{"step": i + 1, "kind": "train", **line} for i, line in enumerate(lines)]
    return collapse_of(guards_of(RUN), window, history)


def test_nothing_is_watched_unless_asked_for() -> None:
    assert guards_of(Run()) == []
    assert collapse_of([], 1, [{"kind": "train", "step": 1, "student_entropy": 0.0}]) is None


def test_a_figure_counts_after_a_whole_window() -> None:
    low = {"student_entropy": 0.05}
    assert found(low, low) is None
    assert found(low, {"student_entropy": 0.1}, low) is None  # at the limit is not beyond it
    assert found(low, low, low) is not None
    assert found(low, low, {"student_entropy": 0.2}) is None
    assert found(low, window=1) is not None


def test_what_is_said() -> None:
    lines = [{"truncated_share": share, "student_entropy": 1.0} for share in (0.2, 0.6, 0.75, 1.0)]
    error = found(*lines)
    assert error is not None and error.exit_code == 3
    assert str(error).splitlines() == [
        "error: the student collapses, its answers do not end: truncated_share was 0.6, 0.75, 1 in the last 3 lines of "
        "the log, above 0.5",
        "  where: step 4, --stop_on_collapse with --collapse_truncated 0.5",
        "  fix:   lower --learning_rate, raise --max_completion_length, or use --overlong_filter; go on from an "
        "earlier checkpoint with --resume_from_checkpoint PATH, or without --stop_on_collapse where this is as it "
        "should be",
    ]


def test_lines_without_the_figure_are_passed_over() -> None:
    """Evaluations, and steps on the dataset's tokens, of which no sample was truncated or repeated."""
    bad, none, held_out = {"repeated_share": 0.3}, {"loss": 1.0}, {"kind": "eval", "repeated_share": 0.0}
    assert found(bad, none, held_out, bad, none) is None
    error = found(bad, none, bad, held_out, bad, none)
    assert error is not None and "round in circles" in error.what and "0.3, 0.3, 0.3" in error.what


def test_a_top_k_run_goes_by_the_entropy_that_it_has() -> None:
    assert found(*[{"topk_student_entropy": 0.01}] * 3) is not None
