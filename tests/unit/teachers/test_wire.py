"""The wire of Limbeck's own server: what goes in comes out, to the promised precision, or is refused with a reason."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
import torch
from torch import Tensor

from limbeck.signal import Ask, TopK
from limbeck.teachers import wire
from limbeck.teachers.wire import Answer, Question, WireError

VALID = 300


def question(kind: str = "topk", k: int = 4, named: int = 0, **more: object) -> Question:
    rng = random.Random(0)
    lengths, counts = [9, 2, 30], [5, 0, 17]
    sequences = [[rng.randrange(VALID) for _ in range(n)] for n in lengths]
    places = [sorted(rng.sample(range(1, n), m)) for n, m in zip(lengths, counts, strict=True)]
    ids = [torch.randint(-1, VALID, (m, named)) for m in counts] if named else None
    return Question(Ask(wire.KINDS[kind], k, 0.7), sequences, places, ids, **more)  # type: ignore[arg-type]


def signals(counts: list[int], k: int, *, vocab: int = VALID, tail: bool = True, scale: float = 3.0) -> list[TopK]:
    torch.manual_seed(1)
    found = []
    for n in counts:
        logp = (torch.randn(n, vocab, dtype=torch.float64) * scale).log_softmax(-1)
        top, ids = logp.topk(k, -1)
        rest = logp.scatter(-1, ids, -torch.inf).logsumexp(-1).float()
        found.append(TopK(top.float(), ids, rest if tail else None))
    return found


def answer(found: list[TopK | Tensor | None], **more: object) -> Answer:
    echo = [None if s is None else torch.arange(len(s.ids if isinstance(s, TopK) else s)) for s in found]
    return Answer("topk", "teacher-1", found, echo, **more)  # type: ignore[arg-type]


def resealed(message: bytes, **meta: str) -> bytes:
    arrays, old = wire.unseal(message)
    return wire.seal(arrays, old | meta)


def rearranged(message: bytes, **arrays: Tensor | None) -> bytes:
    old, meta = wire.unseal(message)
    return wire.seal({name: a for name, a in (old | arrays).items() if a is not None}, meta)


@pytest.mark.parametrize(
    ("kind", "k", "named"), [("hidden", 0, 0), ("topk", 4, 0), ("named", 0, 1), ("named", 0, 7), ("union", 4, 3)]
)
def test_a_question_comes_through(kind: str, k: int, named: int) -> None:
    sent = question(kind, k, named, bits=16)
    came = wire.decode_question(wire.encode_question(sent), valid=VALID)
    assert (came.ask.kind, came.ask.k, came.ask.temperature, came.bits) == (kind, k, 0.7, 16)
    assert (came.sequences, came.places) == (sent.sequences, sent.places)
    if named:
        assert came.named is not None and sent.named is not None
        assert all(a.equal(b) for a, b in zip(came.named, sent.named, strict=True))
    else:
        assert came.named is None


@pytest.mark.parametrize("tail", [True, False])
def test_32_bits_lose_nothing(tail: bool) -> None:
    counts = [3, 0, 5]
    sent = signals(counts, 8, tail=tail)
    came = wire.decode_answer(wire.encode_answer(answer(list(sent))), counts, valid=VALID)
    assert (came.kind, came.teacher, came.refused) == ("topk", "teacher-1", {})
    for a, b, echo, n in zip(sent, came.signals, came.echo, counts, strict=True):
        assert isinstance(b, TopK) and echo is not None
        assert a.logprobs.equal(b.logprobs) and a.ids.equal(b.ids) and echo.tolist() == list(range(n))
        assert (a.log_tail is None) == (b.log_tail is None)
        assert a.log_tail is None or (b.log_tail is not None and a.log_tail.equal(b.log_tail))


@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
def test_16_bits_are_as_near_as_promised(scale: float) -> None:
    """Against the float64 values of the codes' own definition: half a step of the square root, and no tail to lean on
    (with a tail a row is shifted as well, by what makes the masses add up to 1)."""
    (sent,) = signals([400], 64, tail=False, scale=scale)
    (came,) = wire.unpack(wire.pack([sent], 16), [400], valid=VALID)
    exact, span = sent.logprobs.double(), sent.logprobs.double().neg().sqrt().amax(-1, keepdim=True)
    bound = span * exact.neg().sqrt() / 65534 + (span / 65534 / 2) ** 2
    assert ((came.logprobs.double() - exact).abs() <= bound * 1.05 + 1e-6).all()
    assert came.ids.equal(sent.ids)


def test_16_bits_beat_float16_where_the_mass_is() -> None:
    (sent,) = signals([2000], 64)
    (came,) = wire.unpack(wire.pack([sent], 16), [2000], valid=VALID)
    p = sent.logprobs.double().exp()
    ours = (p * (came.logprobs - sent.logprobs).abs()).sum(-1).mean()
    half = (p * (sent.logprobs.half().float() - sent.logprobs).abs()).sum(-1).mean()
    assert ours < half / 3
    assert came.log_tail is not None
    assert torch.allclose(
        came.logprobs.double().exp().sum(-1) + came.log_tail.double().exp(), torch.ones(2000).double()
    )


def test_equal_signals_of_16_bits_have_a_divergence_of_rounding_only() -> None:
    """KL(sent || came) is of second order in the rounding, because the masses add up to 1."""
    (sent,) = signals([500], 64)
    (came,) = wire.unpack(wire.pack([sent], 16), [500], valid=VALID)
    p = sent.logprobs.double()
    assert ((p.exp() * (p - came.logprobs.double())).sum(-1).abs() < 2e-7).all()


@pytest.mark.parametrize("bits", [16, 32])
def test_ids_beyond_16_bits(bits: int) -> None:
    ids = torch.tensor([[0, 65535, 65536, 131072, 262143]])
    logprobs = torch.tensor([[0.1, 0.2, 0.3, 0.05, 0.05]]).log()
    sent = TopK(logprobs, ids, torch.tensor([0.3]).log())
    arrays = wire.pack([sent], bits)
    assert arrays["ids_high"].dtype == torch.uint8
    assert wire.unpack(arrays, [1], valid=262144)[0].ids.equal(ids)
    with pytest.raises(WireError, match="names id 262143"):
        wire.unpack(arrays, [1], valid=262143)
    assert "ids_high" not in wire.pack([TopK(logprobs, ids.clamp(max=65535), None)], bits)


@pytest.mark.parametrize("bits", [16, 32])
def test_absent_entries_stay_absent(bits: int) -> None:
    logprobs = torch.tensor([[-0.5, -torch.inf, -2.0], [-torch.inf] * 3, [0.0, -torch.inf, -torch.inf]])
    ids = torch.tensor([[7, 0, 9], [0, 0, 0], [3, 0, 0]])
    tail = torch.log1p(-logprobs.exp().sum(-1))  # 0 where nothing is present, -inf where all is
    (came,) = wire.unpack(wire.pack([TopK(logprobs, ids, tail)], bits), [3], valid=VALID)
    assert came.logprobs.isneginf().equal(logprobs.isneginf())
    assert came.ids.equal(ids)
    assert came.logprobs[2, 0] == 0 and came.log_tail is not None and came.log_tail.equal(tail)
    assert torch.allclose(came.logprobs.exp(), logprobs.exp(), atol=1e-4)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("refused", [{0}, {1}, {0, 2}, {0, 1, 2}])
def test_refused_sequences_are_none(bits: int, refused: set[int]) -> None:
    counts = [3, 4, 5]
    sent: list[TopK | Tensor | None] = [None if i in refused else s for i, s in enumerate(signals(counts, 6))]
    message = wire.encode_answer(answer(sent, refused={i: f"too long: {i}" for i in refused}), bits)
    came = wire.decode_answer(message, counts, valid=VALID)
    assert came.refused == {i: f"too long: {i}" for i in refused}
    for i, (a, b, echo) in enumerate(zip(sent, came.signals, came.echo, strict=True)):
        assert (a is None) == (b is None) == (echo is None) == (i in refused)
        if isinstance(a, TopK):
            assert isinstance(b, TopK) and b.ids.equal(a.ids) and torch.allclose(a.logprobs, b.logprobs, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_states_keep_their_type(dtype: torch.dtype) -> None:
    sent = [torch.randn(n, 6).to(dtype) for n in (3, 2)]
    message = wire.encode_answer(
        Answer("hidden", "t", [*sent, None], [torch.arange(3), torch.arange(2), None], "hash", {2: "no"})
    )
    came = wire.decode_answer(message, [3, 2, 9], valid=VALID)
    assert came.head == "hash" and came.signals[2] is None
    for a, b in zip(sent, came.signals, strict=False):
        assert isinstance(b, Tensor) and b.dtype == dtype and b.equal(a)


def messages() -> dict[str, bytes]:
    found = signals([3, 5], 8)
    return {
        "question": wire.encode_question(question("union", 4, 3)),
        "answer": wire.encode_answer(answer(list(found)), 16),
    }


def read(name: str, message: bytes) -> object:
    if name == "question":
        return wire.decode_question(message, valid=VALID)
    return wire.decode_answer(message, [3, 5], valid=VALID)


@pytest.mark.parametrize("name", ["question", "answer"])
def test_a_message_that_is_cut_is_refused_wherever_it_is_cut(name: str) -> None:
    message = messages()[name]
    for length in range(len(message)):
        with pytest.raises(WireError):
            read(name, message[:length])
    with pytest.raises(WireError):
        read(name, message + b"\0")


@pytest.mark.parametrize("name", ["question", "answer"])
def test_a_flipped_bit_is_found_wherever_it_is(name: str) -> None:
    message = messages()[name]
    for at in range(len(message)):
        broken = bytearray(message)
        broken[at] ^= 1 << (at % 8)
        with pytest.raises(WireError):
            read(name, bytes(broken))


def sealed(body: bytes) -> bytes:
    return wire.MAGIC + hashlib.blake2b(body, digest_size=wire.DIGEST).digest() + body


def with_header(header: bytes) -> bytes:
    return sealed(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize("name", ["question", "answer"])
def test_a_digest_does_not_save_what_is_no_safetensors_file(name: str) -> None:
    bodies = [sealed(b""), sealed(b"\xff" * 8), sealed((2**40).to_bytes(8, "little"))]
    headers = [b"[]", b"null", b"{}", b"{", b'{"__metadata__": 7}', b"[" * 100_000, b'{"a":' * 100_000]
    for message in bodies + [with_header(header) for header in headers]:
        with pytest.raises(WireError):
            read(name, message)


@pytest.mark.parametrize("name", ["question", "answer"])
def test_a_message_garbled_before_it_was_sealed_is_refused_or_means_something(name: str) -> None:
    """The digest is no secret: whatever it is put on is read, or is a WireError, and nothing else."""
    rng, body, refused = random.Random(0), messages()[name][len(wire.MAGIC) + wire.DIGEST :], 0
    for _ in range(3000):
        broken = bytearray(body)
        for _ in range(rng.randint(1, 3)):
            at = (
                rng.randrange(8, 8 + int.from_bytes(body[:8], "little"))
                if rng.random() < 0.7
                else rng.randrange(len(body))
            )
            broken[at] = rng.choice(b'0123456789{}[]",:-eE \x00\xff')
        try:
            read(name, sealed(bytes(broken)))
        except WireError:
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ({"kind": "full"}, "kind 'full' is none of"),
        ({"k": "many"}, "needs kind, k"),
        ({"k": "0"}, "k = 0 does not go with kind union"),
        ({"k": str(VALID + 1)}, "does not go with kind union"),
        ({"k": "-1"}, "does not go with kind union"),
        ({"temperature": "0"}, "positive and finite"),
        ({"temperature": "nan"}, "positive and finite"),
        ({"temperature": "inf"}, "positive and finite"),
        ({"bits": "8"}, "16 or 32"),
    ],
)
def test_questions_with_wrong_metadata(meta: dict[str, str], says: str) -> None:
    with pytest.raises(WireError, match=says):
        read("question", resealed(messages()["question"], **meta))


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"tokens": None}, "`tokens` must be a list of int32"),
        ({"tokens": torch.zeros(41)}, "`tokens` must be a list of int32"),
        ({"tokens": ints(*range(40))}, "40 entries, not 41"),
        ({"tokens": ints(*[VALID] * 41)}, f"sequence 0 has id {VALID}"),
        ({"tokens": ints(*[-1] * 41)}, "sequence 0 has id -1"),
        ({"lengths": ints(9, 2, 31)}, "41 entries, not 42"),
        ({"lengths": ints(41, 0, 0)}, "a sequence needs tokens"),
        ({"lengths": ints(9, 32)}, "2 lengths and 3 counts"),
        ({"lengths": ints(), "counts": ints()}, "at least one sequence"),
        ({"lengths": ints(50, -39, 30)}, "a sequence needs tokens"),
        ({"counts": ints(23, -1, 0)}, "cannot be negative"),
        ({"places": ints(*range(22))}, "places of sequence 0 must ascend inside 1..8"),
        ({"places": ints(*range(9, 31))}, "places of sequence 0 must ascend"),
        ({"places": ints(1, 1, 2, 3, 4, *range(1, 18))}, "places of sequence 0 must ascend"),
        ({"named": None}, "needs `named`"),
        ({"named": torch.zeros(22, 3)}, "needs `named`"),
        ({"named": torch.zeros(21, 3, dtype=torch.int32)}, "needs `named`"),
        ({"named": torch.zeros(22, 0, dtype=torch.int32)}, "needs `named`"),
        ({"named": torch.full((22, 3), VALID, dtype=torch.int32)}, f"a named id is {VALID}"),
    ],
)
def test_questions_with_wrong_arrays(arrays: dict[str, Tensor | None], says: str) -> None:
    with pytest.raises(WireError, match=says):
        read("question", rearranged(messages()["question"], **arrays))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"ids_low": None}, r"no ids \[8, K\]"),
        ({"ids_low": torch.zeros(7, 8, dtype=torch.uint16)}, r"no ids \[8, K\]"),
        ({"codes": torch.zeros(8, 7, dtype=torch.uint16)}, r"no codes \[8, 8\]"),
        ({"codes": torch.zeros(8, 8)}, r"no codes \[8, 8\]"),
        ({"codes": None}, r"no `logprobs` \[8, 8\]"),
        ({"codes": None, "logprobs": torch.full((8, 8), torch.nan)}, "NaN, or above 0"),
        ({"codes": None, "logprobs": torch.full((8, 8), 0.1)}, "NaN, or above 0"),
        ({"spans": torch.zeros(7)}, r"no `spans` \[8\]"),
        ({"spans": torch.full((8,), torch.nan)}, "NaN, or above 0"),
        ({"log_tail": torch.full((8,), 0.1)}, "remaining mass is NaN, or above 0"),
        ({"log_tail": torch.full((8,), torch.nan)}, "NaN, or above 0"),
        ({"ids_high": torch.zeros(8, 7, dtype=torch.uint8)}, "halves of the ids differ"),
        ({"ids_high": torch.ones(8, 8, dtype=torch.uint8)}, "names id"),
        ({"echo": ints(1, 2)}, "echoes 2 ids, not 8"),
        ({"echo": None}, "`echo` must be a list of int32"),
    ],
)
def test_answers_with_wrong_arrays(arrays: dict[str, Tensor | None], says: str) -> None:
    with pytest.raises(WireError, match=says):
        read("answer", rearranged(messages()["answer"], **arrays))


@pytest.mark.parametrize("refused", ["[" * 100_000, "[]", "no json", '{"x": "y"}', "7"])
def test_answers_with_refusals_that_cannot_be_read(refused: str) -> None:
    with pytest.raises(WireError, match="metadata cannot be read"):
        read("answer", resealed(messages()["answer"], refused=refused))


def test_an_answer_to_another_question_does_not_fit() -> None:
    message = messages()["answer"]
    with pytest.raises(WireError):
        wire.decode_answer(message, [3, 4], valid=VALID)
    with pytest.raises(WireError):
        wire.decode_answer(resealed(message, refused=json.dumps({"1": "no"})), [3, 5], valid=VALID)
    with pytest.raises(WireError, match="no hidden states"):
        read("answer", resealed(message, kind="hidden"))


def test_bytes_a_token() -> None:
    (sent,) = signals([1000], 64)
    size = {bits: len(wire.encode_answer(answer([sent]), bits)) / 1000 for bits in (16, 32)}
    assert size[16] < 64 * 4 + 16 and size[32] < 64 * 6 + 16
