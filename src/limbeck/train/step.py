"""One optimizer step of every method: sample -> score -> learn. The file to read first.

    sample   whose tokens?        the dataset's responses or the student's own, one draw a generation batch
    score    what does the teacher say of them?    a signal for each active token, asked once a generation batch
    learn    how does it reach the student?        the objective inside `StudentStep`, micro-batch by micro-batch

On path B what was scored is judged first, once a generation batch: rewards and log-ratios become advantages.

All sums are divided once, by a number of the whole step: every micro-batch, every rank, counted after scoring. For
divergences it is the number of active tokens, or the sum of their weights; a policy loss says its own. So how sequences
are split changes the loss and the gradient by rounding only.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn

from limbeck.data.collate import Batch, collate
from limbeck.data.order import rows_at
from limbeck.errors import TrainError
from limbeck.models import computed_positions, evaluating
from limbeck.rewards import RewardTable
from limbeck.rollouts import Done, Row, Sampler, draw_source
from limbeck.signal import Policy, Sample, Scored, Source, parts_of
from limbeck.teachers import Answers, Teacher
from limbeck.train import parallel
from limbeck.train.objective import MicroBatch, Stats
from limbeck.train.policy import Judge
from limbeck.train.resample import resample
from limbeck.train.shard import Whole
from limbeck.train.student import StudentStep


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers of a run that a step needs. Sizes count sequences."""

    lmbda: float
    micro_batch: int  # a forward, on each rank
    step_batch: int  # an optimizer step, over all ranks
    steps_per_generation: int  # optimizer steps on one generation batch
    num_generations: int  # samples a prompt
    num_iterations: int  # times that a generation batch is learnt from
    total_rows: int | None  # where the stream of rows ends; None: never
    max_grad_norm: float
    seed: int
    data_seed: int
    shuffle: bool
    max_resample_times: int = 0  # attempts to replace groups without a spread of rewards; 0: they stay


@dataclass
class Parts:
    """What a step works with. `student` is the prepared `StudentStep`. packs: what sequences have in common is computed
    once (`limbeck.models.enable_packing`). whole: the student with whole weights, where they are sharded.
    runs_student: scoring takes the student too: it names ids, is its own teacher, or tells log-probabilities."""

    plan: Plan
    accelerator: Accelerator
    rows: Sequence[Row]
    samplers: Mapping[Source, Sampler]
    teacher: Teacher | None
    student: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    pad_id: int
    whole: Whole
    judge: Judge | None = None
    packs: bool = False
    runs_student: bool = False


@dataclass
class Generation:
    """A generation batch on this rank: samples by optimizer step and micro-batch, and, once scored, their signals.
    places: id(sample) -> its place in the batch of all ranks, where the samples of a prompt stand together.
    next_row: the first place of the stream of rows that is still to be drawn. rewards: id(sample) -> its row, where
    they had to be known before. found: metrics of the sampling, sums and counts, of this rank."""

    index: int
    source: Source
    steps: list[list[list[Sample]]]
    places: dict[int, int] = field(default_factory=dict[int, int])
    scored: list[list[list[Scored]]] | None = None
    refused: int = 0
    used: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    next_row: int = 0
    rewards: dict[int, RewardTable] = field(default_factory=dict[int, RewardTable])
    found: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @property
    def spent(self) -> bool:
        return self.used >= len(self.steps)


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss, tokens (active ones): over all ranks. learning_rate: this step's. stats: this rank's sums and counts over
    tokens by name. divergences: where statistics were asked for, each sample's, [N] on the host; NaN: filtered."""

    loss: float
    tokens: int
    grad_norm: float
    learning_rate: float
    source: Source
    samples: list[Scored]
    stats: dict[str, tuple[float, int]]
    seconds: float
    divergences: list[tuple[Sample, list[float]]] = field(default_factory=list)


class NonFinite(TrainError):
    """The loss or the gradient is no longer a number; nothing was updated. `samples`: this rank's rows at fault."""

    samples: Sequence[Sample] = ()


