"""checkpoint-N/: a plain model or adapter folder, and beside it all that an exact resume needs.

    model or adapter files, tokenizer       as transformers and peft write them
    trainer_state.json                      transformers' TrainerState
    limbeck_state.json                      what must be equal for the stream of rows to go on where it stopped
    rank-R.pt                               optimizer (FSDP2: the rank's shards), scheduler, random states, sums since
                                            the last line of the log
    generation-R.json                       the samples of a generation batch that is not used up
    signals-R.pt                            what the teacher said of them, where it would say otherwise now

A checkpoint is written beside its name and renamed when whole: a killed run leaves no half of one.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from transformers.trainer_callback import TrainerState

from limbeck.data.render import Rendered
from limbeck.errors import ConfigError
from limbeck.losses import Head
from limbeck.rollouts import Row
from limbeck.signal import Hidden, Policy, Sample, Scored, Signal, TopK
from limbeck.teachers import Teacher
from limbeck.train.meter import Meter
from limbeck.train.shard import local_state, sharded_state
from limbeck.train.step import Generation, Parts

NAME = re.compile(r"checkpoint-(\d+)$")
# what a resume cannot do without, of limbeck_state.json (beside `_stream`), rank-R.pt and generation-R.json
KEPT = ("tokens", "seconds", "refused")
OWN = ("optimizer", "scheduler", "random", "meter", "teacher", "reference")
GENERATION = ("index", "source", "next_row", "used", "steps")


@dataclass
class Progress:
    """All of a run that changes while it goes, the parts' own state left out."""

    state: TrainerState
    meter: Meter
    generation: Generation | None = None
    tokens: int = 0
    seconds: float = 0.0  # of training, earlier attempts included
    refused: int = 0


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run folder, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if NAME.search(p.name) and (p / "trainer_state.json").exists()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    match = NAME.search(checkpoint.name)
    return int(match.group(1)) if match else -1


def save_model(accelerator: Accelerator, parts: Parts, tokenizer: Any, folder: Path) -> None:
    """A plain Hugging Face folder: the whole model, or the adapter alone under LoRA. Every rank must call it."""
    with parts.whole(only_main=True, device="cpu") as student:
        if accelerator.is_main_process:
            cast(Any, student.model).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    accelerator.wait_for_everyone()


