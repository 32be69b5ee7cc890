"""Teacher servers in a thread, to be killed and started again, and a proxy that spoils what goes through it."""

from __future__ import annotations

import json
import random
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import torch

from limbeck.data.collate import collate
from limbeck.data.formats import Example
from limbeck.data.render import Rendered
from limbeck.losses import Head
from limbeck.models import fingerprint, hidden_states, model_head, tokenizer_fingerprint, valid_ids
from limbeck.serve.served import write_head
from limbeck.signal import Hidden, Sample, Signal, TopK, signal_of
from limbeck.teachers import wire
from tests.support import command, env


@dataclass(frozen=True)
class Reply:
    """how: `whole`; `cut` in the middle of the body; `close` before the first byte; `drip`, a byte now and then."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    how: str = "whole"


def as_json(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


Respond = Callable[[str, str, dict[str, str], bytes], Reply]


class Listening:
    """`respond(method, path, headers, body)` behind a socket on 127.0.0.1, in threads of this process.

    kill: no connection survives it. start: again, on the same port.
    """

    def __init__(self, respond: Respond) -> None:
        self.respond, self.port = respond, 0
        self.start()

    def start(self) -> None:
        respond, connections = self.respond, set[socket.socket]()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                connections.add(self.connection)

            def handle(self) -> None:
                with suppress(OSError):  # the client is gone, or we were killed
                    super().handle()

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                reply = respond(self.command, self.path, dict(self.headers), body)
                if reply.how == "close":
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                if reply.how == "cut":
                    self.wfile.write(reply.body[: len(reply.body) // 2])
                    self.close_connection = True
                elif reply.how == "drip":
                    for byte in reply.body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.05)
                else:
                    self.wfile.write(reply.body)

            do_GET = do_POST = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server, self._connections = Server(("127.0.0.1", self.port), Handler), connections
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()


Fault = Callable[[Reply, int], Reply]


def flip(reply: Reply, number: int) -> Reply:
    """One bit of the body, another one every time."""
    body = bytearray(reply.body)
    if body:
        body[random.Random(number).randrange(len(body))] ^= 1 << (number % 8)
    return replace(reply, body=bytes(body))


FAULTS: dict[str, Fault] = {
    "cut": lambda reply, _: replace(reply, how="cut"),
    "close": lambda reply, _: replace(reply, how="close"),
    "drip": lambda reply, _: replace(reply, how="drip"),
    "truncate": lambda reply, _: replace(reply, body=reply.body[: len(reply.body) // 2]),
    "empty": lambda reply, _: replace(reply, body=b""),
    "html": lambda reply, _: Reply(200, b"<html>please wait</html>", {"Content-Type": "text/html"}),
    "flip": flip,
    "500": lambda reply, _: as_json({"error": {"message": "out of luck"}}, 500),
    "502": lambda reply, _: Reply(502, b"<html>bad gateway</html>"),
    "429": lambda reply, _: replace(as_json({"detail": "slow down"}, 429), headers={"Retry-After": "0"}),
}


def proxy(target: str, faults: Sequence[str | None], *, path: str = "/v1/") -> Listening:
    """Hands requests on to `target`, and spoils the answers in turn by `faults` (None: not), the last one for ever.
    Only paths that begin with `path` are spoilt."""
    client, number, lock = httpx.Client(trust_env=False, timeout=60), iter(range(1 << 30)), threading.Lock()

    def respond(method: str, at: str, headers: dict[str, str], body: bytes) -> Reply:
        kept = {k: v for k, v in headers.items() if k in ("Content-Type", "Authorization")}
        answer = client.request(method, target + at, content=body, headers=kept)
        reply = Reply(answer.status_code, answer.content, {"Content-Type": answer.headers.get("Content-Type", "")})
        if not at.startswith(path):
            return reply
        with lock:
            i = next(number)
        fault = faults[min(i, len(faults) - 1)]
        return reply if fault is None else FAULTS[fault](reply, i)

    return Listening(respond)


@dataclass
class FakeServer:
    """A teacher that answers as a stock vLLM server does, or as Limbeck's own; `respond` goes into `Listening`.

    before: called with each scoring question; a Reply instead of None is sent instead of the answer.
    spoil: changes the sequences that are scored and echoed, which is how answers get mixed up.
    """

    model: Any
    tokenizer: Any
    kind: str = "vllm"
    max_logprobs: int = 64
    max_model_len: int = 128
    key: str | None = None
    folder: Any = None
    before: Callable[[Sequence[Sequence[int]]], Reply | None] = lambda sequences: None
    spoil: Callable[[Sequence[Sequence[int]]], Sequence[Sequence[int]]] = lambda sequences: sequences
    asked: list[Sequence[Sequence[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.valid, self.lock = valid_ids(self.tokenizer), threading.Lock()
        self.head, self.head_file = "", None
        if self.folder is not None:
            self.head, self.head_file = write_head(self.model, self.valid, self.folder)

    def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        if self.key is not None and headers.get("Authorization") != f"Bearer {self.key}" and path.startswith("/v1/"):
            return as_json({"error": {"message": "Unauthorized"}}, 401)
        places: dict[str, Callable[[bytes], Reply]] = {
            "/v1/models": lambda _: as_json({"object": "list", "data": [self.card()]}),
            "/v1/completions": self.completions,
            "/tokenize": self.tokenize,
        }
        if self.kind == "limbeck":
            places["/v1/score"] = self.score
        if file := self.head_file:
            places["/v1/head"] = lambda _: Reply(200, file.read_bytes())
        return places.get(path, lambda _: as_json({"detail": "Not Found"}, 404))(body)

    def tokenize(self, body: bytes) -> Reply:
        text = json.loads(body)["prompt"]
        return as_json({"tokens": self.tokenizer.encode(text, add_special_tokens=False)})

    def card(self) -> dict[str, Any]:
        card: dict[str, Any] = {"id": "teacher", "owned_by": "vllm", "max_model_len": self.max_model_len}
        if self.kind == "limbeck":
            card["limbeck"] = {
                "identity": fingerprint(self.model),
                "tokenizer": tokenizer_fingerprint(self.tokenizer),
                "valid": self.valid,
                "end_ids": [self.tokenizer.eos_token_id],
                "max_logprobs": self.max_logprobs,
                "hidden": self.head_file is not None,
                "wire": wire.MAGIC.decode(),
            }
        return card

    @torch.no_grad()
    def hidden(self, sequences: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Head]:
        rendered = [
            Rendered(tuple(ids[:1]), tuple(ids[1:]), tuple(t in set(at) for t in range(1, len(ids))))
            for ids, at in zip(sequences, places, strict=True)
        ]
        batch = collate(rendered, 0)
        with self.lock:
            hidden = hidden_states(self.model, batch.input_ids, (batch.rows, batch.cols))
        return hidden, model_head(self.model, self.valid)

    def score(self, body: bytes) -> Reply:
        question = wire.decode_question(body, valid=self.valid)
        self.asked.append(question.sequences)
        if (reply := self.before(question.sequences)) is not None:
            return reply
        sequences = self.spoil(question.sequences)
        refused = {i: f"{len(ids)} tokens are too long" for i, ids in enumerate(sequences) if len(ids) > 100}
        counts = [len(at) for at in question.places]
        hidden, head = self.hidden(sequences, question.places)
        signals: list[Any] = []
        for i, part in enumerate(hidden.split(counts)):
            found = signal_of(question.ask, part, head, question.named[i] if question.named is not None else None)
            signals.append(None if i in refused else found if isinstance(found, TopK) else part)
        echo = [
            None if i in refused else torch.tensor([ids[t] for t in at], dtype=torch.long)
            for i, (ids, at) in enumerate(zip(sequences, question.places, strict=True))
        ]
        answer = wire.Answer(question.ask.kind, fingerprint(self.model), signals, echo, self.head, refused)
        return Reply(200, wire.encode_answer(answer, question.bits))

    def completions(self, body: bytes) -> Reply:
        question = json.loads(body)
        sequences, k = question["prompt"], question["prompt_logprobs"]
        self.asked.append(sequences)
        if k > self.max_logprobs:
            said = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.max_logprobs}"
            return as_json({"error": {"message": said, "code": 400}}, 400)
        if (reply := self.before(sequences)) is not None:
            return reply
        sequences = self.spoil(sequences)
        hidden, head = self.hidden(sequences, [range(1, len(ids)) for ids in sequences])
        parts = hidden.split([len(ids) - 1 for ids in sequences])
        choices = []
        for i, (ids, part) in enumerate(zip(sequences, parts, strict=True)):
            entries: list[Any] = [None]
            for t, logp in enumerate(head.logits(part).log_softmax(-1), start=1):
                top = logp.topk(k).indices.tolist() if k else []
                known = {n: rank for rank, n in enumerate(top, start=1)} | ({} if ids[t] in top else {ids[t]: 999})
                entries.append({str(n): {"logprob": float(logp[n]), "rank": rank} for n, rank in known.items()})
            choices.append({"index": i, "prompt_logprobs": entries, "prompt_token_ids": ids})
        return as_json({"choices": choices[::-1]})


def named_for(samples: Sequence[Sample], k: int) -> list[torch.Tensor]:
    """k ids a token, some of them twice and some absent; k = 1: the tokens themselves."""
    torch.manual_seed(0)
    if k > 1:
        return [torch.randint(-1, 300, (s.n_active, k)) for s in samples]
    masks = [zip(s.tokens.response_ids, s.tokens.response_mask, strict=True) for s in samples]
    return [torch.tensor([i for i, on in pairs if on], dtype=torch.long).unsqueeze(-1) for pairs in masks]


def assert_same(got: Sequence[Signal | None], want: Sequence[Signal | None], tolerance: float = 1e-5) -> None:
    """The same ids, and log-probabilities and tails within the tolerance."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        if isinstance(b, Hidden):
            assert isinstance(a, Hidden)
            assert torch.allclose(a.head.logits(a.hidden), b.head.logits(b.hidden), atol=tolerance, rtol=0)
            continue
        assert isinstance(a, TopK) and isinstance(b, TopK)
        present = b.logprobs.isfinite()
        assert a.logprobs.isfinite().equal(present) and a.ids.equal(b.ids)
        assert torch.allclose(a.logprobs[present], b.logprobs[present], atol=tolerance, rtol=0)
        if a.log_tail is not None and b.log_tail is not None:
            assert torch.allclose(a.log_tail, b.log_tail, atol=tolerance, rtol=0)


