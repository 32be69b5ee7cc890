"""Limbeck from Python: `limbeck.distil(...)`, or `limbeck.Trainer(config).fit()`."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import TrainerCallback, TrainerState

from limbeck.config.defaults import Choice
from limbeck.config.flags import to_yaml
from limbeck.config.flat import from_flat, to_flat
from limbeck.config.limits import limit_of
from limbeck.config.schema import Config
from limbeck.errors import ConfigError, TrainError
from limbeck.models import describe
from limbeck.quiet import quiet
from limbeck.report import (
    Console,
    MetricsFile,
    check_trackers,
    run_card,
    start_trackers,
    stop_trackers,
    write_card,
    write_report,
)
from limbeck.report.hub import check_hub, push
from limbeck.rollouts import sample_dataset
from limbeck.signal import Sample
from limbeck.train import checkpoint
from limbeck.train.build import build, make_accelerator
from limbeck.train.chosen import reading
from limbeck.train.guards import collapse_of, guards_of
from limbeck.train.hooks import Hooks, as_training_arguments
from limbeck.train.loop import Book, Outcome, fit, peak_memory_gib
from limbeck.train.meter import Meter
from limbeck.train.preflight import preflight
from limbeck.train.prepare import Prepared, prepare
from limbeck.train.step import Parts


def distil(config: Config | None = None, *, callbacks: Sequence[TrainerCallback] = (), **flags: Any) -> Outcome:
    """Runs a training from a `Config`, or from the flags of `limbeck rlhf` as keywords:

        limbeck.distil(model="student", teacher_model="teacher", dataset=["rows.jsonl"], output_dir="run", beta=0.0)

    Returns how the run ended; what it made lies in its folder. Raises LimbeckError for what cannot be run.
    """
    if config is not None and flags:
        raise ConfigError("a config and flags were both given", fix=f"put {', '.join(flags)} into the config")
    return Trainer(config or from_flat(flags), callbacks=callbacks).fit()


class Trainer:
    """One training run. `prepared` (rows, method, arithmetic) is there before any weight is loaded."""

    @quiet()
    def __init__(self, config: Config, *, callbacks: Sequence[TrainerCallback] = ()) -> None:
        check_trackers(config.report.report_to)
        self.callbacks = list(callbacks)
        self.accelerator, chosen = make_accelerator(config)
        self.prepared = prepare(config, world_size=self.accelerator.num_processes)
        self.choices: list[Choice] = [*self.prepared.choices, *chosen]
        self.folder = Path(self.prepared.config.run.output_dir or "output")
        self.hub_name = config.hub.hub_model_id or self.folder.name
        if config.hub.push_to_hub:
            self.hub_name = check_hub(self.hub_name)

    @quiet()
    def fit(self) -> Outcome:
        """Trains, evaluates, and leaves the run folder: see docs/run-folder.md. Raises LimbeckError; where memory or
        disk run out it says what to lower, from the resolved flags."""
        try:
            return self._fit()
        except (MemoryError, RuntimeError, OSError) as error:
            if limit := limit_of(error, self.prepared.config):
                raise limit from error
            raise

    def _fit(self) -> Outcome:
        began, cpu_began = time.time(), time.process_time()
        prepared, accelerator = self.prepared, self.accelerator
        config, main = prepared.config, self.accelerator.is_main_process
        resumed_from = claim_folder(self.folder, config.run.resume_from_checkpoint)
        accelerator.wait_for_everyone()
        set_seed(config.run.seed)
        with Console(enabled=main) as console:
            parts, chosen = build(
                prepared, accelerator, checkpoint=resumed_from, say=console.say, state=lambda: self._progress.state
            )
            if main:  # not before: a run that cannot be built must not use up its folder
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "config.yaml").write_text(to_yaml(config))
                (self.folder / "env.json").write_text(json.dumps(environment(accelerator), indent=1))
            self.choices += chosen
            announce(console, prepared, self.choices, parts)
            if config.run.preflight and resumed_from is None:
                for line in preflight(prepared, parts):
                    console.say(line)
            progress, hooks, book = self._open(parts, console)
            summary = read_json(self.folder / "summary.json")  # of earlier attempts, after a resume
            summary["earlier"] = {name: summary.get(name, 0.0) for name in ("seconds", "cpu_seconds")}
            for name in ("step", "stopped_by", "collapse"):  # how an earlier attempt ended says nothing of this one
                summary.pop(name, None)
            if resumed_from is not None:
                checkpoint.restore(parts, progress, resumed_from)
                hooks.state = progress.state
                console.say(f"resuming from {resumed_from} at step {progress.state.global_step}")
                summary["resumed_at"] = [*summary.get("resumed_at", []), progress.state.global_step]
            step = progress.state.global_step
            for file in (book.metrics, book.completions, book.histograms):
                gone = file.rewind(step if resumed_from else -1) if file is not None else 0
                if gone and file is not None and resumed_from:
                    console.say(f"{gone} lines of {file.path.name} are of steps after {step}, and were taken out")
            start_trackers(
                accelerator,
                config.report.report_to,
                config.report.run_name or self.folder.name,
                to_flat(config),
                run_dir=self.folder,
                resume_step=step,
            )
            console.begin(prepared.max_steps, done=step)
            if main:
                self._summarise(summary, console, parts, began, cpu_began)
            try:
                outcome = fit(parts, progress, hooks, book, self._held_out(parts))
            finally:
                if main:
                    self._summarise(summary, console, parts, began, cpu_began)
                if parts.teacher is not None:
                    parts.teacher.close()
            checkpoint.save_model(accelerator, parts, prepared.tokenizer, self.folder / "last")
            outcome.evaluation = (summary.get("evaluation") or {}) | outcome.evaluation
            if main:
                self._finish(summary, outcome, console)
            stop_trackers(accelerator)
        return outcome

    def _open(self, parts: Parts, console: Console) -> tuple[checkpoint.Progress, Hooks, Book]:
        prepared, config = self.prepared, self.prepared.config
        run, main = config.run, self.accelerator.is_main_process
        state = TrainerState(
            max_steps=prepared.max_steps,
            logging_steps=run.logging_steps,
            eval_steps=run.eval_steps or run.save_steps,
            save_steps=run.save_steps,
            num_train_epochs=round(config.optim.num_train_epochs),
            train_batch_size=config.optim.per_device_train_batch_size,
            is_world_process_zero=main,
            is_local_process_zero=self.accelerator.is_local_main_process,
        )
        args = as_training_arguments(to_flat(config), evaluates=bool(prepared.held_out))
        hooks = Hooks(
            self.callbacks,
            args,
            state,
            model=self.accelerator.unwrap_model(parts.student).model,
            tokenizer=prepared.tokenizer,
            optimizer=parts.optimizer,
            scheduler=parts.scheduler,
        )
        completions = MetricsFile(self.folder / "completions.jsonl", enabled=main)
        book = Book(
            folder=self.folder,
            console=console,
            metrics=MetricsFile(self.folder / "metrics.jsonl", enabled=main),
            completions=completions if config.report.log_completions else None,
            tokenizer=prepared.tokenizer,
            histograms=MetricsFile(self.folder / "histograms.jsonl", enabled=main),
            keep=run.save_total_limit,
            metric_for_best=run.metric_for_best_model,
            greater_is_better=bool(run.greater_is_better),
            max_seconds=run.max_time,
            privileged_kl=config.report.log_privileged_kl,
            eval_batch=config.optim.per_device_eval_batch_size or config.optim.per_device_train_batch_size,
            refresh=self._write_page,
            collapse=partial(collapse_of, guards_of(run), run.collapse_window),
        )
        self._progress = checkpoint.Progress(state, Meter())
        return self._progress, hooks, book

    def _held_out(self, parts: Parts) -> Callable[[int], dict[str, Sequence[Sample]]]:
        """The samples of an evaluation: the dataset's responses, and fresh ones under another name where asked."""
        run, rows = self.prepared.config.run, self.prepared.held_out
        answered = [row for row in rows if row[1].response_ids]

        def samples(step: int) -> dict[str, Sequence[Sample]]:
            if not rows or run.eval_strategy == "no":
                return {}
            sets: dict[str, Sequence[Sample]] = {"eval_": sample_dataset(answered)} if answered else {}
            if run.eval_on_policy:
                sets["eval_on_policy_"] = parts.samplers["student"](rows, seed=run.seed)
            return sets

        return samples

    def _summarise(self, summary: dict, console: Console, parts: Parts, began: float, cpu_began: float) -> None:
        """What the report and the card need beside the other files; written at the start, and however the run ends."""
        cells = self.prepared.method.cells()
        prepared, earlier = self.prepared, summary["earlier"]
        summary |= {
            "method": {"name": cells.pop("method"), **cells},
            "model": prepared.config.model.model,
            "teacher": parts.teacher.name if parts.teacher else None,
            "student": str(describe(self.accelerator.unwrap_model(parts.student).model)),
            "choices": [{"flag": c.flag, "value": str(c.value), "reason": c.reason} for c in self.choices],
            "dropped": {name: str(dropped) for name, dropped in prepared.dropped.items() if str(dropped)},
            "warnings": console.warnings,
            "seconds": round(earlier["seconds"] + time.time() - began, 1),
            "cpu_seconds": round(earlier["cpu_seconds"] + time.process_time() - cpu_began, 1),
            "peak_memory_gib": round(peak_memory_gib(self.accelerator.device), 2),
        }
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=1))

    def _finish(self, summary: dict, outcome: Outcome, console: Console) -> None:
        summary |= {"evaluation": outcome.evaluation, "step": outcome.step, "stopped_by": outcome.stopped_by}
        if outcome.collapse is not None:
            summary["collapse"] = {"what": outcome.collapse.what, "fix": outcome.collapse.fix}
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=1))
        self._write_page()
        write_card(self.folder)
        said = {"end": f"finished at step {outcome.step}", "max_time": f"--max_time reached at step {outcome.step}"}
        console.say(said.get(outcome.stopped_by, f"stopped by {outcome.stopped_by} at step {outcome.step}"))
        console.say(f"run folder: {self.folder}")
        if self.prepared.config.hub.push_to_hub:
            self._push(outcome, console)

    def _push(self, outcome: Outcome, console: Console) -> None:
        """All of the run is saved by now; what goes wrong here is told by `outcome.unpushed`."""
        last, config = self.folder / "last", self.prepared.config
        if outcome.collapse is not None:
            console.say(f"not pushed, since the student collapses: {last}")
            return
        console.say(f"pushing {last} to the hub as {self.hub_name}")
        card = run_card(last, name=self.hub_name, adapter=config.model.tuner_type == "lora")
        try:
            console.say(f"pushed: {push(last, self.hub_name, private=config.hub.hub_private_repo, card=card)}")
        except TrainError as error:
            outcome.unpushed = error

    def _write_page(self) -> None:
        if self.accelerator.is_main_process and self.prepared.config.report.report_html:
            write_report(self.folder)


