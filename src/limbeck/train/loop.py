"""The run: steps until the end, and between them the log, evaluations, checkpoints and a clean way out."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import TeacherError, TrainError
from limbeck.report import Console, MetricsFile, log
from limbeck.rewards import repeated_share
from limbeck.signal import Sample
from limbeck.train import checkpoint, parallel
from limbeck.train.completions import describe
from limbeck.train.evaluate import evaluate
from limbeck.train.guards import REPEATED_NGRAM, Collapse
from limbeck.train.hooks import Hooks, will_log
from limbeck.train.monitors import add_privileged_kl, add_texts, length_drift
from limbeck.train.step import NonFinite, Parts, StepResult, train_step
from limbeck.train.tally import Tally

PAGE_SECONDS = 60  # the run's page is written anew at least this often: some 0.1 s


@dataclass
class Book:
    """Where a run writes, and how often it saves: the run folder and the voices."""

    folder: Path
    console: Console
    metrics: MetricsFile
    completions: MetricsFile | None
    tokenizer: Any
    histograms: MetricsFile | None = None
    keep: int | None = None  # checkpoints
    metric_for_best: str = "eval_loss"
    greater_is_better: bool = False
    max_seconds: float | None = None
    eval_batch: int = 1
    privileged_kl: bool = False  # log how far its privileged prompt moves the teacher
    refresh: Callable[[], None] = lambda: None  # called when there is something new to show: the run's page
    tally: Tally = field(default_factory=Tally)  # since the last line; a resume starts a new one
    shown: float = field(default_factory=time.monotonic)  # when the page was last written
    collapse: Callable[[list[dict[str, Any]]], Collapse | None] = lambda history: None  # after each line of the log


@dataclass
class Outcome:
    """How a run ended. `stopped_by`: "end", "max_time", "callback", "collapse", or a signal's name. `collapse`: what
    --stop_on_collapse found. `unpushed`: why --push_to_hub failed after all was saved, and how to push."""

    step: int
    stopped_by: str
    evaluation: dict[str, dict[str, float]] = field(default_factory=dict)  # "before", "after"
    collapse: Collapse | None = None
    unpushed: TrainError | None = None


def fit(
    parts: Parts,
    progress: checkpoint.Progress,
    hooks: Hooks,
    book: Book,
    held_out: Callable[[int], dict[str, Sequence[Sample]]],
) -> Outcome:
    """Trains until the last step, `max_seconds`, SIGINT or SIGTERM, or a callback's word; each leaves a checkpoint.

    held_out(step): the samples to evaluate on, by metric prefix ("eval_"; "eval_on_policy_" for fresh ones); none
    leaves evaluation out. Raises NonFinite, with the rows saved and a checkpoint written, before a broken update.
    """
    state, outcome = progress.state, Outcome(0, "end")
    began = time.monotonic() - progress.seconds
    hooks.call("on_train_begin")
    with _interruptible() as interrupted:
        if state.global_step == 0 and (before := _evaluate(parts, progress, book, held_out)):
            outcome.evaluation["before"] = before
        while state.global_step < state.max_steps:
            if hooks.control.should_training_stop:
                outcome.stopped_by = "callback"
                break
            hooks.call("on_step_begin")
            stats = will_log(state, state.global_step + 1)
            with _nothing_lost(parts, progress, book):
                progress.generation, result = train_step(parts, progress.generation, stats=stats)
            progress.seconds = time.monotonic() - began
            control = _account(parts, progress, hooks, result)
            book.tally.add_lengths(scored.sample for scored in result.samples)
            if control.should_log or stats:
                _log(parts, progress, hooks, book, result)
                outcome.collapse = book.collapse(state.log_history)  # the same on all ranks, as the log is
            else:
                book.console.tick(state.global_step)
            with _nothing_lost(parts, progress, book):
                after = _evaluate(parts, progress, book, held_out) if control.should_evaluate else {}
            if after:
                outcome.evaluation["after"] = after
                hooks.call("on_evaluate", metrics=after)
            reason = _reason_to_stop(parts, progress, book, interrupted, control.should_training_stop)
            reason = "collapse" if outcome.collapse is not None else reason
            if control.should_evaluate or control.should_save or time.monotonic() - book.shown > PAGE_SECONDS:
                book.refresh()
                book.shown = time.monotonic()
            if control.should_save or (reason and reason != "end"):
                path = checkpoint.save(parts, progress, book.tokenizer, book.folder, keep=book.keep)
                book.console.say(f"saved {path.name}" + (f" ({reason})" if reason else ""))
                hooks.call("on_save")
            if reason:
                outcome.stopped_by = reason
                break
    outcome.step = state.global_step
    hooks.call("on_train_end")
    return outcome


@contextmanager
def _nothing_lost(parts: Parts, progress: checkpoint.Progress, book: Book) -> Iterator[None]:
    """A fault inside leaves a checkpoint before it ends the run."""
    try:
        yield
    except NonFinite as error:
        _save_culprits(error, parts, progress, book)
        raise
    except TeacherError:
        _save_before_leaving(parts, progress, book)
        raise


def _account(parts: Parts, progress: checkpoint.Progress, hooks: Hooks, result: StepResult) -> Any:
    """Adds a step to the sums and lets the callbacks speak."""
    state, meter, generation = progress.state, progress.meter, progress.generation
    assert generation is not None
    state.global_step += 1
    progress.tokens += result.tokens
    meter.add("loss", result.loss * result.tokens, result.tokens)
    meter.add(f"loss/{result.source}", result.loss * result.tokens, result.tokens)
    meter.add("tokens", result.tokens, 1)
    meter.add("grad_norm", result.grad_norm, 1)
    for name, (total, count) in result.stats.items():
        meter.add(name, total, count)
    if parts.teacher is None and parts.judge is None:  # then the loss is the cross-entropy, and known at every step
        meter.add("ce", result.loss * result.tokens, result.tokens)
    for scored in result.samples:
        tokens = scored.sample.tokens
        meter.add("completion_length/mean", scored.sample.n_active, 1)
        meter.top("completion_length/max", scored.sample.n_active)
        meter.add("prompt_length/mean", len(tokens.prompt_ids), 1)
        if scored.sample.source == "student":
            meter.add("truncated_share", scored.sample.truncated, 1)
            meter.add("repeated_share", repeated_share(tokens.response_ids, REPEATED_NGRAM), 1)
    if parts.judge is not None:
        for name, (total, count) in parts.judge.found.items():
            meter.add(name, total, count)
        parts.judge.found = {}
    for name, (total, count) in generation.found.items():
        meter.add(name, total, count)
    generation.found = {}
    meter.add("seconds/learn", result.seconds, 1)
    for name, seconds in generation.seconds.items():
        meter.add(f"seconds/{name}", seconds, 0)
    for name in ("sample", "score"):
        meter.add(f"seconds/{name}", 0.0, 1)
    for name, count in (parts.teacher.counts() if parts.teacher is not None else {}).items():
        meter.add(name, count * parts.accelerator.num_processes, 0)  # sums over ranks, a step
        meter.add(name, 0.0, 1)
    generation.seconds.clear()
    refused, generation.refused = generation.refused, 0
    progress.refused += int(parallel.total(parts.accelerator, refused))
    epoch_before = state.epoch or 0.0
    done = state.global_step * parts.plan.step_batch / parts.plan.num_generations / parts.plan.num_iterations
    state.epoch = min(done, parts.plan.total_rows or done) / len(parts.rows)
    control = hooks.call("on_step_end")
    if int(state.epoch) > int(epoch_before) or state.global_step >= state.max_steps:  # the last one may be a part
        control = hooks.call("on_epoch_end")
    return control


def _log(parts: Parts, progress: checkpoint.Progress, hooks: Hooks, book: Book, result: StepResult) -> None:
    state = progress.state
    add_texts(progress.meter, [scored.sample for scored in result.samples], book.tokenizer.decode)
    if book.privileged_kl and parts.teacher is not None:
        with parts.whole() if parts.runs_student else nullcontext():  # a self-teacher is the student
            samples = [scored.sample for scored in result.samples]
            add_privileged_kl(parts.accelerator, progress.meter, parts.teacher, samples)
    metrics = progress.meter.result(parts.accelerator)
    drift = length_drift(state.log_history, metrics.get("completion_length/mean", 0.0))
    metrics |= {} if drift is None else {"completion_length/drift": drift}
    busy = sum(metrics.get(f"seconds/{name}", 0.0) for name in ("sample", "score", "learn"))
    metrics["tokens_per_second"] = metrics["tokens"] / busy if busy else 0.0
    line = {"step": state.global_step, "kind": "train", "epoch": round(state.epoch or 0.0, 4)}
    line |= metrics | {
        "tokens": progress.tokens,
        "learning_rate": result.learning_rate,
        "refused_rows": progress.refused,
        "peak_memory_gib": peak_memory_gib(parts.accelerator.device),
        "time": round(progress.seconds, 3),
    }
    progress.meter.clear()
    state.log_history.append(line)
    book.metrics.write(line)
    book.console.step(line)
    log(parts.accelerator, line, state.global_step)
    hooks.call("on_log", logs=line)
    if book.completions is not None:
        asked = parts.teacher.ask if parts.teacher is not None else None
        with parts.whole(only_main=True) as student:
            if result.samples and parts.accelerator.is_main_process:
                shown = describe(parts.accelerator, student, result.samples[0], book.tokenizer, parts.pad_id, asked)
                book.completions.write({"step": state.global_step, **shown})
    if book.histograms is not None:
        for sample, values in result.divergences:
            book.tally.add_divergence(sample, values)
        line = book.tally.result(parts.accelerator, book.tokenizer)
        if book.completions is None:  # asked for no text
            del line["prompts"]
        book.histograms.write({"step": state.global_step, **line})
        book.tally = Tally()


def _evaluate(
    parts: Parts, progress: checkpoint.Progress, book: Book, held_out: Callable[[int], dict[str, Sequence[Sample]]]
) -> dict[str, float]:
    """Scores the held-out samples, logs them, and names the best checkpoint so far."""
    state, metrics = progress.state, {}
    options = {"batch_size": book.eval_batch, "pad_id": parts.pad_id}
    for prefix, samples in held_out(state.global_step).items():
        judge = parts.judge if prefix == "eval_on_policy_" else None
        reward = None if judge is None else judge.reward
        with parts.whole() as student:
            values = evaluate(parts.accelerator, student, parts.teacher, samples, reward=reward, **options)
        if judge is not None and judge.sampled:  # a policy's loss is one of its advantages, which an evaluation has not
            values.pop("loss", None)  # there is none where the teacher refused every row
        metrics |= {prefix + name: value for name, value in values.items()}
    if not metrics:
        return {}
    line = {"step": state.global_step, "kind": "eval", "epoch": round(state.epoch or 0.0, 4), **metrics}
    state.log_history.append(line)
    book.metrics.write(line)
    book.console.step(line)
    log(parts.accelerator, line, state.global_step)
    value = metrics.get(book.metric_for_best, metrics.get(f"eval_{book.metric_for_best}"))  # transformers knows both
    if value is None and metrics.get("eval_tokens", 1):
        known = ", ".join(sorted(name for name, value in metrics.items() if isinstance(value, float)))
        book.console.warn(
            f"no evaluation here has the metric {book.metric_for_best}, so no checkpoint is named the best "
            f"(--metric_for_best_model; there are {known})"
        )
    if value is not None and state.global_step > 0:
        best = state.best_metric
        if best is None or (value > best if book.greater_is_better else value < best):
            state.best_metric, state.best_global_step = value, state.global_step
            state.best_model_checkpoint = str(book.folder / f"checkpoint-{state.global_step}")
    return metrics


def _reason_to_stop(
    parts: Parts, progress: checkpoint.Progress, book: Book, interrupted: list[str], asked: bool
) -> str | None:
    """The same answer on all ranks: a signal may have reached one of them only."""
    own = next(iter(interrupted), None)
    if own is None and book.max_seconds is not None and progress.seconds >= book.max_seconds:
        own = "max_time"
    if parts.accelerator.num_processes > 1:
        own = next((r for r in parallel.gather(parts.accelerator, own) if r), None)
    if own:
        return own
    if progress.state.global_step >= progress.state.max_steps:
        return "end"
    return "callback" if asked else None


def _save_culprits(error: NonFinite, parts: Parts, progress: checkpoint.Progress, book: Book) -> None:
    step, rank = progress.state.global_step + 1, parts.accelerator.process_index
    path = book.folder / f"nonfinite-step-{step}-rank-{rank}.jsonl"
    rows = MetricsFile(path)
    rows.write_all(
        {"step": step, "origin": s.example.origin, "source": s.source, "text": book.tokenizer.decode(ids), "ids": ids}
        for s in error.samples
        for ids in [list(s.tokens.prompt_ids + s.tokens.response_ids)]
    )
    _save_before_leaving(parts, progress, book)


def _save_before_leaving(parts: Parts, progress: checkpoint.Progress, book: Book) -> None:
    """The checkpoint of the last whole step, where there was one."""
    if progress.state.global_step > 0:
        parts.optimizer.zero_grad()
        path = checkpoint.save(parts, progress, book.tokenizer, book.folder, keep=None)
        book.console.say(f"saved {path.name}; the run goes on from there with --resume_from_checkpoint auto")


@contextmanager
def _interruptible() -> Iterator[list[str]]:
    """Collects SIGINT and SIGTERM, to be obeyed after the step; a second one of a kind acts at once."""
    caught: list[str] = []

    def note(number: int, frame: Any) -> None:
        caught.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_memory_gib(device: torch.device) -> float:
    """Highest memory so far in GiB: the device's where there is one, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
