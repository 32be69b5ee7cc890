"""Claim 1: at equal training tokens on-policy GKD beats GKD on the teacher's answers, and that beats SFT on them.

    python benchmarks/claims/on_policy.py

One student, which solves about a fifth of the task (lab.py), the same prompts, the same number of updates of 64
sequences; an answer has 7 tokens, and the tokens that a run learnt from are read from its log. SFT and offline GKD
learn from the teacher's answers to --prompts prompts, on-policy GKD from the student's own to the same prompts; both
divergences are JSD(0.5) over the whole vocabulary. Each arm at two learning rates, and its better one counts.

The GKD paper (arXiv 2306.13649) reports this order for summaries, translation and arithmetic. What could refute:
another.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab import Accuracy, Results, accuracy, options, pair, questions, row, tokens_trained, train, write_rows

RATES = {"": 3e-4, ", rate x 3": 1e-3}
METHODS: dict[str, dict[str, Any]] = {
    "SFT": {"rlhf_type": None},
    "GKD offline": {"rlhf_type": "gkd", "lmbda": 0.0, "beta": 0.5},
    "GKD on-policy": {"rlhf_type": "gkd", "lmbda": 1.0, "beta": 0.5, "temperature": 1.0},
}


def answers(o: argparse.Namespace, seed: int, teacher: Path) -> str:
    """The teacher's answers, sampled at temperature 1 by `limbeck generate`."""
    path = o.work / f"seed{seed}" / "answers.jsonl"
    asked = write_rows(path.with_name("asked.jsonl"), [row(q) for q in questions(o.prompts, f"distil {seed}")])
    command = ["generate", "--model", teacher, "--dataset", asked, "--result_path", path, "--temperature", 1]
    command += ["--max_completion_length", 8, "--rollout_batch_size", 256, "--seed", seed]
    subprocess.run([sys.executable, "-m", "limbeck.cli.main", *map(str, command)], check=True)
    assert len(path.read_text().splitlines()) == o.prompts
    return str(path)


def learn(o: argparse.Namespace, seed: int, method: str, rate: str, models: tuple[Path, Path]) -> dict[str, Any]:
    teacher, student = models
    probe = Accuracy(o.every, folder=student)
    run = o.work / f"seed{seed}" / f"{method}{rate}".replace(" ", "")
    taught = {} if method == "SFT" else {"teacher_model": str(teacher)}
    train(
        run,
        model=student,
        dataset=answers(o, seed, teacher),
        steps=o.updates,
        callbacks=[probe],
        again=True,
        seed=seed,
        learning_rate=RATES[rate],
        **taught,
        **METHODS[method],
    )
    values = [value for _, value in probe.curve]
    found = {"tokens": tokens_trained(run), "half way": values[len(values) // 2], "final": values[-1]}
    return found | {"mean": sum(values) / len(values), "curve": probe.curve}


def main() -> None:
    o = options(__doc__, "on_policy", prompts=500, updates=60, every=5)
    results = Results("on_policy", o)
    for seed in range(o.seed, o.seed + o.seeds):
        models = pair(o.models / f"seed{seed}", seed, start_at=0.2)

        def start(models: tuple[Path, Path] = models) -> dict[str, Any]:
            return {"teacher": accuracy(models[0]), "student": accuracy(models[1])}

        results.arm("models", seed, start)
        for rate in RATES:
            for method in METHODS:
                results.arm(f"{method}{rate}", seed, functools.partial(learn, o, seed, method, rate, models))
    results.table(["teacher", "student", "tokens", "half way", "final", "mean"])
    results.curves("GKD on-policy, offline, and SFT", {})


if __name__ == "__main__":
    main()
