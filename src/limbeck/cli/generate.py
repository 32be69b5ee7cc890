"""`limbeck generate`: a model answers the prompts of a data set, resumable, batched by length."""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limbeck.cli import voice
from limbeck.config.beside import GenerateConfig
from limbeck.config.limits import check_target
from limbeck.config.schema import Data
from limbeck.data import check_names, load_examples, render_all
from limbeck.errors import DataError
from limbeck.models import end_token_ids, load_tokenizer
from limbeck.report import MetricsFile
from limbeck.rewards import load_plugin
from limbeck.rollouts import HFSampler, Row
from limbeck.signal import Sample
from limbeck.train.build import load_frozen, sampler_of
from limbeck.train.chosen import frozen_choices, rollout_choice
from limbeck.train.lengths import Reads, model_too_long

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length")
OWN = ("origin", "copy", "truncated", "asked")  # the columns that an answer gets beside those of its prompt
WINDOW = 16  # batches whose prompts are sorted by length together; beyond it the file keeps the order of the rows


def run(config: GenerateConfig) -> int:
    """Writes one row of messages an answer; rows that the file holds already are not asked again."""
    m, r = config.model, config.rollout
    path = config.output.result_path
    check_target(path, "result_path")
    device = torch.device("cuda" if torch.cuda.is_available() and not config.run.use_cpu else "cpu")
    tokenizer = load_tokenizer(m.model, revision=m.model_revision, trust_remote_code=m.trust_remote_code)
    for choice in [*frozen_choices(m, device, use_cpu=config.run.use_cpu), *rollout_choice(r)]:
        voice.say(f"chosen: {choice}")
    model = load_frozen(m, device)
    end_ids = end_token_ids(tokenizer, model)
    rows = read_prompts(config.data, config.run.seed, tokenizer, end_ids)
    for text in model_too_long(m, Reads([len(t.prompt_ids) for _, t in rows], [], r.max_completion_length)):
        voice.warn(text)
    sampler = sampler_of(model, r, tokenizer, end_ids)
    # what the answers depend on beside the prompt: a file of others is not gone on with
    asked = {"model": m.model, "adapters": m.adapters, **{k: getattr(r, k) for k in SAMPLING}}
    answer(rows, sampler, tokenizer, path, seed=config.run.seed, copies=r.num_generations or 1, asked=asked)
    return 0


def read_prompts(data: Data, seed: int, tokenizer: Any, end_ids: frozenset[int]) -> list[Row]:
    """The rows as prompts alone; what a row has for a response is not read. Dropped rows are counted aloud."""
    for path in data.external_plugins:
        load_plugin(path)
    examples, dropped = load_examples(
        data.dataset,
        seed=seed,
        system=data.system,
        strict=data.truncation_strategy == "raise",
        columns=data.columns,
        streaming=data.streaming,
    )
    dropped.notes += check_names(data.columns, dropped)
    rows, over = render_all(
        [replace(e, response=None) for e in examples],
        tokenizer,
        end_ids=end_ids,
        turns="last",
        max_length=data.max_length,
        truncation_strategy=data.truncation_strategy,
    )
    dropped.merge(over)
    if str(dropped):
        voice.warn(str(dropped))
    if not rows:
        raise dropped.error("no prompt is left to answer")
    return rows


def answer(
    rows: list[Row],
    sampler: HFSampler,
    tokenizer: Any,
    path: Path,
    *,
    seed: int,
    copies: int,
    asked: dict[str, Any],
) -> None:
    """Asks `sampler` for what `path` does not hold yet, appended batch by batch: a kill loses one batch at most.

    A batch's draws depend on the seed and on which answers it holds, so that no two batches draw alike, whatever a
    later call finds done already. Raises DataError for a file that was not written with `asked`.
    """
    done = _done(path, asked)
    file = MetricsFile(path)
    todo = [(row, copy) for row in rows for copy in range(copies) if (row[0].origin, copy) not in done]
    if done:
        print(f"{path} holds {len(done)} answers; {len(todo)} are left")
    began, tokens, truncated, size = time.perf_counter(), 0, 0, sampler.batch_size
    for window in range(0, len(todo), size * WINDOW):
        part = sorted(todo[window : window + size * WINDOW], key=lambda t: len(t[0][1].prompt_ids))
        for start in range(0, len(part), size):
            batch = part[start : start + size]
            which = json.dumps([seed, [(row[0].origin, copy) for row, copy in batch]])
            samples = sampler([row for row, _ in batch], seed=zlib.crc32(which.encode()))
            file.write_all(
                _line(sample, copy, tokenizer, asked) for sample, (_, copy) in zip(samples, batch, strict=True)
            )
            tokens += sum(len(s.tokens.response_ids) for s in samples)
            truncated += sum(s.truncated for s in samples)
    seconds = time.perf_counter() - began
    print(
        f"{len(todo)} answers, {tokens:,} tokens, {tokens / max(seconds, 1e-9):.0f} tokens/s; "
        f"{truncated} cut off at the longest length; written: {path}"
    )


def _line(sample: Sample, copy: int, tokenizer: Any, asked: dict[str, Any]) -> dict[str, Any]:
    ids = sample.tokens.response_ids if sample.truncated else sample.tokens.response_ids[:-1]
    text = tokenizer.decode(ids)
    example = sample.example
    answered = {"role": "assistant", "content": text}
    columns = {k: v for k, v in example.columns.items() if k not in OWN}
    if isinstance(example.prompt, str) and tokenizer.chat_template is None:
        row: dict[str, Any] = {"prompt": example.prompt, "completion": text}
    else:
        row = {"messages": [*example.messages, answered]}
    own = (example.origin, copy, sample.truncated, asked)
    return {**row, **columns, **dict(zip(OWN, own, strict=True))}


def _done(path: Path, asked: dict[str, Any]) -> set[tuple[str, int]]:
    """Which answers the file holds; a last line that was torn by a kill does not count."""
    if not path.exists():
        return set()
    try:
        # by bytes: str.splitlines would also cut at U+2028 inside an answer
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line.strip()]
        found = {(row["origin"], row["copy"]) for row in rows}
        others = next((row["asked"] for row in rows if row["asked"] != asked), None)
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{path} holds rows that `limbeck generate` did not write",
            where=str(path),
            fix="name another --result_path",
        ) from None
    if others is not None:
        changed = ", ".join(f"{k} {others.get(k)} there, {v} here" for k, v in asked.items() if others.get(k) != v)
        raise DataError(
            f"{path} holds answers that were asked for otherwise",
            where=changed,
            fix="name another --result_path, or ask with the same flags",
        )
    return found
