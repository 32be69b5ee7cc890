"""`NPROC_PER_NODE=4 limbeck rlhf ...`: the processes that the environment asks for, as for ms-swift, by torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from limbeck.cli import voice
from limbeck.config.environment import LAUNCH
from limbeck.errors import ConfigError

COMMANDS = ("rlhf", "sft")
_DEVICES = ("auto", "gpu", "cpu")  # torchrun counts them


def several(command: str, words: Sequence[str]) -> None:
    """Becomes torchrun where the environment asks for several processes, and does not come back; else does nothing.
    Says so where the command is one process whatever is asked for."""
    line = by_torchrun(command, words, os.environ)
    if not line and command not in (*COMMANDS, "plan") and by_torchrun(COMMANDS[0], words, os.environ):
        voice.note(f"NPROC_PER_NODE and NNODES have no effect: limbeck {command} is one process")
    if line:
        given = " ".join(f"{name}={value}" for name in LAUNCH if (value := os.environ.get(name)))
        voice.note(f"{given}: the processes are started by torchrun")
        os.execv(line[0], line)


def world_size(environ: Mapping[str, str]) -> int:
    """How many processes a run would be: those that torchrun has started, or those that the environment asks for."""
    asked = [environ.get(name) or "1" for name in ("NPROC_PER_NODE", "NNODES")]
    if "LOCAL_RANK" in environ or not all(number.isdigit() for number in asked):
        return int(environ.get("WORLD_SIZE", "1"))
    return max(int(environ.get("WORLD_SIZE", "1")), int(asked[0]) * int(asked[1]))


def by_torchrun(command: str, words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The command line that starts them; empty where one process is asked for, or this is one of several.

    Raises ConfigError for a number that is none.
    """
    asked = {name: environ[name] for name in LAUNCH if environ.get(name)}
    if command not in COMMANDS or "LOCAL_RANK" in environ or not {"NPROC_PER_NODE", "NNODES"} & asked.keys():
        return []
    for name in ("NPROC_PER_NODE", "NODE_RANK", "MASTER_PORT"):
        value = asked.get(name, "0")
        if not (value.isdigit() or (name == "NPROC_PER_NODE" and value in _DEVICES)):
            raise ConfigError(f"{name} is no number", where=f"{name}={value}", fix=f"write {name}=2, or unset it")
    if asked.get("NPROC_PER_NODE", "1") == asked.get("NNODES", "1") == "1":
        return []
    options = [word for name, value in asked.items() for word in (LAUNCH[name], value)]
    if not {"NNODES", "MASTER_ADDR", "MASTER_PORT"} & asked.keys():
        options.append("--standalone")  # two runs on a machine, each with a port of its own
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "limbeck.cli.main", command, *words]
