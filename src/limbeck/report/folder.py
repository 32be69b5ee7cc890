"""A run folder read back, whatever state it is in: any file may be missing, and a kill leaves a torn last line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SHOWN_COMPLETIONS = 40
_SECRET_NAME = re.compile(r"(^|_)(token|api_?key|secret|password|authorization)$", re.IGNORECASE)
_URL_LOGIN = re.compile(r"//[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder holds. Secrets are masked; `notes` says what could not be read."""

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    summary: dict[str, Any]
    train: list[dict[str, Any]]  # one line a step, in order; of several lines for one step the last counts
    evals: list[dict[str, Any]]
    completions: list[dict[str, Any]]  # at most SHOWN_COMPLETIONS, spread evenly over the run
    completions_logged: int
    histograms: list[dict[str, Any]]  # one line a logging step
    notes: tuple[str, ...]

    @property
    def flat_config(self) -> dict[str, Any]:
        """The configuration by flag name, whether config.yaml is flat or by room (flag names are unique)."""
        flat: dict[str, Any] = {}
        for key, value in self.config.items():
            flat.update(value if isinstance(value, dict) else {key: value})
        return flat

    @property
    def seconds(self) -> float | None:
        """Wall time so far; while a run goes on its last line knows more than its summary."""
        known = (self.summary.get("seconds"), self.train[-1].get("time") if self.train else None)
        return max((float(v) for v in known if isinstance(v, (int, float)) and v < 1e8), default=None)

    @property
    def last_step(self) -> int | None:
        return self.train[-1]["step"] if self.train else None


def read_run(run_dir: Path, *, completions: int = SHOWN_COMPLETIONS) -> Run:
    """Read a run folder. Never raises for what is missing or torn: see `Run.notes`."""
    notes: list[str] = []
    metrics = [row for row in _read_lines(run_dir / "metrics.jsonl", notes) if isinstance(row.get("step"), int)]
    rows, logged = _read_spread(run_dir / "completions.jsonl", completions, notes)
    return Run(
        path=run_dir,
        config=_read_mapping(run_dir / "config.yaml", notes),
        env=_read_mapping(run_dir / "env.json", notes),
        summary=_read_mapping(run_dir / "summary.json", notes),
        train=_one_a_step(row for row in metrics if row.get("kind", "train") == "train"),
        evals=_one_a_step(row for row in metrics if row.get("kind") == "eval"),
        completions=rows,
        completions_logged=logged,
        histograms=_one_a_step(
            row for row in _read_lines(run_dir / "histograms.jsonl", notes) if isinstance(row.get("step"), int)
        ),
        notes=tuple(notes),
    )


def mask_secrets(value: Any, name: str = "") -> Any:
    """The same value with tokens, keys, passwords and logins in URLs replaced by an ellipsis."""
    if isinstance(value, dict):
        return {key: mask_secrets(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [mask_secrets(inner, name) for inner in value]
    if isinstance(value, str) and value:
        return "…" if _SECRET_NAME.search(name) else _URL_LOGIN.sub("//…@", value)
    return value


def _read_mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        notes.append(f"{path.name} is missing")
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError, OSError) as error:
        notes.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}")
        return {}
    return mask_secrets(value) if isinstance(value, dict) else {}


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Every whole line; a last line without its newline is a torn one and is left out without a word."""
    if not path.exists():
        notes.append(f"{path.name} is missing")
        return []
    lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line.strip()]
    rows = [_parse(line) for line in lines]
    whole = [row for row in rows if row is not None]
    if len(whole) < len(rows):
        notes.append(f"{len(rows) - len(whole)} lines of {path.name} are not JSON objects and were left out")
    return whole


def _read_spread(path: Path, limit: int, notes: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Up to `limit` rows spread evenly over the file, first and last included, without holding the file in memory."""
    if not path.exists():
        notes.append(f"{path.name} is missing")
        return [], 0
    with path.open("rb") as file:
        offsets: list[int] = []
        at = 0
        for line in file:
            if line.endswith(b"\n") and line.strip():
                offsets.append(at)
            at += len(line)
        chosen = [offsets[i] for i in spread(len(offsets), limit)]
        rows: list[dict[str, Any]] = []
        for offset in chosen:
            file.seek(offset)
            row = _parse(file.readline())
            if row is not None:
                rows.append(row)
    return rows, len(offsets)


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` indices below `count`, evenly spread, first and last among them (the last if `limit` is 1)."""
    if count <= limit:
        return list(range(count))
    if limit <= 1:
        return [count - 1][:limit]
    return [i * (count - 1) // (limit - 1) for i in range(limit)]


def _one_a_step(rows: Any) -> list[dict[str, Any]]:
    by_step = {row["step"]: row for row in rows}
    return [by_step[step] for step in sorted(by_step)]
