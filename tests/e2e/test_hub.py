"""Hub ids over a real socket: the command line pushes to, and loads models and rows from, the server in support_hub."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

import limbeck as library
from limbeck.report import hub as client
from tests.support import command, make_rows
from tests.support_hub import READER, WRITER, Fault, Hub, running_hub

MODEL = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
ADAPTER = MODEL - {"config.json", "model.safetensors"} | {"adapter_config.json", "adapter_model.safetensors"}
WARM = ("--max_steps", 1, "--use_cpu", "--report_html", "false")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running_hub(tmp_path / "hub") as running:
        yield running


def upload(hub: Hub, kind: str, name: str, folder: Path) -> None:
    """Files that are on the hub already."""
    repo = hub.repo(kind, name)
    repo.mkdir(parents=True)
    for file in folder.iterdir():
        (repo / file.name).write_bytes(file.read_bytes())


def rows(hub: Hub, name: str, tmp_path: Path, n: int = 12) -> None:
    (tmp_path / "rows").mkdir()
    make_rows(tmp_path / "rows" / "train.jsonl", n)
    upload(hub, "datasets", name, tmp_path / "rows")


def names(repo: Path) -> set[str]:
    return {file.relative_to(repo).as_posix() for file in repo.rglob("*") if file.is_file()}


def lines(text: str) -> list[str]:
    """The error's three."""
    found = [line for line in text.splitlines() if line.startswith(("error:", "  where:", "  fix:"))]
    assert [line.split(":")[0].strip() for line in found] == ["error", "where", "fix"], text
    assert "Traceback" not in text
    return found


