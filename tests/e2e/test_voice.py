"""What a user sees beside the output: nothing that cannot be acted on, and a note once for all processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import limbeck

ALIKE = """import limbeck

@limbeck.register_reward("alike")
def alike(completions, **columns):
    return [1.0] * len(completions)
"""


@pytest.mark.slow
def test_nothing_but_what_can_be_acted_on(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "alike.py").write_text(ALIKE)
    rows, student = tiny / "rows.jsonl", tiny / "student"
    shared = ("--max_steps", 2, "--max_completion_length", 6)
    gkd = ("--rlhf_type", "gkd", "--teacher_model", tiny / "teacher", "--lmbda", 1, "--preflight", "false")
    runs = [
        ("rlhf", "--model", student, "--dataset", rows, *gkd, *shared, "--output_dir", tmp_path / "gkd"),
        # equal rewards: no gradient, no update
        *(
            [
                *("rlhf", "--model", student, "--dataset", rows, "--rlhf_type", "grpo", "--num_generations", 2),
                *("--external_plugins", tmp_path / "alike.py", "--reward_funcs", "alike", *shared),
                *("--output_dir", tmp_path / "grpo"),
            ],
        ),
        ("export", "--model", student, "--adapters", tmp_path / "gkd" / "last", "--output_dir", tmp_path / "merged"),
    ]
    for argv in runs:
        assert limbeck(*argv).stderr == "", argv


@pytest.mark.slow
def test_two_processes_speak_once(tiny: Path, tmp_path: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "a dog"}]}\n'
    (tmp_path / "rows.jsonl").write_text(row * 4 + "not JSON\n")
    done = limbeck(
        *("sft", "--model", tiny / "student", "--dataset", tmp_path / "rows.jsonl", "--train_type", "lora"),
        *("--max_steps", 1, "--use_cpu", "--output_dir", tmp_path / "run"),
        processes=2,
    )
    assert done.stderr.count("note: --train_type is --tuner_type lora here") == 1
    assert done.stdout.count("warning: dataset: 1 row dropped") == 1
