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
    """Becomes torchrun where the environment asks for several processes, and does not come back; else does nothing."""
    line = by_torchrun(command, words, os.environ)
    if line:
        given = " ".join(f"{name}={value}" for name in LAUNCH if (value := os.environ.get(name)))
        voice.note(f"{given}: the processes are started by torchrun")
        os.execv(line[0], line)


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
