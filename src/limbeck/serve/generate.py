"""Sampling for clients: transformers' `generate`, with every token told as it is drawn.

A stopping criterion is called after each token, in the model's thread. It reads the new tokens into text, ends rows at
end tokens and stop strings, and lets the engine score what other clients have sent in the meantime.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from limbeck.models import unwrap
from limbeck.serve.logprobs import Position, positions

CONTEXT = 6  # ids of the prompt that are decoded along: some tokenizers drop the space that a text begins with
CACHE_BUDGETS = 8  # tokens in the key-value cache, in units of the engine's budget


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn and when a row ends. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off.
    logprobs: how many likeliest ids to tell with each token, None for no log-probabilities at all."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    ignore_end: bool = False
    logprobs: int | None = None

    def config(self, pad_id: int) -> GenerationConfig:
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        return GenerationConfig(
            do_sample=self.temperature > 0,
            **(drawn if self.temperature > 0 else {}),
            max_new_tokens=self.max_tokens,
            pad_token_id=pad_id,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """One more token of a row. text: what can be shown since the last piece. finish: "stop" or "length" in the row's
    last piece; stopped_by: the stop string or id that ended it, None for an end token."""

    row: int
    id: int
    text: str
    position: Position | None
    finish: str | None
    stopped_by: str | int | None


@dataclass(eq=False)
class Generation:
    """Samples one row a prompt. `emit` is called in the model's thread."""

    model: nn.Module
    tokenizer: Any
    valid: int
    end_ids: frozenset[int]
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    emit: Callable[[Piece], None]
    budget: int
    future: Future[None] = field(default_factory=Future)

    def run(self, give_way: Callable[[], bool]) -> None:
        device = next(self.model.parameters()).device
        seed = secrets.randbits(62) if self.sampling.seed is None else self.sampling.seed
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start, prompts in self._groups():
                self._generate(start, prompts, give_way, device)

    def _groups(self) -> list[tuple[int, Sequence[Sequence[int]]]]:
        """Rows that fit into the cache together, in order."""
        longest = max(map(len, self.prompts)) + self.sampling.max_tokens
        size = max(CACHE_BUDGETS * self.budget // longest, 1)
        return [(i, self.prompts[i : i + size]) for i in range(0, len(self.prompts), size)]

    def _generate(
        self, start: int, prompts: Sequence[Sequence[int]], give_way: Callable[[], bool], device: torch.device
    ) -> None:
        pad_id = self.tokenizer.pad_token_id
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            mask[row, longest - len(prompt) :] = 1
        rows = [Row(self.tokenizer, prompt, self.sampling, self.end_ids) for prompt in prompts]
        cut = Cut(self.valid, keeps=self.sampling.logprobs is not None)
        told = Teller(self, start, rows, cut, give_way)
        unwrap(self.model).generate(  # type: ignore[operator]
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=self.sampling.config(pad_id),
            logits_processor=LogitsProcessorList([cut]),
            stopping_criteria=StoppingCriteriaList([told]),
        )


class Cut(LogitsProcessor):
    """Only the tokenizer's ids are drawn. keeps: one step's log-probabilities, at temperature 1, are needed."""

    def __init__(self, valid: int, *, keeps: bool) -> None:
        self.valid, self.keeps = valid, keeps
        self.logprobs: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.keeps:
            self.logprobs = scores[:, : self.valid].log_softmax(-1)
        scores[:, self.valid :] = float("-inf")
        return scores


class Teller(StoppingCriteria):
    """Tells each row's new token and says which rows have ended."""

    def __init__(
        self, generation: Generation, start: int, rows: Sequence[Row], cut: Cut, give_way: Callable[[], bool]
    ) -> None:
        self.generation, self.start, self.rows, self.cut, self.give_way = generation, start, rows, cut, give_way

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        last = input_ids[:, -1]
        found: list[Position] | None = None
        if self.cut.logprobs is not None:
            found = positions(self.cut.logprobs, last, self.generation.sampling.logprobs or 0)
        for n, (row, token) in enumerate(zip(self.rows, last.tolist(), strict=True)):
            if row.finish is None:
                text = row.push(token)
                position = found[n] if found is not None else None
                self.generation.emit(Piece(self.start + n, token, text, position, row.finish, row.stopped_by))
        over = self.give_way()
        return torch.tensor([over or row.finish is not None for row in self.rows], device=input_ids.device)


class Row:
    """Turns a row's ids into text, piece by piece: never half a character, and nothing of a stop string."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], sampling: Sampling, end_ids: frozenset[int]) -> None:
        self.tokenizer, self.sampling, self.end_ids = tokenizer, sampling, end_ids
        self.ids = list(prompt[-CONTEXT:])
        self.start, self.read = 0, len(self.ids)  # ids[start:read] were shown, and are decoded along
        self.count, self.text, self.shown = 0, "", 0
        self.hold = max((len(s) for s in sampling.stop), default=1) - 1
        self.finish: str | None = None
        self.stopped_by: str | int | None = None

    def push(self, token: int) -> str:
        """The text that can be shown now; sets `finish` at the row's end."""
        s = self.sampling
        self.count += 1
        if (token in self.end_ids and not s.ignore_end) or token in s.stop_ids:
            self.finish, self.stopped_by = "stop", token if token in s.stop_ids else None
        else:
            self.ids.append(token)
            if self.count >= s.max_tokens:
                self.finish = "length"
        self.text += self._decode(final=self.finish is not None)
        places = [(at, stop) for stop in s.stop if (at := self.text.find(stop)) >= 0]
        if places:
            at, self.stopped_by = min(places)
            self.text, self.finish = self.text[:at], "stop"
        end = len(self.text) if self.finish else max(len(self.text) - self.hold, self.shown)
        piece, self.shown = self.text[self.shown : end], end
        return piece

    def _decode(self, *, final: bool) -> str:
        before, whole = (
            self.tokenizer.decode(
                self.ids[self.start : end], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for end in (self.read, len(self.ids))
        )
        if whole.endswith("\ufffd") and not final:  # bytes of a character that is not whole yet
            return ""
        self.start, self.read = self.read, len(self.ids)
        return whole[len(before) :]
