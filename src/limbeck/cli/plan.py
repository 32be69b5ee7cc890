"""`limbeck plan`: what a run is, what it will cost, and one real row as the student will see it. No weights are loaded,
but with --preflight."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

from limbeck.cli.launch import world_size
from limbeck.cli.masks import masked
from limbeck.config.beside import PlanConfig
from limbeck.config.defaults import Choice
from limbeck.config.flags import to_yaml
from limbeck.config.limits import check_target
from limbeck.config.routes import routes_of
from limbeck.config.schema import Config
from limbeck.losses.chunks import chunk_choice
from limbeck.models import add_lora, describe, skeleton, unwrap
from limbeck.report.hub import api
from limbeck.train.build import build, make_accelerator
from limbeck.train.chosen import precision_of, reading, student_dtype, teacher_dtype
from limbeck.train.preflight import preflight
from limbeck.train.prepare import Prepared, prepare, rows_by_teacher, teachers_here


def run(config: PlanConfig) -> int:
    """Prints the plan; with --write, leaves the resolved configuration as a YAML file that `limbeck rlhf` runs."""
    if config.plan.write is not None:
        check_target(config.plan.write, "write", streams=True)
    training = Config(**{name: getattr(config, name) for name in Config.model_fields})
    world = world_size(os.environ)
    prepared = prepare(training, world_size=world)
    out = Console(highlight=False, soft_wrap=True)
    _section(out, "method", str(prepared.method))
    student = _student(prepared.config)
    _section(out, "models", "\n".join(_models(prepared, student)))
    _section(out, "rows", "\n".join(_rows(prepared)))
    _section(out, "arithmetic", "\n".join(_arithmetic(prepared, world)))
    _section(out, "on disk", "\n".join(_disk(prepared, world, student)))
    _section(out, "who is sent what", "\n".join(_sent(prepared)))
    _section(out, "chosen for you", "\n".join(map(str, [*prepared.choices, *_machine(prepared, student)])))
    _section(out, "configuration", to_yaml(prepared.config).rstrip())
    _row(out, prepared)
    for text in prepared.method.warnings:
        out.print(f"warning: {text}", markup=False)
    for text in prepared.notes:
        out.print(f"note: {text}", markup=False)
    if training.run.preflight and "preflight" in training.run.model_fields_set:
        accelerator, _ = make_accelerator(training)
        parts, choices = build(prepared, accelerator, checkpoint=None)
        told = [str(c) for c in choices if c.flag != "teacher_torch_dtype"]  # which stands above
        _section(out, "preflight", "\n".join([*told, *preflight(prepared, parts)]))
    if config.plan.write is not None:
        command = "rlhf" if prepared.config.method.rlhf_type else "sft"
        _write(config.plan.write, to_yaml(prepared.config))
        out.print(f"\nwritten: {config.plan.write}   (run it: limbeck {command} {config.plan.write})", markup=False)
    return 0


def _section(out: Console, title: str, text: str) -> None:
    out.print(f"\n{title}", style="bold")
    out.print(text, markup=False)


def _student(config: Config) -> nn.Module:
    """The student without its weights, as it will be trained: its type, and a fresh adapter on it."""
    m = config.model
    bare = skeleton(m.model, revision=m.model_revision, trust_remote_code=m.trust_remote_code)
    dtype = student_dtype(m)[0] if m.torch_dtype == "auto" else m.torch_dtype
    bare = bare if dtype == "auto" else bare.to(getattr(torch, dtype))
    if m.tuner_type == "full":
        return bare
    if m.adapters:
        return bare.requires_grad_(False)
    return add_lora(bare, rank=m.lora_rank, alpha=m.lora_alpha, target_modules=m.target_modules)


def _machine(prepared: Prepared, student: nn.Module) -> list[Choice]:
    """What this machine decides, as a run here would."""
    config = prepared.config
    choices = precision_of(config)[1]
    if config.model.attn_impl is None:
        attention = str(unwrap(student).config._attn_implementation)
        choices.append(
            Choice("attn_impl", attention, "transformers' choice; with the weights a run tries what it allows")
        )
    device = config.teacher.teacher_device or _device(config)
    held = str(next(student.parameters()).dtype).removeprefix("torch.")
    here = teachers_here(config) if prepared.method.source == "model" else []
    told = [teacher_dtype(config, name, device.partition(":")[0], held) for name, _ in here]
    return [*choices, *dict.fromkeys(choice for choice in told if choice is not None)]


def _device(config: Config) -> str:
    return "cuda" if torch.cuda.is_available() and not config.run.use_cpu else "cpu"


def _models(prepared: Prepared, student: nn.Module) -> list[str]:
    config = prepared.config
    m, t = config.model, config.teacher
    lines = [f"student: {m.model}: {describe(student)}"]
    if m.adapters and m.tuner_type == "lora":
        lines[0] += f", with {' '.join(m.adapters)}, the last of which is trained"
    for name, revision in teachers_here(config):
        bare = skeleton(name, revision=revision, trust_remote_code=m.trust_remote_code).requires_grad_(False)
        lines.append(f"teacher: {name}: {describe(bare)}")
    also = config.rollout.stop_at_teacher_eos
    lines.append(f"tokens: {reading(prepared.tokenizer, prepared.valid, prepared.end_ids, teachers_too=also)}")
    servers = routes_of(t.teacher_model_server)
    addresses = [route.url for route in servers] or ([t.teacher_model_server] if t.teacher_model_server else [])
    return lines + [f"teacher: at {url}, which is asked when the run starts" for url in addresses]


def _rows(prepared: Prepared) -> list[str]:
    by_set: dict[str, int] = {}
    for example, _ in prepared.rows:
        tag = str(example.columns["dataset"])
        by_set[tag] = by_set.get(tag, 0) + 1
    lines = [f"{count:,} rows of {tag}" for tag, count in by_set.items()]
    sent = rows_by_teacher(prepared.config, prepared.rows)
    lines += [f"{count:,} rows are sent to {name}" for name, count in sent.items()]
    lines.append(f"{len(prepared.held_out):,} rows held out")
    lines += [f"{name}: {dropped}" for name, dropped in prepared.dropped.items() if str(dropped)]
    prompts = [len(tokens.prompt_ids) for _, tokens in prepared.rows]
    lines.append(f"prompt tokens: {sum(prompts) / len(prompts):.0f} on average, {max(prompts)} at most")
    responses = [sum(tokens.response_mask) for _, tokens in prepared.rows if tokens.response_ids]
    if responses:
        lines.append(f"response tokens: {sum(responses) / len(responses):.0f} on average, {max(responses)} at most")
    return lines


def _arithmetic(prepared: Prepared, world: int) -> list[str]:
    plan, optim, rollout = prepared.plan, prepared.config.optim, prepared.config.rollout
    accumulation = optim.gradient_accumulation_steps
    lines = [
        f"{plan.micro_batch} sequences a micro-batch x {accumulation} micro-batches x {world} processes "
        f"= {plan.step_batch} sequences a step",
        f"{plan.steps_per_generation} steps a generation batch, {plan.num_generations} responses a prompt",
    ]
    sequences = prepared.max_steps * plan.step_batch
    if plan.total_rows is not None:  # the last step may be a part of one
        sequences = min(sequences, plan.total_rows * plan.num_generations * plan.num_iterations)
    lines.append(f"{prepared.max_steps:,} steps, {sequences:,} sequences")
    on_policy = round(sequences * plan.lmbda)
    if on_policy:
        longest = on_policy * rollout.max_completion_length
        lines.append(f"about {on_policy:,} of them the student's own, up to {longest:,} tokens sampled")
    answered = [sum(tokens.response_mask) for _, tokens in prepared.rows if tokens.response_ids]
    if answered and plan.lmbda < 1:
        expected = (sequences - on_policy) * sum(answered) / len(answered)
        lines.append(f"about {expected:,.0f} tokens of the dataset learnt from")
    if prepared.config.method.loss_impl == "linear":
        lines.append(f"loss: {chunk_choice(prepared.valid, torch.float32, _device(prepared.config))[1]}")
    return lines


def _disk(prepared: Prepared, world: int, student: nn.Module) -> list[str]:
    """What the run folder will hold: weights as they are saved, and in a checkpoint Adam's two means of every trained
    weight (and a self-teacher's copy) for each process. Samples that are not used up come on top."""
    config, m = prepared.config, prepared.config.model
    if m.adapters and m.tuner_type != "full":
        return ["a checkpoint is about three times as large as the last of --adapters"]
    weights = sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad)
    copies = 2 + (prepared.method.source in ("ema", "frozen"))
    each, count = weights * (1 + copies * world), _checkpoints(prepared)
    limit = config.run.save_total_limit
    kept = count if limit is None else min(count, limit)
    dropped = f" of {count:,}" if kept < count else ""
    parts = f"weights {_size(weights)}, optimizer {_size(2 * weights * world)}"
    parts += f", the teacher's copy {_size(weights * world)}" if copies > 2 else ""
    lines = [f"{kept:,} checkpoints{dropped} of about {_size(each)} ({parts})"] if count else ["no checkpoints"]
    return [*lines, f"last/: {_size(weights)}", f"together about {_size(kept * each + weights)}"]


