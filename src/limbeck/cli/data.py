"""`limbeck data ...`: work on data sets and on what teachers have said of them. A command is a function of its
configuration, registered with `run`."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from functools import singledispatch

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from limbeck.cli.masks import masked
from limbeck.config.beside import CacheInfoConfig, CheckConfig, ScoreConfig
from limbeck.config.defaults import Choice
from limbeck.config.room import Room
from limbeck.config.schema import Config, Model, Run
from limbeck.data import Dropped, Example, check_names, load_examples, render_all
from limbeck.data.dropped import SHOWN
from limbeck.errors import ConfigError
from limbeck.models import end_token_ids, load_generation_config, load_tokenizer, skeleton
from limbeck.report.format import duration, number
from limbeck.rewards import load_plugin
from limbeck.rollouts import sample_dataset
from limbeck.signal import Sample
from limbeck.teachers import Teacher
from limbeck.teachers.store import survey
from limbeck.train.parallel import highest, own_part, together, total
from limbeck.train.prepare import Prepared, prepare
from limbeck.train.step import micro_batches
from limbeck.train.teacher import build_teacher

BATCH = 4  # rows asked about at a time, where not given
GROUP = 8  # batches that the teacher is asked about at once: a kill loses no more
SECONDS = 10.0  # between lines of progress


@singledispatch
def run(config: Room) -> int:
    """Runs the command that the configuration belongs to. Returns the exit status."""
    raise NotImplementedError(type(config).__name__)


@run.register
def score(config: ScoreConfig) -> int:
    """Asks the teacher about every response of the data set that the store has not. Can be stopped and started."""
    accelerator = Accelerator(mixed_precision="no", cpu=config.run.use_cpu)
    prepared = _prepare(config, accelerator)
    choices: list[Choice] = []
    if config.optim.per_device_eval_batch_size is None:
        choices.append(Choice("per_device_eval_batch_size", BATCH, "the default of data score"))
    teacher = build_teacher(prepared, accelerator, _stand_in(config.model), choices)
    assert teacher is not None
    loud = accelerator.is_main_process
    if loud:
        lines = [f"chosen: {choice}" for choice in choices]
        lines += [f"warning: {dropped}" for dropped in prepared.dropped.values() if str(dropped)]
        lines += [f"note: {note}" for note in prepared.notes]
        print(*lines, sep="\n", end="\n" if lines else "")
    samples = own_part(accelerator, sample_dataset([*prepared.rows, *prepared.held_out]))
    batches = micro_batches(samples, config.optim.per_device_eval_batch_size or BATCH)
    began = time.perf_counter()
    try:
        own = _score_all(accelerator, teacher, batches, loud=loud)
    finally:
        teacher.close()
    counts = {name: int(total(accelerator, value)) for name, value in own.items()}
    if loud:
        seconds = time.perf_counter() - began
        _summary(config, counts, teacher.name, seconds)
    return 0


def _prepare(config: ScoreConfig, accelerator: Accelerator) -> Prepared:
    """The rows as a run with the same flags will see them."""
    if config.method.topk_support != "teacher":
        raise ConfigError(
            "without a student there are no ids of its choice to ask about",
            where=f"--topk_support {config.method.topk_support}",
            fix="leave it out, or let the run itself fill the store: --teacher_cache",
        )
    if config.teacher.teacher_model is None and config.teacher.teacher_model_server is None:
        raise ConfigError(
            "there is no teacher to ask", fix="add --teacher_model NAME, or --teacher_model_server ADDRESS"
        )
    whole = Config(
        model=config.model,
        data=config.data,
        method=config.method.model_copy(update={"rlhf_type": "gkd", "beta": 0.0, "lmbda": 0.0}),
        teacher=config.teacher,
        rollout=config.rollout,
        optim=config.optim,
        run=Run(use_cpu=config.run.use_cpu, seed=config.run.seed),
    )
    prepared = prepare(whole, world_size=accelerator.num_processes, answered_only=True)
    source = "server" if config.teacher.teacher_model is None else "model"  # and not the base of some student
    return replace(prepared, method=replace(prepared.method, source=source))


def _stand_in(model: Model) -> nn.Module:
    """The student without its weights: a teacher that is loaded here takes its type from it."""
    bare = skeleton(model.model, revision=model.model_revision, trust_remote_code=model.trust_remote_code)
    dtype = "float32" if model.torch_dtype == "auto" and model.tuner_type == "full" else model.torch_dtype
    return bare if dtype == "auto" else bare.to(getattr(torch, dtype))


def _score_all(
    accelerator: Accelerator, teacher: Teacher, batches: list[list[Sample]], *, loud: bool
) -> dict[str, float]:
    """This rank's rows, tokens, hits, misses and refusals."""
    groups = [batches[i : i + GROUP] for i in range(0, len(batches), GROUP)]
    rows = sum(map(len, batches))
    sums: dict[str, float] = dict.fromkeys(("rows", "tokens", "refused", "hits", "misses"), 0.0)
    began = said = time.perf_counter()
    for i in range(highest(accelerator, len(groups))):  # ranks fail together
        group = groups[i] if i < len(groups) else []
        with together(accelerator):
            if i + 1 < len(groups):
                teacher.expect([s for batch in groups[i + 1] for s in batch])
            answers = teacher.score(group)
        told = [s for batch, row in zip(group, answers, strict=True) for s, a in zip(batch, row, strict=True) if a]
        sums["rows"] += len(told)
        sums["tokens"] += sum(s.n_active for s in told)
        sums["refused"] += sum(map(len, group)) - len(told)
        counts = teacher.counts()
        sums["hits"] += counts["teacher/store_hits"]
        sums["misses"] += counts["teacher/store_misses"]
        if loud and time.perf_counter() - said > SECONDS:
            said = time.perf_counter()
            done = sums["rows"] + sums["refused"]
            left = (said - began) * (rows - done) / max(done, 1)
            print(f"{done:,.0f} of {rows:,} rows, {sums['tokens']:,.0f} tokens, {duration(left)} left", flush=True)
    return sums


