"""On-policy with transformers' `generate`: sorted by length, left-padded, completions kept as the ids drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

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


@dataclass
class HFSampler:
    """Samples from `model` (a transformers or peft causal model, weights as they are at the call).

    end_ids: a completion ends with, and keeps, the first of these. batch_size: rows a `generate` call.
    whole: entered around every call, such as what gathers sharded weights; every rank must call then.
    """

    model: nn.Module
    sampling: Sampling
    end_ids: frozenset[int]
    pad_id: int
    valid: int
    batch_size: int = 64
    autocast: Callable[..., AbstractContextManager] = field(default=nullcontext)
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
            completions = self.generate([prompts[i] for i in places], seed=seed + start)
            for i, ids in zip(places, completions, strict=True):
                samples[i] = Sample(
                    completed(rows[i][1], ids), "student", rows[i][0], truncated=ids[-1] not in self.end_ids
                )
            if done is not None:
                done([sample for i in places if (sample := samples[i]) is not None])
        return [s for s in samples if s is not None]

    @torch.no_grad()
    def generate(self, prompts: Sequence[tuple[int, ...]], *, seed: int) -> list[tuple[int, ...]]:
        """Completions [*] of `prompts`, the end token included where one was drawn. The caller's random state is left
        as it was: what is drawn depends on `seed` alone."""
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
        self.model.eval()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), self.autocast():
                torch.manual_seed(seed)
                out = base.generate(  # type: ignore[operator]
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=self._config(),
                    logits_processor=LogitsProcessorList([ValidIds(self.valid)]),
                )
        finally:
            base.generation_config = makers
            self.model.train(training)
        return [self._cut(row) for row in out[:, longest:].tolist()]

    def _cut(self, row: list[int]) -> tuple[int, ...]:
        end = next((i + 1 for i, token in enumerate(row) if token in self.end_ids), len(row))
        return tuple(row[:end])

    def _config(self) -> GenerationConfig:
        s = self.sampling
        drawn = {"temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k, "min_p": s.min_p}
        return GenerationConfig(
            do_sample=s.temperature > 0,
            **(drawn if s.temperature > 0 else {}),
            repetition_penalty=s.repetition_penalty,
            max_new_tokens=s.max_new_tokens,
            eos_token_id=sorted(self.end_ids),
            pad_token_id=self.pad_id,
        )
