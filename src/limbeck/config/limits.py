"""What the machine ran out of, memory, disk or processes, in our words: what to lower, from the run's own flags.

Errors are told apart by their type's name and their words, so that nothing here needs torch.
"""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path
from typing import Any

from limbeck.config.room import Room
from limbeck.errors import ConfigError, LimbeckError

_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "std::bad_alloc")
# gloo's and NCCL's words where a collective's other side is gone
_GONE = ("closed by peer", "reset by peer", "broken pipe", "remote process exited", "connection refused")
# function -> what a run was doing in it; the innermost that a traceback passes counts
_PHASES = {
    "load_model": "loading a model",
    "build": "loading the models",
    "build_teacher": "loading the teacher",
    "sample": "sampling",
    "generate": "sampling",
    "score": "scoring",
    "learn": "learning",
    "_step": "the optimizer's step",
    "evaluate": "evaluating",
    "save": "saving",
    "save_model": "saving",
}


class MemoryLimit(LimbeckError, MemoryError):
    """The device or the machine has no memory left."""

    exit_code = 1


class ProcessLost(LimbeckError, RuntimeError):
    """Another process of this run has ended, and this one cannot go on without it."""

    exit_code = 1


class DiskLimit(LimbeckError, OSError):
    """A file could not be written."""

    exit_code = 1


class PathFault(LimbeckError, OSError):
    """A path that cannot be used as it is."""


def limit_of(error: BaseException, config: Room | None) -> LimbeckError | None:
    """The error in our words where memory or disk ran out, or a file cannot be reached; None for any other.

    config: of the command that ran, with its automatic choices where they are known.
    """
    if isinstance(error, LimbeckError):
        return None
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _MEMORY):
        return _memory(error, text, config)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and isinstance(error, RuntimeError) and any(words in text.lower() for words in _GONE):
        what, fix = "another process of this run has ended", "see what it said; if it said nothing, it was killed"
        return ProcessLost(what, where=text[:200], fix=fix)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text
    if full or isinstance(error, OSError):
        return _disk(error, text, full)
    return None


def _memory(error: BaseException, text: str, config: Room | None) -> MemoryLimit:
    phase = phase_of(error)
    on_device = "CUDA" in text or type(error).__name__ == "OutOfMemoryError"
    what = f"the {'GPU' if on_device else 'machine'} has no memory left" + (f" while {phase}" if phase else "")
    advice = what_to_lower(phase, _flat(config), on_device=on_device)
    fix = "; or ".join(advice) if advice else "use a smaller model, or a machine with more memory"
    return MemoryLimit(what, where=text[:200] or type(error).__name__, fix=fix)


