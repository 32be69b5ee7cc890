"""The store of scored rows: what it gives back, what it tells apart, and what it survives."""

from __future__ import annotations

import json
import multiprocessing
import os
import pydoc_data.topics
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from store_oracle import VALID, Oracle, sample, stored, write_rows

from limbeck.data.collate import collate
from limbeck.data.render import Rendered
from limbeck.errors import ConfigError, TeacherError
from limbeck.losses import topk_divergence
from limbeck.models import even_layers, hidden_states, keep_layers, load_model, load_tokenizer, valid_ids
from limbeck.signal import Ask, Sample, TopK, concatenate
from limbeck.teachers import LocalTeacher
from limbeck.teachers.segments import MAGIC, SIZE, decode, encode
from limbeck.teachers.store import Store, survey

PROCESSES = multiprocessing.get_context("fork")  # a spawned one would spend seconds on imports
ROWS = [sample(i, length=3 + i % 5) for i in range(12)]
BATCHES = [ROWS[:4], ROWS[4:8], ROWS[8:]]


def same(a, b) -> bool:
    """Bit for bit."""
    if a is None or b is None:
        return a is b
    tails = (a.log_tail, b.log_tail)
    equal_tails = tails == (None, None) or torch.equal(*tails)
    return torch.equal(a.ids, b.ids) and torch.equal(a.logprobs, b.logprobs) and equal_tails


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.seg"))


# What it gives back


@pytest.mark.parametrize("tails", [True, False])
@pytest.mark.parametrize(
    "ask",
    [Ask("topk", 8), Ask("named", 0, 0.7, 5), Ask("union", 4, 1.0, 4), Ask("sampled")],
    ids=lambda a: a.kind,
)
def test_the_first_answer_and_every_later_one_are_the_same_bits(tmp_path, ask, tails):
    oracle = Oracle(ask, tails=tails)
    named = None
    if ask.names:
        named = [[torch.randint(0, 9, (s.n_active, ask.named_k)) for s in batch] for batch in BATCHES]
    teacher = stored(tmp_path / "s", oracle)
    first = teacher.score(BATCHES, named)
    again = teacher.score(BATCHES, named)
    reopened = stored(tmp_path / "s", Oracle(ask)).score(BATCHES, named)
    assert len(oracle.asked) == 3
    for b, batch in enumerate(BATCHES):
        for i, s in enumerate(batch):
            direct = oracle.signal(s, None if named is None else named[b][i])
            told = first[b][i]
            assert same(told, again[b][i]) and same(told, reopened[b][i])
            assert torch.equal(told.ids, direct.ids) and (told.log_tail is None) == (not tails)
            assert not tails or torch.equal(told.log_tail, direct.log_tail)
            torch.testing.assert_close(told.logprobs, direct.logprobs, rtol=1e-5, atol=1.5e-5)
            assert torch.equal(told.logprobs.isneginf(), direct.logprobs.isneginf())


@pytest.mark.parametrize("valid", [60_000, 151_936, 262_144, 300_000])
@pytest.mark.parametrize("columns", [1, 2, 4, 5, 64])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_ids_of_any_size_come_back(tokens, columns, valid):
    """Their high bits take none, two or eight bits."""
    ids = torch.randint(valid, (tokens, columns))
    ids[:1, -1] = valid - 1
    told = TopK(torch.randn(tokens, columns + 1).log_softmax(-1)[:, :columns], ids, None)
    assert torch.equal(decode(*encode(b"k" * 16, Ask("topk", columns), told), valid).ids, ids)


def test_only_what_is_missing_is_asked_in_the_grouping_given(tmp_path):
    oracle = Oracle()
    teacher = stored(tmp_path / "s", oracle)
    teacher.score([[ROWS[1], ROWS[2]], ROWS[4:8]])
    oracle.asked.clear()
    teacher.score(BATCHES)
    assert oracle.asked == [[ROWS[0], ROWS[3]], ROWS[8:]]
    assert teacher.counts() == {"teacher/store_hits": 6.0, "teacher/store_misses": 12.0, "teacher/requests": 3.0}
    assert teacher.counts()["teacher/store_hits"] == 0.0


