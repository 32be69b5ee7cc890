"""`limbeck plan`: what a run is, what it will cost, and one real row as the student will see it. No weights are loaded,
but with --preflight."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from limbeck.cli.masks import masked
from limbeck.config.commands import PlanConfig
from limbeck.config.flags import to_yaml
from limbeck.config.routes import routes_of
from limbeck.config.schema import Config
from limbeck.models import describe, skeleton
from limbeck.train.build import build, make_accelerator
from limbeck.train.preflight import preflight
from limbeck.train.prepare import Prepared, prepare, rows_by_teacher, teachers_here


def run(config: PlanConfig) -> int:
    """Prints the plan; with --write, leaves the resolved configuration as a YAML file that `limbeck rlhf` runs."""
    training = Config(**{name: getattr(config, name) for name in Config.model_fields})
    world = int(os.environ.get("WORLD_SIZE", "1"))
    prepared = prepare(training, world_size=world)
    out = Console(highlight=False, soft_wrap=True)
    _section(out, "method", str(prepared.method))
    _section(out, "models", "\n".join(_models(prepared.config)))
    _section(out, "rows", "\n".join(_rows(prepared)))
    _section(out, "arithmetic", "\n".join(_arithmetic(prepared, world)))
    _section(out, "chosen for you", "\n".join(map(str, prepared.choices)))
    _section(out, "configuration", to_yaml(prepared.config).rstrip())
    _row(out, prepared)
    for warning in (*prepared.method.warnings, *prepared.notes):
        out.print(f"note: {warning}", markup=False)
    if training.run.preflight and "preflight" in training.run.model_fields_set:
        accelerator, _ = make_accelerator(training)
        parts, choices = build(prepared, accelerator, checkpoint=None)
        _section(out, "preflight", "\n".join([*map(str, choices), *preflight(prepared, parts)]))
    if config.plan.write is not None:
        command = "rlhf" if prepared.config.method.rlhf_type else "sft"
        _write(config.plan.write, to_yaml(prepared.config))
        out.print(f"\nwritten: {config.plan.write}   (run it: limbeck {command} {config.plan.write})", markup=False)
    return 0


def _section(out: Console, title: str, text: str) -> None:
    out.print(f"\n{title}", style="bold")
    out.print(text, markup=False)


def _models(config: Config) -> list[str]:
    m, t = config.model, config.teacher
    named = [("student", m.model, m.model_revision)]
    named += [("teacher", name, revision) for name, revision in teachers_here(config)]
    lines = [
        f"{side}: {name}: {describe(skeleton(name, revision=revision, trust_remote_code=m.trust_remote_code))}"
        for side, name, revision in named
    ]
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
        f"{prepared.max_steps} steps, {prepared.max_steps * plan.step_batch:,} sequences at most",
    ]
    sequences = prepared.max_steps * plan.step_batch
    on_policy = round(sequences * plan.lmbda)
    if on_policy:
        longest = on_policy * rollout.max_completion_length
        lines.append(f"about {on_policy:,} of them the student's own, up to {longest:,} tokens sampled")
    answered = [sum(tokens.response_mask) for _, tokens in prepared.rows if tokens.response_ids]
    if answered and plan.lmbda < 1:
        expected = (sequences - on_policy) * sum(answered) / len(answered)
        lines.append(f"about {expected:,.0f} tokens of the dataset learnt from")
    return lines


def _row(out: Console, prepared: Prepared) -> None:
    """One row, and what the teacher reads instead where it reads something else."""
    example, tokens = next((row for row in prepared.rows if row[1].teacher), prepared.rows[0])
    out.print(
        f"\none row  ({example.origin}; what is learnt from stands in [green]green[/], between ⟦ and ⟧)", style="bold"
    )
    out.print(masked(tokens, prepared.tokenizer))
    if tokens.teacher is not None:
        out.print("\nthe same row as the teacher reads it", style="bold")
        out.print(masked(tokens.teacher, prepared.tokenizer))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
