"""One optimizer step of every method: sample -> score -> learn. The file to read first.

    sample   whose tokens?        the dataset's responses or the student's own, one draw a generation batch
    score    what does the teacher say of them?    a signal for each active token, asked once a generation batch
    learn    how does it reach the student?        the objective inside `StudentStep`, micro-batch by micro-batch

All sums are divided once, by the number of active tokens of the whole step: every micro-batch, every rank, counted
after scoring. So how sequences are split changes the loss and the gradient by rounding only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn

from limbeck.data.collate import Batch, collate
from limbeck.data.order import rows_of_generation
from limbeck.errors import TrainError
from limbeck.models import computed_positions
from limbeck.rollouts import Row, Sampler, draw_source
from limbeck.signal import Sample, Scored, Source, concatenate
from limbeck.teachers import Teacher
from limbeck.train import parallel
from limbeck.train.objective import MicroBatch


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers of a run that a step needs. Sizes count sequences."""

    lmbda: float
    micro_batch: int  # a forward, on each rank
    step_batch: int  # an optimizer step, over all ranks
    steps_per_generation: int  # optimizer steps on one generation batch
    num_generations: int  # samples a prompt
    total_rows: int | None  # where the stream of rows ends; None: never
    max_grad_norm: float
    seed: int
    data_seed: int
    shuffle: bool


@dataclass
class Parts:
    """What a step works with. `student` is the prepared `StudentStep`. packs: what sequences have in common is computed
    once (`limbeck.models.enable_packing`)."""

    plan: Plan
    accelerator: Accelerator
    rows: Sequence[Row]
    samplers: Mapping[Source, Sampler]
    teacher: Teacher | None
    student: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    pad_id: int
    packs: bool = False


@dataclass
class Generation:
    """A generation batch on this rank: samples by optimizer step and micro-batch, and, once scored, their signals."""

    index: int
    source: Source
    steps: list[list[list[Sample]]]
    scored: list[list[list[Scored]]] | None = None
    refused: int = 0
    used: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def spent(self) -> bool:
        return self.used >= len(self.steps)


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss, tokens (active ones): over all ranks. learning_rate: this step's. stats: this rank's sums and counts over
    tokens by name."""

    loss: float
    tokens: int
    grad_norm: float
    learning_rate: float
    source: Source
    samples: list[Scored]
    stats: dict[str, tuple[float, int]]
    seconds: float


class NonFinite(TrainError):
    """The loss or the gradient is no longer a number; nothing was updated. `samples`: this rank's rows at fault."""

    samples: Sequence[Sample] = ()


def train_step(parts: Parts, generation: Generation | None, *, stats: bool) -> tuple[Generation, StepResult]:
    """Takes one optimizer step; `generation` is what is left over from the step before, if anything."""
    if generation is None or generation.spent:
        generation = sample(parts, 0 if generation is None else generation.index + 1)
    if generation.scored is None:
        score(parts, generation)
    assert generation.scored is not None
    batches = generation.scored[generation.used]
    result = learn(parts, batches, generation.source, stats=stats)
    generation.used += 1
    generation.scored[generation.used - 1] = []  # its signals are not needed again
    return generation, result


def sample(parts: Parts, index: int) -> Generation:
    """Draws generation batch `index`: whose tokens, which rows, and the tokens themselves."""
    plan, began = parts.plan, time.perf_counter()
    source = draw_source(plan.lmbda, seed=plan.seed, generation=index)
    size = plan.step_batch * plan.steps_per_generation // plan.num_generations
    numbers = rows_of_generation(
        len(parts.rows), index, size, total=plan.total_rows, seed=plan.data_seed, shuffle=plan.shuffle
    )
    repeated = [parts.rows[i] for i in numbers for _ in range(plan.num_generations)]
    n_steps = math.ceil(len(repeated) / plan.step_batch)
    own = parallel.own_part(parts.accelerator, repeated)
    seed = (plan.seed * 1_000_003 + index) * 1_009 + parts.accelerator.process_index
    samples = parts.samplers[source](own, seed=seed % 2**62)
    steps = [
        micro_batches(part, plan.micro_batch, together=parts.packs) for part in parallel.split_evenly(samples, n_steps)
    ]
    return Generation(index, source, steps, seconds={"sample": time.perf_counter() - began})


def micro_batches(samples: Sequence[Sample], size: int, *, together: bool = False) -> list[list[Sample]]:
    """Groups of `size`, like lengths together so that little is padded; the longest first, so that memory shows.

    together: the samples of a prompt stand side by side, for models that compute it once (`enable_packing`).
    """

    def length(sample: Sample) -> int:
        return len(sample.tokens.prompt_ids) + len(sample.tokens.response_ids)

    order = sorted(samples, key=length, reverse=True)
    if together:
        groups: dict[tuple[int, ...], list[Sample]] = {}
        for sample in order:
            groups.setdefault(sample.tokens.prompt_ids, []).append(sample)
        order = [sample for group in groups.values() for sample in group]
    return [order[i : i + size] for i in range(0, len(order), size)]


