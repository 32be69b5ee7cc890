"""Held-out divergences: the student against the teacher on given samples, no draws, no dropout, nothing learnt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn

from limbeck.signal import Sample, Scored
from limbeck.teachers import Teacher
from limbeck.train.meter import Meter
from limbeck.train.parallel import own_part
from limbeck.train.step import micro_batch, micro_batches


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    student: nn.Module,
    teacher: Teacher | None,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    pad_id: int,
) -> dict[str, float]:
    """Means over the active tokens of `samples` (all ranks): "loss" as in training, and every per-token statistic of
    the objective, such as "forward_kl", "reverse_kl", "top1_agreement", "ce"; "tokens", "rows", "refused" are counts.

    student: a `StudentStep`, not wrapped for several processes. Every rank must call it.
    """
    meter, counts = Meter(), {"tokens": 0, "rows": 0, "refused": 0}
    training = student.training
    student.eval()
    for batch in micro_batches(own_part(accelerator, samples), batch_size):
        signals = teacher.score([batch])[0] if teacher else [None] * len(batch)
        scored = [Scored(s, g) for s, g in zip(batch, signals, strict=True) if g is not None or teacher is None]
        counts["refused"] += len(batch) - len(scored)
        micro = micro_batch(scored, pad_id, accelerator.device)
        tokens = micro.on_dataset.numel()
        if not tokens:
            continue
        loss, stats = student(micro, stats=True)
        meter.add("loss", float(loss), tokens)
        for name, per_token in stats.items():
            meter.add(name, float(per_token.double().sum()), tokens)
        counts["tokens"] += tokens
        counts["rows"] += len(scored)
    student.train(training)
    for name, count in counts.items():
        meter.add(name, count * accelerator.num_processes, 1)
    result = meter.result(accelerator)
    return result | {name: int(result[name]) for name in counts}
