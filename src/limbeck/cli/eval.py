"""`limbeck eval`: how far a student is from its teacher, or from the text, on held-out rows; and how good its own
answers are by a named reward. One model, or several checkpoints as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from limbeck.cli import voice
from limbeck.cli.generate import read_prompts
from limbeck.config.beside import EvalConfig
from limbeck.config.defaults import Choice
from limbeck.config.limits import check_target
from limbeck.config.schema import Config, Model, Run
from limbeck.data import load_examples
from limbeck.errors import ConfigError, ModelError
from limbeck.models import check_head, enable_packing, end_token_ids, load_tokenizer, tokenizer_difference
from limbeck.report.format import number
from limbeck.rewards import NamedReward, join_tables
from limbeck.rollouts import Row, sample_dataset
from limbeck.teachers import Teacher
from limbeck.train import checkpoint, parallel
from limbeck.train.build import load_frozen, objective_of, reward_samples, sampler_of
from limbeck.train.chosen import frozen_choices, rollout_choice
from limbeck.train.evaluate import evaluate
from limbeck.train.lengths import Reads, model_too_long
from limbeck.train.prepare import Prepared, prepare, rewards_of
from limbeck.train.student import StudentStep
from limbeck.train.teacher import build_teacher

SHOWN = (
    *("forward_kl", "reverse_kl", "top1_agreement", "ce", "student_entropy", "teacher_entropy"),
    *("topk_forward_kl", "topk_reverse_kl", "student_mass", "teacher_mass"),
)
EVAL_BATCH = 4  # rows scored at a time, where not given
OF_ANSWERS = ("reward", "completion_length", "truncated_share", "reward_missing")


@dataclass
class _Work:
    """What is asked of every model. prepared: None where no row has a response. prompts: none without rewards."""

    config: Config
    accelerator: Accelerator
    tokenizer: Any
    prepared: Prepared | None
    prompts: list[Row]
    rewards: list[NamedReward]
    teacher: Teacher | None = None


def run(config: EvalConfig) -> int:
    """Prints means over the active tokens, and over the sampled answers; --result_path gets them as JSON."""
    if config.output.result_path is not None:
        check_target(config.output.result_path, "result_path", streams=True)
    accelerator = Accelerator(mixed_precision="no", cpu=config.run.use_cpu)
    subjects, work = subjects_of(config), _work(config, accelerator)
    choices = frozen_choices(config.model, accelerator.device, use_cpu=config.run.use_cpu)
    if work.prepared is not None and config.optim.per_device_eval_batch_size is None:
        choices.append(Choice("per_device_eval_batch_size", EVAL_BATCH, "the default of eval"))
    choices += rollout_choice(config.rollout) if work.rewards else []
    results: dict[str, dict[str, float]] = {}
    for label, model_config in subjects:
        model = load_frozen(model_config, accelerator.device)
        check_head(model)
        enable_packing(model)  # scored as training scores
        if work.teacher is None and work.prepared is not None and config.teacher.teacher_model is not None:
            work.teacher = build_teacher(work.prepared, accelerator, model, choices)
        results[label] = _measure(work, model, label)
        del model
    if not accelerator.is_main_process:
        return 0
    for choice in choices:
        print(f"chosen: {choice}")
    for dropped in work.prepared.dropped.values() if work.prepared else ():
        if str(dropped):
            voice.warn(str(dropped))
    for text in dict.fromkeys(work.prepared.notes if work.prepared else []):
        voice.say(f"note: {text}")
    for text in _shown(config, results):
        print(text)
    if config.output.result_path is not None:
        found: Any = results if config.output.checkpoints else next(iter(results.values()))
        config.output.result_path.parent.mkdir(parents=True, exist_ok=True)
        config.output.result_path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
        print(f"written: {config.output.result_path}")
    return 0


def subjects_of(config: EvalConfig) -> list[tuple[str, Model]]:
    """What is measured: --model, or each of --checkpoints by its name. Raises ConfigError for a run folder without a
    checkpoint, and ModelError (when it is loaded) for a folder that holds no model."""
    model, named = config.model, config.output.checkpoints
    if not named:
        return [(model.model, model)]
    if model.adapters:
        raise ConfigError(
            "--checkpoints and --adapters both name adapters",
            where="--checkpoints",
            fix="put them all in --checkpoints",
        )
    folders = [folder for name in named for folder in _folders(Path(name))]
    if teacher := next((f for f in folders if not f.is_dir()), None):
        what = f"{teacher} is a file" if teacher.exists() else f"{teacher} does not exist"
        raise ModelError(what, where=f"--checkpoints {teacher}", fix="name a folder: a model, an adapter or a run")
    found = []
    for folder in dict.fromkeys(folders):
        adapter = (folder / "adapter_config.json").is_file()
        own = {"adapters": [str(folder)]} if adapter else {"model": str(folder), "model_revision": None}
        found.append((str(folder), model.model_copy(update=own)))
    return found


def _folders(path: Path) -> list[Path]:
    """A run folder's checkpoints and its last model; any other folder is one itself."""
    if not (path / "env.json").is_file():
        return [path]
    found = checkpoint.list_checkpoints(path)
    found += [path / "last"] if (path / "last").is_dir() else []
    if not found:
        raise ConfigError(f"the run {path} has no checkpoint yet", where=f"--checkpoints {path}", fix="wait for one")
    return found


