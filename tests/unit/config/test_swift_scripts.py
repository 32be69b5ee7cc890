"""ms-swift's published commands, as flags and values: each flag is ours, is renamed or set aside with a note, or is
refused with what to do instead."""

from __future__ import annotations

import pytest
from tests.unit.config import swift_scripts, swift_scripts_grpo, swift_scripts_models, swift_scripts_tools
from tests.unit.config.swift_scripts import ROLLOUT

from limbeck.cli.main import main
from limbeck.config import swift
from limbeck.config.commands import COMMANDS
from limbeck.config.flags import all_flags, flags_of, parse, read, reads
from limbeck.config.swift import VALUES, NotNeeded, Refused, Renamed, lookup
from limbeck.errors import ConfigError

SCRIPTS = (
    swift_scripts.SCRIPTS | swift_scripts_grpo.SCRIPTS | swift_scripts_models.SCRIPTS | swift_scripts_tools.SCRIPTS
)


def pairs(line: str) -> list[tuple[str, str]]:
    return [(words[0], " ".join(words[1:])) for part in line.split("--")[1:] if (words := part.split())]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_taken_noted_or_refused(name):
    command, line, refused = SCRIPTS[name]
    spec = COMMANDS[command]
    flags = all_flags() | flags_of(spec.config)
    found = []
    for flag, value in pairs(line):
        flag = spec.aliases.get(flag, flag)
        if flag in flags and reads(spec, flags[flag]):
            choices = flags[flag].choices if flags[flag].kind == "value" else ()
            found += [flag] if choices and VALUES.get((flag, value), value) not in choices else []
            continue
        entry = lookup(flag)
        assert flag in flags or isinstance(entry, Renamed | NotNeeded | Refused), flag
        ours = entry.to if isinstance(entry, Renamed) else flag
        idle = ours in flags and not reads(spec, flags[ours])
        if idle or (isinstance(entry, Refused) and value not in entry.off):
            found.append(flag)
    assert sorted(set(found)) == sorted(refused.split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_command_runs_without_what_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text('{"base_model_name_or_path": "S"}')
    command, line, refused = SCRIPTS[name]
    off = set(refused.split())
    if off:
        with pytest.raises(ConfigError) as caught:
            parse(command, line.split())
        spec = COMMANDS[command]
        flags = all_flags() | flags_of(spec.config)
        lacking = {flag for flag in off if flag not in flags or not reads(spec, flags[flag])}
        for flag in lacking or off:  # a value that is refused is told once the flags are right
            assert f"--{flag}" in caught.value.what
        assert caught.value.fix
    kept = [f"--{flag} {value}" for flag, value in pairs(line) if flag not in off]
    parsed = read(command, " ".join(kept).split())
    said = " ".join(parsed.notes)
    for flag, value in pairs(line):
        entry = None if flag in off or flag in all_flags() else lookup(flag)
        if isinstance(entry, Renamed) or (isinstance(entry, NotNeeded) and value not in entry.off):
            assert f"--{flag} " in said


@pytest.mark.parametrize("line", ROLLOUT.values(), ids=list(ROLLOUT))
def test_a_rollout_server_is_refused_as_a_command(line, capsys):
    assert main(["rollout", *line.split()]) == 2
    assert swift.COMMANDS["rollout"] in capsys.readouterr().err