def test_a_row_that_stands_there_twice_is_asked_about_once(tmp_path):
    oracle = Oracle()
    answers = stored(tmp_path / "s", oracle).score([[ROWS[0], ROWS[1]], [ROWS[0], ROWS[0]]])
    assert oracle.asked == [[ROWS[0], ROWS[1]]]
    assert same(answers[0][0], answers[1][0]) and same(answers[0][0], answers[1][1])
    assert survey(tmp_path / "s").duplicates == 0


def test_a_refused_row_is_none_and_asked_again(tmp_path):
    oracle = Oracle()
    oracle.refuses = {1}
    teacher = stored(tmp_path / "s", oracle)
    assert [a is None for a in teacher.score([ROWS[:3]])[0]] == [False, True, False]
    oracle.refuses = set()
    oracle.asked.clear()
    assert all(a is not None for a in teacher.score([ROWS[:3]])[0])
    assert oracle.asked == [[ROWS[1]]]


def test_nothing_to_score_asks_nobody(tmp_path):
    oracle = Oracle()
    teacher = stored(tmp_path / "s", oracle)
    assert teacher.score([]) == [] and teacher.score([[], []]) == [[], []]
    assert oracle.asked == []
    nothing = sample(0, length=2, mask=(False, False))
    assert teacher.score([[nothing]])[0][0].ids.shape == (0, 8)
    assert same(*teacher.score([[nothing, nothing]])[0])


def test_expect_passes_on_what_is_missing_and_score_collects_it(tmp_path):
    oracle = Oracle()
    teacher = stored(tmp_path / "s", oracle)
    teacher.score([ROWS[:2]])
    teacher.expect(ROWS[:4])
    teacher.expect(ROWS[:4])
    assert oracle.expected == ROWS[2:4]
    stored(tmp_path / "s").score([[ROWS[2]]])  # another process was faster; the answer asked for is still collected
    oracle.asked.clear()
    teacher.score([ROWS[:4]])
    assert oracle.asked == [ROWS[2:4]]


def test_expect_waits_for_ids_that_a_student_will_name_and_for_no_others(tmp_path):
    named, sampled = Oracle(Ask("named", 0, 1.0, 4)), Oracle(Ask("sampled"))
    stored(tmp_path / "a", named).expect(ROWS)
    assert named.expected == []
    teacher = stored(tmp_path / "b", sampled)
    teacher.score([ROWS[:2]])
    teacher.expect(ROWS[:3])
    assert sampled.expected == [ROWS[2]]


def test_the_rest_is_the_inner_teachers_business(tmp_path):
    oracle = Oracle()
    teacher = stored(tmp_path / "s", oracle)
    teacher.follow()
    teacher.restore({"a": 1})
    assert (teacher.state(), oracle.restored, oracle.followed) == ({"some": "state"}, {"a": 1}, 1)
    assert (teacher.name, teacher.identity, teacher.who(sample(0, tag="math"))) == (
        oracle.name,
        oracle.identity,
        "math",
    )
    teacher.close()
    assert oracle.closed == 1


# What it tells apart