def _work(config: EvalConfig, accelerator: Accelerator) -> _Work:
    has_teacher = config.teacher.teacher_model is not None
    method = config.method.model_copy(update={"rlhf_type": "gkd" if has_teacher else None, "beta": 0.0, "lmbda": 0.0})
    whole = Config(
        model=config.model.model_copy(update={"tuner_type": "full" if not config.model.adapters else "lora"}),
        data=config.data,
        method=method,
        teacher=config.teacher,
        rollout=config.rollout.model_copy(update={"num_generations": None}),
        optim=config.optim,
        run=Run(use_cpu=config.run.use_cpu, seed=config.run.seed),
    )
    m, prompts, rewards = config.model, [], []
    tokenizer = load_tokenizer(m.model, revision=m.model_revision, trust_remote_code=m.trust_remote_code)
    answered = True
    if config.reward.reward_funcs:
        prompts = read_prompts(config.data, config.run.seed, tokenizer, end_token_ids(tokenizer, None))
        rewards = rewards_of(whole.model_copy(update={"reward": config.reward}), prompts)
        d = config.data
        examples, _ = load_examples(
            d.dataset, seed=config.run.seed, system=d.system, columns=d.columns, streaming=d.streaming
        )
        answered = any(example.response is not None for example in examples)
    prepared = prepare(whole, world_size=accelerator.num_processes, answered_only=True) if answered else None
    if prepared is not None:
        prepared = replace(prepared, method=replace(prepared.method, source="model" if has_teacher else "none"))
    if prepared is None and has_teacher:
        raise ConfigError(
            "no row has a response, and the teacher is asked about responses",
            where=f"--teacher_model {config.teacher.teacher_model}",
            fix="let a model answer the rows first (`limbeck generate`), or leave --teacher_model out",
        )
    whole = whole.model_copy(update={"reward": config.reward, "rollout": config.rollout})
    sampled = [len(tokens.prompt_ids) for _, tokens in prompts]
    rows = [tokens for _, tokens in prepared.rows] if prepared is not None else []
    scored = [len(tokens.prompt_ids) + len(tokens.response_ids) for tokens in rows]
    for text in model_too_long(m, Reads(sampled, scored, config.rollout.max_completion_length)):
        voice.warn(text)
    return _Work(whole, accelerator, tokenizer, prepared, prompts, rewards)


def _measure(work: _Work, model: nn.Module, label: str) -> dict[str, float]:
    result: dict[str, float] = {}
    own = label != work.config.model.model and (Path(label) / "tokenizer_config.json").is_file()
    if own and (difference := tokenizer_difference(work.tokenizer, load_tokenizer(label))):
        raise ModelError(
            f"{label} has another tokenizer than --model: {difference}", where=label, fix="measure it on its own"
        )
    if work.prepared is not None:
        result = evaluate(
            work.accelerator,
            StudentStep(model, objective_of(work.prepared.config), work.prepared.valid),
            work.teacher,
            sample_dataset(work.prepared.rows),
            batch_size=work.config.optim.per_device_eval_batch_size or EVAL_BATCH,
            pad_id=work.tokenizer.pad_token_id,
        )
        if not math.isfinite(result["loss"]):
            raise ModelError("the loss is not finite", where=label, fix="its weights, or the teacher's, are broken")
    return result | (_of_answers(work, model) if work.rewards else {})


def _of_answers(work: _Work, model: nn.Module) -> dict[str, float]:
    """Means of the rewards over answers that the model samples now, with the same seed for every model."""
    config, ends = work.config, end_token_ids(work.tokenizer, model)
    copies = config.rollout.num_generations or 1
    rows = [row for row in parallel.own_part(work.accelerator, work.prompts) for _ in range(copies)]
    sampler = sampler_of(model, config.rollout, work.tokenizer, ends)
    samples = sampler(rows, seed=config.run.seed + work.accelerator.process_index)
    table = reward_samples(work.rewards, samples, work.tokenizer, ends, config.reward.reward_timeout, voice.say)
    gathered = parallel.gather(work.accelerator, (table, [(len(s.tokens.targets), s.truncated) for s in samples]))
    lengths = [pair for _, part in gathered for pair in part]
    found = join_tables([table for table, _ in gathered]).metrics()
    return found | {
        "answers": len(lengths),
        "completion_length": sum(length for length, _ in lengths) / len(lengths),
        "truncated_share": sum(cut for _, cut in lengths) / len(lengths),
    }


def _shown(config: EvalConfig, results: dict[str, dict[str, float]]) -> list[str]:
    """One model's numbers one a line; several as a table, one model a line."""
    against = f" against {config.teacher.teacher_model}" if config.teacher.teacher_model is not None else ""
    first = next(iter(results.values()))
    counts = [f"{int(first['rows'])} rows, {int(first['tokens']):,} tokens"] if "rows" in first else []
    counts += [f"{int(first['answers'])} sampled answers"] if "answers" in first else []
    each = [key for key in first if key.startswith("rewards/") and key.endswith("/mean")]
    failed = [key for key in first if key.endswith("/failed") and any(r.get(key) for r in results.values())]
    weighted = OF_ANSWERS if len(each) > 1 else OF_ANSWERS[1:]
    names = [name for name in (*SHOWN, *each, *failed, *weighted) if name in first]
    if not config.output.checkpoints:
        lines = [f"{config.model.model}{against} on {', '.join(counts)}:"]
        return lines + [f"  {_short(name):<18}{number(first[name])}" for name in names]
    rows = [["", *map(_short, names)]]
    rows += [[label, *(number(r.get(name)) for name in names)] for label, r in results.items()]
    return [f"{len(results)} models{against} on {', '.join(counts)}:", *_aligned(rows)]


def _short(name: str) -> str:
    return name.removeprefix("rewards/").removesuffix("/mean")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]).rstrip() for r in rows]