@pytest.mark.slow
def test_a_run_from_the_hub_to_the_hub_and_back(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    upload(hub, "models", "us/student", tiny / "student")
    upload(hub, "models", "us/teacher", tiny / "teacher")
    rows(hub, "us/rows", tmp_path)
    home, run = tmp_path / "home", tmp_path / "run"
    flags = ("--model", "us/student", "--dataset", "us/rows#8", "--output_dir", run, "--lmbda", 0, *WARM)
    where = ("--push_to_hub", "--hub_model_id", "us/tuned", "--hub_private_repo")
    done = hub.limbeck("rlhf", *flags, "--teacher_model", "us/teacher", *where, home=home)
    assert done.returncode == 0, done.stderr
    assert f"pushed: {hub.url}/us/tuned" in done.stdout
    tuned = hub.repo("models", "us/tuned")
    assert names(tuned) >= ADAPTER
    assert "us/tuned" in hub.private
    assert len(hub.commits) == 1
    assert {name: (tuned / name).read_bytes() for name in names(tuned)} == {
        name: (run / "last" / name).read_bytes() for name in names(run / "last")
    }
    card = (tuned / "README.md").read_text()
    for expected in ("base_model: us/student", "- us/rows", 'AutoPeftModelForCausalLM.from_pretrained("us/tuned")'):
        assert expected in card, expected
    assert str(tmp_path) not in card

    merged = (
        "--adapters",
        "us/tuned",
        "--output_dir",
        tmp_path / "merged",
        "--push_to_hub",
    )  # the base by its own file
    done = hub.limbeck("export", *merged, home=home)
    assert done.returncode == 0, done.stderr
    asked = ("--model", "me/merged", "--val_dataset", "us/rows#2", "--result_path", tmp_path / "answers.jsonl")
    done = hub.limbeck(
        "infer", *asked, "--max_completion_length", 4, "--use_cpu", home=tmp_path / "other", token=READER
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["origin"].split("[")[0] for row in answers] == ["us/rows", "us/rows"]
    one, other = (load_file(hub.repo("models", name) / "model.safetensors") for name in ("me/merged", "us/student"))
    assert any(bool((one[key] != other[key]).any()) for key in other)


def test_rows_of_the_hub_are_taken_as_they_come(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    rows(hub, "us/rows", tmp_path, n=50)
    argv = ("plan", "--model", tiny / "student", "--teacher_model", tiny / "teacher", "--lmbda", 0)
    done = hub.limbeck(*argv, "--dataset", "us/rows#5", "--streaming", home=tmp_path / "home", token="")
    assert done.returncode == 0, done.stderr
    assert "5 rows of us/rows" in done.stdout
    assert "us/rows[train]:1;" in done.stdout  # the first of them is shown
    assert "Generating" not in done.stderr  # nothing was written to a cache


def test_what_export_pushes_names_a_whole_model(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    """Merged, so no adapter any more; the card must not say otherwise."""
    run, out = tmp_path / "run", tmp_path / "student"
    flags = ("--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--output_dir", run)
    assert hub.limbeck("sft", *flags, *WARM, home=tmp_path / "home").returncode == 0
    done = hub.limbeck(
        "export", "--adapters", run / "last", "--output_dir", out, "--push_to_hub", home=tmp_path / "home"
    )
    assert done.returncode == 0, done.stderr
    pushed = hub.repo("models", "me/student")
    assert names(pushed) >= MODEL
    card = (pushed / "README.md").read_text()
    assert "library_name: transformers" in card
    assert 'AutoModelForCausalLM.from_pretrained("me/student")' in card
    assert "Peft" not in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("token", "more", "says", "helps"),
    [
        ("", (), "LocalTokenNotFoundError", "hf auth login"),
        ("hf_wrong", (), "Invalid user token", "hf auth login"),
        (READER, (), "the token of me may only read", "a token that may write"),
        (WRITER, ("--hub_model_id", "them/student"), "me is no member of them", "one of yours (me, us)"),
        (WRITER, ("--hub_model_id", "a/b/c"), "a/b/c is no id of the hub", "ORGANISATION/NAME"),
    ],
)
def test_a_closed_door_is_met_before_the_work(
    hub: Hub, tiny: Path, tmp_path: Path, token: str, more: tuple[str, ...], says: str, helps: str
) -> None:
    out = tmp_path / "out"
    argv = ("export", "--model", tiny / "student", "--output_dir", out, "--push_to_hub", *more)
    done = hub.limbeck(*argv, home=tmp_path / "home", token=token)
    assert done.returncode == 2
    error, _, fix = lines(done.stderr)
    assert says in error
    assert helps in fix
    assert not out.exists()
    assert [asked for asked in hub.asked if "whoami" not in asked] == []


FAULTS = {
    "403 at the door": (Fault("POST /api/repos/create", 403), "a token that may write"),
    "500 at the commit": (Fault("POST .*/commit/", 500), "wait until the hub is well again; then push it by"),
    "403 in the storage": (Fault("PUT /lfs/", 403), "a token that may write"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_push_that_fails_keeps_the_run_and_says_how_to_push(hub: Hub, tiny: Path, tmp_path: Path, name: str) -> None:
    fault, helps = FAULTS[name]
    hub.faults.append(fault)
    run = tmp_path / "a run"
    flags = ("--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--output_dir", run, *WARM)
    where = ("--push_to_hub", "--hub_model_id", "tuned", "--hub_private_repo")
    done = hub.limbeck("sft", *flags, *where, home=tmp_path / "home")
    assert done.returncode == 1
    error, _, fix = lines(done.stderr)
    assert str(fault.status) in error
    assert f"whole in {run / 'last'}" in error
    assert helps in fix
    assert json.loads((run / "summary.json").read_text())["stopped_by"] == "end"
    assert names(run / "last") >= ADAPTER

    hub.faults.clear()
    said = re.search("push it by `(.*)`", fix)
    assert said is not None
    word, *argv = shlex.split(said[1])
    done = hub.run(Path(sys.executable).parent / word, *argv, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    pushed = hub.repo("models", "me/tuned")
    assert names(pushed) >= ADAPTER
    assert 'from_pretrained("me/tuned")' in (pushed / "README.md").read_text()
    assert hub.private == {"me/tuned"}


def test_a_hub_that_is_slow_or_stumbles_once_is_waited_for(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    hub.faults += [Fault("PUT /lfs/", 503, times=1), Fault("/commit/", delay=2.0)]
    out = tmp_path / "out"
    done = hub.limbeck("export", "--model", tiny / "student", "--output_dir", out, "--push_to_hub", home=tmp_path / "h")
    assert done.returncode == 0, done.stderr
    assert [asked.split("/")[1] for asked in hub.asked if asked.startswith("PUT")] == ["lfs", "lfs"]
    assert load_file(hub.repo("models", "me/out") / "model.safetensors").keys()


def test_a_second_push_replaces_the_first(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    for side in ("student", "teacher"):
        flags = ("--model", tiny / side, "--output_dir", tmp_path / side, "--hub_model_id", "us/model", "--push_to_hub")
        done = hub.limbeck("export", *flags, home=tmp_path / "home")
        assert done.returncode == 0, done.stderr
        pushed = hub.repo("models", "us/model") / "model.safetensors"
        assert pushed.read_bytes() == (tmp_path / side / "model.safetensors").read_bytes()


def test_ctrl_c_in_a_slow_push_says_how_to_push(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    hub.faults.append(Fault("/api/repos/create", delay=20.0))
    flags = ("--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--output_dir", tmp_path / "run", *WARM)
    argv, shared = command("sft", *flags, "--push_to_hub"), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, env=hub.env(tmp_path / "home", WRITER), text=True, **shared) as process:
        while "POST /api/repos/create" not in hub.asked and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    hub.faults.clear()
    assert process.returncode == 1
    error, _, fix = lines(said)
    assert error.endswith("could not be put on the hub: interrupted")
    assert fix == f"  fix:   push it by `hf upload me/run {tmp_path / 'run' / 'last'}`"


def test_from_python_the_outcome_tells_of_a_failed_push(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process the hub's client is fixed at import, so here its address alone is put in place."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running_hub(tmp_path / "hub") as hub:
        hub.faults.append(Fault("/commit/", 500))
        monkeypatch.setattr(client, "api", lambda: client.HfApi(endpoint=hub.url, token=WRITER))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        outcome = library.distil(
            model=str(tiny / "student"),
            rlhf_type=None,
            dataset=[str(tiny / "rows.jsonl")],
            output_dir=tmp_path / "run",
            max_steps=1,
            use_cpu=True,
            report_html=False,
            push_to_hub=True,
        )
    assert (outcome.step, outcome.stopped_by) == (1, "end")
    assert outcome.unpushed is not None
    assert f"hf upload me/run {tmp_path / 'run' / 'last'}" in outcome.unpushed.fix


LOADING = {  # 501, since the client asks again after 500: seconds that a test need not wait
    "no such model": ("us/gone", (), (), "check the spelling"),
    "private": ("us/secret", (), (), "hf auth login"),
    "no such revision": ("us/student", ("--model_revision", "v9"), (), "a branch, tag or commit"),
    "no weights": ("us/empty", (), (), "a model has config.json and model.safetensors"),
    "an adapter": ("us/adapter", (), (), "an adapter goes by --adapters"),
    "a hub in trouble": ("us/student", (), (Fault("us/student", 501),), "check the network and HF_ENDPOINT"),
    "no such rows": ("us/student", ("--dataset", "us/gone"), (), "check the name"),
    "rows of a hub in trouble": ("us/student", (), (Fault("us/rows", 501),), "the network"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADING)
def test_what_cannot_be_loaded_is_told_in_three_lines(hub: Hub, tiny: Path, tmp_path: Path, name: str) -> None:
    model, more, faults, helps = LOADING[name]
    for repo in ("us/student", "us/secret", "us/empty", "us/adapter"):
        upload(hub, "models", repo, tiny / "student")
    (hub.repo("models", "us/empty") / "model.safetensors").unlink()
    for file in ("config.json", "model.safetensors"):
        (hub.repo("models", "us/adapter") / file).unlink()
    (hub.repo("models", "us/adapter") / "adapter_config.json").write_text("{}")
    hub.private.add("us/secret")
    rows(hub, "us/rows", tmp_path)
    hub.faults += faults
    argv = ("sft", "--model", model, "--dataset", "us/rows", *more, "--output_dir", tmp_path / "run", *WARM)
    done = hub.limbeck(*argv, home=tmp_path / "home", token="")
    assert done.returncode == 2
    assert helps in lines(done.stderr)[2]
    assert not (tmp_path / "run").exists()
