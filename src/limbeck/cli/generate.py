"""`limbeck generate`: a model answers the prompts of a data set, resumable, batched by length."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limbeck.config.commands import GenerateConfig
from limbeck.data import load_examples, render_all
from limbeck.errors import DataError
from limbeck.models import end_token_ids, load_tokenizer, valid_ids
from limbeck.report import MetricsFile
from limbeck.rollouts import HFSampler, Row, Sampling
from limbeck.signal import Sample
from limbeck.train.build import load_frozen

BATCH = 32  # prompts a `generate` call, where not given
WINDOW = 16  # batches sorted by length together, and so the most that a kill can lose an order of


def run(config: GenerateConfig) -> int:
    """Writes one row of messages an answer; rows that the file holds already are not asked again."""
    m, r = config.model, config.rollout
    assert config.output.result_path is not None
    device = torch.device("cuda" if torch.cuda.is_available() and not config.run.use_cpu else "cpu")
    tokenizer = load_tokenizer(m.model, revision=m.model_revision, trust_remote_code=m.trust_remote_code)
    model = load_frozen(m, device)
    end_ids = end_token_ids(tokenizer, model)
    rows = read_prompts(config, tokenizer, end_ids)
    sampler = HFSampler(
        model=model,
        sampling=Sampling(r.temperature, r.top_p, r.top_k, r.min_p, r.repetition_penalty, r.max_completion_length),
        end_ids=end_ids,
        pad_id=tokenizer.pad_token_id,
        valid=valid_ids(tokenizer),
        batch_size=r.rollout_batch_size or BATCH,
    )
    answer(rows, sampler, tokenizer, config.output.result_path, seed=config.run.seed, copies=r.num_generations or 1)
    return 0


def read_prompts(config: GenerateConfig, tokenizer: Any, end_ids: frozenset[int]) -> list[Row]:
    """The rows as prompts alone; what a row has for a response is not read. Dropped rows are counted aloud."""
    data = config.data
    examples, dropped = load_examples(
        data.dataset, seed=config.run.seed, system=data.system, strict=data.truncation_strategy == "raise"
    )
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
        print(f"warning: {dropped}")
    if not rows:
        raise dropped.error("no prompt is left to answer")
    return rows


def answer(rows: list[Row], sampler: HFSampler, tokenizer: Any, path: Path, *, seed: int, copies: int) -> None:
    """Asks `sampler` for what `path` does not hold yet, appended batch by batch: a kill loses one batch at most."""
    file = MetricsFile(path)
    done = _done(path)
    todo = [(row, copy) for row in rows for copy in range(copies) if (row[0].origin, copy) not in done]
    if done:
        print(f"{path} holds {len(done)} answers; {len(todo)} are left")
    began, tokens, truncated, size = time.perf_counter(), 0, 0, sampler.batch_size
    for window in range(0, len(todo), size * WINDOW):
        part = sorted(todo[window : window + size * WINDOW], key=lambda t: len(t[0][1].prompt_ids))
        for start in range(0, len(part), size):
            batch = part[start : start + size]
            samples = sampler([row for row, _ in batch], seed=seed + window + start)
            file.write_all(_line(sample, copy, tokenizer) for sample, (_, copy) in zip(samples, batch, strict=True))
            tokens += sum(len(s.tokens.response_ids) for s in samples)
            truncated += sum(s.truncated for s in samples)
    seconds = time.perf_counter() - began
    print(
        f"{len(todo)} answers, {tokens:,} tokens, {tokens / max(seconds, 1e-9):.0f} tokens/s; "
        f"{truncated} cut off at the longest length; written: {path}"
    )


def _line(sample: Sample, copy: int, tokenizer: Any) -> dict[str, Any]:
    ids = sample.tokens.response_ids if sample.truncated else sample.tokens.response_ids[:-1]
    text = tokenizer.decode(ids)
    example = sample.example
    answered = {"role": "assistant", "content": text}
    columns = {k: v for k, v in example.columns.items() if k not in ("origin", "copy", "truncated")}
    if isinstance(example.prompt, str) and tokenizer.chat_template is None:
        row: dict[str, Any] = {"prompt": example.prompt, "completion": text}
    else:
        row = {"messages": [*example.messages, answered]}
    return {**row, **columns, "origin": example.origin, "copy": copy, "truncated": sample.truncated}


def _done(path: Path) -> set[tuple[str, int]]:
    if not path.exists():
        return set()
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {(row["origin"], row["copy"]) for row in rows}
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{path} holds rows that `limbeck generate` did not write",
            where=str(path),
            fix="name another --result_path",
        ) from None
