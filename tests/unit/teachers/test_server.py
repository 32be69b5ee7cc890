"""ServerTeacher over a real socket: the local teacher's answers, whatever happens, or an error that says what did."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import env, make_tokenizer
from tests.support_servers import (
    FakeServer,
    Listening,
    Reply,
    as_json,
    assert_same,
    free_port,
    make_samples,
    named_for,
    proxy,
)

from limbeck.errors import ConfigError, TeacherError
from limbeck.models import load_model, load_tokenizer, valid_ids
from limbeck.signal import Ask, Sample, TopK
from limbeck.teachers import LocalTeacher, vllm, wire
from limbeck.teachers.connection import Connection, _retry_after, base_url
from limbeck.teachers.discovery import ServerInfo, check_server, discover
from limbeck.teachers.server import ServerTeacher

TOPK = Ask("topk", 8)


@pytest.fixture(scope="module")
def teacher(tiny: Path) -> tuple[Any, Any]:
    path = str(tiny / "teacher")
    return load_model(path, dtype="float32", trainable=False), load_tokenizer(path)


@pytest.fixture
def fake(teacher: tuple[Any, Any], tmp_path: Path, request: pytest.FixtureRequest) -> FakeServer:
    return FakeServer(*teacher, kind=getattr(request, "param", "limbeck"), folder=tmp_path)


@pytest.fixture
def server(fake: FakeServer) -> Iterator[Listening]:
    with Listening(fake.respond) as listening:
        yield listening


@pytest.fixture
def samples(teacher: tuple[Any, Any]) -> list[Sample]:
    return make_samples(teacher[1], 12)


BOTH = pytest.mark.parametrize("fake", ["limbeck", "vllm"], indirect=True)


def local(teacher: tuple[Any, Any], ask: Ask) -> LocalTeacher:
    return LocalTeacher(teacher[0], name="local", ask=ask, valid=valid_ids(teacher[1]), pad_id=0)


def remote(url: str, ask: Ask = TOPK, **more: Any) -> ServerTeacher:
    said: list[str] = []
    info = discover(url, patience=5, say=said.append)
    made = ServerTeacher(info, ask, 320, **{"patience": 20.0, "timeout": 10.0, "say": said.append} | more)
    made.said = said  # type: ignore[attr-defined]
    MADE.append(made)
    return made


MADE: list[ServerTeacher] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


# The same numbers as the local teacher's


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(
    ("ask", "k"),
    [
        (Ask("hidden"), 0),
        (TOPK, 0),
        (Ask("topk", 320), 0),
        (Ask("topk", 8, 1.7), 0),
        (Ask("named", 0, 1.0, 1), 1),
        (Ask("named", 0, 0.6, 5), 5),
        (Ask("union", 4, 1.0, 4), 4),
    ],
)
def test_own_server_says_what_the_local_teacher_says(
    teacher: tuple[Any, Any], server: Listening, samples: list[Sample], ask: Ask, k: int, bits: int
) -> None:
    named = named_for(samples, k) if k else None
    batches = [samples[:5], samples[5:6], samples[6:]]
    nested = [named[:5], named[5:6], named[6:]] if named else None
    made = remote(server.url, ask, bits=bits)
    got, want = made.score(batches, nested), local(teacher, ask).score(batches, nested)
    for a, b in zip(got, want, strict=True):
        assert_same(a, b, 1e-5 if bits == 32 or ask.kind == "hidden" else 2e-3)
    counts = made.counts()
    assert counts["teacher/retries"] == counts["teacher/refused"] == 0
    assert counts["teacher/requests"] == 3 + (ask.kind == "hidden")
    assert min(counts["teacher/bytes_received"], counts["teacher/bytes_sent"]) > 1000
    assert made.counts()["teacher/requests"] == 0


@pytest.mark.parametrize("fake", ["vllm"], indirect=True)
@pytest.mark.parametrize(("ask", "k"), [(TOPK, 0), (Ask("topk", 64), 0), (Ask("named", 0, 1.0, 1), 1)])
def test_stock_server_says_what_the_local_teacher_says(
    teacher: tuple[Any, Any], server: Listening, samples: list[Sample], ask: Ask, k: int
) -> None:
    """The fake server's head is wider than the tokenizer in truth too: it answers over the valid ids, as ours do."""
    named = [named_for(samples, k)] if k else None
    (got,), (want,) = remote(server.url, ask).score([samples], named), local(teacher, ask).score([samples], named)
    assert_same(got, want)
    assert all(isinstance(s, TopK) and s.log_tail is None for s in got)


