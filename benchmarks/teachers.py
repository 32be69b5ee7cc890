"""Bytes and CPU seconds of a scored token on its way from a teacher, and of an epoch with and without the store.

    OMP_NUM_THREADS=1 python benchmarks/teachers.py --model SmolLM2-135M-Instruct --json result.json

The log-probabilities are the model's own, on English text from Python's help. JSON is what vLLM's `prompt_logprobs` are
(log-probability, rank and text of every id), of the response's positions only, though a server sends the prompt's too.
For a vocabulary larger than the model's the ids are thrown over it at random, which is the worst case for a compressor.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from limbeck.data.formats import Example
from limbeck.data.render import Rendered
from limbeck.models import load_model, load_tokenizer, tokenizer_fingerprint, valid_ids
from limbeck.signal import Ask, Sample, TopK
from limbeck.teachers import LocalTeacher, segments, vllm, wire
from limbeck.teachers.store import StoredTeacher, survey

BARS = {"wire, 16 bits": 1 / 15, "wire, 32 bits": 1 / 9}  # of the JSON's bytes, at most
STORE_BAR = 300  # bytes a token, at most


@dataclass
class Line:
    """A form of the signal: bytes and CPU microseconds of one token."""

    vocabulary: int
    form: str
    bytes: float
    encode_us: float
    decode_us: float
    share_of_json: float = 1.0


@dataclass
class Batch:
    """One answer: sequences, their active places, what the teacher says, and the text of every id."""

    sequences: list[list[int]]
    places: list[list[int]]
    signals: list[TopK]
    texts: dict[int, str]
    ask: Ask
    valid: int

    @property
    def counts(self) -> list[int]:
        return [len(places) for places in self.places]


def as_json(b: Batch) -> bytes:
    choices = []
    for i, (ids, signal) in enumerate(zip(b.sequences, b.signals, strict=True)):
        rows: list[Any] = [None]
        for sent, logprobs, tokens in zip(ids[1:], signal.logprobs.tolist(), signal.ids.tolist(), strict=True):
            row = {
                str(t): {"logprob": p, "rank": rank, "decoded_token": b.texts[t]}
                for rank, (p, t) in enumerate(zip(logprobs, tokens, strict=True), 1)
            }
            # the token itself always stands there; where it is not among the k, its own number is of no matter here
            row.setdefault(str(sent), {"logprob": logprobs[-1] - 1, "rank": 999, "decoded_token": b.texts[sent]})
            rows.append(row)
        choices.append({"index": i, "text": "", "prompt_logprobs": rows})
    return json.dumps({"choices": choices}, ensure_ascii=False, separators=(",", ":")).encode()


def from_json(b: Batch, body: bytes) -> list[TopK]:
    return vllm.decode(body, b.sequences, b.places, b.ask, valid=b.valid)


def as_wire(bits: int) -> Callable[[Batch], bytes]:
    def run(b: Batch) -> bytes:
        echo = [torch.tensor([ids[p] for p in at]) for ids, at in zip(b.sequences, b.places, strict=True)]
        return wire.encode_answer(wire.Answer("topk", "teacher", list(b.signals), list(echo)), bits)

    return run


def from_wire(b: Batch, body: bytes) -> list[TopK]:
    answer = wire.decode_answer(body, b.counts, valid=b.valid)
    return [s for s in answer.signals if isinstance(s, TopK)]


def as_records(b: Batch) -> bytes:
    return b"".join(segments.record(*segments.encode(bytes(16), b.ask, s)) for s in b.signals)


def from_records(b: Batch, body: bytes) -> list[TopK]:
    found, at = [], 0
    while at < len(body):
        header = segments.Header(*segments.HEADER.unpack_from(body, at))
        start = at + segments.SIZE
        at = start + header.length
        found.append(segments.decode(header, body[start:at], b.valid))
    return found


FORMS: dict[str, tuple[Callable[[Batch], bytes], Callable[[Batch, bytes], list[TopK]]]] = {
    "vLLM's JSON": (as_json, from_json),
    "wire, 32 bits": (as_wire(32), from_wire),
    "wire, 16 bits": (as_wire(16), from_wire),
    "store": (as_records, from_records),
}


def measure(batches: Sequence[Batch], repeat: int) -> list[Line]:
    """The best of `repeat` times. Raises AssertionError where an answer does not come back as it went."""
    lines: list[Line] = []
    tokens = sum(sum(b.counts) for b in batches)
    for form, (encode, decode) in FORMS.items():
        bodies = [encode(b) for b in batches]
        for b, body in zip(batches, bodies, strict=True):
            for sent, came in zip(b.signals, decode(b, body), strict=True):
                assert torch.equal(sent.ids.sort(-1).values, came.ids.sort(-1).values), form
                torch.testing.assert_close(sent.logprobs, came.logprobs, rtol=0, atol=1e-3)
        encode_s = best(lambda e=encode: [e(b) for b in batches], repeat)
        decode_s = best(lambda d=decode, all_=bodies: [d(b, x) for b, x in zip(batches, all_, strict=True)], repeat)
        size = sum(map(len, bodies)) / tokens
        line = Line(batches[0].valid, form, size, encode_s / tokens * 1e6, decode_s / tokens * 1e6)
        lines.append(line)
        line.share_of_json = line.bytes / lines[0].bytes
    return lines


def best(run: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def rows_of(tokenizer: Any, n: int, prompt: int, response: int) -> list[Sample]:
    text = "\n".join(pydoc_data.topics.topics.values())
    ids = tokenizer.encode(text, add_special_tokens=False)
    example = Example("", "", {}, "python help")
    size = prompt + response
    if len(ids) < n * size:
        raise SystemExit(f"the text has {len(ids)} tokens: lower --rows or --response")
    parts = [ids[i * size : (i + 1) * size] for i in range(n)]
    whole = (True,) * response
    return [Sample(Rendered(tuple(p[:prompt]), tuple(p[prompt:]), whole), "dataset", example) for p in parts]


def batch_of(rows: Sequence[Sample], signals: Sequence[TopK], tokenizer: Any, ask: Ask, vocabulary: int) -> Batch:
    """One token of prompt is kept: nothing predicts the first one."""
    spread = torch.arange(vocabulary)
    if vocabulary > valid_ids(tokenizer):
        spread = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))
    sequences = [[int(spread[i]) for i in (r.tokens.prompt_ids[-1], *r.tokens.response_ids)] for r in rows]
    moved = [replace(s, ids=spread[s.ids]) for s in signals]
    own = {i for s in signals for i in s.ids.unique().tolist()} | {i for r in rows for i in r.tokens.prompt_ids}
    own |= {i for r in rows for i in r.tokens.response_ids}
    texts = {int(spread[i]): tokenizer.decode([i]) for i in own}
    return Batch(sequences, [list(range(1, len(s))) for s in sequences], moved, texts, ask, vocabulary)


def epochs(teacher: LocalTeacher, batches: list[list[Sample]], fingerprint: str) -> dict[str, float]:
    """CPU seconds of scoring all rows: without a store, into an empty one, and out of it."""
    tokens = sum(s.n_active for batch in batches for s in batch)
    with tempfile.TemporaryDirectory() as folder:
        stored = StoredTeacher(teacher, teacher.ask, Path(folder), tokenizer=fingerprint, valid=teacher.valid)
        seconds = {}
        for name, who in (("teacher alone", teacher), ("first epoch", stored), ("second epoch", stored)):
            began = time.process_time()
            who.score(batches)
            seconds[name] = time.process_time() - began
        assert stored.counts()["teacher/store_hits"] == sum(map(len, batches))
        size = survey(Path(folder)).bytes
    return {"rows": sum(map(len, batches)), "tokens": tokens, "store_bytes_a_token": size / tokens, **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--topk", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--response", type=int, default=96, help="tokens")
    parser.add_argument("--batch", type=int, default=4, help="sequences in one answer, and scored at a time")
    parser.add_argument("--vocab", type=int, nargs="*", default=[151936], help="further vocabularies")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    o = parser.parse_args()
    tokenizer = load_tokenizer(o.model)
    ask, valid = Ask("topk", o.topk), valid_ids(tokenizer)
    model = load_model(o.model, dtype="float32", trainable=False)
    teacher = LocalTeacher(model, o.model, ask, valid, tokenizer.pad_token_id)
    rows = rows_of(tokenizer, o.rows, o.prompt, o.response)
    groups = [rows[i : i + o.batch] for i in range(0, len(rows), o.batch)]
    told = [[s for s in answer if isinstance(s, TopK)] for answer in teacher.score(groups)]
    lines: list[Line] = []
    for vocabulary in [valid, *o.vocab]:
        both = zip(groups, told, strict=True)
        lines += measure([batch_of(g, signals, tokenizer, ask, vocabulary) for g, signals in both], o.repeat)
    print(f"k = {o.topk}, torch {torch.__version__}, {torch.get_num_threads()} threads; CPU microseconds")
    print(f"{'vocabulary':>10}  {'form':14}{'bytes/token':>12}{'of the JSON':>13}{'encode':>9}{'decode':>9}")
    for line in lines:
        share = f"1/{1 / line.share_of_json:.1f}"
        bar = BARS.get(line.form)
        missed = (bar is not None and line.share_of_json > bar) or (line.form == "store" and line.bytes > STORE_BAR)
        print(
            f"{line.vocabulary:>10,}  {line.form:14}{line.bytes:>12.1f}{share:>13}{line.encode_us:>9.1f}"
            f"{line.decode_us:>9.1f}{'   over its bar' if missed else ''}"
        )
    seconds = epochs(teacher, groups, tokenizer_fingerprint(tokenizer))
    print(f"\nscoring {seconds['rows']} rows, {seconds['tokens']:,} tokens; CPU seconds")
    for name in ("teacher alone", "first epoch", "second epoch"):
        print(f"{name:14}{seconds[name]:9.3f}")
    if o.json:
        o.json.write_text(json.dumps({"forms": [asdict(line) for line in lines], "epochs": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