def phase_of(error: BaseException) -> str:
    """What the run was doing, by the innermost of our functions that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame.name for frame in frames if "/limbeck/" in frame.filename.replace("\\", "/")]
    return next((_PHASES[name] for name in reversed(ours) if name in _PHASES), "")


def what_to_lower(phase: str, flat: dict[str, Any], *, on_device: bool) -> list[str]:
    """Flags to give, with values, the one that costs least first; at most three."""
    advice: list[str] = []
    full, batch = flat.get("tuner_type") == "full", flat.get("per_device_train_batch_size") or 1
    trains = "per_device_train_batch_size" in flat and "learning_rate" in flat
    if phase == "sampling":
        size = flat.get("rollout_batch_size") or 32
        advice += [f"--rollout_batch_size {size // 2} (now {size})"] if size > 1 else []
    elif phase == "evaluating":
        size = flat.get("per_device_eval_batch_size") or (batch if trains else 4)
        advice += [f"--per_device_eval_batch_size {size // 2} (now {size})"] if size > 1 else []
    elif trains and "loading" not in phase:
        if flat.get("loss_impl") == "reference":
            advice.append("--loss_impl linear, which keeps no tensor of tokens x vocabulary")
        if batch > 1:
            steps = flat.get("gradient_accumulation_steps")
            same = f" --gradient_accumulation_steps {steps * 2}, the same step in smaller parts" if steps else ""
            advice.append(f"--per_device_train_batch_size {batch // 2}{same} (now {batch})")
        if flat.get("gradient_checkpointing") is False:
            advice.append("--gradient_checkpointing true")
    if phase != "saving" and "loading" not in phase:
        advice += _shorter(flat, samples=phase == "sampling" or bool(flat.get("lmbda")))
    if trains and full:
        advice.append("--tuner_type lora: gradients and optimizer shrink with the weights that are trained")
    if isinstance(flat.get("teacher_model"), str) and trains:
        offload = "--offload_teacher_model true, which keeps the teacher off the GPU while it does not score"
        server = "the teacher on another machine: `limbeck deploy`, then --teacher_model_server"
        advice.append(offload if on_device and not flat.get("offload_teacher_model") else server)
    if "loading" in phase or not trains:
        advice += ["--torch_dtype bfloat16"] if flat.get("torch_dtype") in ("auto", "float32") else []
    return advice[:3]


def _shorter(flat: dict[str, Any], *, samples: bool) -> list[str]:
    longest, cut = flat.get("max_completion_length"), flat.get("max_length")
    if samples and isinstance(longest, int) and longest > 1:
        return [f"--max_completion_length {longest // 2} (now {longest})"]
    if isinstance(cut, int) and cut > 1:
        return [f"--max_length {cut // 2} (now {cut}; longer rows are dropped and counted)"]
    return ["--max_length N, to drop the longest rows (they are counted)"] if "max_length" in flat else []


def _disk(error: BaseException, text: str, full: bool) -> LimbeckError:
    path = getattr(error, "filename", None)
    if full:
        fix = "free some space, keep fewer checkpoints (--save_total_limit 2), or name another place"
        return DiskLimit("there is no space left on the disk", where=str(path or text[:200]), fix=fix)
    name = f": {str(path)[:200]}" if path else ""
    number = getattr(error, "errno", None)
    what, fix = {
        errno.EEXIST: ("is a file where a folder must be", "name another place"),
        errno.ENOENT: ("does not exist", "check the path"),
        errno.EACCES: ("may not be read or written", "change its permissions, or name another place"),
        errno.EPERM: ("may not be read or written", "change its permissions, or name another place"),
        errno.EROFS: ("lies on a disk that is read-only", "name another place"),
        errno.EISDIR: ("is a folder", "name a file"),
        errno.ENOTDIR: ("goes through a file as if it were a folder", "check the path"),
        errno.EADDRINUSE: ("is in use", "take another --port"),
        errno.ENAMETOOLONG: ("is longer than a path may be", "give a shorter name"),
        errno.ELOOP: ("leads to itself", "check the link"),
    }.get(number or 0, ("", ""))
    if path and what:
        short = str(path) if len(str(path)) <= 100 else f"{str(path)[:60]}..."
        return PathFault(f"{short} {what}", where=text[:200], fix=fix)
    return DiskLimit(f"the system refused{name}", where=text[:300], fix="run it again with --debug for the traceback")


def check_target(path: Path, flag: str, *, streams: bool = False) -> None:
    """Raises ConfigError where what is to be written cannot be a file, before the work whose outcome it is to hold.

    streams: it may be a device or a pipe, such as /dev/stdout; elsewhere that would be read back, or replaced.
    """
    try:
        folder, other = path.is_dir(), path.exists() and not path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a zero in it
        folder, other, streams = False, True, False
    if folder:
        raise ConfigError(f"{path} is a folder", where=f"--{flag} {path}", fix=f"name a file in it: {path}/NAME")
    if other and not streams:
        what = f"{str(path)[:100]!r} cannot be a file"
        raise ConfigError(what, where=f"--{flag}", fix="name a file that is there, or a new one")


def _flat(config: Room | None) -> dict[str, Any]:
    rooms = [] if config is None else [getattr(config, name) for name in type(config).model_fields]
    return {name: getattr(room, name) for room in rooms if isinstance(room, Room) for name in type(room).model_fields}
