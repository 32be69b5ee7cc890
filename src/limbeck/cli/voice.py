"""How commands without a run's console speak: one style, and of several processes the first one only."""

from __future__ import annotations

import logging
import os
import sys


def first() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    if first():
        print(text, flush=True)


def warn(text: str) -> None:
    say(f"warning: {text}")


def note(text: str) -> None:
    """What became of a flag: beside the command's own output."""
    if first():
        print(f"note: {text}", file=sys.stderr, flush=True)


def listen() -> None:
    """What our modules log comes as `warning: ...` too, each text once."""
    ours, seen = logging.getLogger("limbeck"), set[str]()

    def once(record: logging.LogRecord) -> bool:
        record.kind, text = record.levelname.lower(), record.getMessage()
        if record.levelno > logging.WARNING:  # a fault of this process is this process's to tell, every time
            return True
        new = first() and text not in seen
        seen.add(text)
        return new

    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(kind)s: %(message)s"))
        handler.addFilter(once)
        ours.addHandler(handler)
