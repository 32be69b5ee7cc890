"""`limbeck COMMAND ...`: finds the command, reads its flags, runs it, and says what went wrong in three lines.

Nothing here imports torch: `limbeck --help` answers at once, and so does every error in a flag. A command's module,
`limbeck.cli.COMMAND`, is imported when its configuration stands; its `run(config)` returns the exit status.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module

from limbeck import __version__
from limbeck.cli import launch, voice
from limbeck.cli.once import first_to_say
from limbeck.config import completion, flags, helptext, swift, trl
from limbeck.config.commands import ALIASES, COMMANDS
from limbeck.config.limits import ProcessLost, limit_of
from limbeck.config.room import Room
from limbeck.errors import ConfigError, LimbeckError
from limbeck.quiet import quiet

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@dataclass
class _Seen:
    """What is known of the command line by the time that something goes wrong."""

    debug: bool
    where: dict[str, str] = field(default_factory=dict)
    config: Room | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (`sys.argv` by default). The exit status: 0, 1 our fault, 2 the user's, 130 Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    seen = _Seen(debug="--debug" in words)
    try:
        return _main(words, seen)
    except BrokenPipeError:  # `limbeck rlhf --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, Exception) as error:
        if seen.debug:
            traceback.print_exc()
        fault = limit_of(error, seen.config) or error
        message, status = _explain(fault, seen)
        if first_to_say(message, unless_any=isinstance(fault, ProcessLost)):  # that one is gone is no news after that
            print(message, file=sys.stderr)
        return status


def _main(words: list[str], seen: _Seen) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(helptext.overview(), flush=True)
        return 0
    if words[0] in ("-V", "--version"):
        print(f"limbeck {__version__}")
        return 0
    command, *rest = words
    if command == "completion":
        print(completion.script(next(iter(rest), "")), flush=True)
        return 0
    command = ALIASES.get(command, command)
    if members := helptext.group_help(command):
        if not rest or rest[0].startswith("-"):
            print(members, flush=True)
            return 0
        command = f"{command} {rest.pop(0)}"
    if command not in COMMANDS:
        raise _unknown(command)
    if asked := {"-h", "--help", "--help_all", "--help-all"} & set(rest):
        print(helptext.command_help(command, whole=not asked & {"-h", "--help"}), flush=True)
        return 0
    _check_processes()
    parsed = flags.read(command, rest)
    seen.where, seen.debug, seen.config = parsed.where, parsed.debug, parsed.config
    launch.several(command, rest)
    for note in parsed.notes:
        voice.note(note)
    voice.listen()
    module = import_module(f"limbeck.cli.{command.split()[0]}")
    with quiet():
        status = module.run(parsed.config)
    if parallel := sys.modules.get("limbeck.train.parallel"):
        parallel.leave_group()
    return status


def _check_processes() -> None:
    """Raises ConfigError where what a launcher puts into the environment is no number of processes."""
    for name, least in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)):
        value = os.environ.get(name, "1").strip()
        if not (value.isdecimal() and int(value) >= least):
            fix = f"unset {name}, or start several processes with torchrun, which sets it"
            what = f"{name} is no whole number from {least} on"
            raise ConfigError(what, where=f"{name}={value} in the environment", fix=fix)


def _unknown(command: str) -> ConfigError:
    for theirs, table in (("command of ms-swift", swift.COMMANDS), ("script of TRL", trl.COMMANDS)):
        if instead := table.get(command):
            what = f"{command} is a {theirs} that Limbeck has not"
            return ConfigError(what, where=f"limbeck {command}", fix=instead)
    near = difflib.get_close_matches(command, [*COMMANDS, *ALIASES, "completion"], n=1)
    fix = f"did you mean `limbeck {near[0]}`?" if near else f"one of: {', '.join(COMMANDS)}"
    if command.startswith("-"):
        return ConfigError("the command comes before the flags", where=f"limbeck {command}", fix=fix)
    return ConfigError(f"unknown command {command}", where=f"limbeck {command}", fix=fix)


def _explain(error: BaseException, seen: _Seen) -> tuple[str, int]:
    """What to print, and the exit status."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, LimbeckError):
        return str(flags.located(error, seen.where)), error.exit_code
    reason = " ".join(str(error).split()) or "no reason given"
    fix = "run it again with --debug for the traceback, and report it if it is a fault of Limbeck"
    return f"error: {type(error).__name__}: {reason}\n  fix:   {fix}", 1


if __name__ == "__main__":
    sys.exit(main())