def save(parts: Parts, progress: Progress, tokenizer: Any, run_folder: Path, *, keep: int | None) -> Path:
    """Writes checkpoint-N for the current step and removes old ones beyond `keep`; the best one stays."""
    accelerator, state = parts.accelerator, progress.state
    final = run_folder / f"checkpoint-{state.global_step}"
    partial = final.with_name(final.name + ".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_model(accelerator, parts, tokenizer, partial)
    rank = accelerator.process_index
    torch.save(
        {
            "optimizer": local_state(parts.optimizer),
            "scheduler": parts.scheduler.state_dict(),
            "random": _random_state(),
            "meter": progress.meter.state(),
            "teacher": parts.teacher.state() if parts.teacher is not None else {},
            "reference": reference.state() if (reference := _reference(parts)) is not None else {},
        },
        partial / f"rank-{rank}.pt",
    )
    if (signals := _dump_signals(parts, progress.generation)) is not None:
        torch.save(signals, partial / f"signals-{rank}.pt")
    if progress.generation is not None:
        text = json.dumps(_dump_generation(progress.generation, parts.rows))
        (partial / f"generation-{rank}.json").write_text(text)
    if accelerator.is_main_process:
        state.save_to_json(str(partial / "trainer_state.json"))
        kept = {name: getattr(progress, name) for name in KEPT}
        (partial / "limbeck_state.json").write_text(json.dumps(kept | _stream(parts), indent=1))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _rotate(run_folder, state, keep)
    accelerator.wait_for_everyone()
    return final


def restore(parts: Parts, progress: Progress, checkpoint: Path) -> None:
    """Puts everything but the model's weights (loaded with the model) back as it was at the checkpoint.

    Raises ConfigError where the rows, the batch or the number of processes are not those of the checkpoint, and where
    an earlier version or another program has not written all that is needed.
    """
    rank = parts.accelerator.process_index
    kept, saved = (_read(checkpoint / name) for name in ("limbeck_state.json", f"generation-{rank}.json"))
    stream, file = _stream(parts), checkpoint / f"rank-{rank}.pt"
    own = torch.load(file, map_location="cpu", weights_only=True) if file.exists() else {}
    if kept.get("processes", stream["processes"]) == stream["processes"]:  # else the ranks' files are other ones
        missing = [name for name in (*stream, *KEPT) if name not in kept] + [name for name in OWN if name not in own]
        missing += [name for name in GENERATION if saved and name not in saved]
        if missing:
            raise ConfigError(
                f"the checkpoint lacks what an exact resume needs: {', '.join(missing)}",
                where=str(checkpoint),
                fix=f"start anew from its weights: --model or --adapters {checkpoint}, with another --output_dir",
            )
    for name, value in stream.items():
        if kept[name] != value:
            raise ConfigError(
                f"the checkpoint was written with {name.replace('_', ' ')} {kept[name]}, this run has {value}",
                where=str(checkpoint),
                fix="resume with the same data, batch size, number of processes and --fsdp, or start anew with "
                f"--model or --adapters {checkpoint}",
            )
    _restore_optimizer(parts, own)
    progress.meter.restore(own["meter"])
    limits = {k: getattr(progress.state, k) for k in ("max_steps", "logging_steps", "eval_steps", "save_steps")}
    progress.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    for name, value in limits.items():
        setattr(progress.state, name, value)
    progress.tokens, progress.seconds, progress.refused = (kept[name] for name in KEPT)
    if saved:
        progress.generation = _load_generation(saved, parts.rows)
    signals = checkpoint / f"signals-{rank}.pt"
    if signals.exists() and progress.generation is not None:
        _load_signals(progress.generation, torch.load(signals, map_location="cpu", weights_only=True))
    if parts.teacher is not None and own["teacher"]:
        parts.teacher.restore(own["teacher"])
    if (reference := _reference(parts)) is not None and own["reference"]:
        reference.restore(own["reference"])
    _set_random_state(own["random"])


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def _reference(parts: Parts) -> Teacher | None:
    return None if parts.judge is None else parts.judge.reference


def _restore_optimizer(parts: Parts, own: dict[str, Any]) -> None:
    """Moments and step count from the checkpoint; learning rate, decay and the like from this run's flags, which may
    have changed. transformers' schedules are all base rate times a function of the step."""
    groups, scheduler = parts.optimizer.state_dict()["param_groups"], parts.scheduler
    base_lrs = list(scheduler.base_lrs)  # type: ignore[attr-defined]
    parts.optimizer.load_state_dict({**sharded_state(parts.optimizer, own["optimizer"]), "param_groups": groups})
    scheduler.load_state_dict({**own["scheduler"], "base_lrs": base_lrs})
    step = own["scheduler"]["last_epoch"]
    factors = [factor(step) for factor in scheduler.lr_lambdas]  # type: ignore[attr-defined]
    for group, base, factor in zip(parts.optimizer.param_groups, base_lrs, factors, strict=True):
        group["lr"] = base * factor
    scheduler._last_lr = [group["lr"] for group in parts.optimizer.param_groups]


def _stream(parts: Parts) -> dict[str, Any]:
    plan = parts.plan
    return {
        "rows": len(parts.rows),
        "batch_size": plan.step_batch,
        "steps_per_generation": plan.steps_per_generation,
        "num_generations": plan.num_generations,
        "num_iterations": plan.num_iterations,
        "seed": plan.seed,
        "data_seed": plan.data_seed,
        "processes": parts.accelerator.num_processes,
        "sharding": "fsdp2" if isinstance(parts.student, FSDPModule) else "none",
    }


def _rotate(run_folder: Path, state: TrainerState, keep: int | None) -> None:
    if keep is None:
        return
    best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
    checkpoints = list_checkpoints(run_folder)
    spare = [c for c in checkpoints[:-1] if c.name != best]
    for old in spare[: max(len(checkpoints) - keep, 0)]:
        shutil.rmtree(old, ignore_errors=True)


def _dump_generation(generation: Generation, rows: Sequence[Row]) -> dict[str, Any]:
    number = {id(example): i for i, (example, _) in enumerate(rows)}

    def dump(s: Sample) -> list[Any]:
        both = [
            [t.prompt_ids, t.response_ids, list(map(int, t.response_mask))] for t in (s.tokens, s.tokens.teacher) if t
        ]
        return [number[id(s.example)], s.truncated, s.sampler_logp, *both]

    return {
        "index": generation.index,
        "source": generation.source,
        "next_row": generation.next_row,
        "used": 0 if generation.spent else generation.used,
        "steps": [] if generation.spent else [[[dump(s) for s in b] for b in step] for step in generation.steps],
    }


def _load_generation(saved: dict[str, Any], rows: Sequence[Row]) -> Generation:
    """The samples as they were drawn; where their signals were not saved, they are asked for again."""

    def load(row: int, truncated: bool, logp: list[float] | None, *both: list[list[int]]) -> Sample:
        tokens, *teacher = [Rendered(tuple(p), tuple(r), tuple(map(bool, mask))) for p, r, mask in both]
        tokens = replace(tokens, teacher=next(iter(teacher), None))
        return Sample(tokens, saved["source"], rows[row][0], truncated, None if logp is None else tuple(logp))

    steps = [[[load(*s) for s in batch] for batch in step] for step in saved["steps"]]
    return Generation(saved["index"], saved["source"], steps, used=saved["used"], next_row=saved["next_row"])


def _dump_signals(parts: Parts, generation: Generation | None) -> dict[str, Any] | None:
    """The signals still to be learnt from, where asking again would give others: from a teacher that moves, or about
    ids that the student named. Each head is kept once."""
    teacher = parts.teacher
    if generation is None or generation.spent or generation.scored is None:
        return None
    if parts.judge is None and (teacher is None or not (teacher.moves or teacher.ask.names)):
        return None
    heads: list[Head] = []

    def dump(signal: Signal | None) -> dict[str, Any] | None:
        if signal is None:
            return None
        if isinstance(signal, TopK):
            return {"logprobs": signal.logprobs, "ids": signal.ids, "log_tail": signal.log_tail}
        if all(head is not signal.head for head in heads):
            heads.append(signal.head)
        number = next(i for i, head in enumerate(heads) if head is signal.head)
        return {"hidden": signal.hidden.clone(), "head": number}  # a view would take its whole storage along

    told: list[dict[str, Any]] = []
    for i, (step, scored) in enumerate(zip(generation.steps, generation.scored, strict=True)):
        place = {id(s): (i, j, k) for j, batch in enumerate(step) for k, s in enumerate(batch)}
        told += [
            {
                "at": place[id(s.sample)],
                "teacher": s.teacher,
                "signal": dump(s.signal),
                "policy": None if s.policy is None else {f: getattr(s.policy, f) for f in s.policy.__slots__},
            }
            for batch in scored
            for s in batch
        ]
    kept = [{f: getattr(head, f) for f in head.__slots__} for head in heads]
    return {"told": told, "heads": kept}


def _load_signals(generation: Generation, saved: dict[str, Any]) -> None:
    """Scores the generation with what was saved; a row that is not there was refused."""
    heads = [Head(**head) for head in saved["heads"]]

    def load(signal: dict[str, Any] | None) -> Signal | None:
        if signal is None:
            return None
        return Hidden(signal["hidden"], heads[signal["head"]]) if "hidden" in signal else TopK(**signal)

    told: dict[tuple[int, int], list[Scored]] = {}
    for entry in saved["told"]:
        i, j, k = entry["at"]
        policy = None if entry["policy"] is None else Policy(**entry["policy"])
        scored = Scored(generation.steps[i][j][k], load(entry["signal"]), entry["teacher"], policy)
        told.setdefault((i, j), []).append(scored)
    generation.scored = [
        [told[i, j] for j in range(len(step)) if (i, j) in told] for i, step in enumerate(generation.steps)
    ]


def _random_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(words), gauss], "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
