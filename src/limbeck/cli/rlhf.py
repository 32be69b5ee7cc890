"""`limbeck rlhf` and `limbeck sft`: a training run."""

from __future__ import annotations

import signal

from limbeck.api import Trainer
from limbeck.config.schema import Config


def run(config: Config) -> int:
    """0 at the end, at --max_time and at a callback's word; 128 + n after signal n, as shells have it.

    Raises Collapse, whose exit status is 3, where --stop_on_collapse paused the run, and TrainError, status 1, where
    all is done and saved but not pushed.
    """
    outcome = Trainer(config).fit()
    if fault := outcome.collapse or outcome.unpushed:
        raise fault
    caught = getattr(signal.Signals, outcome.stopped_by, None) if outcome.stopped_by.startswith("SIG") else None
    return 128 + caught if caught else 0