def make_samples(tokenizer: Any, n: int, *, seed: int = 0, longest: int = 24) -> list[Sample]:
    """Random ids, a prompt of 1 to 9 and a response, some of its tokens not active."""
    rng, valid = random.Random(seed), valid_ids(tokenizer)
    found = []
    for i in range(n):
        prompt = tuple(rng.randrange(valid) for _ in range(rng.randint(1, 9)))
        response = tuple(rng.randrange(valid) for _ in range(rng.randint(1, longest)))
        mask = tuple(rng.random() < 0.8 for _ in response)
        found.append(Sample(Rendered(prompt, response, mask), "dataset", Example("", None, {}, f"rows.jsonl:{i + 1}")))
    return found


def chat_samples(tokenizer: Any, texts: Sequence[str]) -> list[Sample]:
    """Each text as a user's message and as the answer to it."""
    found = []
    for i, text in enumerate(texts):
        messages = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        answer = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        tokens = Rendered(tuple(prompt), tuple(answer), (True,) * len(answer))
        found.append(Sample(tokens, "dataset", Example(text, None, {}, f"texts:{i + 1}")))
    return found


@contextmanager
def deployed(
    model: Path, *flags: Any, port: int = 0, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`limbeck deploy` in a process of its own: its address, and the process."""
    argv = command("deploy", "--model", model, "--port", port, "--use_cpu", *flags)
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env() | environment
    )
    assert process.stdout is not None
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"serving on (\S+)", line):
                break
        else:
            raise AssertionError(f"limbeck deploy ended: {''.join(said)}")
        yield found[1], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