def train_step(parts: Parts, generation: Generation | None, *, stats: bool) -> tuple[Generation, StepResult]:
    """Takes one optimizer step; `generation` is what is left over from the step before, if anything."""
    if generation is None or generation.spent:
        generation = sample(parts, *((0, 0) if generation is None else (generation.index + 1, generation.next_row)))
    if generation.scored is None:
        score(parts, generation)
    assert generation.scored is not None
    batches = generation.scored[generation.used]
    result = learn(parts, batches, generation.source, stats=stats)
    generation.used += 1
    generation.scored[generation.used - 1] = []  # its signals are not needed again (a later iteration holds its own)
    return generation, result


def sample(parts: Parts, index: int, next_row: int) -> Generation:
    """Draws generation batch `index` from place `next_row` of the stream of rows on: whose tokens, which rows, and the
    tokens themselves."""
    plan, accelerator, judge, began = parts.plan, parts.accelerator, parts.judge, time.perf_counter()
    source = draw_source(plan.lmbda, seed=plan.seed, generation=index)
    size = plan.step_batch * plan.steps_per_generation // plan.num_generations
    if plan.total_rows is not None:  # the last batch may be cut
        size = min(size, plan.total_rows - index * size)

    def rows(start: int, count: int) -> list[Row]:
        numbers = rows_at(len(parts.rows), start, count, seed=plan.data_seed, shuffle=plan.shuffle)
        return [parts.rows[i] for i in numbers]

    def draw(own: Sequence[Row], attempt: int, done: Done | None = None) -> list[Sample]:
        return parts.samplers[source](own, seed=_seed(plan.seed, index, rank, attempt), done=done)

    repeated = [row for row in rows(next_row, size) for _ in range(plan.num_generations)]
    n_steps, rank = math.ceil(len(repeated) / plan.step_batch), accelerator.process_index
    # a step's samples are divided among the ranks, not a rank's among the steps: how many ranks there are must not
    # decide which samples are learnt from together
    by_step = [parallel.own_part(accelerator, step) for step in parallel.split_evenly(range(len(repeated)), n_steps)]
    places, teacher = [place for step in by_step for place in step], parts.teacher
    tell = None if teacher is None or teacher.ask.names else teacher.expect  # the student names ids when all are there
    generation = Generation(index, source, [], next_row=next_row + size)
    reward = judge.reward if judge is not None and plan.max_resample_times else None  # to resample by
    with parallel.together(accelerator):
        samples = draw([repeated[place] for place in places], 0, tell if reward is None else None)
    if reward is not None:
        filled = resample(
            accelerator,
            samples,
            places,
            group=plan.num_generations,
            reward=reward,
            further=lambda start, count: rows(next_row + size + start, count),
            draw=draw,
            limit=plan.max_resample_times,
        )
        samples = filled.samples
        generation.next_row += filled.prompts
        generation.rewards = {id(s): row for s, row in zip(samples, filled.rewards, strict=True)}
        if accelerator.is_main_process:
            generation.found = {
                "dynamic_sample/replaced_share": (filled.replaced, filled.groups),
                "dynamic_sample/tries": (filled.tries, 1),
                "dynamic_sample/prompts": (size + filled.prompts, 1),
            }
        if tell is not None:
            tell(samples)
    rest = iter(samples)
    steps = [[next(rest) for _ in step] for step in by_step]
    generation.steps = [micro_batches(step, plan.micro_batch, together=parts.packs) for step in steps]
    generation.steps *= plan.num_iterations
    generation.places = {id(s): place for s, place in zip(samples, places, strict=True)}
    generation.seconds["sample"] = time.perf_counter() - began
    return generation


