"""What several processes must agree on. One process is the same code with one rank."""

from __future__ import annotations

import atexit
import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import get_native_id
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule

from limbeck.errors import LimbeckError

T = TypeVar("T")


def keep_group() -> None:
    """The process group is never freed: torch's reducer frees it while holding the interpreter's lock and waits for
    gloo's threads, one of which may be waiting for that lock to drop its last barrier's tensors (pytorch#56297). Of 21
    runs with two processes on a busy machine two hung for ever as they ended. Threads end with the process."""
    if torch.distributed.is_initialized():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(torch.distributed.group.WORLD))
        atexit.unregister(_let_threads_finish)  # once, however many runs a process makes
        atexit.register(_let_threads_finish)


def _let_threads_finish() -> None:
    """A thread of gloo that comes to drop its last tensors when the interpreter is already ending is ended inside C++
    code that allows no such thing, and the process aborts ("terminate called without an active exception") after all
    its work. So the process sleeps, without the interpreter's lock, until no other thread of it runs."""
    for _ in range(100):  # one second; a logger's thread may go on for longer
        time.sleep(0.01)
        if not _others_running():
            return


def _others_running() -> bool:
    """Where the system tells, by /proc: the state is the first field after the name in brackets."""
    others = (task for task in Path("/proc/self/task").glob("*/stat") if task.parent.name != str(get_native_id()))
    for stat in others:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "R":
                return True
        except OSError:  # it has ended meanwhile
            continue
    return False


def leave_group() -> None:
    """At the end of a command that all processes have finished. A script that trains twice needs its group until then,
    and a process that fails must not wait for the others here."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def total(accelerator: Accelerator, value: float) -> float:
    """Sum over ranks, exact for counts below 2^53."""
    if accelerator.num_processes == 1:
        return value
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    tensor = torch.tensor([value], dtype=dtype, device=accelerator.device)
    return float(accelerator.reduce(tensor, reduction="sum").item())  # type: ignore[union-attr]


def highest(accelerator: Accelerator, value: int) -> int:
    return max(gather_object([value])) if accelerator.num_processes > 1 else value


def gather(accelerator: Accelerator, value: Any) -> list[Any]:
    """`value` of every rank, by rank."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]


def own_part(accelerator: Accelerator, items: Sequence[T]) -> list[T]:
    """This rank's contiguous share of `items`; shares differ by at most one."""
    return split_evenly(items, accelerator.num_processes)[accelerator.process_index]


def split_evenly(items: Sequence[T], parts: int) -> list[list[T]]:
    """Contiguous parts, the first ones longer by one where it does not come out even; parts may be empty."""
    base, more = divmod(len(items), parts)
    edges = [i * base + min(i, more) for i in range(parts + 1)]
    return [list(items[a:b]) for a, b in pairwise(edges)]


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """An error of ours inside, on any rank, is raised on all of them. Every rank must come by."""
    own: LimbeckError | None = None
    try:
        yield
    except LimbeckError as error:
        own = error
    errors = gather(accelerator, own)
    rank = next((rank for rank, error in enumerate(errors) if error is not None), None)
    if rank is not None:  # one error for all, and for its own rank with its traceback
        raise (own if rank == accelerator.process_index and own is not None else errors[rank])


@contextmanager
def gradients(accelerator: Accelerator, model: torch.nn.Module, *, last: bool) -> Iterator[None]:
    """Around one micro-batch's forward and backward: gradients are exchanged between ranks with the last one only; with
    every one under FSDP2, where a rank would hold whole gradients until then."""
    if last or isinstance(model, FSDPModule):
        yield
    else:
        with accelerator.no_sync(model):
            yield
