"""What flows between the rooms: sequences with their origin, and what a teacher says of their tokens.

N counts the active tokens (`Sample.n_active`) in the order in which they stand in the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from limbeck.data.formats import Example
from limbeck.data.render import Rendered
from limbeck.losses import Head, linear_named, linear_topk

Source = Literal["dataset", "student"]
Kind = Literal["hidden", "topk", "named", "union", "sampled"]
SOURCES: tuple[Source, ...] = ("dataset", "student")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence to learn from. `truncated`: the sampler ran out of tokens before an end-of-turn token.

    sampler_logp [N]: the log-probability of each active token in the distribution that it was drawn from, after
    temperature and filters; None where nobody asked the sampler for it.
    """

    tokens: Rendered
    source: Source
    example: Example
    truncated: bool = False
    sampler_logp: tuple[float, ...] | None = None

    @property
    def n_active(self) -> int:
        return sum(self.tokens.response_mask)

    @property
    def told(self) -> Rendered:
        """The sequence as its teacher reads it: with the same targets, after another prompt where it is privileged."""
        return self.tokens.teacher or self.tokens


@dataclass(frozen=True, slots=True)
class Hidden:
    """A teacher's last hidden states [N, H] at the positions that predict the active tokens, and its head: the whole
    distribution in H numbers a token. Nothing of size [N, V] is kept; the loss runs the head chunk by chunk."""

    hidden: Tensor
    head: Head


@dataclass(frozen=True, slots=True)
class TopK:
    """A support of K ids [N, K] int64, the teacher's log-probabilities of them [N, K] over all valid ids (-inf: an
    absent entry), and the log of the mass off the support [N] (None where the source does not send it)."""

    logprobs: Tensor
    ids: Tensor
    log_tail: Tensor | None


Signal = Hidden | TopK


@dataclass(frozen=True, slots=True)
class Ask:
    """What a teacher is asked for of every active token.

    hidden   last hidden states and the head: the whole vocabulary.
    topk     the teacher's `k` likeliest ids.
    named    ids that the asker names, [N, `named_k`]: the student's likeliest.
    union    the `k` likeliest, and after them the named ones that are not among them.
    sampled  the active tokens themselves, one id each: what path B needs.

    Log-probabilities are over all valid ids, at `temperature`. In a row of `named` or `union` an id that stands there
    twice is absent the second time: log-probability -inf, id 0.
    """

    kind: Kind
    k: int = 0
    temperature: float = 1.0
    named_k: int = 0

    @property
    def names(self) -> bool:
        """The asker names ids."""
        return self.kind in ("named", "union")


def signal_of(ask: Ask, hidden: Tensor, head: Head, named: Tensor | None = None) -> Signal:
    """What is asked for, from hidden states [N, H] and their head; named [N, K] where the asker names ids, [N, 1] the
    active tokens where these are asked for."""
    if ask.kind == "hidden":
        return Hidden(hidden, head)
    if ask.kind == "topk":
        return TopK(*linear_topk(hidden, head, ask.k, temperature=ask.temperature))
    assert named is not None
    return TopK(*linear_named(hidden, head, named, k=ask.k, temperature=ask.temperature))


@dataclass(frozen=True, slots=True)
class Policy:
    """What a sample's tokens are worth on path B, [N] each; see losses/policy.py.

    weight: of the loss type, 0 where a token is filtered out. old_logp: None while the weights are still those that
    scored it. keep: share of the policy's part, where tokens are chosen by entropy. amount: its part of the step's
    denominator. logratio: d_t, the part of the advantage that is the teacher's but for its weight; None without one.
    """

    advantage: Tensor
    weight: Tensor
    amount: float
    old_logp: Tensor | None = None
    ref_logp: Tensor | None = None
    keep: Tensor | None = None
    logratio: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A sample with its teacher's signal; None where no teacher takes part (plain cross-entropy). teacher: its name,
    where there are several. policy: what it is worth on path B."""

    sample: Sample
    signal: Signal | None
    teacher: str = ""
    policy: Policy | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens of a micro-batch that one kind of signal speaks of. index: their places [n] int64 among its N active
    tokens, None for all of them."""

    index: Tensor | None
    signal: Signal


def parts_of(signals: Sequence[Signal], counts: Sequence[int], device: torch.device) -> list[Part]:
    """Signals of several samples, of counts[i] active tokens each, joined where they are of one kind: one head, or as
    many ids and a tail or none. One teacher gives one part; several teachers that answer alike do so too."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, signal in enumerate(signals):
        groups.setdefault(_kind(signal), []).append(i)
    if len(groups) == 1:
        return [Part(None, to_device(concatenate(signals), device))]
    places = torch.arange(sum(counts), device=device).split(list(counts))
    return [
        Part(torch.cat([places[i] for i in own]), to_device(concatenate([signals[i] for i in own]), device))
        for own in groups.values()
    ]


def _kind(signal: Signal) -> tuple[object, ...]:
    if isinstance(signal, Hidden):
        return ("hidden", id(signal.head))
    return ("topk", signal.ids.shape[1], signal.log_tail is None)


def to_device(signal: Signal, device: torch.device) -> Signal:
    """The same signal on a device; a head moves with its hidden states."""
    if isinstance(signal, Hidden):
        bias = None if signal.head.bias is None else signal.head.bias.to(device)
        return Hidden(signal.hidden.to(device), replace(signal.head, weight=signal.head.weight.to(device), bias=bias))
    tail = None if signal.log_tail is None else signal.log_tail.to(device)
    return TopK(signal.logprobs.to(device), signal.ids.to(device), tail)


def concatenate(signals: Sequence[Signal]) -> Signal:
    """Signals of several samples of one teacher as one, [sum of N, ...], in order."""
    first = signals[0]
    if isinstance(first, Hidden):
        return Hidden(torch.cat([s.hidden for s in signals if isinstance(s, Hidden)]), first.head)
    parts = [s for s in signals if isinstance(s, TopK)]
    tails = [s.log_tail for s in parts if s.log_tail is not None]
    return TopK(
        torch.cat([s.logprobs for s in parts]),
        torch.cat([s.ids for s in parts]),
        torch.cat(tails) if tails else None,
    )


def split(signal: Signal, counts: Sequence[int]) -> list[Signal]:
    """The inverse of `concatenate`: one signal a sample of `counts[i]` active tokens."""
    if isinstance(signal, Hidden):
        return [Hidden(h, signal.head) for h in signal.hidden.split(list(counts))]
    tails: Sequence[Tensor | None] = (
        signal.log_tail.split(list(counts)) if signal.log_tail is not None else [None] * len(counts)
    )
    parts = zip(signal.logprobs.split(list(counts)), signal.ids.split(list(counts)), tails, strict=True)
    return [TopK(logprobs, ids, tail) for logprobs, ids, tail in parts]
