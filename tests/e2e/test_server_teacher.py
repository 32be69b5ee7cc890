"""A teacher behind `limbeck deploy`, in a process of its own: the local teacher's numbers, whatever happens."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import ConfigError
from limbeck.models import load_model, load_tokenizer, valid_ids
from limbeck.signal import Ask, Sample
from limbeck.teachers import LocalTeacher
from limbeck.teachers.server import ServerTeacher, check_server, discover
from tests.support import command, env, limbeck, metrics
from tests.support_servers import assert_same, deployed, free_port, make_samples, named_for, proxy


@pytest.fixture(scope="module")
def url(tiny: Path) -> Iterator[str]:
    with deployed(tiny / "teacher", "--allow_hidden", "--max_logprobs", -1) as (address, _):
        yield address


@pytest.fixture(scope="module")
def here(tiny: Path) -> tuple[Any, Any]:
    path = str(tiny / "teacher")
    return load_model(path, dtype="float32", trainable=False), load_tokenizer(path)


def local(here: tuple[Any, Any], ask: Ask) -> LocalTeacher:
    return LocalTeacher(here[0], name="local", ask=ask, valid=valid_ids(here[1]), pad_id=here[1].pad_token_id)


@pytest.fixture
def samples(here: tuple[Any, Any]) -> list[Sample]:
    return make_samples(here[1], 24)


@pytest.mark.parametrize(
    ("ask", "k"),
    [
        (Ask("hidden"), 0),
        (Ask("topk", 8), 0),
        (Ask("topk", 300), 0),
        (Ask("topk", 8, 1.7), 0),
        (Ask("named", 0, 1.0, 1), 1),
        (Ask("named", 0, 0.6, 5), 5),
        (Ask("union", 4, 1.0, 4), 4),
    ],
)
@pytest.mark.parametrize("bits", [16, 32])
def test_the_same_numbers(here: tuple[Any, Any], url: str, samples: list[Sample], ask: Ask, k: int, bits: int) -> None:
    info = discover(url)
    assert info.kind == "limbeck" and check_server(info, ask, here[1]) == []
    made, named = ServerTeacher(info, ask, valid_ids(here[1]), bits=bits), named_for(samples, k) if k else None
    reference = local(here, ask)
    assert made.identity == reference.identity
    (got,), (want,) = (t.score([samples], [named] if named else None) for t in (made, reference))
    assert_same(got, want, 1e-5 if bits == 32 or ask.kind == "hidden" else 2e-3)
    made.close()


def test_the_same_numbers_in_the_words_of_vllm(here: tuple[Any, Any], url: str, samples: list[Sample]) -> None:
    """The server's own /v1/completions is read as a stock server's would be."""
    info = replace(discover(url), kind="vllm")
    for ask in (Ask("topk", 20), Ask("sampled")):
        check_server(info, ask, here[1])
        (got,), (want,) = (t.score([samples]) for t in (ServerTeacher(info, ask, valid_ids(here[1])), local(here, ask)))
        assert_same(got, want)


def test_faults_on_the_way_cost_time_only(here: tuple[Any, Any], url: str, samples: list[Sample]) -> None:
    faults = ["cut", None, "flip", "close", None, "truncate", "500", "flip", "429", "html", None]
    with proxy(url, faults, path="/v1/score") as between:
        made = ServerTeacher(discover(between.url), Ask("topk", 8), valid_ids(here[1]), say=lambda _: None)
        (got,) = made.score([samples])
    assert_same(got, local(here, Ask("topk", 8)).score([samples])[0])
    counts = made.counts()
    assert counts["teacher/retries"] == 8 and counts["teacher/refused"] == 0


def test_a_server_that_is_killed_and_started_again(tiny: Path, here: tuple[Any, Any]) -> None:
    """In the middle of its work, so that answers are lost on their way."""
    port, ask, said, got = free_port(), Ask("topk", 8), list[str](), list[Any]()
    samples = make_samples(here[1], 300)
    with deployed(tiny / "teacher", port=port) as (address, process):
        info = discover(address)
        made = ServerTeacher(info, ask, 320, seqs_per_request=1, concurrency=3, patience=120, say=said.append)
        thread = threading.Thread(target=lambda: got.extend(made.score([samples])[0]))
        thread.start()
        requests = 0.0
        while requests < 60:
            time.sleep(0.02)
            requests += made.counts()["teacher/requests"]
        process.kill()
        process.wait()
    assert not got
    with deployed(tiny / "teacher", port=port):
        thread.join(60)
    assert_same(got, local(here, ask).score([samples])[0], 1e-4)  # other batches: 3e-5 from float64 either way
    counts = made.counts()
    assert counts["teacher/retries"] >= 1 and counts["teacher/refused"] == 0
    assert any("does not answer" in line for line in said) and any("answers again" in line for line in said)


def test_a_key(tiny: Path, here: tuple[Any, Any], samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    with deployed(tiny / "teacher", LIMBECK_API_KEY="s3cret") as (address, _):
        with pytest.raises(ConfigError, match="does not let this run in"):
            discover(address)
        monkeypatch.setenv("LIMBECK_TEACHER_API_KEY", "s3cret")
        assert None not in ServerTeacher(discover(address), Ask("topk", 8), valid_ids(here[1])).score([samples])[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_gkd_from_a_server_is_gkd_from_the_model(tiny: Path, url: str, tmp_path: Path, processes: int) -> None:
    """Ranks share the asking: each has its own rows scored, and none waits for ever."""

    def losses(name: str, *more: Any) -> list[float]:
        limbeck(
            *("rlhf", "--rlhf_type", "gkd", "--model", tiny / "student", "--dataset", tiny / "rows.jsonl"),
            *("--output_dir", tmp_path / name, "--lmbda", 0.5, "--gkd_logits_topk", 16, "--max_steps", 4),
            *("--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 2, "--use_cpu"),
            *("--logging_steps", 1, "--max_completion_length", 6, "--tuner_type", "full", "--learning_rate", 1e-3),
            *more,
            processes=processes,
        )
        return [row["loss"] for row in metrics(tmp_path / name)]

    here = losses("here", "--teacher_model", tiny / "teacher")
    assert losses("there", "--teacher_model_server", url) == pytest.approx(here, abs=1e-5)
    assert min(here) > 0.01


def test_a_server_that_leaves_ends_both_ranks_with_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    with deployed(tiny / "teacher") as (address, _), proxy(address, [None], path="/v1/score") as between:
        run = tmp_path / "run"
        argv = command(
            *("rlhf", "--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--output_dir", run, "--use_cpu"),
            *("--teacher_model_server", between.url, "--teacher_patience", 3, "--gkd_logits_topk", 8),
            *("--lmbda", 0, "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2),
            *("--logging_steps", 1, "--num_train_epochs", 400),
            processes=2,
        )
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env())
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or not metrics(run):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        between.kill()
        said, _ = process.communicate(timeout=120)
    print(said)
    assert process.returncode != 0 and "error: the teacher server did not answer for 3 s\n  where: " in said
    assert said.count("error: the teacher server") == 1  # by one of the two
    step = metrics(run)[-1]["step"]
    assert (run / f"checkpoint-{step}").is_dir()
