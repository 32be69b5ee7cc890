"""A look at student and teacher together before the first step: a few rows scored, and what the numbers advise.

Tokenizers, end tokens and chat templates are compared by `prepare` and `check_server`, without the weights.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from limbeck.errors import TeacherError
from limbeck.report.format import number
from limbeck.rollouts import HFSampler, sample_dataset
from limbeck.signal import Sample
from limbeck.train.evaluate import evaluate
from limbeck.train.prepare import Prepared
from limbeck.train.step import Parts

ROWS = 4
SAMPLED = 48  # tokens of a response, where the student has to write one

SHOWN = {
    "top1_agreement": "same favourite token",
    "teacher_mass": "teacher's mass on the top-k",
    "student_mass": "student's mass on the top-k",
    "teacher_kl": "reverse KL, estimated",
    "forward_kl": "forward KL",
    "topk_forward_kl": "forward KL over the top-k",
    "teacher_entropy": "teacher's entropy",
    "student_entropy": "student's entropy",
    "topk_teacher_entropy": "teacher's entropy over the top-k",
    "topk_student_entropy": "student's entropy over the top-k",
}


def preflight(prepared: Prepared, parts: Parts) -> list[str]:
    """Lines to print: the figures, then a finding a line with what to do. Every rank must call it.

    Raises TeacherError where the teacher refuses every row.
    """
    teacher = parts.teacher
    if teacher is None:
        return []
    samples = _samples(prepared, parts)
    with parts.whole() as student:
        found = evaluate(parts.accelerator, student, teacher, samples, batch_size=1, pad_id=parts.pad_id)
    teacher.counts()  # of the run's own log, these are not
    if found["refused"] and not found["rows"]:
        raise TeacherError(
            f"the teacher refused all {int(found['refused'])} rows that it was asked about before the first step",
            where=teacher.name,
            fix="see its reason above; --max_length and --max_completion_length bound what it is sent",
        )
    whose = "the dataset's" if samples[0].source == "dataset" else "the student's own"
    values = ", ".join(f"{words} {number(found[name])}" for name, words in SHOWN.items() if name in found)
    head = f"preflight, {int(found['rows'])} rows, {int(found['tokens'])} of {whose} tokens: {values}"
    return [head, *(f"preflight: {finding}" for finding in findings(prepared, found))]


def findings(prepared: Prepared, found: dict[str, float]) -> list[str]:
    """What the figures of `evaluate` advise, a sentence each."""
    method, lines = prepared.method, []
    favourites, mass = found.get("top1_agreement", 1.0), found.get("teacher_mass")  # --loss_impl reference has none
    if found["refused"]:
        lines.append(f"the teacher refused {int(found['refused'])} of the rows: see its reason above")
    if mass is not None and mass < 0.9 and prepared.config.method.topk_mode == "renorm":
        lines.append(
            f"the support holds {mass:.0%} of the teacher's mass and renorm is blind to the rest: take a larger "
            "--gkd_logits_topk, or --topk_mode tail"
        )
    elif mass is not None and mass < 0.8:
        lines.append(f"the support holds {mass:.0%} of the teacher's mass: a larger --gkd_logits_topk tells more")
    if favourites < 0.25:
        first = "a warm-up on answers: `limbeck sft`, or --lmbda 0 for the first steps"
        lines.append(
            f"student and teacher agree on {favourites:.0%} of the favourite tokens"
            + (f": on the student's own tokens the teacher has little to say yet; {first}" if method.lmbda > 0 else "")
        )
    prefix = "topk_" if "topk_teacher_entropy" in found else ""
    theirs = found.get(f"{prefix}teacher_entropy", math.nan)  # the sampled token says nothing of it
    own = found.get(f"{prefix}student_entropy", math.nan)
    if own - theirs > 2:
        lines.append(f"the student is {own - theirs:.1f} nats less sure than the teacher: expect long, random samples")
    elif theirs - own > 2:
        lines.append(f"the student is {theirs - own:.1f} nats surer than the teacher: expect few, repeated answers")
    other_lessons = prepared.config.method.sft_alpha or prepared.config.reward.reward_funcs
    if found.get("teacher_kl", found["loss"]) < 1e-6 and not other_lessons:
        lines.append("student and teacher say the same: the loss is zero and nothing will be learnt")
    return lines


def _samples(prepared: Prepared, parts: Parts) -> Sequence[Sample]:
    """A few rows, the same on all ranks: the dataset's responses, or where there are none the student's own."""
    rows = random.Random(f"preflight:{prepared.plan.seed}").sample(prepared.rows, min(ROWS, len(prepared.rows)))
    answered = [row for row in rows if row[1].response_ids]
    if answered:
        return sample_dataset(answered)
    sampler = parts.samplers["student"]
    if isinstance(sampler, HFSampler):
        longest = min(SAMPLED, sampler.sampling.max_new_tokens)
        sampler = replace(sampler, sampling=replace(sampler.sampling, max_new_tokens=longest))
    with torch.random.fork_rng(devices=[]):
        return sampler(rows, seed=prepared.plan.seed)