def test_every_ingredient_makes_another_key(tmp_path):
    row = sample(7)
    tokens = row.tokens
    named = torch.zeros(12, 2, dtype=torch.long)
    union = Ask("union", 4, 1.0, 2)
    other_teacher = Oracle(union)
    other_teacher.identity = "another"
    mask = (False, *tokens.response_mask[1:])
    keys = [
        stored(tmp_path / f"{i}", oracle).key(s, ids)
        for i, (oracle, s, ids) in enumerate(
            [
                (Oracle(union), row, named),
                (other_teacher, row, named),
                (Oracle(replace(union, temperature=0.9)), row, named),
                (Oracle(replace(union, k=5)), row, named),
                (Oracle(replace(union, kind="named")), row, named),
                (Oracle(union), row, named + 1),
                (Oracle(union), row, named[:, :1]),
                (Oracle(union), sample(8), named),
                (Oracle(union), sample(7, length=11), named[:11]),
                (Oracle(union), sample(7, tag="math"), named),
                (Oracle(union), replace(row, tokens=replace(tokens, response_mask=mask)), named),
                (
                    Oracle(union),
                    replace(row, tokens=replace(tokens, response_ids=(1, *tokens.response_ids[1:]))),
                    named,
                ),
            ]
        )
    ]
    assert len(set(keys)) == len(keys)
    moved = Rendered((*tokens.prompt_ids, tokens.response_ids[0]), tokens.response_ids[1:], mask[1:])
    same_places = replace(row, tokens=replace(tokens, response_mask=mask))
    teacher = stored(tmp_path / "0", Oracle(union))
    assert teacher.key(replace(row, tokens=moved)) == teacher.key(same_places)  # where the prompt ends says nothing


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inner": "weights"}, ["oracle (01234567)", "oracle (99999999)", "--teacher_torch_dtype"]),
        ({"inner": "name"}, ["oracle (01234567)", "other (99999999)"]),
        ({"tokenizer": "another"}, ["f1ngerpr", "another"]),
        ({"valid": 69_999}, ["70,000", "69,999"]),
    ],
    ids=str,
)
def test_a_store_of_another_teacher_or_tokenizer_is_refused(tmp_path, change, words):
    stored(tmp_path / "s").score([ROWS[:1]])
    oracle = Oracle()
    if which := change.pop("inner", None):
        oracle.identity, oracle.name = "9999999999", "oracle" if which == "weights" else "other"
    with pytest.raises(ConfigError) as caught:
        stored(tmp_path / "s", oracle, **change)
    text = str(caught.value)
    assert len(text.splitlines()) == 3 and all(word in text for word in [*words, "another folder", "remove"])
    assert f"--teacher_cache {tmp_path / 's'}" in text


def test_one_store_serves_several_k_and_temperatures(tmp_path):
    for ask in (Ask("topk", 8), Ask("topk", 4), Ask("topk", 8, 0.5)):
        oracle = Oracle(ask)
        told = stored(tmp_path / "s", oracle).score([ROWS])[0]
        assert len(oracle.asked) == 1 and told[0].ids.shape[1] == ask.k
    groups = survey(tmp_path / "s").groups
    assert {g: t.rows for g, t in groups.items()} == dict.fromkeys(
        [("topk", n, t) for n, t in ((8, 1.0), (4, 1.0), (8, 0.5))], 12
    )


def test_what_cannot_be_stored_is_refused(tmp_path):
    moving = Oracle()
    moving.moves = True
    with pytest.raises(ConfigError, match="moves with the student"):
        stored(tmp_path / "s", moving)
    with pytest.raises(ConfigError, match=r"140,000 bytes a token(.|\n)*--gkd_logits_topk 64"):
        stored(tmp_path / "s", Oracle(Ask("hidden")))
    assert not (tmp_path / "s").exists()


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        stored(tmp_path)
    (tmp_path / "store.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"store\.json cannot be read"):
        stored(tmp_path)
    with pytest.raises(ConfigError, match="no store"):
        survey(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be opened"):
        stored(tmp_path / "file")


def test_a_store_of_another_format_is_refused(tmp_path):
    stored(tmp_path / "s")
    about = tmp_path / "s" / "store.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format": 1}))
    with pytest.raises(ConfigError, match="format 1"):
        stored(tmp_path / "s")


# What it survives


def three_records(folder: Path) -> tuple[Path, list[bytes], list[int]]:
    """A segment of three small records: the file, the keys, and where each begins and the last one ends."""
    teacher = stored(folder, Oracle(Ask("topk", 2)))
    rows = [sample(i, length=2) for i in range(3)]
    teacher.score([rows])
    teacher.close()
    (path,) = segments(folder)
    edges = [place[1] for place in Store(folder, VALID).index.values()]
    return path, [teacher.key(row) for row in rows], [*edges, path.stat().st_size]


