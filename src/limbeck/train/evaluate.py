"""Held-out measures: the student against the teacher on given samples, and their rewards; nothing is learnt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from limbeck.rewards import join_tables
from limbeck.signal import Sample, Scored, Signal
from limbeck.teachers import Teacher
from limbeck.train.meter import Meter
from limbeck.train.parallel import gather, highest, own_part, together
from limbeck.train.policy import Reward
from limbeck.train.step import ask, micro_batch, micro_batches
from limbeck.train.student import StudentStep


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    student: StudentStep,
    teacher: Teacher | None,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    pad_id: int,
    reward: Reward | None = None,
) -> dict[str, float]:
    """Means over the active tokens of `samples` (all ranks): "loss" as in training, and every per-token statistic of
    the objective, such as "forward_kl", "reverse_kl", "top1_agreement", "ce"; "tokens", "rows", "refused" are counts.
    With `reward` also `RewardTable.metrics` of all samples, refused ones too: "reward", "rewards/NAME/mean", ...

    student: a `StudentStep`, not wrapped for several processes. Every rank must call it.
    """
    meter, counts = Meter(), {"tokens": 0, "rows": 0, "refused": 0}
    training = student.training
    student.eval()
    batches = micro_batches(own_part(accelerator, samples), batch_size)
    if teacher is not None and not teacher.ask.names:
        teacher.expect([s for batch in batches for s in batch])
    for i in range(highest(accelerator, len(batches))):  # ranks ask equally often, and fail together
        batch = batches[i] if i < len(batches) else []
        signals: list[Signal | None] = [None] * len(batch)
        if teacher is not None:
            with together(accelerator):
                signals = ask(teacher, student, [batch], pad_id=pad_id, accelerator=accelerator)[0] if batch else []
        scored = [Scored(s, g) for s, g in zip(batch, signals, strict=True) if g is not None or teacher is None]
        counts["refused"] += len(batch) - len(scored)
        micro = micro_batch(scored, pad_id, accelerator.device)
        tokens = micro.on_dataset.numel()
        if not tokens:
            continue
        loss, stats = student(micro, stats=True)
        meter.add("loss", float(loss), student.objective.amount(micro.batch.counts))
        for name, per_token in stats.items():
            known = per_token[~per_token.isnan()]  # a token of weight 0 has none
            meter.add(name, float(known.double().sum()), known.numel())
        counts["tokens"] += tokens
        counts["rows"] += len(scored)
    student.train(training)
    for name, count in counts.items():
        meter.add(name, count * accelerator.num_processes, 1)
    result = meter.result(accelerator)
    rewards: dict[str, float] = {}
    if reward is not None and samples:
        with together(accelerator):
            own = reward(own_part(accelerator, samples))
        rewards = join_tables(gather(accelerator, own)).metrics()
    return result | {name: int(result[name]) for name in counts} | rewards
