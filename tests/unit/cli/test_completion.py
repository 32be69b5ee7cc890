"""What bash offers after `source <(limbeck completion bash)`."""

from __future__ import annotations

import shutil
import subprocess
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


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(shell: str, tmp_path: Path, capsys) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text or f"-l {name} " in text for name in ("rlhf_type", "learning_rate", "use_cpu"))
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        assert subprocess.run([shell, "-n", str(tmp_path / "script")], check=False).returncode == 0


def test_an_unknown_shell(capsys) -> None:
    assert main(["completion", "csh"]) == 2
    assert capsys.readouterr().err == (
        "error: no completion for the shell csh\n  where: limbeck completion csh\n"
        "  fix:   write `limbeck completion bash`, zsh or fish; then: source <(limbeck completion bash)\n"
    )
