"""`limbeck completion bash | zsh | fish`: commands, flags and their choices for the shell, made from the models."""

from __future__ import annotations

from collections.abc import Callable

from limbeck.config.commands import ALIASES, COMMANDS, Command
from limbeck.config.flags import Flag, flags_of, reads
from limbeck.errors import ConfigError


def script(shell: str) -> str:
    """What the shell is to evaluate. Raises ConfigError for a shell that is not known."""
    if shell not in SHELLS:
        fix = "write `limbeck completion bash`, zsh or fish; then: source <(limbeck completion bash)"
        raise ConfigError(
            f"no completion for the shell {shell or '(none)'}", where=f"limbeck completion {shell}", fix=fix
        )
    return SHELLS[shell]()


def _commands() -> dict[str, Command]:
    return COMMANDS | {other: COMMANDS[name] for other, name in ALIASES.items()}


def _flags(spec: Command) -> list[Flag]:
    return [flag for flag in flags_of(spec.config).values() if reads(spec, flag)]


def _choices(flag: Flag) -> tuple[str, ...]:
    return ("true", "false") if flag.kind == "switch" else flag.choices


def _bash() -> str:
    """A `case` for the words of a group, one for each command's flags, one for the choices of a flag."""
    commands = _commands()
    firsts = [*dict.fromkeys(name.split()[0] for name in commands), "completion"]
    groups = dict.fromkeys(name.split()[0] for name in commands if " " in name)
    lines = ["_limbeck() {", '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"']
    lines += ['    local command="${COMP_WORDS[1]}" known="" choices=""', "    COMPREPLY=()"]
    lines += ['    if [ "$COMP_CWORD" -eq 1 ]; then']
    lines += [f'        COMPREPLY=( $(compgen -W "{" ".join(firsts)}" -- "$word") ); return', "    fi"]
    for group in groups:
        members = " ".join(name.split()[1] for name in commands if name.startswith(f"{group} "))
        lines += [f'    if [ "$command" = {group} ]; then', '        if [ "$COMP_CWORD" -eq 2 ]; then']
        lines += [f'            COMPREPLY=( $(compgen -W "{members}" -- "$word") ); return', "        fi"]
        lines += ['        command="$command ${COMP_WORDS[2]}"', "    fi"]
    lines += ['    case "$command" in']
    for name, spec in commands.items():
        words = " ".join(f"--{flag.name}" for flag in _flags(spec))
        lines.append(f'        "{name}") known="{words} --help --help_all" ;;')
    lines += ['        completion) COMPREPLY=( $(compgen -W "bash zsh fish" -- "$word") ); return ;;', "    esac"]
    lines += ['    case "$before" in']
    choices = {flag.name: _choices(flag) for spec in commands.values() for flag in _flags(spec)}
    lines += [f'        --{name}) choices="{" ".join(values)}" ;;' for name, values in choices.items() if values]
    lines += ["    esac", '    case "$word" in', '        -*) COMPREPLY=( $(compgen -W "$known" -- "$word") ) ;;']
    lines += ['        *) COMPREPLY=( $(compgen -W "$choices" -- "$word") ) ;;', "    esac", "}"]
    return "\n".join([*lines, "complete -o bashdefault -o default -F _limbeck limbeck"])


def _zsh() -> str:
    return f"autoload -Uz compinit bashcompinit && compinit && bashcompinit\n{_bash()}"


def _fish() -> str:
    commands = _commands()
    lines = ["complete -c limbeck -n __fish_use_subcommand -f -a completion -d 'complete words in a shell'"]
    lines.append("complete -c limbeck -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish'")
    for name, spec in commands.items():
        first, *second = name.split()
        summary = spec.summary if not second else ""
        lines.append(f"complete -c limbeck -n __fish_use_subcommand -f -a {first} -d {_quoted(summary)}")
        here = f"__fish_seen_subcommand_from {first}"
        if second:
            lines.append(f"complete -c limbeck -n '{here}' -f -a {second[0]} -d {_quoted(spec.summary)}")
            here += f"; and __fish_seen_subcommand_from {second[0]}"
        for flag in _flags(spec):
            text = " ".join((flag.info.description or "").split()).split(". ")[0]
            values = f" -x -a {_quoted(' '.join(_choices(flag)))}" if _choices(flag) else " -r"
            lines.append(f"complete -c limbeck -n '{here}' -l {flag.name}{values} -d {_quoted(text)}")
    return "\n".join(dict.fromkeys(lines))


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
