"""Where the numbers go: metrics.jsonl, always, and experiment trackers through accelerate, where asked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "limbeck"
TRACKERS = ("tensorboard", "wandb", "swanlab", "trackio")  # each is named as the package that it needs
_NOT_SENT = ("step", "kind")


class MetricsFile:
    """A file of JSON lines, each with a "step", that survives a kill: every line is on disk before `write` returns.

    Strict JSON: a float that is not finite is written as the string "NaN", "Infinity" or "-Infinity", which Python's
    `float` and JavaScript's `Number` read back. Tensors and numpy scalars are written as their items. completions.jsonl
    is written by this class too. With `enabled=False` (any process but the main one) nothing is touched.
    """

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self.path = Path(path)
        self.enabled = enabled
        if enabled:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._keep(_whole_lines(self.path))

    def write(self, row: dict[str, Any]) -> None:
        """Append one line."""
        self.write_all((row,))

    def write_all(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append lines with one flush to disk."""
        if not self.enabled:
            return
        text = "".join(to_json(row) + "\n" for row in rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, step: int) -> int:
        """Drop the lines of steps after `step` (and lines that are no JSON); how many were dropped.

        Called on resume from checkpoint-`step`, so that the file ends up as that of a run that was never interrupted.
        """
        if not self.enabled:
            return 0
        lines = _whole_lines(self.path)
        kept = [line for line in lines if _step_of(line) <= step]
        self._keep(kept)
        return len(lines) - len(kept)

    def _keep(self, lines: list[bytes]) -> None:
        """Make the file consist of these lines, at once or not at all."""
        content = b"".join(lines)
        if not self.path.exists() or self.path.stat().st_size == len(content):
            return
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_bytes(content)
        os.replace(partial, self.path)


def to_json(value: Any) -> str:
    """One line of strict JSON (see `MetricsFile` for numbers that are not finite)."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "tolist"):  # torch tensors, numpy arrays and scalars
        return _plain(value.tolist())
    return str(value)


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def check_trackers(report_to: Sequence[str] | str | None) -> list[str]:
    """The trackers to start: names checked, packages there. "none" is none of them, "all" is all that are installed.

    Raises ConfigError for a name that is unknown or a package that is not installed.
    """
    asked = [report_to] if isinstance(report_to, str) else list(report_to or ())
    if "all" in asked:
        return [name for name in TRACKERS if _installed(name)]
    names = list(dict.fromkeys(name for name in asked if name != "none"))
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(
                f"--report_to {name} is not a tracker that Limbeck knows",
                where=f"--report_to {' '.join(asked)}",
                fix=f"choose from {', '.join(TRACKERS)}, all or none; metrics.jsonl is written in any case",
            )
        if not _installed(name):
            raise ConfigError(
                f"--report_to {name} needs a package that is not installed",
                where=f"--report_to {' '.join(asked)}",
                fix=f"pip install {name}, or leave it out: metrics.jsonl is written in any case",
            )
    return names


def _installed(package: str) -> bool:
    """A folder `wandb` in the working directory (wandb makes one) is importable, but it is no package: no origin."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def start_trackers(
    accelerator: Accelerator,
    report_to: Sequence[str] | str | None,
    run_name: str,
    config: dict[str, Any],
    *,
    run_dir: Path | None = None,
    resume_step: int = 0,
) -> list[str]:
    """Start the trackers that `report_to` names, on the main process; their names.

    Raises ConfigError as `check_trackers` does. config is stored with the run, flattened. run_dir (the accelerator's
    logging_dir where not given) takes what a tracker writes locally: RUN/tensorboard, RUN/wandb, RUN/swanlog. After a
    resume, tensorboard hides the points after `resume_step` that the interrupted run had logged.
    """
    names = check_trackers(report_to)
    if not names:
        return names
    from accelerate.tracking import TensorBoardTracker

    folder = str(run_dir or accelerator.logging_dir or ".")
    purge = {"purge_step": resume_step + 1} if resume_step else {}
    # tensorboard as an object: by name, accelerate would nest its files below the project's name
    trackers: list[Any] = [
        TensorBoardTracker("tensorboard", folder, **purge) if name == "tensorboard" else name for name in names
    ]
    accelerator.log_with = trackers
    accelerator.init_trackers(
        project_of(names),
        config=_hparams(config),
        init_kwargs={
            "wandb": {"name": run_name, "dir": folder},
            "swanlab": {"experiment_name": run_name, "logdir": str(Path(folder) / "swanlog")},
            "trackio": {"name": run_name},
        },
    )
    return names


def project_of(names: Sequence[str]) -> str:
    """The project as the environment has it for one of these trackers, WANDB_PROJECT and the like; else `limbeck`."""
    return next((value for name in names if (value := os.environ.get(f"{name.upper()}_PROJECT"))), PROJECT)


def stop_trackers(accelerator: Accelerator) -> None:
    """Finish what `start_trackers` started. accelerate's own end of a training ends the process group too."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []


def log(accelerator: Accelerator, metrics: dict[str, Any], step: int) -> None:
    """Send a step's numbers to the trackers that were started, if any; text and flags are not sent."""
    if not accelerator.trackers:
        return
    accelerator.log(
        {
            key: float(value)
            for key, value in metrics.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in _NOT_SENT
        },
        step=step,
    )


def _hparams(config: dict[str, Any]) -> dict[str, str | int | float | bool]:
    """The configuration flat, with values that every tracker takes."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_hparams(value))
        else:
            flat[str(key)] = value if isinstance(value, (str, int, float, bool)) else str(value)
    return flat