def claim_folder(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from, or None for a fresh run. Raises ConfigError where a folder would be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", where=f"--output_dir {folder}", fix="name another --output_dir")
    found = checkpoint.list_checkpoints(folder) if folder.exists() else []
    occupied = folder.exists() and any(folder.iterdir())
    if resume not in (None, "none", "auto"):
        chosen = Path(resume)
        if not (chosen / "trainer_state.json").exists():
            raise ConfigError(
                f"{resume} is not a checkpoint",
                where=f"--resume_from_checkpoint {resume}",
                fix="name a checkpoint-N folder, or auto for the run folder's last one"
                + (f" (there is {found[-1]})" if found else ""),
            )
        if occupied and chosen.resolve().parent != folder.resolve():
            raise ConfigError(
                f"{chosen} is of another run, and {folder} is not empty",
                where=f"--output_dir {folder}",
                fix=f"go on in its own folder, --output_dir {chosen.parent}, or in a new one",
            )
        return chosen
    if resume == "auto" and (found or not occupied or (folder / "env.json").exists()):
        return found[-1] if found else None
    if occupied:
        last = f", its last checkpoint is {found[-1].name}" if found else ""
        raise ConfigError(
            f"the run folder {folder} exists and is not empty{last}",
            where=f"--output_dir {folder}",
            fix="name another --output_dir"
            if resume
            else "add --resume_from_checkpoint auto, or name another --output_dir",
        )
    return None


def announce(console: Console, prepared: Prepared, choices: list[Choice], parts: Parts) -> None:
    """What the run is, what was chosen and why, what was left out: said before the first step."""
    plan, config = prepared.plan, prepared.config
    console.say(str(prepared.method))
    console.say(f"student: {config.model.model}: {describe(parts.accelerator.unwrap_model(parts.student).model)}")
    if parts.teacher:
        console.say(f"teacher: {parts.teacher.name}")
    also = config.rollout.stop_at_teacher_eos
    console.say(f"tokens: {reading(prepared.tokenizer, prepared.valid, prepared.end_ids, teachers_too=also)}")
    for choice in choices:
        console.say(f"chosen: {choice}")
    for name, dropped in prepared.dropped.items():
        if str(dropped):
            console.warn(f"{name}: {dropped}")
    for text in (*prepared.method.warnings,):
        console.warn(text)
    for note in prepared.notes:
        console.say(f"note: {note}")
    several = parts.accelerator.num_processes
    steps = f"{prepared.max_steps} steps of {plan.step_batch} sequences" + (f" on {several} processes" * (several > 1))
    console.say(f"{len(prepared.rows)} rows, {len(prepared.held_out)} held out; {steps}")


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions and machine, so that a run can be repeated."""
    packages = ("limbeck", "peft", "datasets", "tokenizers", "numpy")
    return {
        "argv": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
    }


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
