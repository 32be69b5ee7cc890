"""Help texts, made from the models: examples first, then the flags by room."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import Any

from limbeck.config import environment, swift, trl
from limbeck.config.commands import COMMANDS, Command
from limbeck.config.entries import Entry, NotNeeded, Refused, Renamed
from limbeck.config.flags import Flag, all_flags, flags_of, reads, rooms_of
from limbeck.config.swift_rest import GROUPS, REST

_INDENT = 34
_SWIFT_INTRO = (
    "`swift rlhf --rlhf_type gkd ...` becomes `limbeck rlhf --rlhf_type gkd ...` with the same flags. A flag of",
    "ms-swift that Limbeck does not have is refused with what to use instead, and never ignored silently.",
)
_LAUNCHED = (
    "A command of theirs that begins with `NPROC_PER_NODE=4` or `NNODES=2` begins with it here too. `torchrun`, and",
    "`accelerate launch`, start `-m limbeck.cli.main rlhf` where they start `swift/cli/rlhf.py` there; see",
    "[several processes](parallel.md).",
)
_FILES = (
    "`limbeck rlhf --config run.yaml` and `limbeck rlhf run.yaml` are the same; a JSON file does too. Of a file for",
    "Ray (`megatron rlhf --use_ray true --config run.yaml`) the settings under `train`, `rollout` and `teacher` count",
    "as if they stood alone: `gpus` has no effect, and a `model` under `teacher` is `--teacher_model`. What Ray puts",
    "on devices of their own is one process a device here, and a large teacher answers from `limbeck deploy`.",
)

_TRL_INTRO = (
    "There the trainer is a class and the settings are its config; here the method is a row of flags, and",
    "`limbeck.distil` takes the same names. TRL's own names are not accepted, since other defaults stand behind them:",
    "those of a command or a YAML file (`--config run.yaml`) are answered all at once, each with ours. The names that",
    "TRL inherits from transformers' TrainingArguments are the same here, or stand in",
    "[coming from ms-swift](coming-from-ms-swift.md), which has them too. Checked against TRL 1.16.",
)


# What `--help` shows of a command with more than _MANY flags, besides what it requires; `--help_all` shows all.
_NAMES = (
    "model adapters torch_dtype tuner_type lora_rank "
    "dataset val_dataset split_dataset_ratio max_length columns "
    "rlhf_type beta lmbda gkd_logits_topk loss_temperature teacher_kl_coef loss_type reward_funcs "
    "teacher_model teacher_model_server teacher_source teacher_cache "
    "temperature max_completion_length num_generations "
    "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps fsdp "
    "output_dir save_steps eval_steps resume_from_checkpoint report_to write result_path checkpoints seed use_cpu"
)
_SHORT = _NAMES.split()
_MANY = 30


def overview() -> str:
    """`limbeck --help`."""
    width = max(len(name) for name in COMMANDS)
    lines = ["Distil language models: a student learns from a teacher's distribution over the next token.", ""]
    lines += ["usage: limbeck COMMAND [FILE.yaml] [--flag value ...]", "", "commands:"]
    lines += [f"  {name.ljust(width)}  {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "examples:"]
    lines += [f"  {COMMANDS[name].examples[0]}" for name in ("shrink", "generate", "rlhf", "eval")]
    lines += ["", "`limbeck COMMAND --help` lists a command's flags; `limbeck --version` says which Limbeck this is."]
    lines += ["`source <(limbeck completion bash)` (or zsh, fish) completes commands, flags and their values."]
    return "\n".join(lines)


def group_help(group: str) -> str:
    """`limbeck GROUP`: the commands whose names begin with this word; empty where there are none."""
    members = {name: command for name, command in COMMANDS.items() if name.startswith(f"{group} ")}
    width = max(map(len, members), default=0)
    lines = [f"  limbeck {name.ljust(width)}  {command.summary}" for name, command in members.items()]
    return "\n".join(lines)


def command_help(name: str, *, whole: bool = False) -> str:
    """`limbeck COMMAND --help`: the flags that matter most; whole: `--help_all`, every one."""
    spec = COMMANDS[name]
    lines = [f"limbeck {name}: {spec.summary}", "", "examples:"]
    lines += [f"  {example}" for example in spec.examples]
    lines += ["", f"usage: limbeck {name} [{spec.positional.upper() or 'FILE.yaml'}] [--flag value ...]"]
    if not spec.positional:
        lines += _wrap(
            "A flag wins over the file, which may follow --config too. The file is flat or by room; dashes and "
            "underscores are the same.",
            2,
        )
    flags = [flag for flag in flags_of(spec.config).values() if reads(spec, flag)]
    short = not whole and len(flags) > _MANY
    shown = [flag for flag in flags if flag.name in _SHORT or flag.name in spec.required] if short else flags
    for room_name, room in rooms_of(spec.config).items():
        here = [flag for flag in shown if flag.room == room_name]
        if here:
            lines += ["", f"{room_name}: {' '.join((room.__doc__ or '').split('. ')[0].split()).rstrip('.')}"]
            lines += [line for flag in here for line in _flag_lines(flag, spec)]
    if short:
        more = len(flags) - len(shown)
        lines += ["", f"{more} more flags, all with defaults: `limbeck {name} --help_all`"]
    if name == "rlhf":
        lines += ["", *_differences()]
    return "\n".join(lines)


def swift_page() -> str:
    """docs/coming-from-ms-swift.md: `python -m limbeck.config.helptext` prints it."""
    lines = ["# Coming from ms-swift", "", *_SWIFT_INTRO, "", "## Defaults that differ", ""]
    lines += ["| flag | here | there | why |", "|---|---|---|---|"]
    lines += [f"| `{d.flag}` | {d.ours} | {d.theirs} | {d.why} |" for d in swift.DIFFERENCES]
    lines += ["", "## Commands that are not here", "", "| ms-swift | here |", "|---|---|"]
    lines += [f"| `swift {name}` | {instead} |" for name, instead in swift.COMMANDS.items()]
    lines += ["", "## Environment variables", "", *_LAUNCHED, "", "| ms-swift | here |", "|---|---|"]
    lines += [f"| {_coded(names)} | {what} |" for names, what in environment.VARIABLES.items()]
    lines += ["", "## YAML files", "", *_FILES]
    lines += ["", "## Flags that differ", "", "A flag that is not listed here has the same name and meaning.", ""]
    lines += ["| ms-swift | here |", "|---|---|"]
    lines += [f"| `{swift.spelled(name)}` | {_told(e)} |" for name, e in swift.FLAGS.items() if name not in REST]
    lines += ["", "## Flags that no example of theirs gives", "", "| ms-swift | here |", "|---|---|"]
    for entry, names in GROUPS:
        lines.append(f"| {', '.join(f'`--{name}`' for name in names.split())} | {_told(entry)} |")
    return "\n".join(lines) + "\n"


def _told(entry: Entry) -> str:
    match entry:
        case Renamed(to=to):
            return f"`--{to}`"
        case NotNeeded(why=why):
            return f"accepted, without effect: {why}"
        case Refused(instead=instead):
            return f"not supported: {instead}"


def _coded(names: str) -> str:
    """Names between backquotes; `and the like` after one stays outside."""
    return re.sub(r"[A-Z][A-Z0-9_]+", lambda name: f"`{name[0]}`", names)


def trl_page() -> str:
    """docs/coming-from-trl.md: `python -m limbeck.config.helptext trl` prints it."""
    lines = [
        "# Coming from TRL",
        "",
        *_TRL_INTRO,
        "",
        "## Commands that are not here",
        "",
        "| TRL | here |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {instead} |" for name, instead in trl.COMMANDS.items()]
    ours = all_flags()
    for cls, (start, names) in trl.CLASSES.items():
        lines += ["", f"## {cls}", "", f"`{start}`" if " " in start and "any" not in start else "On any command.", ""]
        lines += ["| TRL | here |", "|---|---|"]
        for name in names.split():
            entry = trl.FLAGS.get(name) or (None if name in ours else swift.lookup(name))
            text = "the same" if entry is None else _said(entry)
            if other := trl.OTHERWISE.get(cls, {}).get(name):
                text = other if other.startswith("not supported") else f"{text}, but: {other}"
            lines.append(f"| `{name}` | {text} |")
    return "\n".join(lines) + "\n"


def _said(entry: Entry) -> str:
    match entry:
        case Renamed(to=to, values=values):
            known = ", ".join(f"`{theirs}` is `{ours}`" for theirs, ours in values.items() if theirs and ours)
            return f"`--{to}`" + (f" ({known})" if known else "")
        case NotNeeded(why=why):
            return f"not needed: {why}"
        case Refused(instead=instead):
            return f"not supported: {instead.removeprefix('leave it out: ')}"


def flags_page() -> str:
    """docs/flags.md: `python -m limbeck.config.helptext flags` prints it."""
    lines = [
        "# Every flag",
        "",
        "Made from the models of `limbeck.config`. Beside a flag: the commands that read it.",
        "",
    ]
    seen: dict[str, list[tuple[Flag, Command]]] = {}
    titles: dict[str, str] = {}
    for spec in COMMANDS.values():
        for room_name, room in rooms_of(spec.config).items():
            titles.setdefault(room_name, " ".join((room.__doc__ or "").split("\n\n")[0].split()))
        for flag in flags_of(spec.config).values():
            if reads(spec, flag):
                seen.setdefault(flag.name, []).append((flag, spec))
    rooms = dict.fromkeys(uses[0][0].room for uses in seen.values())
    for room_name in rooms:
        lines += [
            f"## {room_name}",
            "",
            titles[room_name],
            "",
            "| flag | default | meaning | commands |",
            "|---|---|---|---|",
        ]
        for name, uses in seen.items():
            flag, spec = uses[0]
            if flag.room != room_name:
                continue
            default = _default(flag, spec).strip("[]")
            meaning = " ".join((flag.info.description or "").split())
            cells = (f"`--{name} {_operand(flag)}`", default, meaning, ", ".join(other.name for _, other in uses))
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _flag_lines(flag: Flag, spec: Command) -> list[str]:
    left = f"  --{flag.name} {_operand(flag)}".rstrip()
    right = f"{flag.info.description or ''} {_default(flag, spec)}".strip()
    wrapped = _wrap(" ".join(right.split()), _INDENT)
    if len(left) < _INDENT - 1:
        wrapped[0] = left.ljust(_INDENT) + wrapped[0].lstrip()
        return wrapped
    return [left, *wrapped]


def _operand(flag: Flag) -> str:
    names = {"switch": "[true|false]", "table": "JSON"}
    if flag.choices and len(" ".join(flag.choices)) < 60:
        return f"{{{','.join(flag.choices)}}}" + (" ..." if flag.kind == "list" else "")
    types = {"int": "N", "float": "X", "Path": "PATH"}
    name = next((types[part] for part in types if part in str(flag.info.annotation)), flag.name.split("_")[-1].upper())
    return names.get(flag.kind, name + (" ..." if flag.kind == "list" else ""))


def _default(flag: Flag, spec: Command) -> str:
    if flag.name in spec.required and flag.name not in spec.presets:
        return "(required)"
    default: Any = spec.presets.get(flag.name, flag.info.get_default(call_default_factory=True, validated_data={}))
    if default in (None, [], {}, ""):
        return ""
    text = " ".join(str(part) for part in default) if isinstance(default, list) else _plain(default)  # type: ignore[misc]
    return f"[{text}]"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _differences() -> list[str]:
    lines = ["different from ms-swift (theirs in brackets):"]
    for item in swift.DIFFERENCES:
        lines += _wrap(f"{item.flag}: {item.ours} [{item.theirs}]; {item.why}", 2, hang=4)
    return lines


def _wrap(text: str, indent: int, hang: int | None = None) -> list[str]:
    width = min(120, max(60, shutil.get_terminal_size((100, 24)).columns))
    first, rest = " " * indent, " " * (indent if hang is None else hang)
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False) or [first]


if __name__ == "__main__":
    pages = {"flags": flags_page, "trl": trl_page, "swift": swift_page}
    print(pages[next(iter(sys.argv[1:]), "swift")](), end="")
