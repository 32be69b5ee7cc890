"""Claim 3: a model that teaches itself with the reference solution in its prompt (OPSD) gets above its own start.

    python benchmarks/claims/self_teacher.py

The start has learnt two things from scratch (lab.py): to copy a solution that is given ("5873=5308"), which it does
well, and to find it ("5873"), which it does in about a fifth of the cases. Then `--rlhf_type gkd --lmbda 1` with the
column `teacher_prompt`: the teacher is the student's own weights of the moment (live), reading the solution; the
student answers without it, to prompts that it has not seen. Once more as an advantage (`--rlhf_type grpo`), and with
a frozen teacher.

What could refute: a solution that leaves the start where it was; or a control that gains as well:

    wrong   the teacher reads the solution of another prompt
    none    the teacher reads the prompt alone: the same distribution, so that nothing may change at all
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from lab import Accuracy, Results, accuracy, make_model, options, questions, row, running_sums, sft, train, write_rows

ON_A = {"rlhf_type": "gkd", "lmbda": 1.0, "beta": 0.5}
ON_B = {"rlhf_type": "grpo", "num_generations": 1}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "reference": ("reference", ON_A),
    "wrong": ("wrong", ON_A),
    "none": ("none", ON_A),
    "reference, as advantage": ("reference", ON_B),
    "reference, frozen teacher": ("reference", ON_A | {"teacher_source": "frozen"}),
    "wrong, frozen teacher": ("wrong", ON_A | {"teacher_source": "frozen"}),
}


def start(o: argparse.Namespace, seed: int) -> Path:
    """The model before OPSD: three rows to copy for one to solve, until a fifth is solved."""
    work = o.work / f"seed{seed}"
    rows = [row(q, running_sums(q)) for q in questions(5000, f"solve {seed}")]
    rows += [row(f"{q}={running_sums(q)}", running_sums(q)) for q in questions(15000, f"copy {seed}")]
    first = make_model(work / "init", layers=2, hidden=128, seed=seed)
    until = Accuracy(5, folder=first, stop_at=0.2)
    data = write_rows(work / "sft.jsonl", rows)
    return sft(work / "start", model=first, dataset=data, steps=1500, seed=seed, callbacks=[until])


def told(kind: str, asked: list[str]) -> list[dict[str, Any]]:
    """Rows whose teacher reads the solution, another prompt's, or the prompt alone."""
    others = asked[1:] + asked[:1]
    prompts = {
        "reference": [f"{q}={running_sums(q)}" for q in asked],
        "wrong": [f"{q}={running_sums(other)}" for q, other in zip(asked, others, strict=True)],
        "none": asked,
    }[kind]
    return [row(q, teacher_prompt=prompt) for q, prompt in zip(asked, prompts, strict=True)]


def learn(o: argparse.Namespace, seed: int, arm: str, model: Path) -> dict[str, Any]:
    kind, flags = ARMS[arm]
    work, probe = o.work / f"seed{seed}", Accuracy(o.every, folder=model)
    train(
        work / arm.replace(" ", ""),
        model=model,
        dataset=write_rows(work / f"{kind}.jsonl", told(kind, questions(4000, f"opsd {seed}"))),
        steps=o.updates,
        callbacks=[probe],
        again=True,
        seed=seed,
        temperature=1.0,
        learning_rate=3e-4,
        **flags,
    )
    return {"final": probe.curve[-1][1], "best": max(v for _, v in probe.curve), "curve": probe.curve}


def main() -> None:
    o = options(__doc__, "self_teacher", updates=50, every=10)
    results = Results("self_teacher", o)
    for seed in range(o.seed, o.seed + o.seeds):
        model = start(o, seed)

        def measured(model: Path = model) -> dict[str, Any]:
            return {
                "start": accuracy(model),
                "with reference": accuracy(model, lambda q: f"{q}={running_sums(q)}"),
            }

        results.arm("models", seed, measured)
        for arm in ARMS:
            results.arm(arm, seed, functools.partial(learn, o, seed, arm, model))
    results.table(["start", "with reference", "final", "best"])
    results.curves("A model that teaches itself with the solution in its prompt", {})


if __name__ == "__main__":
    main()
