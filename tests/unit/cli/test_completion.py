"""What the shells offer once they have read `limbeck completion SHELL`: each is asked itself, where it is installed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.cli.main import main
from limbeck.config.commands import COMMANDS
from limbeck.config.flags import flags_of, reads


@pytest.fixture
def offered(capsys, tmp_path: Path):
    """The words that bash offers for the last word of a command line."""
    assert main(["completion", "bash"]) == 0
    file = tmp_path / "limbeck.bash"
    file.write_text(capsys.readouterr().out)

    def ask(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("limbeck", *words))
        code = f'source {file}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _limbeck; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    return ask


def test_commands(offered) -> None:
    assert set(offered("")) == {name.split()[0] for name in COMMANDS} | {"serve", "completion"}
    assert offered("rl") == ["rlhf"]
    assert offered("data", "") == ["score", "check", "cache-info"]
    assert offered("completion", "f") == ["fish"]


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_of_the_command_and_no_others(offered, name: str) -> None:
    spec = COMMANDS[name]
    used = [f"--{flag.name}" for flag in flags_of(spec.config).values() if reads(spec, flag)]
    assert offered(*name.split(), "--") == [*used, "--help", "--help_all"]


def test_values(offered) -> None:
    assert offered("rlhf", "--rlhf_type", "") == ["gkd", "grpo"]
    assert offered("rlhf", "--rlhf_type", "gr") == ["grpo"]
    assert offered("rlhf", "--use_cpu", "") == ["true", "false"]
    assert offered("rlhf", "--learning_rate", "1") == []
    assert offered("serve", "--infer_b") == ["--infer_backend"]


def test_paths_are_left_to_the_shell(offered, tmp_path: Path) -> None:
    assert offered("rlhf", "--model", str(tmp_path)[:-1]) == []


def test_after_the_sign(offered) -> None:
    """`--flag=value` is three words to bash."""
    assert offered("rlhf", "--rlhf_type", "=") == ["gkd", "grpo"]
    assert offered("rlhf", "--rlhf_type", "=", "gr") == ["grpo"]
    assert offered("rlhf", "--rlhf_type=gr") == ["--rlhf_type=grpo"]  # and one where the user has told it so


def fish(script: Path, line: str) -> list[str]:
    """The words that fish offers, without their descriptions."""
    code = f"source {script}; complete -C '{line}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True, cwd=script.parent
    )
    assert done.stderr == ""
    return [word.split("\t")[0] for word in done.stdout.splitlines()]


ZSHRC = r"""
PS1=""
autoload -Uz compinit && compinit -u -d {folder}/dump
source {script}
compadd() {{  # what is added to the list of matches, but for the calls that only ask
    if [[ ${{@[1,(i)(-|--)]}} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
    local -a hits; builtin compadd -A hits "$@"; print -rl -- $hits >> {out}
    builtin compadd "$@"
}}
_ask() {{ zle complete-word; exit }}
zle -N _ask; bindkey '^X' _ask
print ready
"""


def zsh(script: Path, line: str) -> list[str]:
    """The words that an interactive zsh on a terminal of its own offers at the tab key."""
    folder, out = script.parent, script.parent / "offered"
    out.write_text("")
    (folder / ".zshrc").write_text(ZSHRC.format(folder=folder, script=script, out=out))
    ours, its = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder), "ZDOTDIR": str(folder)}
    process = subprocess.Popen(
        ["zsh", "-i"], stdin=its, stdout=its, stderr=its, cwd=folder, env=environment, start_new_session=True
    )
    os.close(its)
    shown, typed, end = b"", False, time.monotonic() + 60
    try:
        while time.monotonic() < end:
            if not typed and b"ready" in shown:
                os.write(ours, line.encode() + b"\x18")
                typed = True
            if select.select([ours], [], [], 0.2)[0]:
                shown += os.read(ours, 4096)
    except OSError:  # the terminal's other end is closed: zsh has ended
        process.wait(10)
    finally:
        process.kill()
        os.close(ours)
    assert typed and process.returncode is not None, shown
    return out.read_text().split()


@pytest.fixture(params=[fish, zsh], ids=lambda ask: ask.__name__)
def ask(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[[str], list[str]]:
    shell = request.param
    if shutil.which(shell.__name__) is None:
        pytest.skip(f"{shell.__name__} is not installed")
    assert main(["completion", shell.__name__]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    return lambda line: sorted(shell(tmp_path / "script", line))


def test_other_shells(ask: Callable[[str], list[str]]) -> None:
    firsts = {name.split()[0] for name in COMMANDS} | {"serve", "completion"}
    assert ask("limbeck ") == sorted(firsts)
    assert ask("limbeck data ") == ["cache-info", "check", "score"]
    assert ask("limbeck completion f") == ["fish"]
    used = [f"--{flag.name}" for flag in flags_of(COMMANDS["rlhf"].config).values() if reads(COMMANDS["rlhf"], flag)]
    assert ask("limbeck rlhf --te") == sorted(name for name in used if name.startswith("--te"))
    assert ask("limbeck rlhf --hel") == ["--help", "--help_all"]
    assert ask("limbeck rlhf --rlhf_type ") == ["gkd", "grpo"]
    assert ask("limbeck rlhf --use_cpu ") == ["false", "true"]
    assert ask("limbeck serve --infer_b") == ["--infer_backend"]
    assert ask("limbeck rlhf --rlhf_type=") == ["--rlhf_type=gkd", "--rlhf_type=grpo"]
    assert ask("limbeck rlhf --rlhf_type=gr") == ["--rlhf_type=grpo"]
    assert ask("limbeck plan --model m --use_cpu=t") == ["--use_cpu=true"]
    assert ask("limbeck rlhf --learning_rate=1") == []
    assert ask("limbeck rlhf --model=scr") == ["--model=script"]  # a file of the folder
    assert ask("limbeck data score --teacher_ca") == ["--teacher_cache"]
    assert ask("limbeck plan --model data --teacher_ca") == ["--teacher_cache"]  # a value is no command


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_every_flag_is_there(shell: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for spec in COMMANDS.values():
        for flag in flags_of(spec.config).values():
            if reads(spec, flag):
                assert f"--{flag.name}" in text or f"-l {flag.name} " in text


def test_an_unknown_shell(capsys) -> None:
    assert main(["completion", "csh"]) == 2
    assert capsys.readouterr().err == (
        "error: no completion for the shell csh\n  where: limbeck completion csh\n"
        "  fix:   write `limbeck completion bash`, zsh or fish; then: source <(limbeck completion bash), "
        "in fish: limbeck completion fish | source\n"
    )