def _checkpoints(prepared: Prepared) -> int:
    """How many are written: at every --save_steps or epoch, and after the last step."""
    run, plan, steps = prepared.config.run, prepared.plan, prepared.max_steps
    if run.save_strategy == "no":
        return 0
    if run.save_strategy == "steps":
        return math.ceil(steps / run.save_steps)
    rows = steps * plan.step_batch / plan.num_generations / plan.num_iterations
    return max(math.ceil(rows / len(prepared.rows)), 1)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _sent(prepared: Prepared) -> list[str]:
    """What leaves this process, and what for: every teacher, every tracker, and the hub."""
    config, teacher = prepared.config, prepared.config.teacher
    tokens = sum(len(t.prompt_ids) + len(t.response_ids) for _, t in prepared.rows)
    whole = f"token ids of prompts and responses ({tokens:,} in the rows, and the student's own)"
    cells = prepared.method.cells()
    answer = f"answers with the {cells['granularity']}"
    servers = routes_of(teacher.teacher_model_server)
    addresses = [route.url for route in servers] or (
        [teacher.teacher_model_server] if isinstance(teacher.teacher_model_server, str) else []
    )
    lines = [f"{url}: {whole}; {answer}" for url in addresses]
    lines += [f"{name}, in this process: the same rows; {answer}" for name, _ in teachers_here(config)]
    if not lines and prepared.method.source not in ("none", "-"):
        lines = [f"the student itself ({cells['source']}): the same rows; {answer}"]
    trackers = [name for name in config.report.report_to if name != "none"]
    lines += [f"{name}: metrics and the configuration; no rows, no text" for name in trackers]
    if config.hub.push_to_hub:
        named = config.hub.hub_model_id or Path(config.run.output_dir or "output").name
        lines.append(f"{api().endpoint}: the model, its tokenizer and its card, as {named}; no rows, no samples")
    leaves = addresses or trackers or config.hub.push_to_hub
    return [*lines, *([] if leaves else ["nothing leaves this machine"])]


def _row(out: Console, prepared: Prepared) -> None:
    """One row, and what the teacher reads instead where it reads something else."""
    example, tokens = next((row for row in prepared.rows if row[1].teacher), prepared.rows[0])
    origin = escape(example.origin)  # of a hub id it has brackets
    out.print(f"\none row  ({origin}; what is learnt from stands in [green]green[/], between ⟦ and ⟧)", style="bold")
    out.print(masked(tokens, prepared.tokenizer))
    if tokens.teacher is not None:
        out.print("\nthe same row as the teacher reads it", style="bold")
        out.print(masked(tokens.teacher, prepared.tokenizer))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
