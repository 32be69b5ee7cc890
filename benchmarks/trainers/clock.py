"""Times a trainer's optimizer steps and measures the memory that they need on top of what stays between them (Linux).

Runs in every environment of the benchmark, so it needs nothing but transformers.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """CPU seconds of this process by step, and the peak of its resident set over what was resident at the step's begin:
    after a first step that is code, parameters, optimizer and teacher. `loss`: what the trainer logged, by step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak_mb: list[float] = []
        self.static_mb: list[float] = []
        self.loss: dict[int, float] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free but not given back is not static state
        self.static_mb.append(_resident("VmRSS"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.process_time() - self._began)
        self.peak_mb.append(_resident("VmHWM") - self.static_mb[-1])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.loss[state.global_step] = float(logs["loss"])

    def write(self, path: str, *, loss: dict[int, float] | None = None, **more: Any) -> None:
        """`loss`: for a trainer without on_log."""
        Path(path).write_text(
            json.dumps(
                {
                    "seconds": self.seconds,
                    "peak_mb": self.peak_mb,
                    "static_mb": self.static_mb,
                    "loss": loss or self.loss,
                    **more,
                }
            )
        )


def job() -> dict[str, Any]:
    """The settings that step.py hands over as a JSON file, the only argument."""
    torch.set_num_threads(1)
    return json.loads(Path(sys.argv[1]).read_text())


def _resident(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
