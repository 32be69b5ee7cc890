"""`limbeck data score` fills a store, and runs learn from it without asking the teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.cli.main import main
from limbeck.teachers.store import survey
from tests.support import metrics, without_times

HITS, MISSES = "teacher/store_hits", "teacher/store_misses"


def run(*argv: object) -> int:
    return main([str(word) for word in argv])


def sides(tiny: Path) -> list[object]:
    return ["--model", tiny / "student", "--teacher_model", tiny / "teacher", "--gkd_logits_topk", 16, "--use_cpu"]


def train(tiny: Path, out: Path, *more: object) -> list[dict]:
    """Two epochs of 40 rows, 8 a step: 10 steps."""
    argv = ["rlhf", *sides(tiny), "--dataset", tiny / "rows.jsonl", "--output_dir", out, "--lmbda", 0, *more]
    argv += ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2, "--num_train_epochs", 2]
    assert run(*argv, "--logging_steps", 1, "--save_strategy", "no", "--preflight", "false") == 0
    return metrics(out)


def without_counts(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in (HITS, MISSES)} for row in without_times(rows)]


def score(tiny: Path, store: Path) -> int:
    rows = ["--dataset", tiny / "rows.jsonl", "--val_dataset", tiny / "held_out.jsonl"]
    return run("data", "score", *sides(tiny), *rows, "--teacher_cache", store)


def test_runs_learn_from_the_store_what_the_teacher_says(tiny: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    assert score(tiny, store) == 0
    out = capsys.readouterr().out
    assert "46 rows" in out and "asked     46\n" in out and "in store  0\n" in out and "refused   0\n" in out
    assert score(tiny, store) == 0
    out = capsys.readouterr().out
    assert "asked     0\n" in out and "in store  46\n" in out
    found = survey(store)
    assert sum(tally.rows for tally in found.groups.values()) == 46 and found.duplicates == 0

    filled = train(tiny, tmp_path / "filled", "--teacher_cache", store)
    assert [(row[HITS], row[MISSES]) for row in filled] == [(8, 0)] * 10
    assert survey(store).segments == 1  # the run had nothing to write
    direct = train(tiny, tmp_path / "direct")
    for late, plain in zip(filled, direct, strict=True):
        assert late["loss"] == pytest.approx(plain["loss"], abs=1e-4)

    first = train(tiny, tmp_path / "first", "--teacher_cache", tmp_path / "new")
    assert [(row[HITS], row[MISSES]) for row in first] == [(0, 8)] * 5 + [(8, 0)] * 5
    second = train(tiny, tmp_path / "second", "--teacher_cache", tmp_path / "new")
    assert [(row[HITS], row[MISSES]) for row in second] == [(8, 0)] * 10
    assert without_counts(first) == without_counts(second)  # bit for bit


def test_cache_info_says_what_there_is_and_what_is_broken(tiny: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    assert score(tiny, store) == 0
    (segment,) = store.glob("*.seg")
    whole = bytearray(segment.read_bytes())
    whole[len(whole) // 2] ^= 1
    segment.write_bytes(whole[:-3])
    capsys.readouterr()
    assert run("data", "cache-info", store) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"teacher    {tiny / 'teacher'} (") and lines[1].endswith(", 320 ids")
    kind, ids, temperature, rows, *_ = lines[4].split()
    assert (kind, ids, temperature, rows) == ("topk", "16", "1", "44")
    assert lines[5] == "1 damaged records, 1 cut segments, 0 records twice"


def test_score_says_what_it_needs(tiny: Path, tmp_path: Path, capsys) -> None:
    rows = ["--dataset", tiny / "rows.jsonl", "--teacher_cache", tmp_path / "store"]
    teacher = ["--teacher_model", tiny / "teacher"]
    for argv, words in (
        (teacher, "needs --gkd_logits_topk"),
        (["--gkd_logits_topk", 4], "needs --model"),
        (["--gkd_logits_topk", 4, "--model", tiny / "student"], "no teacher to ask"),
        (["--gkd_logits_topk", 4, *teacher, "--topk_support", "student"], "without a student"),
    ):
        assert run("data", "score", *rows, *argv) == 2
        err = capsys.readouterr().err
        assert words in err and len(err.splitlines()) in (2, 3)
    assert run("data", "score", *rows, *teacher, "--gkd_logits_topk", 4, "--use_cpu") == 0  # reads as the teacher does
    assert run("data", "score", *sides(tiny), *rows) == 0
    assert run("data", "score", *rows, "--teacher_model", tiny / "student", "--gkd_logits_topk", 4, "--use_cpu") == 2
    assert "another folder" in capsys.readouterr().err


def test_data_lists_its_commands(capsys) -> None:
    assert run("data") == run("data", "--help") == 0
    assert capsys.readouterr().out.count("limbeck data cache-info") == 2
    assert run("data", "scor") == 2
    assert "did you mean `limbeck data score`?" in capsys.readouterr().err
