"""One sequence looked at closely, for people: each token's divergence, how likely both sides held it, and what they
would rather have said."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from limbeck.losses import Head, linear_token_logprobs, linear_topk
from limbeck.models import hidden_states, model_head
from limbeck.signal import Ask, Hidden, Scored, Signal
from limbeck.train.step import micro_batch
from limbeck.train.student import StudentStep
from limbeck.train.tally import asked

FAVOURITES = 5  # of each side, at every token


@torch.no_grad()
def describe(
    accelerator: Accelerator, student: StudentStep, scored: Scored, tokenizer: Any, pad_id: int, ask: Ask | None = None
) -> dict:
    """A line of completions.jsonl. student: a `StudentStep`, unwrapped; ask: what the teacher was asked for. One
    forward of one sequence, and three passes of its hidden states through the head.

    "divergence" [N] is the objective's; "student_logp" and "teacher_logp" [N] are of the token that stands there, at
    temperature 1 (the teacher's only where it is known). "student_top" and "teacher_top" [N] are lists of (token as
    text, probability), likeliest first, at temperature 1 too: the teacher's only where its likeliest ids are known.
    On path B "advantage" [N] is what the token was judged, the reward's part and the teacher's together, and "logratio"
    [N] the teacher's d_t in it, of the student that was asked; "student_logp" is of the student after the step.
    """
    training = student.training
    student.eval()
    sample = scored.sample
    micro = micro_batch([scored], pad_id, accelerator.device)
    batch = micro.batch
    with accelerator.autocast():
        hidden = hidden_states(student.model, batch.input_ids, (batch.rows, batch.cols))
        head = model_head(student.model, student.valid)
        _, stats = student.objective(hidden, head, micro, stats=True)
        student_logp = linear_token_logprobs(hidden, head, batch.targets)
        student_top = _likeliest(hidden, head)
        teacher_logp, teacher_top = _teacher(scored.signal, batch.targets, ask)
    student.train(training)
    tokens = sample.tokens
    active = [i for i, on in zip(tokens.response_ids, tokens.response_mask, strict=True) if on]
    return {
        "source": sample.source,
        "origin": sample.example.origin,
        "dataset": sample.example.columns.get("dataset"),
        "asked": asked(sample),
        "prompt": tokenizer.decode(tokens.prompt_ids),
        "tokens": [tokenizer.decode([i]) for i in active],
        "divergence": _rounded(stats.get("divergence")),
        "student_logp": _rounded(student_logp),
        "teacher_logp": _rounded(teacher_logp),
        "student_top": _named(student_top, tokenizer),
        "teacher_top": _named(teacher_top, tokenizer),
        "advantage": _rounded(None if scored.policy is None else scored.policy.advantage),
        "logratio": _rounded(None if scored.policy is None else scored.policy.logratio),
        "truncated": sample.truncated,
    }


def _likeliest(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids [N, K] of the likeliest, at temperature 1."""
    logprobs, ids, _ = linear_topk(hidden, head, min(FAVOURITES, head.vocab))
    return logprobs, ids


def _teacher(
    signal: Signal | None, targets: Tensor, ask: Ask | None
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """Log-probabilities of the targets [N] (NaN where unknown), and the favourites, as far as the signal tells them."""
    if isinstance(signal, Hidden):
        return linear_token_logprobs(signal.hidden, signal.head, targets), _likeliest(signal.hidden, signal.head)
    if signal is None or ask is None or ask.temperature != 1.0:  # a top-k is at the temperature that it was asked at
        return None, None
    logprobs, ids = signal.logprobs.to(targets.device).float(), signal.ids.to(targets.device)
    here = (ids == targets.unsqueeze(-1)) & (logprobs > -torch.inf)
    known = logprobs.masked_fill(~here, -torch.inf).amax(-1)
    known = known.masked_fill(~here.any(-1), torch.nan)
    if ask.kind not in ("topk", "union"):  # ids that the student named need not be the teacher's likeliest
        return known, None
    best = logprobs.topk(min(FAVOURITES, logprobs.shape[1]), dim=-1)
    return known, (best.values, ids.gather(-1, best.indices))


def _named(top: tuple[Tensor, Tensor] | None, tokenizer: Any) -> list[list[list[Any]]] | None:
    if top is None:
        return None
    return [
        [[tokenizer.decode([i]), round(p, 4)] for p, i in zip(row, ids, strict=True) if p > 0]
        for row, ids in zip(top[0].exp().tolist(), top[1].tolist(), strict=True)
    ]


def _rounded(values: Tensor | None) -> list[float | None] | None:
    return None if values is None else [None if math.isnan(v) else round(v, 5) for v in values.tolist()]