def test_a_record_cut_anywhere_is_passed_over_and_counted(tmp_path):
    path, keys, edges = three_records(tmp_path / "s")
    whole = path.read_bytes()
    for end in range(edges[1], edges[3]):
        path.write_bytes(whole[:end])
        store = Store(path.parent, VALID)
        readable = [store.get(key) is not None for key in keys]
        assert readable == [True, end >= edges[2], False]
        assert survey(path.parent).cut == (end not in (edges[1], edges[2]))


def test_a_byte_flipped_anywhere_costs_its_own_record_alone(tmp_path):
    path, keys, edges = three_records(tmp_path / "s")
    whole = path.read_bytes()
    for at in range(edges[1], edges[2]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        store = Store(path.parent, VALID)
        assert [store.get(key) is not None for key in keys] == [True, False, True], at
        found = survey(path.parent)
        assert (found.damaged, found.cut, sum(t.rows for t in found.groups.values())) == (1, 0, 2), at


def test_a_flip_in_the_last_header_looks_like_a_cut(tmp_path):
    path, keys, edges = three_records(tmp_path / "s")
    whole = bytearray(path.read_bytes())
    whole[edges[2] + 5] ^= 1
    path.write_bytes(whole)
    assert [Store(path.parent, VALID).get(key) is not None for key in keys] == [True, True, False]
    assert survey(path.parent).cut == 1


def test_a_payload_may_spell_the_mark_of_a_header(tmp_path):
    path, keys, edges = three_records(tmp_path / "s")
    whole = path.read_bytes()
    noise = MAGIC * 40
    path.write_bytes(whole[: edges[1]] + noise + whole[edges[1] :] + MAGIC)
    store = Store(path.parent, VALID)
    assert all(store.get(key) is not None for key in keys)
    assert (survey(path.parent).damaged, survey(path.parent).cut) == (1, 1)


def test_a_damaged_row_is_asked_again_and_then_known(tmp_path):
    oracle = Oracle(Ask("topk", 2))
    path, _, edges = three_records(tmp_path / "s")
    whole = bytearray(path.read_bytes())
    whole[edges[2] - 1] ^= 0xFF
    path.write_bytes(whole)
    rows = [sample(i, length=2) for i in range(3)]
    teacher = stored(tmp_path / "s", oracle)
    told = teacher.score([rows])[0]
    assert oracle.asked == [[rows[1]]] and teacher.counts()["teacher/store_damaged"] == 1.0
    oracle.asked.clear()
    later = stored(tmp_path / "s", oracle)  # finds the damaged record first, and the good one behind it
    assert all(map(same, later.score([rows])[0], told)) and oracle.asked == []


def test_a_record_is_seen_once_it_is_whole(tmp_path):
    """A segment grows while another process reads it."""
    path, keys, edges = three_records(tmp_path / "s")
    whole = path.read_bytes()
    path.write_bytes(b"")
    store = Store(path.parent, VALID)
    for end in range(0, len(whole) + 1, 7):
        path.write_bytes(whole[:end])
        store.refresh()
        assert len(store.index) == sum(end >= edge for edge in edges[1:])
    path.write_bytes(whole)
    store.refresh()
    assert [store.get(key) is not None for key in keys] == [True] * 3


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    folder = tmp_path / "s"
    spans = [(0, 150), (100, 250), (100, 300)]  # some rows are asked about by several
    workers = [PROCESSES.Process(target=write_rows, args=(folder, *span)) for span in spans]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert 1 <= len(segments(folder)) <= 3
    oracle = Oracle()
    rows = [sample(i) for i in range(300)]
    told = stored(folder, oracle).score([rows])[0]
    assert oracle.asked == []
    for row, answer in zip(rows, told, strict=True):
        assert torch.equal(answer.ids, oracle.signal(row).ids)
    found = survey(folder)
    assert (found.damaged, found.cut, sum(t.rows for t in found.groups.values())) == (0, 0, 300)


def test_a_killed_writer_leaves_a_readable_store(tmp_path):
    folder = tmp_path / "s"
    worker = PROCESSES.Process(target=write_rows, args=(folder, 0, 10**6))
    worker.start()
    deadline = time.monotonic() + 120
    while sum(path.stat().st_size for path in segments(folder)) < 20_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    known = len(Store(folder, VALID).index)
    assert known > 20
    oracle = Oracle()
    rows = [sample(i) for i in range(known + 5)]
    told = stored(folder, oracle).score([rows])[0]
    assert oracle.asked == [rows[known:]]  # every row that was flushed is there, in order
    assert all(torch.equal(answer.ids, oracle.signal(row).ids) for row, answer in zip(rows, told, strict=True))
    assert survey(folder).damaged == 0


def test_a_full_disk_is_three_lines(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    teacher = stored(tmp_path / "s")
    teacher.store.out = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(TeacherError) as caught:
        teacher.score([ROWS])
    assert "No space left" in str(caught.value) and len(str(caught.value).splitlines()) == 3
    teacher.close()


def test_a_folder_that_is_removed_costs_its_rows_alone(tmp_path):
    oracle = Oracle()
    teacher = stored(tmp_path / "s", oracle)
    told = teacher.score([ROWS[:2]])[0]
    for path in segments(tmp_path / "s"):
        path.unlink()
    assert all(map(same, teacher.score([ROWS[:2]])[0], told)) and len(oracle.asked) == 2


# What it costs, and how exact it is


@pytest.fixture(scope="module")
def real(smollm2):
    """64 likeliest ids of SmolLM2 on English text, and the logits of two students: a disturbed copy, and ten layers."""
    tokenizer = load_tokenizer(str(smollm2))
    model = load_model(str(smollm2), dtype="float32", trainable=False)
    topics = [text for text in pydoc_data.topics.topics.values() if len(text) > 600][:3]
    ids = [tokenizer.encode(text[:600], add_special_tokens=False)[:80] for text in topics]
    rows = [
        Sample(Rendered(tuple(i[:16]), tuple(i[16:]), (True,) * (len(i) - 16)), "dataset", ROWS[0].example) for i in ids
    ]
    valid = valid_ids(tokenizer)
    teacher = LocalTeacher(model, "smollm2", Ask("topk", 64), valid, tokenizer.pad_token_id)
    signals = [s for s in teacher.score([rows])[0] if isinstance(s, TopK)]
    batch = collate([row.tokens for row in rows], tokenizer.pad_token_id)

    @torch.no_grad()
    def logits(student):
        return student.lm_head(hidden_states(student, batch.input_ids, (batch.rows, batch.cols)))[:, :valid]

    few = logits(keep_layers(model, even_layers(30, 10)))
    torch.manual_seed(0)
    for p in model.parameters():
        p.data += torch.randn_like(p) * p.data.std() * 0.05
    return valid, signals, {"disturbed": logits(model), "ten layers": few}


@pytest.mark.parametrize("mode", ["tail", "renorm"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("student", ["disturbed", "ten layers"])
def test_divergences_from_the_store_are_the_direct_ones(real, student, beta, mode):
    valid, signals, students = real
    read = [decode(*encode(b"k" * 16, Ask("topk", 64), s), valid) for s in signals]
    direct, late = (
        topk_divergence(students[student], s.logprobs, s.ids, beta=beta, mode=mode, teacher_log_tail=s.log_tail)
        for s in (concatenate(signals), concatenate(read))
    )
    assert direct.mean() > 0.03
    assert (late - direct).abs().max() <= 1e-4  # ten layers are up to 25 nats off


@pytest.mark.parametrize("vocabulary", [49_152, 151_936])
def test_a_token_takes_less_than_300_bytes(real, vocabulary):
    """Ids are thrown over the larger vocabulary at random, which compresses less than a real tokenizer's."""
    valid, signals, _ = real
    spread = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))[:valid]
    sizes = []
    for s in signals:
        header, payload = encode(b"k" * 16, Ask("topk", 64), replace(s, ids=spread[s.ids]))
        assert torch.equal(decode(header, payload, vocabulary).ids, spread[s.ids])
        sizes.append((SIZE + len(payload)) / header.tokens)
    assert max(sizes) <= 300