@pytest.mark.parametrize("fake", ["vllm"], indirect=True)
def test_stock_server_at_another_temperature_is_rescaled_over_the_k(
    teacher: tuple[Any, Any], server: Listening, samples: list[Sample]
) -> None:
    ask = Ask("topk", 8, 2.0)
    (got,), (want,) = remote(server.url, ask).score([samples]), local(teacher, ask).score([samples])
    for a, b in zip(got, want, strict=True):
        assert isinstance(a, TopK) and isinstance(b, TopK) and a.ids.equal(b.ids)
        assert torch.allclose(a.logprobs, b.logprobs.log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("fake", ["vllm"], indirect=True)
def test_ids_beyond_the_tokenizer_are_absent(teacher: tuple[Any, Any], fake: FakeServer, samples: list[Sample]) -> None:
    """A stock server takes its likeliest ids from the whole width of its head."""
    fake.valid = 325
    with Listening(fake.respond) as server:
        (got,) = remote(server.url, Ask("topk", 64)).score([samples])
    absent = 0
    for signal in got:
        assert isinstance(signal, TopK) and (signal.ids < 320).all()
        gone = signal.logprobs.isneginf()
        absent += int(gone.sum())
        assert (signal.ids[gone] == 0).all()
    assert absent > 0


# Faults on the way


@BOTH
@pytest.mark.parametrize("fault", ["cut", "close", "truncate", "empty", "html", "500", "502", "429", "drip", "delay"])
def test_a_spoilt_answer_costs_time_and_nothing_else(
    teacher: tuple[Any, Any],
    fake: FakeServer,
    server: Listening,
    samples: list[Sample],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("limbeck.teachers.connection.FIRST_WAIT", 0.02)
    path = "/v1/score" if fake.kind == "limbeck" else "/v1/completions"
    timeout = 0.4 if fault in ("drip", "delay") else 10.0
    if fault == "delay":
        slow = iter([True, False] * 3)
        fake.before = lambda _: time.sleep(0.9) if next(slow, False) else None
    faults = [None] if fault == "delay" else [fault, None, fault, fault, None, fault, None]
    with proxy(server.url, faults, path=path) as between:
        made = remote(between.url, concurrency=2, timeout=timeout)
        (got,) = made.score([samples])
    assert_same(got, local(teacher, TOPK).score([samples])[0])
    counts = made.counts()
    assert counts["teacher/retries"] >= 3 and counts["teacher/refused"] == 0


def test_a_flipped_bit_on_the_own_wire_is_found(
    teacher: tuple[Any, Any], server: Listening, samples: list[Sample]
) -> None:
    with proxy(server.url, ["flip"] * 6 + [None], path="/v1/score") as between:
        made = remote(between.url)
        (got,) = made.score([samples])
    assert_same(got, local(teacher, TOPK).score([samples])[0])
    assert made.counts()["teacher/retries"] >= 3


@pytest.mark.parametrize("fake", ["vllm"], indirect=True)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"logprob": -', b'"logprob": '),
        (b'"logprob": -', b'"logprob": NaN, "was": -'),
        (
            b"{",
            b"[",
        ),
        (b": ", b"= "),
    ],
)
def test_numbers_that_cannot_be_are_asked_for_again(
    teacher: tuple[Any, Any], fake: FakeServer, samples: list[Sample], old: bytes, new: bytes
) -> None:
    spoilt = iter([True, True])

    def respond(method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        reply = fake.respond(method, path, headers, body)
        broken = path == "/v1/completions" and next(spoilt, False)
        return replace(reply, body=reply.body.replace(old, new)) if broken else reply

    with Listening(respond) as listening:
        made = remote(listening.url)
        (got,) = made.score([samples])
    assert_same(got, local(teacher, TOPK).score([samples])[0])
    assert made.counts()["teacher/retries"] == 2


def test_masses_of_the_own_server_that_cannot_be_are_asked_for_again(
    teacher: tuple[Any, Any], fake: FakeServer, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest that fits does not make sense of numbers that make none."""
    real, spoilt = wire.encode_answer, iter([True, True])

    def encode(answer: wire.Answer, bits: int = 32) -> bytes:
        if next(spoilt, False):
            signals = [s if s is None else TopK(s.logprobs / 4, s.ids, s.log_tail) for s in answer.signals]  # type: ignore[union-attr]
            answer = replace(answer, signals=signals)
        return real(answer, bits)

    monkeypatch.setattr(wire, "encode_answer", encode)
    with Listening(fake.respond) as listening:
        made = remote(listening.url)
        (got,) = made.score([samples])
    assert_same(got, local(teacher, TOPK).score([samples])[0])
    assert made.counts()["teacher/retries"] == 2


@BOTH
def test_a_server_that_is_killed_and_started_again(
    teacher: tuple[Any, Any], fake: FakeServer, server: Listening, samples: list[Sample]
) -> None:
    calls = iter(range(1000))

    def before(_: Sequence[Sequence[int]]) -> None:
        if next(calls) == 4:
            threading.Thread(target=restart).start()
        time.sleep(0.05)

    def restart() -> None:
        server.kill()
        time.sleep(1.0)
        server.start()

    fake.before = before
    made = remote(server.url, seqs_per_request=1, concurrency=3)
    (got,) = made.score([samples])
    assert_same(got, local(teacher, TOPK).score([samples])[0])
    assert made.counts()["teacher/retries"] >= 1
    assert any("does not answer" in line for line in made.said) and any("answers again" in line for line in made.said)  # type: ignore[attr-defined]


@BOTH
def test_a_server_that_stays_away_ends_it_in_time(server: Listening, samples: list[Sample]) -> None:
    made = remote(server.url, patience=1.0)
    made.expect(samples[:4])
    server.kill()
    began = time.monotonic()
    with pytest.raises(
        TeacherError, match=r"did not answer for 1 s\n  where: http://127.*\n  fix: .*--teacher_patience"
    ):
        for _ in range(2):  # the answers of `expect` may have come in time
            made.score([samples])
    assert time.monotonic() - began < 15
    server.start()
    assert len(made.score([samples])[0]) == len(samples)  # the teacher can be asked again


def test_a_server_that_takes_connections_and_says_nothing(samples: list[Sample], server: Listening) -> None:
    info = discover(server.url)
    with Listening(lambda *_: time.sleep(30) or Reply()) as deaf:
        made = ServerTeacher(replace(info, url=deaf.url), TOPK, 320, timeout=0.3, patience=1.0, say=lambda _: None)
        with pytest.raises(TeacherError, match="no whole answer within"):
            made.score([samples[:2]])


def test_a_request_that_takes_long_gets_more_time(
    teacher: tuple[Any, Any], fake: FakeServer, server: Listening, samples: list[Sample]
) -> None:
    fake.before = lambda _: time.sleep(0.7)
    made = remote(server.url, timeout=0.2, patience=60)
    (got,) = made.score([samples[:2]])
    assert_same(got, local(teacher, TOPK).score([samples[:2]])[0])


def test_patience_counts_from_the_last_success_of_any_request(
    teacher: tuple[Any, Any], fake: FakeServer, server: Listening, samples: list[Sample]
) -> None:
    """One row is turned away for longer than that, while others are answered."""
    first, began = samples[0].tokens.prompt_ids + samples[0].tokens.response_ids, time.monotonic()

    def before(sequences: Sequence[Sequence[int]]) -> Reply | None:
        if first not in map(tuple, sequences):
            time.sleep(0.4)
        return Reply(502) if first in map(tuple, sequences) and time.monotonic() < began + 3 else None

    fake.before = before
    made = remote(server.url, patience=1.5, seqs_per_request=1, concurrency=2)
    (got,) = made.score([samples])
    assert_same(got, local(teacher, TOPK).score([samples])[0])


# Rows that are mixed up, refused, or expected


@pytest.mark.parametrize(
    ("entries", "echo", "says"),
    [
        ([None, {"6": {"logprob": -1.0}}, {"7": {"logprob": -1.0}}], None, "position 2: sent 9, came 7"),
        ([None, {"6": {"logprob": -1.0}}, {"9": {"logprob": -1.0}}], [5, 6, 8], "position 2: sent 9, came 8"),
        ([None, {"6": {"logprob": -1.0}}, {"9": {"logprob": -1.0}}], [4, 6, 9], "position 0: sent 5, came 4"),
        ([None, {"6": {"logprob": -1.0}}], None, "position 2: sent 3 ids, came 2"),
    ],
)
def test_either_echo_of_a_stock_server_is_looked_at(entries: list[Any], echo: Any, says: str) -> None:
    """Older servers do not send prompt_token_ids back, and the ids of the entries say nothing of the first token."""
    choice = {"index": 0, "prompt_logprobs": entries, "prompt_token_ids": echo}
    body = json.dumps({"choices": [choice]}).encode()
    with pytest.raises(vllm.Mismatch, match=says):
        vllm.decode(body, [[5, 6, 9]], [[1]], Ask("named", 0, 1.0, 1), valid=320)


@pytest.mark.parametrize(
    ("fake", "how"),
    [(kind, how) for kind in ("limbeck", "vllm") for how in ("swapped", "an id", "one more")] + [("vllm", "one less")],
    indirect=["fake"],
)
def test_answers_to_other_tokens_stop_the_run(
    fake: FakeServer, server: Listening, samples: list[Sample], how: str
) -> None:
    changes: dict[str, Callable[[list[int]], list[int]]] = {
        "an id": lambda ids: [*ids[:-1], (ids[-1] + 1) % 320],
        "one more": lambda ids: [0, *ids],
        "one less": lambda ids: ids[1:] if len(ids) > 2 else ids,
    }
    samples = [s for s in samples if s.tokens.response_mask[-1] and s.n_active > 2]
    if how == "swapped":
        samples = sorted(samples, key=lambda s: len(s.tokens.prompt_ids + s.tokens.response_ids))
        one = samples[0]
        ids = one.tokens.response_ids
        samples = [one, replace(one, tokens=replace(one.tokens, response_ids=ids[::-1]), example=samples[1].example)]
        fake.spoil = lambda sequences: sequences[::-1]
    else:
        fake.spoil = lambda sequences: [*sequences[:-1], changes[how](list(sequences[-1]))]
    with pytest.raises(TeacherError, match="other tokens than it was sent") as caught:
        remote(server.url).score([samples])
    where = caught.value.where
    assert "rows.jsonl:" in where and "position" in where and "sent" in where and "came" in where


@BOTH
def test_a_refused_row_is_left_out_and_the_others_are_not(
    teacher: tuple[Any, Any], fake: FakeServer, server: Listening, samples: list[Sample]
) -> None:
    """One row of a request of four makes the server refuse all four; the client finds it by halves."""
    bad = {s.tokens.prompt_ids + s.tokens.response_ids for s in (samples[2], samples[9])}

    def before(sequences: Sequence[Sequence[int]]) -> Reply | None:
        hit = [i for i, ids in enumerate(sequences) if tuple(ids) in bad]
        return as_json({"error": {"message": f"prompt {hit[0]} is not to my taste"}}, 400) if hit else None

    fake.before = before
    made = remote(server.url)
    (got,) = made.score([samples])
    assert [i for i, s in enumerate(got) if s is None] == [2, 9]
    rest = [i for i in range(len(samples)) if i not in (2, 9)]
    assert_same([got[i] for i in rest], local(teacher, TOPK).score([[samples[i] for i in rest]])[0])
    assert made.counts()["teacher/refused"] == 2
    assert [line for line in made.said if "refuse" in line] == [  # type: ignore[attr-defined]
        f"warning: the teacher server {server.url} refuses rows.jsonl:3: prompt 0 is not to my taste "
        "(such rows are counted and left out; this is said once)"
    ]


@BOTH
def test_rows_too_long_for_the_server_are_refused(
    teacher: tuple[Any, Any], fake: FakeServer, server: Listening, samples: list[Sample]
) -> None:
    long = make_samples(teacher[1], 1, seed=5)[0]
    fill = tuple([7] * (128 - len(long.tokens.prompt_ids)))
    long = replace(long, tokens=replace(long.tokens, response_ids=fill, response_mask=(True,) * len(fill)))
    made = remote(server.url)  # 128 tokens; vLLM must make one more, and the fake own server refuses 101
    (got,) = made.score([[*samples, long]])
    assert got[-1] is None and None not in got[:-1]
    assert any("long" in line and long.example.origin in line for line in made.said)  # type: ignore[attr-defined]


@BOTH
def test_all_rows_refused_is_said_loudly(fake: FakeServer, server: Listening, samples: list[Sample]) -> None:
    fake.before = lambda _: as_json({"detail": "not today"}, 400)
    made = remote(server.url)
    assert made.score([samples[:3], samples[3:]]) == [[None] * 3, [None] * 9]
    assert made.said[-1] == (  # type: ignore[attr-defined]
        f"warning: the teacher server {server.url} refused all 12 rows of a batch, which teach nothing then: not today"
    )


def test_a_row_that_breaks_the_server_each_time_counts_as_refused(
    fake: FakeServer, server: Listening, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.teachers.connection.LONGEST_WAIT", 0.05)
    bad = samples[1].tokens.prompt_ids + samples[1].tokens.response_ids
    fake.before = lambda sequences: (
        as_json({"detail": "boom"}, 500) if bad in map(tuple, sequences) else time.sleep(0.05)
    )
    made = remote(server.url, seqs_per_request=1, concurrency=2)
    (got,) = made.score([samples])
    assert [i for i, s in enumerate(got) if s is None] == [1]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_concerns_all_rows_ends_it_at_once(
    fake: FakeServer, server: Listening, samples: list[Sample], status: int
) -> None:
    made = remote(server.url)
    fake.before = lambda _: as_json({"error": {"message": "go away"}}, status)
    with pytest.raises(TeacherError, match=f"HTTP {status}.*: go away"):
        made.score([samples])
    assert made.counts()["teacher/requests"] <= 3


def test_another_teacher_behind_the_address(
    tiny: Path, fake: FakeServer, server: Listening, samples: list[Sample]
) -> None:
    made = remote(server.url)
    fake.model = load_model(str(tiny / "student"), dtype="float32", trainable=False)
    with pytest.raises(TeacherError, match="holds another teacher"):
        made.score([samples])


@BOTH
def test_expected_samples_are_asked_at_once_and_once(
    teacher: tuple[Any, Any], fake: FakeServer, server: Listening, samples: list[Sample]
) -> None:
    made = remote(server.url)
    made.expect(samples[:6])
    made.expect(samples[4:9])  # two of them again
    deadline = time.monotonic() + 10
    while sum(map(len, fake.asked)) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sum(map(len, fake.asked)) == 9  # before anybody asked for an answer
    batches = [samples[8:], samples[:4], [*samples[4:8], samples[0]]]  # another order, three new ones, one twice
    for a, b in zip(made.score(batches), local(teacher, TOPK).score(batches), strict=True):
        assert_same(a, b)
    assert sum(map(len, fake.asked)) == 12
    assert not made._asked
    made.score([samples[:1]])
    assert sum(map(len, fake.asked)) == 13  # what was collected is forgotten


def test_expected_samples_with_named_ids(
    teacher: tuple[Any, Any], fake: FakeServer, server: Listening, samples: list[Sample]
) -> None:
    ask = Ask("named", 0, 1.0, 1)
    made, tokens = remote(server.url, ask), named_for(samples, 1)
    made.expect(samples)
    assert_same(made.score([samples], [tokens])[0], local(teacher, ask).score([samples], [tokens])[0])
    assert sum(map(len, fake.asked)) == 12
    others = [(t + 1) % 320 for t in tokens]  # not the tokens themselves: the guess is given up
    made.expect(samples)
    assert_same(made.score([samples], [others])[0], local(teacher, ask).score([samples], [others])[0])
    made.expect(samples)
    assert not made._asked


@BOTH
def test_ten_askers_at_once(teacher: tuple[Any, Any], server: Listening) -> None:
    sets = [make_samples(teacher[1], 6, seed=seed) for seed in range(10)]
    reference = local(teacher, TOPK)
    wanted = [reference.score([s])[0] for s in sets]
    made = remote(server.url)
    with ThreadPoolExecutor(10) as pool:
        for got, want in zip(pool.map(lambda s: made.score([s])[0], sets), wanted, strict=True):
            assert_same(got, want)


def test_close_ends_what_is_under_way(fake: FakeServer, server: Listening, samples: list[Sample]) -> None:
    made = remote(server.url)
    server.kill()
    made.expect(samples)  # and would be asked for again for 20 seconds
    time.sleep(0.5)
    made.close()
    began = time.monotonic()
    for thread in made._threads._threads:
        thread.join(20)
    assert time.monotonic() - began < 10


def test_a_process_ends_although_a_server_is_waited_for(tiny: Path) -> None:
    """An interrupt, or a fault of the student, must not wait for the teacher's patience."""
    program = (
        "import sys, time\n"
        "from limbeck.models import load_tokenizer\n"
        "from limbeck.signal import Ask\n"
        "from limbeck.teachers.server import ServerInfo, ServerTeacher\n"
        "from tests.support_servers import make_samples\n"
        "info = ServerInfo(sys.argv[1], 'limbeck', 'm', 'i')\n"
        "teacher = ServerTeacher(info, Ask('topk', 8), 320)\n"
        "teacher.expect(make_samples(load_tokenizer(sys.argv[2]), 40))\n"
        "time.sleep(2)\n"
        "raise SystemExit(7)\n"
    )
    asked, end = threading.Event(), threading.Event()
    with Listening(lambda *_: asked.set() or end.wait(300) or Reply()) as deaf:  # type: ignore[func-returns-value]
        done = subprocess.run([sys.executable, "-c", program, deaf.url, str(tiny / "teacher")], timeout=120, env=env())
        end.set()
    assert done.returncode == 7 and asked.is_set()


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), ("", 0, 0), ("soon", 0, 0), ("-3", 0, 0), ("DATE", 490, 501)],
)
def test_retry_after(value: str, low: float, high: float) -> None:
    value = formatdate(time.time() + 500, usegmt=True) if value == "DATE" else value
    assert low <= _retry_after(value) <= high


