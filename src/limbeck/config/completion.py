"""`limbeck completion bash | zsh | fish`: commands, flags and their choices for the shell, made from the models."""

from __future__ import annotations

from collections.abc import Callable

from limbeck.config.commands import ALIASES, COMMANDS, Command
from limbeck.config.flags import Flag, flags_of, reads
from limbeck.errors import ConfigError


def script(shell: str) -> str:
    """What the shell is to evaluate. Raises ConfigError for a shell that is not known."""
    if shell not in SHELLS:
        fix = "write `limbeck completion bash`, zsh or fish; then: source <(limbeck completion bash), "
        fix += "in fish: limbeck completion fish | source"
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
    lines = ["_limbeck() {", '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"']
    lines += ['    local command="${COMP_WORDS[1]}" known="" choices="" given=""', "    COMPREPLY=()"]
    # --flag=value: bash takes the sign for a word of its own
    lines += ['    if [ "$word" = "=" ]; then word=""', '    elif [ "$before" = "=" ]; then']
    lines += ['        before="${COMP_WORDS[COMP_CWORD-2]}"', "    fi"]
    # and zsh a part of the word, which what is offered then begins with
    lines += ['    case "$word" in']
    lines += ['        --*=*) before="${word%%=*}"; given="$before="; word="${word#*=}" ;;', "    esac"]
    lines += ['    if [ "$COMP_CWORD" -eq 1 ]; then']
    lines += [f'        COMPREPLY=( $(compgen -W "{" ".join(firsts)}" -- "$word") ); return', "    fi"]
    for group, members in _groups(commands).items():
        lines += [f'    if [ "$command" = {group} ]; then', '        if [ "$COMP_CWORD" -eq 2 ]; then']
        lines += [f'            COMPREPLY=( $(compgen -W "{" ".join(members)}" -- "$word") ); return', "        fi"]
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
    lines += ['        *) COMPREPLY=( $(compgen -P "$given" -W "$choices" -- "$word") ) ;;', "    esac"]
    # a path after the sign; where there is none the shell does it by itself
    lines += ['    if [ -n "$given" ] && [ -z "$choices" ]; then']
    lines += ['        for word in "$word"*; do [ ! -e "$word" ] || COMPREPLY+=( "$given$word" ); done', "    fi", "}"]
    return "\n".join([*lines, "complete -o bashdefault -o default -F _limbeck limbeck"])


def _zsh() -> str:
    """Bash's function through zsh's own bridge; compinit only where no one ran it, since it takes its time."""
    start = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }"
    return f"{start}\nautoload -Uz bashcompinit && bashcompinit\n{_bash()}"


def _fish() -> str:
    """A line a flag; what was typed so far, `rlhf --model a `, says which of them count."""
    commands = _commands()
    lines = ["function __limbeck_typed", "    set -l words (commandline -opc)", '    echo "$words[2..-1] "', "end"]
    firsts = {name: spec.summary for name, spec in commands.items() if " " not in name}
    firsts |= {group: ", ".join(members) for group, members in _groups(commands).items()}
    firsts["completion"] = "complete words in a shell"
    lines += [_offer(" ", f"-f -a {first} -d {_quoted(text)}") for first, text in firsts.items()]
    lines.append(_offer("completion ", "-f -a 'bash zsh fish'"))
    for name, spec in commands.items():
        group, _, member = name.rpartition(" ")
        if group:
            lines.append(_offer(f"{group} ", f"-f -a {member} -d {_quoted(spec.summary)}"))
        for flag in _flags(spec):
            text = " ".join((flag.info.description or "").split()).split(". ")[0]
            # with an empty description of its own each: else every value shows the flag's
            words = " ".join(word + r"\t" for word in _choices(flag))
            values = f" -x -a {_quoted(words)}" if words else " -r"
            lines.append(_offer(f"{name} *", f"-l {flag.name}{values} -d {_quoted(text)}"))
        lines.append(_offer(f"{name} *", "-l help -d 'the flags that matter most'"))
        lines.append(_offer(f"{name} *", "-l help_all -d 'all flags'"))
    return "\n".join(lines)


def _groups(commands: dict[str, Command]) -> dict[str, list[str]]:
    """`data` -> its commands' second words."""
    groups: dict[str, list[str]] = {}
    for group, member in (name.split() for name in commands if " " in name):
        groups.setdefault(group, []).append(member)
    return groups


def _offer(typed: str, what: str) -> str:
    """A line of fish: what to offer where all that was typed matches this pattern."""
    return f"complete -c limbeck -n 'string match -q -- \"{typed}\" (__limbeck_typed)' {what}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
