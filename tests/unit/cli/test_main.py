"""The frame: help without torch, exit statuses, three-line errors."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from limbeck import __version__
from limbeck.cli import main as frame
from limbeck.cli.main import main
from limbeck.config import swift
from limbeck.config.commands import COMMANDS
from limbeck.config.flags import flags_of, reads
from limbeck.config.helptext import _SHORT
from limbeck.errors import ConfigError, DataError, TrainError

RUN = ["rlhf", "--model", "m", "--dataset", "d", "--teacher_model", "t"]
HEAVY = ("torch", "transformers", "accelerate", "datasets", "peft", "numpy")


@pytest.fixture
def ends(monkeypatch):
    """Puts a command's `run` in the place of the real one."""

    def make(run):
        monkeypatch.setattr(frame, "import_module", lambda name: SimpleNamespace(run=run))

    return make


def raising(error):
    def run(config):
        raise error

    return run


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in COMMANDS),
        ["rlhf", "--betta", "1"],
        ["completion", "bash"],
    ],
    ids=str,
)
def test_help_and_errors_in_flags_import_nothing_heavy(words):
    code = (
        "import sys\n"
        "from limbeck.cli.main import main\n"
        f"main({words!r})\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and command.summary in out for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_has_examples_first_and_every_flag_by_room(name, capsys):
    assert main([name, "--help_all"]) == 0
    out = capsys.readouterr().out
    spec = COMMANDS[name]
    flags = flags_of(spec.config).values()
    used = [flag for flag in flags if reads(spec, flag)]
    assert out.index("examples:") < out.index("usage:") < min(out.index(f"  --{flag.name} ") for flag in used)
    assert [flag.name for flag in flags if not reads(spec, flag) and f"  --{flag.name} " in out] == []
    for flag in used:
        assert out.index(f"\n{flag.room}: ") < out.index(f"  --{flag.name} ")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_short_help_has_what_it_requires_and_counts_the_rest(name, capsys):
    main([name, "--help_all"])
    whole = capsys.readouterr().out
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    shown = re.findall(r"^  --(\w+) ", out, re.MULTILINE)
    rest = [flag for flag in re.findall(r"^  --(\w+) ", whole, re.MULTILINE) if flag not in shown]
    assert not set(COMMANDS[name].required) - set(shown)
    assert len(shown) <= 40
    assert (f"{len(rest)} more flags, all with defaults: `limbeck {name} --help_all`" in out) == bool(rest)


def test_every_flag_of_the_short_help_is_one(capsys):
    assert not set(_SHORT) - {flag.name for spec in COMMANDS.values() for flag in flags_of(spec.config).values()}


def test_rlhf_help_tells_what_differs_from_ms_swift(capsys):
    main(["rlhf", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "different from ms-swift (theirs in brackets): loss_temperature: 1.0, of its own [--temperature" in out
    for flag in ("topk_mode", "beta", "truncation_strategy", "num_generations", "gradient_accumulation_steps"):
        assert f" {flag}: " in out.split("different from ms-swift")[1]


def test_the_examples_in_the_help_parse():
    from limbeck.config import parse

    for name, spec in COMMANDS.items():
        for example in spec.examples:
            words = example.split("#  ")[0].split("      ")[0].split()[1:]
            n = len(name.split())
            assert " ".join(words[:n]) == name
            words = words[n:]
            if "..." not in words and not words[0].endswith(".yaml"):
                parse(name, words)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"limbeck {__version__}\n"


def test_a_command_of_ms_swift_says_what_to_do(capsys):
    assert main(["rollout", "--model", "m", "--vllm_use_async_engine", "true"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: rollout is a command of ms-swift that Limbeck has not",
        "  where: limbeck rollout",
        f"  fix:   {swift.COMMANDS['rollout']}",
    ]
    assert not set(swift.COMMANDS) & set(COMMANDS)


def test_an_unknown_command_gets_the_nearest(capsys):
    assert main(["genrate"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown command genrate\n  where: limbeck genrate\n  fix:   did you mean `limbeck generate`?\n"
    )
    main(["xyzzy"])
    assert "fix:   one of: rlhf, sft" in capsys.readouterr().err


def test_the_command_gets_its_configuration_and_gives_the_status(ends):
    seen = []
    ends(lambda config: seen.append(config) or 7)
    assert main(RUN) == 7
    assert seen[0].teacher.teacher_model == "t"


def test_notes_go_to_stderr(ends, capsys):
    ends(lambda config: 0)
    assert main([*RUN, "--train_type", "full"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "note: --train_type is --tuner_type full here\n"


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError("c"), 2), (DataError("d"), 2), (TrainError("t"), 1), (ValueError("v"), 1)]
)
def test_exit_statuses(error, status, ends, capsys):
    ends(raising(error))
    assert main(RUN) == status
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_an_unexpected_error_is_short(ends, capsys):
    ends(raising(ZeroDivisionError("by\nzero")))
    assert main(RUN) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: ZeroDivisionError: by zero",
        "  fix:   run it again with --debug for the traceback, and report it if it is a fault of Limbeck",
    ]


@pytest.mark.parametrize("words", [["--debug"], ["--debug", "true"], ["--debug=true"]])
def test_debug_shows_the_traceback(words, ends, capsys):
    ends(raising(ConfigError("no")))
    assert main([*RUN, *words]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: no\n")


def test_debug_shows_the_traceback_of_a_bad_flag_too(capsys):
    assert main([*RUN, "--betta", "1", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_a_run_is_placed_in_the_file(ends, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("model: m\ndataset: d\nteacher_model: t\nbeta: 3\n")
    ends(raising(ConfigError("too much", where="--beta 3", fix="less")))
    assert main(["rlhf", "run.yaml"]) == 2
    assert capsys.readouterr().err == "error: too much\n  where: run.yaml:4  beta: 3\n  fix:   less\n"


def test_interrupted(ends, capsys):
    ends(raising(KeyboardInterrupt()))
    assert main(RUN) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_is_no_error():
    code = "import sys; from limbeck.cli.main import main; sys.exit(main(['rlhf', '--help']))"
    command = f'{sys.executable} -c "{code}" | head -n 1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
