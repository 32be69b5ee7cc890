"""What other libraries say that nobody can act on, held back while we work and no longer."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Logger -> how its words begin. Lengths are compared with the models' own limits in train/lengths.py, before the run.
HELD_BACK = {
    "transformers.tokenization_utils_base": "Token indices sequence length is longer than",
    "transformers.generation.stopping_criteria": "This is a friendly reminder - the current text generation call",
}
# Said where the first update is left out because its gradient is zero (train/step.py): the rate moves on all the same.
SCHEDULER = r"Detected call of `lr_scheduler\.step\(\)` before"


@contextmanager
def quiet(*, errors_only: bool = False) -> Iterator[None]:
    """Around a command, or around a function as `@quiet()`: no bars of transformers for loading and writing weights
    (those of downloads stay) and none of the warnings above. Filters, hooks and levels are the caller's again after it.

    errors_only: nothing else below an error from transformers either. Where transformers is not imported yet there are
    no bars to stop: a function that imports it later asks for quiet itself.
    """
    everything, transformers = logging.getLogger("transformers"), sys.modules.get("transformers")
    level, loggers = everything.level, [logging.getLogger(name) for name in HELD_BACK]

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(HELD_BACK[record.name])

    for logger in loggers:
        logger.addFilter(other)
    if errors_only:
        everything.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=SCHEDULER)
        bars = transformers.utils.logging if transformers else None
        shown = bars.set_tqdm_hook(lambda _, args, kwargs: bars.EmptyTqdm(*args, **kwargs)) if bars else None
        try:
            yield
        finally:
            if bars:
                bars.set_tqdm_hook(shown)
            everything.setLevel(level)
            for logger in loggers:
                logger.removeFilter(other)
