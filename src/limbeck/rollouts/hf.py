"""On-policy with transformers' `generate`: sorted by length, left-padded, completions kept as the ids drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from limbeck.errors import TrainError
from limbeck.models import unwrap
from limbeck.rollouts.base import Done, Row, completed, last_turn_prompt
from limbeck.signal import Sample


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off."""

    temperature: float = 0.9
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512


class ValidIds(LogitsProcessor):
    """Only the tokenizer's ids are drawn; the surplus of a padded head is cut before any warper sees it."""

    def __init__(self, valid: int) -> None:
        self.valid = valid

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not scores[:, : self.valid].amax(-1).isfinite().all():  # else torch's own error, or id 0 when greedy
            raise TrainError(
                "the model's logits are not finite while it samples",
                fix="go back to an earlier checkpoint, and lower --learning_rate",
            )
        scores[:, self.valid :] = float("-inf")
        return scores


class Record(LogitsProcessor):
    """The last of the processors: what the others leave is what the next token is drawn from. One [B, V] is held at a
    time, since the token that was drawn is there at the next call."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []  # [B] a token
        self.pending: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.note(input_ids[:, -1])
        self.pending = scores.log_softmax(-1)
        return scores

    def note(self, token: Tensor) -> None:
        if self.pending is not None:
            self.drawn.append(self.pending.gather(-1, token[:, None])[:, 0])

    def logprobs(self, tokens: Tensor) -> list[list[float]]:
        """Of the tokens [B, T] that were drawn, [B][T]."""
        if len(self.drawn) < tokens.shape[1]:
            self.note(tokens[:, -1])
        return torch.stack(self.drawn[: tokens.shape[1]], dim=1).tolist()


@dataclass
class HFSampler:
    """Samples from `model` (a transformers or peft causal model, weights as they are at the call).

    end_ids: a completion ends with, and keeps, the first of these. batch_size: rows a `generate` call.
    keeps_logprobs: samples carry their `sampler_logp`; without a temperature there is none.
    whole: entered around every call, such as what gathers sharded weights; every rank must call then.
    """

    model: nn.Module
    sampling: Sampling
    end_ids: frozenset[int]
    pad_id: int
    valid: int
    batch_size: int = 64
    autocast: Callable[..., AbstractContextManager] = field(default=nullcontext)
    keeps_logprobs: bool = False
    whole: Callable[..., AbstractContextManager] = field(default=nullcontext)

    def __call__(self, rows: Sequence[Row], *, seed: int, done: Done | None = None) -> list[Sample]:
        with self.whole():
            return self._sample(rows, seed, done)

    def _sample(self, rows: Sequence[Row], seed: int, done: Done | None) -> list[Sample]:
        prompts = [last_turn_prompt(tokens) for _, tokens in rows]
        samples: list[Sample | None] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: (len(prompts[i]), i))  # like lengths together: little padding
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            completions = self.draw([prompts[i] for i in places], seed=seed + start)
            for i, (ids, logp) in zip(places, completions, strict=True):
                truncated = ids[-1] not in self.end_ids
                samples[i] = Sample(completed(rows[i][1], ids), "student", rows[i][0], truncated, logp)
            if done is not None:
                done([sample for i in places if (sample := samples[i]) is not None])
        return [s for s in samples if s is not None]

    def generate(
        self, prompts: Sequence[tuple[int, ...]], *, seed: int, streamer: BaseStreamer | None = None
    ) -> list[tuple[int, ...]]:
        """Completions [*] of `prompts`, the end token included where one was drawn. The caller's random state is left
        as it was: what is drawn depends on `seed` alone. streamer: is told the tokens of a single prompt's answer."""
        return [ids for ids, _ in self.draw(prompts, seed=seed, streamer=streamer)]

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[tuple[int, ...]], *, seed: int, streamer: BaseStreamer | None = None
    ) -> list[tuple[tuple[int, ...], tuple[float, ...] | None]]:
        """As `generate`, each with its tokens' log-probabilities where they are kept."""
        device = next(self.model.parameters()).device
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            mask[row, longest - len(prompt) :] = 1
        # peft's layers lie in the model itself, and PeftModel.generate would only put the generation config back
        base, training = unwrap(self.model), self.model.training
        makers = base.generation_config
        base.generation_config = GenerationConfig()  # transformers fills what is None in ours from the model's own
        record = Record() if self.keeps_logprobs and self.sampling.temperature > 0 else None
        self.model.eval()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), self.autocast():
                torch.manual_seed(seed)
                out = base.generate(  # type: ignore[operator]
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=self._config(),
                    logits_processor=LogitsProcessorList(self._processors(record)),
                    streamer=streamer,
                )
        finally:
            base.generation_config = makers
            self.model.train(training)
        tokens = out[:, longest:]
        completions = [self._cut(row) for row in tokens.tolist()]
        if record is None:
            return [(ids, None) for ids in completions]
        told = record.logprobs(tokens)
        return [(ids, tuple(logp[: len(ids)])) for ids, logp in zip(completions, told, strict=True)]

    def _cut(self, row: list[int]) -> tuple[int, ...]:
        end = next((i + 1 for i, token in enumerate(row) if token in self.end_ids), len(row))
        return tuple(row[:end])

    def _processors(self, record: Record | None) -> list[LogitsProcessor]:
        """transformers puts its own warpers behind those that it is given: to be the last, `record` brings them along,
        in their order."""
        s, processors = self.sampling, list[LogitsProcessor]([ValidIds(self.valid)])
        if s.temperature > 0:
            processors += [TemperatureLogitsWarper(s.temperature)] if s.temperature != 1 else []
            processors += [TopKLogitsWarper(s.top_k)] if s.top_k > 0 else []
            processors += [TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
            processors += [MinPLogitsWarper(s.min_p)] if s.min_p > 0 else []
        return processors + ([record] if record is not None else [])

    def _config(self) -> GenerationConfig:
        s = self.sampling
        off = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None}  # they are in `_processors`
        return GenerationConfig(
            do_sample=s.temperature > 0,
            **(off if s.temperature > 0 else {}),
            repetition_penalty=s.repetition_penalty,
            max_new_tokens=s.max_new_tokens,
            eos_token_id=sorted(self.end_ids),
            pad_token_id=self.pad_id,
        )
