"""All that is known before any weight is loaded: the resolved flags, the method's row, the rows, the arithmetic.

`limbeck plan` prints it and `build` goes on from it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from limbeck.config.choices import MethodRow
from limbeck.config.defaults import Choice, resolve_defaults
from limbeck.config.method import resolve_method
from limbeck.config.routes import routes_of
from limbeck.config.schema import Config
from limbeck.data import Dropped, Example, check_names, load_examples, render_all
from limbeck.data.privileged import with_template
from limbeck.errors import ConfigError, DataError
from limbeck.models import (
    end_token_ids,
    load_config,
    load_generation_config,
    load_tokenizer,
    tokenizer_difference,
    valid_ids,
)
from limbeck.rewards import NamedReward, RewardOptions, check_columns, load_plugin, named_rewards
from limbeck.rollouts import Row
from limbeck.train.chosen import model_choices, warmup_choice
from limbeck.train.lengths import too_long
from limbeck.train.step import Plan


@dataclass(frozen=True)
class Prepared:
    """A run before its weights. `config` is resolved, `notes` are to be printed, `dropped` counts rows by set."""

    config: Config
    method: MethodRow
    choices: list[Choice]
    tokenizer: Any
    valid: int
    end_ids: frozenset[int]
    rows: list[Row]
    held_out: list[Row]
    dropped: dict[str, Dropped]
    plan: Plan
    max_steps: int
    rewards: list[NamedReward] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepare(config: Config, *, world_size: int = 1, answered_only: bool = False) -> Prepared:
    """Reads the rows, renders them, and settles every choice that does not need the weights.

    answered_only: rows without a response are dropped and counted, for a caller who can do nothing with them.
    Raises ConfigError, DataError or ModelError (the tokenizer's) for what cannot be run.
    """
    config, choices = resolve_defaults(config, world_size=world_size)
    model, data = config.model, config.data
    if not data.dataset:
        raise ConfigError("there are no rows to train on", fix="add --dataset FILE or a hub id")
    for path in data.external_plugins:
        load_plugin(path)
    examples, dropped, held_out, dropped_held_out = _read(config)
    notes = check_names(data.columns, dropped, dropped_held_out)
    if answered_only:
        examples = _answered(examples, dropped)
    examples, held_out = (_with_teacher_prompts(config, rows) for rows in (examples, held_out))
    prompt_only = sum(e.response is None for e in examples)
    told = sum(bool(e.columns.get("teacher_prompt")) for e in examples)
    if 0 < told < len(examples):
        notes.append(f"{told} of {len(examples)} rows have a teacher_prompt; of the others the teacher reads the row")
    method = resolve_method(
        config,
        has_teacher_prompt=told > 0,
        rows_without_response=prompt_only,
    )
    tokenizer = load_tokenizer(model.model, revision=model.model_revision, trust_remote_code=model.trust_remote_code)
    valid, topk = valid_ids(tokenizer), config.method.gkd_logits_topk
    if topk is not None and topk > valid:
        raise ConfigError(
            f"the tokenizer has {valid} ids, and {topk} of them cannot be taken",
            where=f"--gkd_logits_topk {topk}",
            fix="leave it out for the full vocabulary",
        )
    end_ids = end_token_ids(tokenizer, load_generation_config(model.model, revision=model.model_revision))
    if method.source == "model":
        for name, revision in teachers_here(config):
            end_ids |= _teacher_end_ids(config, name, revision, tokenizer, end_ids, notes)
    if method.lmbda == 1:
        examples = [replace(e, response=None) for e in examples]
        if prompt_only < len(examples):
            notes.append("the dataset's responses are not used: lmbda is 1, every token is the student's")
    rendering = {
        "end_ids": end_ids,
        "turns": "last" if data.loss_scale.startswith("last_round") else "all",
        "ignore_empty_think": data.loss_scale.endswith("ignore_empty_think"),
        "max_length": data.max_length,
        "truncation_strategy": data.truncation_strategy,
    }
    rows, over = render_all(examples, tokenizer, **rendering)
    dropped.merge(over)
    held_rows, over = render_all(held_out, tokenizer, **rendering)
    dropped_held_out.merge(over)
    if not rows:
        raise dropped.error("no row is left")
    notes += _check_held_out(config, held_rows, held_out, dropped_held_out)
    by_teacher = rows_by_teacher(config, [*rows, *held_rows])
    if idle := [name for name, count in by_teacher.items() if not count]:
        notes.append(f"no row is sent to {', '.join(idle)}")
    method = replace(method, warnings=(*method.warnings, *too_long(config, method, rows, held_rows)))
    plan, max_steps = arithmetic(config, method, len(rows), world_size)
    choices += [*model_choices(config, method), *warmup_choice(config, max_steps)]
    return Prepared(
        config=config,
        method=method,
        choices=choices,
        tokenizer=tokenizer,
        valid=valid,
        end_ids=end_ids,
        rows=rows,
        held_out=held_rows,
        dropped={"dataset": dropped, "val_dataset": dropped_held_out},
        plan=plan,
        max_steps=max_steps,
        rewards=rewards_of(config, rows),
        notes=notes,
    )


def _answered(examples: list[Example], dropped: Dropped) -> list[Example]:
    for example in examples:
        if example.response is None:
            dropped.add("without a response to score", example.origin, "let a model answer it: `limbeck generate`")
    return [e for e in examples if e.response is not None]


def _with_teacher_prompts(config: Config, examples: list[Example]) -> list[Example]:
    template = config.teacher.teacher_prompt_template
    return examples if template is None else with_template(examples, template)


def arithmetic(config: Config, method: MethodRow, n_rows: int, world_size: int) -> tuple[Plan, int]:
    """Sequences a step, steps a generation batch, steps in all. Raises ConfigError where they do not divide."""
    optim, rollout, run, data = config.optim, config.rollout, config.run, config.data
    accumulation, generations = optim.gradient_accumulation_steps or 1, rollout.num_generations or 1
    micro_steps = rollout.steps_per_generation or accumulation
    if micro_steps % accumulation:
        raise ConfigError(
            "a generation batch must be a whole number of optimizer steps",
            where=f"--steps_per_generation {micro_steps}, --gradient_accumulation_steps {accumulation}",
            fix=f"use a multiple of {accumulation} for --steps_per_generation",
        )
    steps_per_generation = micro_steps // accumulation
    step_batch = optim.per_device_train_batch_size * accumulation * world_size
    if (step_batch * steps_per_generation) % generations:
        raise ConfigError(
            f"{step_batch * steps_per_generation} samples, a generation batch, are no whole groups of {generations}",
            where=f"--num_generations {generations}",
            fix="make --per_device_train_batch_size x --gradient_accumulation_steps x processes a multiple of it",
        )
    iterations = config.policy.num_iterations if method.path == "advantage" else 1
    total_rows = None if run_by_steps(config) else math.ceil(optim.num_train_epochs * n_rows)
    max_steps = optim.max_steps if total_rows is None else math.ceil(total_rows * generations / step_batch) * iterations
    plan = Plan(
        lmbda=method.lmbda,
        micro_batch=optim.per_device_train_batch_size,
        step_batch=step_batch,
        steps_per_generation=steps_per_generation,
        num_generations=generations,
        num_iterations=iterations,
        total_rows=total_rows,
        max_grad_norm=optim.max_grad_norm,
        seed=run.seed,
        data_seed=run.seed if data.data_seed is None else data.data_seed,
        shuffle=data.dataset_shuffle,
        max_resample_times=rollout.max_resample_times if rollout.dynamic_sample else 0,
    )
    return plan, max_steps


def run_by_steps(config: Config) -> bool:
    return config.optim.max_steps > 0


def _read(config: Config) -> tuple[list[Example], Dropped, list[Example], Dropped]:
    data, seed = config.data, config.run.seed
    reading: dict[str, Any] = {
        "seed": seed,
        "system": data.system,
        "strict": data.truncation_strategy == "raise",
        "columns": data.columns,
        "streaming": data.streaming,
    }
    examples, dropped = load_examples(data.dataset, **reading)
    held_out, dropped_held_out = load_examples(data.val_dataset, **reading) if data.val_dataset else ([], Dropped())
    if not held_out and data.split_dataset_ratio > 0:
        if len(examples) < 2:
            raise ConfigError(
                f"{len(examples)} row cannot be split into rows to train on and rows held out",
                where=f"--split_dataset_ratio {data.split_dataset_ratio}",
                fix="leave it out, or give more rows",
            )
        order = list(range(len(examples)))
        random.Random(f"split:{seed}").shuffle(order)
        out = set(order[: min(max(1, round(len(examples) * data.split_dataset_ratio)), len(examples) - 1)])
        held_out = [e for i, e in enumerate(examples) if i in out]
        examples = [e for i, e in enumerate(examples) if i not in out]
    return examples, dropped, held_out, dropped_held_out


def rewards_of(config: Config, rows: Sequence[Row]) -> list[NamedReward]:
    """The rewards of the run. Raises ConfigError for an unknown one, and for one that asks for a column no row has."""
    r = config.reward
    names = [f.name for f in fields(RewardOptions) if f.name in type(r).model_fields]
    longest = {"max_completion_length": config.rollout.max_completion_length}
    options = RewardOptions(**{name: getattr(r, name) for name in names}, **longest)
    rewards = named_rewards(r.reward_funcs, r.reward_weights or None, options)
    check_columns(rewards, {name for example, _ in rows for name in example.columns})
    return rewards


def rows_by_teacher(config: Config, rows: Sequence[Row]) -> dict[str, int]:
    """Rows that each of several teachers is asked about, by its name; empty where there is one teacher or none.

    Raises DataError for rows whose tag no teacher has.
    """
    teacher = config.teacher
    routes = [*routes_of(teacher.teacher_model), *routes_of(teacher.teacher_model_server)]
    if not routes:
        return {}
    name_of = {tag: route.name for route in routes for tag in route.tags}
    counts = dict.fromkeys((route.name for route in routes), 0)
    key, lost = teacher.teacher_tag_key, Counter[str]()
    places: dict[str, str] = {}
    for example, _ in rows:
        tag = str(example.columns[key]) if key in example.columns else "none"
        if key in example.columns and tag in name_of:
            counts[name_of[tag]] += 1
        else:
            lost[tag] += 1
            places.setdefault(tag, example.origin)
    if lost:
        tags = ", ".join(f"{tag!r} ({count} rows, first {places[tag]})" for tag, count in lost.most_common(3))
        raise DataError(
            f"{sum(lost.values())} rows have a {key} that no teacher has a tag for: {tags}",
            where=f"--teacher_tag_key {key}",
            fix=f"give one of the teachers the tag (they have: {', '.join(name_of)}), or name another column",
        )
    return counts


def teachers_here(config: Config) -> list[tuple[str, str | None]]:
    """Names and revisions of the teachers that are loaded here, or that are the student itself by name."""
    named = config.teacher.teacher_model
    if isinstance(named, str):
        return [(named, config.teacher.teacher_model_revision)]
    return [(route.model, route.revision) for route in routes_of(named)]


def _teacher_end_ids(
    config: Config, name: str, revision: str | None, tokenizer: Any, own: frozenset[int], notes: list[str]
) -> frozenset[int]:
    """The teacher's end tokens where samples may end at them too; where they may not, says which the student lacks.

    Raises ConfigError for a teacher that reads other ids."""
    theirs = load_tokenizer(name, revision=revision, trust_remote_code=config.model.trust_remote_code)
    difference = tokenizer_difference(tokenizer, theirs)
    if difference:
        raise ConfigError(
            f"student and teacher have different tokenizers: {difference}",
            where=f"--model {config.model.model}, --teacher_model {name}",
            fix="choose a teacher of the student's family, or train on the teacher's answers: `limbeck generate`, "
            "then `limbeck sft`",
        )
    notes += _other_habits(config, name, revision, tokenizer, theirs)
    ends = end_token_ids(theirs, load_generation_config(name, revision=revision))
    if config.rollout.stop_at_teacher_eos:
        return ends
    if ends - own:
        names = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in sorted(ends - own))
        notes.append(f"the teacher also ends its turns with {names}; --stop_at_teacher_eos lets samples end there")
    return frozenset()


def _other_habits(config: Config, name: str, revision: str | None, ours: Any, theirs: Any) -> list[str]:
    """What differs between student and teacher and is no reason to stop."""
    m, notes = config.model, []
    widths = [
        load_config(model, revision=at, trust_remote_code=m.trust_remote_code).get_text_config().vocab_size
        for model, at in ((m.model, m.model_revision), (name, revision))
    ]
    if widths[0] != widths[1]:
        notes.append(
            f"the heads are {widths[0]:,} and {widths[1]:,} wide (student, teacher): the tokenizer's "
            f"{valid_ids(ours):,} ids are compared, the surplus is cut"
        )
    for role in ("bos_token", "eos_token"):
        own, other = getattr(ours, role), getattr(theirs, role)
        if own != other:
            notes.append(f"the {role} of student and teacher differ: {own!r}, {other!r}; the student's is used")
    if ours.chat_template and theirs.chat_template and ours.chat_template != theirs.chat_template:
        mine, others = shown_talk(ours), shown_talk(theirs)
        if mine and others and mine != others:
            notes.append(
                f"the teacher's chat template writes a conversation otherwise ({others[:60]!r}, the student's "
                f"{mine[:60]!r}): it reads the student's; where its answers suffer, give the student its template"
            )
    return notes


def shown_talk(tokenizer: Any) -> str | None:
    """Two turns as its chat template writes them; None where it refuses them (the student's own is judged by the rows,
    and the teacher's is not used)."""
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    try:
        return tokenizer.apply_chat_template(talk, tokenize=False)
    except Exception:  # a template raises what it likes
        return None


def _check_held_out(config: Config, rows: list[Row], examples: list[Example], dropped: Dropped) -> list[str]:
    """What there is to say. Raises DataError where an evaluation would have nothing to score."""
    if not examples or config.run.eval_strategy == "no":
        return []
    if not rows:
        raise dropped.error("no held-out row is left")
    without = [e.origin for e, tokens in rows if not tokens.response_ids]
    if without and config.run.eval_on_policy:
        return [
            f"{len(without)} of {len(rows)} held-out rows have no response: fresh samples of them are evaluated only"
        ]
    if without:
        raise DataError(
            f"{len(without)} held-out rows have no response to score",
            where=", ".join(without[:3]),
            fix="let a model answer them first (`limbeck generate`), or score fresh samples: --eval_on_policy",
        )
    return []
