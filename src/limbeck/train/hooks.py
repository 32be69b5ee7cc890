"""transformers' callbacks, without its Trainer: TrainerState, TrainerControl and the handler, as they are."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy


class Hooks:
    """Calls the callbacks, and lets transformers' DefaultFlowCallback decide when to log, evaluate and save.

    `args` is a namespace of the run's flags under transformers' names: what callbacks read from TrainingArguments.
    """

    def __init__(
        self,
        callbacks: Sequence[TrainerCallback],
        args: SimpleNamespace,
        state: TrainerState,
        *,
        model: Any,
        tokenizer: Any,
        optimizer: Any,
        scheduler: Any,
    ) -> None:
        self.args, self.state, self.control = args, state, TrainerControl()
        self.handler = CallbackHandler([DefaultFlowCallback, *callbacks], model, tokenizer, optimizer, scheduler)

    def call(self, event: str, **kwargs: Any) -> TrainerControl:
        """Runs `event`, such as "on_step_end". A step begins with nothing asked for; a word to stop stands."""
        if event == "on_step_begin":
            self.control = TrainerControl(should_training_stop=self.control.should_training_stop)
        self.control = self.handler.call_event(event, self.args, self.state, self.control, **kwargs)
        return self.control


def as_training_arguments(flags: dict[str, Any], *, evaluates: bool) -> SimpleNamespace:
    """The run's flags under the names and types that callbacks expect."""
    return SimpleNamespace(
        **{
            **flags,
            "output_dir": str(flags["output_dir"]),
            "logging_first_step": True,
            "logging_strategy": IntervalStrategy.STEPS,
            "eval_strategy": IntervalStrategy(flags["eval_strategy"] if evaluates else "no"),
            "save_strategy": SaveStrategy(flags["save_strategy"]),
            "eval_delay": 0,
            "load_best_model_at_end": False,
        }
    )


def will_log(state: TrainerState, step: int) -> bool:
    """Whether the step with this number is going to be logged: statistics are computed on those steps only."""
    return step == 1 or step % int(state.logging_steps) == 0 or step >= state.max_steps