def _summary(config: ScoreConfig, counts: dict[str, int], teacher: str, seconds: float) -> None:
    folder = config.teacher.teacher_cache
    assert folder is not None
    found = survey(folder, check=False)
    tokens = sum(tally.tokens for tally in found.groups.values())
    print(f"{teacher} on {counts['rows']:,} rows, {counts['tokens']:,} tokens, in {duration(seconds)}:")
    print(f"  asked     {counts['misses']:,}")
    print(f"  in store  {counts['hits']:,}")
    print(f"  refused   {counts['refused']:,}")
    print(f"{folder} holds {tokens:,} tokens, {number(found.bytes / max(tokens, 1), 3)} bytes a token")


@run.register
def check(config: CheckConfig) -> int:
    """Prints how each data set was read, what was left out, lengths, and a few rows; with --model in tokens."""
    out = Console(highlight=False, soft_wrap=True)
    data, model = config.data, config.model
    for path in data.external_plugins:
        load_plugin(path)
    examples, dropped = load_examples(
        data.dataset, seed=config.run.seed, system=data.system, columns=data.columns, streaming=data.streaming
    )
    dropped.notes += check_names(data.columns, dropped)
    for kind, rows in dropped.kinds.items():
        print(f"{rows:,} rows of {kind}")
    if not model.model:
        print(*_findings(dropped), *_histogram("characters", list(map(_characters, examples))), sep="\n")
        print("add --model STUDENT for lengths in tokens, for what its chat template refuses, and for the masks")
        return 0
    tokenizer = load_tokenizer(model.model, revision=model.model_revision, trust_remote_code=model.trust_remote_code)
    rows, over = render_all(
        examples,
        tokenizer,
        end_ids=end_token_ids(tokenizer, load_generation_config(model.model, revision=model.model_revision)),
        turns="last" if data.loss_scale.startswith("last_round") else "all",
        ignore_empty_think=data.loss_scale.endswith("ignore_empty_think"),
        max_length=data.max_length,
        truncation_strategy="delete" if data.truncation_strategy == "raise" else data.truncation_strategy,
    )
    print(*_findings(dropped.merge(over)), sep="\n")
    print(*_histogram("prompt tokens", [len(tokens.prompt_ids) for _, tokens in rows]), sep="\n")
    print(*_histogram("trained tokens", [len(tokens.targets) for _, tokens in rows if tokens.targets]), sep="\n")
    for example, tokens in rows[: config.look.show_rows]:
        out.print(f"\n{example.origin}  (what is trained stands in green, between ⟦ and ⟧)", style="bold", markup=False)
        out.print(masked(tokens, tokenizer))
    return 0


def _findings(dropped: Dropped) -> list[str]:
    """One line a reason, with what to do about it; and the remarks."""
    lines = [
        f"{tally.count:,} dropped: {reason} ({', '.join(tally.origins)}{', ...' if tally.count > SHOWN else ''})"
        + (f"; {tally.fix}" if tally.fix else "")
        for reason, tally in sorted(dropped.reasons.items(), key=lambda item: -item[1].count)
    ]
    lines += [f"{tally.count:,} cut: {reason} ({', '.join(tally.origins)})" for reason, tally in dropped.cuts.items()]
    return [*lines, *dropped.notes] or ["no row dropped"]


def _characters(example: Example) -> int:
    return sum(len(message["content"]) for message in example.messages)


def _histogram(name: str, lengths: list[int]) -> list[str]:
    """Lengths by powers of two, the widest bar 40 characters."""
    if not lengths:
        return [f"{name}: none"]
    counts = Counter(max(length, 1).bit_length() - 1 for length in lengths)
    lines = [f"{name}: {sum(lengths) / len(lengths):,.0f} on average, {max(lengths):,} at most"]
    for power in range(min(counts), max(counts) + 1):
        count = counts[power]
        bar = "█" * math.ceil(40 * count / max(counts.values()))
        lines.append(f"  {2**power:>7,} to {2 ** (power + 1) - 1:>7,}  {count:>7,}  {bar}".rstrip())
    return lines


@run.register
def cache_info(config: CacheInfoConfig) -> int:
    """Prints what a store holds; every record is read and checked."""
    folder = config.teacher.teacher_cache
    assert folder is not None
    found = survey(folder)
    about = found.about
    print(f"teacher    {about.name} ({about.teacher})")
    print(f"tokenizer  {about.tokenizer}, {about.valid:,} ids")
    print(f"segments   {found.segments:,}, {found.bytes / 1e6:,.1f} MB")
    rows = [("kind", "ids", "temperature", "rows", "tokens", "bytes", "bytes a token")]
    for (kind, ids, temperature), t in sorted(found.groups.items()):
        each = number(t.bytes / max(t.tokens, 1), 3)
        rows.append((kind, f"{ids:,}", f"{temperature:g}", f"{t.rows:,}", f"{t.tokens:,}", f"{t.bytes:,}", each))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"{found.damaged:,} damaged records, {found.cut:,} cut segments, {found.duplicates:,} records twice")
    return 0
