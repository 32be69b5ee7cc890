"""`--stop_on_collapse`: figures that have been beyond their limits over several lines of the log end in a pause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.config.schema import Run
from limbeck.errors import TrainError

REPEATED_NGRAM = 4  # tokens


class Collapse(TrainError):
    """The student's samples have gone bad; the run paused with a checkpoint."""

    exit_code = 3  # neither a fault nor an end: what was trained is there, somebody should look


@dataclass(frozen=True, slots=True)
class Guard:
    """One figure of the log. names: metrics that it goes by, the first that a line has. below: which side is bad."""

    flag: str
    names: tuple[str, ...]
    limit: float
    below: bool
    meaning: str
    advice: str

    def beyond(self, value: float) -> bool:
        return value < self.limit if self.below else value > self.limit


def guards_of(run: Run) -> list[Guard]:
    """The guards of a run; none where they are not asked for."""
    if not run.stop_on_collapse:
        return []
    slower = "lower --learning_rate"
    return [
        Guard(
            *("collapse_entropy", ("student_entropy", "topk_student_entropy"), run.collapse_entropy, True),
            *("it always says the same", f"{slower}, raise --temperature, or use --beta 0, which keeps entropy"),
        ),
        Guard(
            *("collapse_truncated", ("truncated_share",), run.collapse_truncated, False),
            *("its answers do not end", f"{slower}, raise --max_completion_length, or use --overlong_filter"),
        ),
        Guard(
            *("collapse_repeated", ("repeated_share",), run.collapse_repeated, False),
            *("it goes round in circles", f"{slower}, or set a --token_loss_clip (gkd) or --teacher_logratio_clip"),
        ),
    ]


def collapse_of(guards: Sequence[Guard], window: int, history: Sequence[dict[str, Any]]) -> Collapse | None:
    """What the last lines of the log say: a guard speaks where its figure is beyond the limit in each of the last
    `window` training lines that have it. history: `TrainerState.log_history`, so that a resume goes on counting."""
    for guard in guards:
        values: list[float] = []
        for line in reversed(history):
            name = next((n for n in guard.names if n in line), None)
            if line.get("kind") == "train" and name is not None:
                values.insert(0, float(line[name]))
            if len(values) == window:
                break
        if len(values) == window and all(map(guard.beyond, values)):
            side, numbers = "below" if guard.below else "above", ", ".join(f"{value:.3g}" for value in values)
            return Collapse(
                f"the student collapses, {guard.meaning}: {guard.names[0]} was {numbers} in the last {window} lines of "
                f"the log, {side} {guard.limit:g}",
                where=f"step {history[-1]['step']}, --stop_on_collapse with --{guard.flag} {guard.limit:g}",
                fix=f"{guard.advice}; go on from an earlier checkpoint with --resume_from_checkpoint PATH, or without "
                "--stop_on_collapse where this is as it should be",
            )
    return None
