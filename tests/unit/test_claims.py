"""The claims' scripts: the task, results that go on, and controls that are what they are called."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "claims"))

import lab
import opd_rl

from limbeck.data import load_examples, render_all
from limbeck.models import end_token_ids, load_model, load_tokenizer, valid_ids
from limbeck.signal import Ask, Sample
from limbeck.teachers import LocalTeacher
from limbeck.train.student import StudentStep


def test_held_out_prompts_are_in_no_other_set():
    held_out = set(lab.questions(256, "held out"))
    assert len(held_out) == 256
    for seed in (0, "sft 0", "rl 1"):
        assert not held_out & set(lab.questions(20000, seed))
    assert lab.running_sums("587391") == "530323"


def options(out: Path, steps: int) -> argparse.Namespace:
    return argparse.Namespace(out=out, work=out, models=out, seed=0, seeds=1, steps=steps)


def test_an_arm_is_not_run_twice_and_other_settings_are_refused(tmp_path: Path):
    calls = []

    def make() -> dict:
        calls.append(1)
        return {"final": 0.5}

    for _ in range(2):
        assert lab.Results("claim", options(tmp_path, 3)).arm("GRPO", 0, make)["final"] == 0.5
    assert len(calls) == 1
    with pytest.raises(SystemExit, match="other settings"):
        lab.Results("claim", options(tmp_path, 4))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory):
    """A teacher and a student of the task with random weights, and two batches of samples."""
    folder = tmp_path_factory.mktemp("claims")
    paths = [lab.make_model(folder / str(seed), layers=2, hidden=32, seed=seed) for seed in (0, 1)]
    tokenizer = load_tokenizer(str(paths[0]))
    examples, _ = load_examples([lab.solved(folder / "rows.jsonl", 6, 0)], seed=0)
    rows, _ = render_all(examples, tokenizer, end_ids=end_token_ids(tokenizer))
    samples = [Sample(tokens, "student", example) for example, tokens in rows]
    model, other = (load_model(str(path), dtype="float32", trainable=False) for path in paths)
    teacher = LocalTeacher(model, name="t", ask=Ask("sampled"), valid=valid_ids(tokenizer), pad_id=0)
    return teacher, StudentStep(other, lambda *a, **k: None, valid_ids(tokenizer)), [samples[:4], samples[4:]]


def logprobs(teacher, batches) -> list[torch.Tensor]:
    return [signal.logprobs[:, 0] for batch in teacher.score(batches) for signal in batch]


def test_the_controls_are_what_they_are_called(scene):
    teacher, student, batches = scene
    true = torch.cat(logprobs(teacher, batches))
    own = torch.cat([student.logprobs(b, (1.0, 1.0), 0, torch.device("cpu"))[0] for b in batches])
    fixed = torch.cat(logprobs(opd_rl.Altered(teacher, student, 0, opd_rl.fixed), batches))
    assert torch.equal(fixed, own - 1)  # so that the log-ratio is -1 at every token
    dealt = torch.cat(logprobs(opd_rl.Altered(teacher, student, 0, opd_rl.shuffled(0)), batches))
    assert torch.equal(dealt.sort().values, true.sort().values)
    assert not torch.equal(dealt, true)