def score(parts: Parts, generation: Generation) -> None:
    """Asks the teacher once for all of the generation batch that is still to be learnt from. A row that it refuses
    leaves the step and its denominator, and is counted."""
    began = time.perf_counter()
    steps = [[] if i < generation.used else step for i, step in enumerate(generation.steps)]
    flat = [batch for step in steps for batch in step]
    if parts.teacher is None:
        answers = [[Scored(s, None) for s in batch] for batch in flat]
    else:
        answers = [
            [Scored(s, signal) for s, signal in zip(batch, signals, strict=True) if signal is not None]
            for batch, signals in zip(flat, parts.teacher.score(flat), strict=True)
        ]
    generation.refused = sum(map(len, flat)) - sum(map(len, answers))
    rest = iter(answers)
    generation.scored = [[batch for batch in (next(rest) for _ in step) if batch] for step in steps]
    generation.seconds["score"] = time.perf_counter() - began


def learn(parts: Parts, batches: list[list[Scored]], source: Source, *, stats: bool) -> StepResult:
    """Forward and backward over the micro-batches of one step, then one update.

    Raises NonFinite, on every rank, before anything is updated.
    """
    accelerator, plan, began = parts.accelerator, parts.plan, time.perf_counter()
    tokens = int(parallel.total(accelerator, sum(s.sample.n_active for batch in batches for s in batch)))
    n_forwards = parallel.highest(accelerator, len(batches))  # ranks go through equal numbers of forwards
    loss_sum, sums, culprits = 0.0, {}, []
    for i in range(n_forwards):
        batch = batches[i] if i < len(batches) else []
        micro = micro_batch(batch, parts.pad_id, accelerator.device)
        with parallel.gradients(accelerator, parts.student, last=i == n_forwards - 1):
            part, token_stats = parts.student(micro, stats=stats)
            value = float(part.detach())
            culprits += [] if math.isfinite(value) else [s.sample for s in batch]
            if i == n_forwards - 1:  # reduced before the last backward, which is where ranks exchange gradients
                _stop_if(parallel.total(accelerator, len(culprits)) > 0, "loss", culprits)
            accelerator.backward(part)
        loss_sum += value
        found = {name: (float(x.double().sum()), x.numel()) for name, x in token_stats.items()}
        if stats and batch:
            found |= shares(micro.batch, parts.packs)
        for name, (more, of) in found.items():
            before, count = sums.get(name, (0.0, 0))
            sums[name] = before + more, count + of
    parameters = [p for p in parts.student.parameters() if p.requires_grad]
    # The denominator comes in here and not at each backward, where scaling the head's gradient would be a copy of it.
    # Engines average over ranks and the denominator is global: hence the number of processes.
    for gradient in (p.grad for p in parameters if p.grad is not None):
        gradient.mul_(accelerator.num_processes / max(tokens, 1))
    norm = float(accelerator.clip_grad_norm_(parameters, plan.max_grad_norm or math.inf))  # type: ignore[arg-type]
    _stop_if(not math.isfinite(norm), "gradient", [s.sample for batch in batches for s in batch])
    learning_rate = parts.optimizer.param_groups[0]["lr"]
    if norm > 0:  # no rows, or a student equal to its teacher: weight decay alone must not move the weights
        parts.optimizer.step()
    parts.scheduler.step()
    parts.optimizer.zero_grad()
    return StepResult(
        loss=parallel.total(accelerator, loss_sum) / max(tokens, 1),
        tokens=tokens,
        grad_norm=norm,
        learning_rate=learning_rate,
        source=source,
        samples=[s for batch in batches for s in batch],
        stats=sums,
        seconds=time.perf_counter() - began,
    )


def micro_batch(scored: Sequence[Scored], pad_id: int, device: torch.device) -> MicroBatch:
    """Scored samples as tensors on `device`; none at all give a batch of one padding token and no active one."""
    batch = collate([s.sample.tokens for s in scored], pad_id).to(device)
    signals = [s.signal for s in scored if s.signal is not None]
    on_dataset = torch.tensor(
        [s.sample.source == "dataset" for s in scored for _ in range(s.sample.n_active)],
        dtype=torch.bool,
        device=device,
    )
    return MicroBatch(batch, concatenate(signals) if signals else None, on_dataset)


def shares(batch: Batch, packs: bool) -> dict[str, tuple[int, int]]:
    """Tokens over the positions that the model ran on, and active tokens over tokens, as sums and counts."""
    positions = computed_positions(batch.input_ids, batch.rows, batch.cols, packs=packs)
    return {
        "useful_positions": (batch.n_tokens, positions),
        "active_share": (batch.targets.numel(), batch.n_tokens),
    }


def _stop_if(broken: bool, what: str, samples: Sequence[Sample]) -> None:
    if not broken:
        return
    error = NonFinite(
        f"the {what} is not finite",
        where=", ".join(s.example.origin for s in samples[:4]) or "on another rank",
        fix="lower --learning_rate, or try --mixed_precision no; nothing was updated, the rows are in the run folder",
    )
    error.samples = samples
    raise error