def _seed(seed: int, index: int, rank: int, attempt: int) -> int:
    """Of a sampler's call; attempts after the first one have seeds of their own."""
    if attempt:
        return random.Random(f"resample:{seed}:{index}:{rank}:{attempt}").getrandbits(62)
    return ((seed * 1_000_003 + index) * 1_009 + rank) % 2**62


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
    leaves the step and its denominator, and is counted.

    Raises, on every rank, what the teacher raised on one of them: no rank waits for another that has given up.
    """
    began, accelerator, teacher = time.perf_counter(), parts.accelerator, parts.teacher
    once = len(generation.steps) // parts.plan.num_iterations
    left = generation.steps[generation.used :][:once]  # each sample is asked about once
    flat = [batch for step in left for batch in step]
    if teacher is None:
        answers = [[Scored(s, None) for s in batch] for batch in flat]
    else:
        with _student(parts) as student, parallel.together(accelerator):
            signals = ask(teacher, student, flat, pad_id=parts.pad_id, accelerator=accelerator)
        answers = [
            [Scored(s, signal, teacher.who(s)) for s, signal in zip(batch, told, strict=True) if signal is not None]
            for batch, told in zip(flat, signals, strict=True)
        ]
    generation.refused = sum(map(len, flat)) - sum(map(len, answers))
    if parts.judge is not None:
        with _student(parts) as student, parallel.together(accelerator):
            answers = parts.judge(accelerator, student, answers, generation.places, generation.rewards)
    rest = iter(answers)
    scored = [[batch for batch in (next(rest) for _ in step) if batch] for step in left]
    generation.scored = [[]] * generation.used + [
        list(scored[i % once]) for i in range(len(generation.steps) - generation.used)
    ]
    generation.seconds["score"] = time.perf_counter() - began


def _student(parts: Parts) -> AbstractContextManager[StudentStep]:
    """For scoring: with whole weights where it is run at all."""
    return parts.whole() if parts.runs_student else nullcontext(parts.accelerator.unwrap_model(parts.student))


def ask(
    teacher: Teacher, student: StudentStep, batches: list[list[Sample]], *, pad_id: int, accelerator: Accelerator
) -> Answers:
    """The teacher's answers; where the student names the ids, its likeliest ones as its weights are now."""
    if not teacher.ask.names:
        return teacher.score(batches)
    with accelerator.autocast(), evaluating(student):
        named = [student.likeliest(batch, teacher.ask.named_k, pad_id, accelerator.device) for batch in batches]
    return teacher.score(batches, named)


