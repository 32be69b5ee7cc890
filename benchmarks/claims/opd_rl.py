"""Claim 2: the teacher's log-ratio as advantage (OPD-RL) needs fewer updates than the task's reward (GRPO).

    python benchmarks/claims/opd_rl.py

Both start at the same student, which solves about a fifth of the task (lab.py), both by `--rlhf_type grpo`: OPD-RL
with a teacher and no reward, GRPO with the reward `exact` and no teacher, the same prompts, 8 samples each, 64
sequences an update. Measured: updates until greedy accuracy on held-out prompts is 90% of the teacher's. Each is
run at three learning rates, and its best one counts. `--start 3` begins at a student that solves 3% only, where
rewards are rare. Thinking Machines ("On-policy distillation", 2025) report 7 to 10 times fewer.

What could refute: GRPO as fast; or a control that gets there too, where the teacher says nothing about the tokens:

    shuffled   its log-probabilities of the sampled tokens, dealt anew over all tokens of the batch
    fixed      every token has the advantage -1
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lab import Accuracy, Results, accuracy, options, pair, solved, train
from torch import Tensor

import limbeck.api
from limbeck.signal import Sample, TopK
from limbeck.teachers import Teacher
from limbeck.train.student import StudentStep

RATE = 3e-4
ARMS = {
    "OPD-RL": RATE,
    "OPD-RL, rate x 3": RATE * 3,
    "OPD-RL, rate / 3": RATE / 3,
    "OPD, full vocabulary": RATE,
    "GRPO": RATE,
    "GRPO, rate x 3": RATE * 3,
    "GRPO, rate / 3": RATE / 3,
    "shuffled": RATE,
    "fixed": RATE,
}


class Altered(Teacher):
    """A teacher whose log-probabilities are replaced: `change`(theirs, the student's) of all tokens of a generation
    batch, [N] each. All that follows (log-ratio, advantage, loss) is the product's own."""

    def __init__(self, inner: Teacher, student: StudentStep, pad_id: int, change: Callable[[Tensor, Tensor], Tensor]):
        self.inner, self.student, self.pad_id, self.change = inner, student, pad_id, change
        self.name, self.ask, self.identity = f"{inner.name}, altered", inner.ask, f"{inner.identity} altered"

    @torch.no_grad()
    def score(self, batches: Sequence[Sequence[Sample]], named: Any = None) -> Any:
        answers = self.inner.score(batches, named)
        device, temperature = torch.device("cpu"), self.ask.temperature
        own = [self.student.logprobs(b, (temperature, temperature), self.pad_id, device)[1] for b in batches]
        signals = [signal for batch in answers for signal in batch]
        assert all(isinstance(s, TopK) and s.logprobs.shape[1] == 1 for s in signals)
        theirs = self.change(torch.cat([s.logprobs[:, 0] for s in signals]), torch.cat(own))
        parts = iter(theirs.split([len(s.logprobs) for s in signals]))
        return [[replace(s, logprobs=next(parts).unsqueeze(1)) for s in batch] for batch in answers]


def shuffled(seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return lambda theirs, own: theirs[torch.randperm(len(theirs), generator=dice)]


def fixed(theirs: Tensor, own: Tensor) -> Tensor:
    return own - 1


@contextlib.contextmanager
def altered(change: Callable[[Tensor, Tensor], Tensor] | None) -> Iterator[None]:
    """Runs inside have their teacher's answers changed."""
    build = limbeck.api.build

    def wrapped(prepared: Any, *args: Any, **kwargs: Any) -> Any:
        parts, choices = build(prepared, *args, **kwargs)
        assert parts.teacher is not None and change is not None
        student = parts.accelerator.unwrap_model(parts.student)
        parts.teacher = Altered(parts.teacher, student, parts.pad_id, change)
        return parts, choices

    if change is not None:
        limbeck.api.build = wrapped
    try:
        yield
    finally:
        limbeck.api.build = build


def learn(o: argparse.Namespace, seed: int, arm: str, models: tuple[Path, Path], target: float) -> dict[str, Any]:
    """One run, until the target or --updates; the first update at which the target was seen."""
    work, (teacher, student) = o.work / f"from{o.start}-seed{seed}", models
    probe = Accuracy(o.every, folder=student, stop_at=target)
    if arm.startswith("GRPO"):
        taught, change = {"reward_funcs": ["exact"]}, None
    else:
        taught = {"teacher_model": str(teacher)}
        change = {"shuffled": shuffled(seed), "fixed": fixed}.get(arm)
    if "full" in arm:
        taught["opd_signal"] = "full"
    with altered(change):
        summary = train(
            work / arm.replace(" ", ""),
            model=student,
            dataset=solved(work / "prompts.jsonl", 4000, f"rl {seed}"),
            steps=o.updates,
            callbacks=[probe],
            again=True,
            seed=seed,
            rlhf_type="grpo",
            num_generations=8,
            temperature=1.0,
            learning_rate=ARMS[arm],
            **taught,
        )
    reached = [step for step, value in probe.curve if value >= target]
    found = {"final": probe.curve[-1][1], "best": max(v for _, v in probe.curve), "steps": summary["step"]}
    return found | ({"updates": reached[0]} if reached else {}) | {"curve": probe.curve}


def main() -> None:
    o = options(__doc__, "opd_rl", updates=200, every=5, start=20)
    results, target = Results(f"opd_rl_from_{o.start}", o), 1.0
    for seed in range(o.seed, o.seed + o.seeds):
        models = pair(o.models / f"seed{seed}", seed, start_at=o.start / 100)

        def start(models: tuple[Path, Path] = models) -> dict[str, Any]:
            return {"teacher": accuracy(models[0]), "student": accuracy(models[1])}

        target = 0.9 * results.arm("models", seed, start)["teacher"]
        for arm in ARMS:
            run = functools.partial(learn, o, seed, arm, models, target)
            results.arm(arm, seed, run)
    results.table(["teacher", "student", "updates", "final", "best", "steps"])
    results.curves("OPD-RL beside GRPO, from the same student", {"90% of the teacher": target})


if __name__ == "__main__":
    main()
