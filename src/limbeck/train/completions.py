"""One sequence looked at closely, for people: what each token's divergence was, and how likely both sides held it."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from limbeck.losses import linear_token_logprobs
from limbeck.models import hidden_states, model_head
from limbeck.signal import Hidden, Scored
from limbeck.train.step import micro_batch
from limbeck.train.student import StudentStep


@torch.no_grad()
def describe(accelerator: Accelerator, student: StudentStep, scored: Scored, tokenizer: Any, pad_id: int) -> dict:
    """A line of completions.jsonl. student: a `StudentStep`, unwrapped. One forward of one sequence.

    "divergence" [N] is the objective's; "student_logp" and "teacher_logp" [N] are of the token that stands there, at
    temperature 1 (the teacher's only where its whole distribution is known). On path B "advantage" [N] is what the
    token was judged, the reward's part and the teacher's together, and "logratio" [N] the teacher's d_t in it.
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
        teacher_logp = None
        if isinstance(scored.signal, Hidden):
            teacher_logp = linear_token_logprobs(scored.signal.hidden, scored.signal.head, batch.targets)
    student.train(training)
    tokens = sample.tokens
    active = [i for i, on in zip(tokens.response_ids, tokens.response_mask, strict=True) if on]
    return {
        "source": sample.source,
        "origin": sample.example.origin,
        "dataset": sample.example.columns.get("dataset"),
        "prompt": tokenizer.decode(tokens.prompt_ids),
        "tokens": [tokenizer.decode([i]) for i in active],
        "divergence": _rounded(stats.get("divergence")),
        "student_logp": _rounded(student_logp),
        "teacher_logp": _rounded(teacher_logp),
        "advantage": _rounded(None if scored.policy is None else scored.policy.advantage),
        "logratio": _rounded(None if scored.policy is None else scored.policy.logratio),
        "truncated": sample.truncated,
    }


def _rounded(values: torch.Tensor | None) -> list[float] | None:
    return None if values is None else [round(v, 5) for v in values.tolist()]