def learn(parts: Parts, batches: list[list[Scored]], source: Source, *, stats: bool) -> StepResult:
    """Forward and backward over the micro-batches of one step, then one update.

    Raises NonFinite, on every rank, before anything is updated.
    """
    accelerator, plan, began = parts.accelerator, parts.plan, time.perf_counter()
    flat = [s for batch in batches for s in batch]
    tokens = int(parallel.total(accelerator, sum(s.sample.n_active for s in flat)))
    objective = accelerator.unwrap_model(parts.student).objective
    counts = [s.sample.n_active for s in flat]
    own = objective.amount(counts) if parts.judge is None else parts.judge.amount(flat)
    amount = parallel.total(accelerator, own) or 1  # nothing at all has a sum of 0
    n_forwards = parallel.highest(accelerator, len(batches))  # ranks go through equal numbers of forwards
    loss_sum, sums, culprits, divergences = 0.0, {}, [], []
    for i in range(n_forwards):
        batch = batches[i] if i < len(batches) else []
        micro = micro_batch(batch, parts.pad_id, accelerator.device)
        with parallel.gradients(accelerator, parts.student, last=i == n_forwards - 1):
            part, token_stats = parts.student(micro, stats=stats)
            value = float(part.detach())
            culprits += [] if math.isfinite(value) else [s.sample for s in batch]
            if i == n_forwards - 1:  # reduced before the last backward, which is where ranks exchange gradients
                _stop_if(accelerator, parallel.total(accelerator, len(culprits)) > 0, "loss", culprits)
            accelerator.backward(part)
        loss_sum += value
        known = {n: x[~x.isnan()] for n, x in _by_teacher(token_stats, batch).items()}  # a filtered token has none
        found = {name: (float(x.double().sum()), x.numel()) for name, x in known.items()}
        if stats and batch:
            found |= shares(micro.batch, parts.packs)
            divergences += _by_sample(token_stats, batch)
        for name, (more, of) in found.items():
            before, count = sums.get(name, (0.0, 0))
            sums[name] = before + more, count + of
    parameters = [p for p in parts.student.parameters() if p.requires_grad]
    # The denominator comes in here and not at each backward, where scaling the head's gradient would be a copy of it.
    # Engines average over ranks and the denominator is global: hence the number of processes.
    for gradient in (p.grad for p in parameters if p.grad is not None):
        gradient.mul_(accelerator.num_processes / amount)
    norm = float(accelerator.clip_grad_norm_(parameters, plan.max_grad_norm or math.inf))  # type: ignore[arg-type]
    _stop_if(accelerator, not math.isfinite(norm), "gradient", [s.sample for s in flat])
    learning_rate = parts.optimizer.param_groups[0]["lr"]
    if norm > 0:  # no rows, or a student equal to its teacher: weight decay alone must not move the weights
        parts.optimizer.step()
        if parts.teacher is not None:
            with parts.whole() if parts.teacher.follows else nullcontext():
                parts.teacher.follow()
    parts.scheduler.step()
    parts.optimizer.zero_grad()
    return StepResult(
        loss=parallel.total(accelerator, loss_sum) / amount,
        tokens=tokens,
        grad_norm=norm,
        learning_rate=learning_rate,
        source=source,
        samples=flat,
        stats=sums,
        seconds=time.perf_counter() - began,
        divergences=divergences,
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
    counts = [s.sample.n_active for s in scored]
    signal_parts = parts_of(signals, counts, device) if signals else []
    return MicroBatch(batch, signal_parts, on_dataset, _joined([s.policy for s in scored if s.policy is not None]))


def _joined(policies: Sequence[Policy]) -> Policy | None:
    """Of several samples as one, [sum of N]."""
    if not policies:
        return None

    def join(name: str) -> torch.Tensor | None:
        each = [getattr(policy, name) for policy in policies]
        return None if each[0] is None else torch.cat(each)

    advantage, weight, *rest = (join(name) for name in ("advantage", "weight", "old_logp", "ref_logp", "keep"))
    assert advantage is not None and weight is not None
    return Policy(advantage, weight, sum(p.amount for p in policies), *rest)


def _by_teacher(stats: Stats, scored: Sequence[Scored]) -> Stats:
    """The statistics, and the divergence once more by teacher, where there are several."""
    names = {s.teacher for s in scored if s.teacher}
    if not names or "divergence" not in stats:
        return stats
    each = stats["divergence"].split([s.sample.n_active for s in scored])
    mine = {name: [d for d, s in zip(each, scored, strict=True) if s.teacher == name] for name in names}
    return stats | {f"divergence/{name}": torch.cat(parts) for name, parts in mine.items()}


def _by_sample(stats: Stats, scored: Sequence[Scored]) -> list[tuple[Sample, list[float]]]:
    if "divergence" not in stats:
        return []
    each = stats["divergence"].cpu().split([s.sample.n_active for s in scored])
    return [(s.sample, values.tolist()) for s, values in zip(scored, each, strict=True)]


def shares(batch: Batch, packs: bool) -> dict[str, tuple[int, int]]:
    """Tokens over the positions that the model ran on, and active tokens over tokens, as sums and counts."""
    positions = computed_positions(batch.input_ids, batch.rows, batch.cols, packs=packs)
    return {
        "useful_positions": (batch.n_tokens, positions),
        "active_share": (batch.targets.numel(), batch.n_tokens),
    }


def _stop_if(accelerator: Accelerator, broken: bool, what: str, samples: Sequence[Sample]) -> None:
    """broken: the same on all ranks, which raise an error of the same words."""
    if not broken:
        return
    by_rank = parallel.gather(accelerator, [s.example.origin for s in samples[:4]])
    error = NonFinite(
        f"the {what} is not finite",
        where=", ".join([origin for origins in by_rank for origin in origins][:4]),
        fix="lower --learning_rate, or try --mixed_precision no; nothing was updated, the rows are in the run folder",
    )
    error.samples = samples
    raise error