def test_the_server_says_when_to_come_again(
    fake: FakeServer, server: Listening, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, waits = iter([True]), list[float]()
    fake.before = lambda _: Reply(503, b"", {"Retry-After": "3"}) if next(busy, False) else None
    made = remote(server.url)
    monkeypatch.setattr(made._connection._stop, "wait", waits.append)
    assert None not in made.score([samples])[0]
    assert waits == [3.0]


# Which server, and can it teach?


@BOTH
@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_discover(teacher: tuple[Any, Any], fake: FakeServer, server: Listening, tail: str) -> None:
    info = discover(server.url + tail)
    assert (info.url, info.kind, info.model, info.max_model_len) == (server.url, fake.kind, "teacher", 128)
    if fake.kind == "vllm":
        assert info.identity == "vllm:teacher" and info.max_logprobs is None and not info.hidden
    else:
        assert info.identity == local(teacher, TOPK).identity
        assert (info.valid, info.max_logprobs, info.hidden, info.end_ids) == (320, 64, True, frozenset({2}))


def test_discover_waits_for_a_server_that_is_starting(fake: FakeServer) -> None:
    listening = Listening(fake.respond)
    listening.kill()
    said: list[str] = []
    threading.Timer(1.0, listening.start).start()
    assert discover(listening.url, patience=30, say=said.append).kind == "limbeck"
    assert "does not answer" in said[0] and "answers again" in said[1]
    listening.kill()


def test_discover_gives_up() -> None:
    with pytest.raises(TeacherError, match="did not answer for"):
        discover(f"127.0.0.1:{free_port()}", patience=0.5, say=lambda _: None)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{}", b'{"data": []}', b'{"data": [7]}', b"[]"])
def test_discover_something_else(body: bytes) -> None:
    with (
        Listening(lambda *_: Reply(200, body)) as other,
        pytest.raises(ConfigError, match="no teacher server answers at this address"),
    ):
        discover(other.url)


@pytest.mark.parametrize("status", [301, 400, 404, 405])
def test_discover_a_server_without_models(status: int) -> None:
    with (
        Listening(lambda *_: Reply(status, b"no", {"Location": "http://elsewhere"})) as other,
        pytest.raises(ConfigError, match="no teacher server answers"),
    ):
        discover(other.url)


def test_keys(fake: FakeServer, server: Listening, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    fake.key = "s3cret"
    for wrong in (None, "other-key"):
        with pytest.raises(ConfigError, match="does not let this run in") as caught:
            discover(server.url, key=wrong)
        assert "LIMBECK_TEACHER_API_KEY" in caught.value.fix and "other-key" not in str(caught.value)
    info = discover(server.url, key="s3cret")
    monkeypatch.setenv("LIMBECK_TEACHER_API_KEY", "s3cret\n")
    assert discover(server.url) == info
    made = ServerTeacher(info, TOPK, 320)
    assert None not in made.score([samples])[0]
    for thing in (info, made, made._connection, made._connection._client, vars(made), vars(made._connection)):
        assert "s3cret" not in repr(thing)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "no address"),
        ("ftp://host", "no address"),
        ("http://user:pass@host:1", "more than a host"),
        ("http://host:1/?key=pass", "more than a host"),
        ("http://host:port", "no address"),
    ],
)
def test_addresses_that_are_none(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        base_url(url)
    assert "pass" not in str(caught.value)


def test_no_proxy_for_this_machine(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert discover(server.url, patience=0.5).kind == "limbeck"
    for name in ("http://localhost:1", "http://[::1]:1", "127.0.0.1:1"):
        assert not Connection(name)._client.trust_env
    assert Connection("http://teacher.example:1")._client.trust_env


def info_of(server: Listening, **change: Any) -> ServerInfo:
    return replace(discover(server.url), **change)


@pytest.mark.parametrize(
    ("ask", "change", "says"),
    [
        (Ask("topk", 65), {}, r"at most 64 log-probabilities a token, and 65 (.|\n)*--max_logprobs 65"),
        (Ask("named", 0, 1.0, 65), {}, "at most 64"),
        (Ask("hidden"), {"hidden": False}, r"hidden states(.|\n)*--allow_hidden"),
        (TOPK, {"valid": 321}, "321 ids there, 320 here"),
        (TOPK, {"tokenizer": "other"}, "the same number of ids, other ids"),
    ],
)
def test_what_an_own_server_cannot_do(
    teacher: tuple[Any, Any], server: Listening, ask: Ask, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check_server(info_of(server, **change), ask, teacher[1])


@pytest.mark.parametrize("ask", [Ask("topk", 64), Ask("topk", 8, 2.0), Ask("hidden"), Ask("union", 4, 1.0, 60)])
def test_what_an_own_server_can_do(teacher: tuple[Any, Any], server: Listening, ask: Ask) -> None:
    assert check_server(discover(server.url), ask, teacher[1]) == []


@pytest.mark.parametrize("fake", ["vllm"], indirect=True)
@pytest.mark.parametrize(
    ("ask", "mode", "says"),
    [
        (Ask("topk", 65), "tail", r"at most 64 log-probabilities a token, and 65 (.|\n)*--max-logprobs 65"),
        (Ask("hidden"), "tail", r"not the full vocabulary(.|\n)*--gkd_logits_topk 64"),
        (Ask("named", 0, 1.0, 4), "tail", "ids that the student names"),
        (Ask("union", 4, 1.0, 4), "tail", "ids that the student names"),
        (Ask("topk", 8, 2.0), "tail", r"temperature 1 only(.|\n)*--topk_mode renorm"),
        (Ask("sampled", temperature=2.0), "renorm", "temperature 1 only"),
    ],
)
def test_what_a_stock_server_cannot_do(
    teacher: tuple[Any, Any], server: Listening, ask: Ask, mode: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check_server(discover(server.url), ask, teacher[1], topk_mode=mode)


@pytest.mark.parametrize("fake", ["vllm"], indirect=True)
@pytest.mark.parametrize(
    ("ask", "mode"), [(Ask("topk", 64), "tail"), (Ask("topk", 8, 2.0), "renorm"), (Ask("sampled"), "tail")]
)
def test_what_a_stock_server_can_do(teacher: tuple[Any, Any], server: Listening, ask: Ask, mode: Any) -> None:
    notes = check_server(discover(server.url), ask, teacher[1], topk_mode=mode)
    assert all("stock server" in note for note in notes) and len(notes) == (ask.kind == "topk" and mode == "tail")


@pytest.mark.parametrize("fake", ["vllm"], indirect=True)
def test_a_stock_server_with_another_tokenizer(
    teacher: tuple[Any, Any], fake: FakeServer, server: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.tokenizer = make_tokenizer(300)
    with pytest.raises(ConfigError, match=r"tokenizer is not the student's\n.*gives \[.*\] there, \[.*\] here"):
        check_server(discover(server.url), TOPK, teacher[1])
    monkeypatch.setattr(fake, "tokenize", lambda _: as_json({"detail": "Not Found"}, 404))
    assert "does not say how it tokenises" in check_server(discover(server.url), TOPK, teacher[1])[0]


@pytest.mark.parametrize("fake", ["vllm"], indirect=True)
def test_a_server_without_prompt_logprobs(teacher: tuple[Any, Any], fake: FakeServer, server: Listening) -> None:
    fake.before = lambda sequences: as_json({"choices": [{"index": 0, "text": "hello"}]})
    with pytest.raises(ConfigError, match="does not answer as vLLM does"):
        check_server(discover(server.url), TOPK, teacher[1])
