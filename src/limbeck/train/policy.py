"""Path B: what a generation batch's tokens are worth, settled once before it is learnt from.

    old_logp     the student's log-probabilities when the batch was scored: the ratio's denominator
    d_t          the teacher's minus the student's log-probability of the sampled token
    advantage    of the task rewards, by comparison inside a group, plus alpha d_t
    weights      of the loss type, and what is filtered out

See losses/policy.py and docs/policy-losses.md for the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from limbeck.losses import (
    PolicyLoss,
    denominator,
    entropy_threshold,
    group_advantages,
    groups_without_spread,
    k3_estimate,
    opd_advantage,
    pad_tokens,
    position_weights,
    rollout_metrics,
    rollout_weights,
    teacher_logratio,
    token_mask,
    token_weights,
)
from limbeck.losses.advantage import Estimator, Scale
from limbeck.losses.policy import RolloutMode
from limbeck.models import evaluating
from limbeck.rewards import RewardTable, join_tables
from limbeck.signal import Policy, Sample, Scored, TopK
from limbeck.teachers import Teacher
from limbeck.train import parallel
from limbeck.train.student import StudentStep

Reward = Callable[[Sequence[Sample]], RewardTable]


@dataclass
class Judge:
    """Settings of path B. group: samples a prompt. coef: alpha, the weight of the teacher's log-ratio.

    temperature: the sampler's, and that of the ratio; loss_temperature: of d_t. reuses: the batch is learnt from in
    more than one step, so that the ratio leaves 1. sampled: the teacher speaks of the sampled tokens, in the advantage;
    else it has a loss of its own. reference: the model of the KL with weight `loss.beta`. rollout_mode,
    rollout_threshold: weights of the sampler's log-probabilities against the trainer's; rollout_metrics: log how far
    they are apart in any case. position: (low, middle, width) of `position_weights`.
    """

    loss: PolicyLoss
    group: int
    coef: float
    temperature: float
    loss_temperature: float
    max_length: int
    pad_id: int
    reuses: bool
    sampled: bool = True
    logratio_clip: float | None = None
    estimator: Estimator = "grpo"
    scale: Scale | None = None
    overlong_filter: bool = False
    top_entropy: float = 1.0
    reward: Reward | None = None
    reference: Teacher | None = None
    rollout_mode: RolloutMode | None = None
    rollout_threshold: float = 2.0
    rollout_metrics: bool = False
    position: tuple[float, ...] = ()
    found: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @property
    def compares_sampler(self) -> bool:
        """The sampler's log-probabilities are asked for."""
        return self.rollout_mode is not None or self.rollout_metrics

    def __call__(
        self,
        accelerator: Accelerator,
        student: StudentStep,
        batches: list[list[Scored]],
        places: dict[int, int],
        rewards: dict[int, RewardTable] | None = None,
    ) -> list[list[Scored]]:
        """The same samples with their `Policy`. places: id(sample) -> its place in the generation batch of all ranks;
        rewards: id(sample) -> its row, where they are known. Every rank must call it; `found` holds its metrics, sums
        and counts, of this rank."""
        self.found = {}
        base = self._base(accelerator, [s.sample for batch in batches for s in batch], places, rewards or {})
        own = [self._own(accelerator, student, batch) for batch in batches]  # one forward without gradient, or none
        if self.compares_sampler:
            self._note_mismatch(accelerator, batches, [logp for logp, *_ in own])
        threshold = self._threshold(accelerator, [entropy for *_, entropy in own])
        told = None if self.reference is None else self.reference.score([[s.sample for s in b] for b in batches])
        judged: list[list[Scored]] = []
        for i, batch in enumerate(batches):
            reference = None if told is None else [_logprob(signal) for signal in told[i]]
            judged.append(self._judge(batch, own[i], [base[id(s.sample)] for s in batch], threshold, reference))
        return judged

    def amount(self, batch: Sequence[Scored]) -> float:
        """What these samples add to the step's denominator."""
        return sum(s.policy.amount for s in batch if s.policy is not None)

    def _base(
        self,
        accelerator: Accelerator,
        samples: list[Sample],
        places: dict[int, int],
        known: dict[int, RewardTable],
    ) -> dict[int, float]:
        """id(sample) -> advantage of its task reward; 0 without rewards, and where one is missing."""
        if self.reward is None:
            return {id(s): 0.0 for s in samples}
        # as they were drawn, a prompt's side by side, and not by length as micro-batches have them
        samples = sorted(samples, key=lambda s: places[id(s)])
        table = join_tables([known[id(s)] for s in samples]) if known and samples else self.reward(samples)
        mine = [places[id(s)] for s in samples]
        gathered = parallel.gather(accelerator, (mine, table))
        order = torch.tensor([place for places_of, _ in gathered for place in places_of], dtype=torch.int64)
        whole = join_tables([table for _, table in gathered])
        if not order.numel():
            return {}
        groups = order // self.group
        rewards = whole.total
        alone = self.group > 1 and groups.unique().numel() == groups.numel()  # the teacher refused all of the others
        if alone:
            rewards = torch.full_like(rewards, torch.nan)
        options = {"estimator": self.estimator, "scale": self.scale}
        advantages = torch.zeros_like(rewards) if alone else group_advantages(rewards, groups, **options)
        if accelerator.is_main_process:
            flat, _ = groups_without_spread(rewards, groups)
            self._note("reward/groups_without_spread", flat.double())
            self.found |= {name: (value, 1.0) for name, value in whole.metrics().items()}
        at = dict(zip(order.tolist(), advantages.tolist(), strict=True))
        return {id(s): at[places[id(s)]] for s in samples}

    def _own(
        self, accelerator: Accelerator, student: StudentStep, batch: list[Scored]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The student's log-probabilities [N] at the sampler's temperature and at the loss's, and its entropies; zeros
        where nothing asks for them, since the ratio stays 1 and the teacher has no part in the advantage."""
        taught = self.sampled and any(s.signal is not None for s in batch)
        if not (taught or self.reuses or self.top_entropy < 1 or self.compares_sampler):
            none = next(student.parameters()).new_zeros(sum(s.sample.n_active for s in batch))
            none = none.to(torch.promote_types(none.dtype, torch.float32))
            return none, none, none
        with accelerator.autocast(), evaluating(student):
            return student.logprobs(
                [s.sample for s in batch], (self.temperature, self.loss_temperature), self.pad_id, accelerator.device
            )

    def _threshold(self, accelerator: Accelerator, entropies: list[Tensor]) -> float:
        """The entropy over which a token counts, from the whole step's tokens."""
        if self.top_entropy >= 1:
            return -math.inf
        mine = torch.cat([e.flatten() for e in entropies]).cpu() if entropies else torch.empty(0)
        every = torch.cat(parallel.gather(accelerator, mine))
        return entropy_threshold(every, self.top_entropy) if every.numel() else -math.inf

    def _judge(
        self,
        batch: list[Scored],
        own: tuple[Tensor, Tensor, Tensor],
        base: list[float],
        threshold: float,
        reference: list[Tensor] | None,
    ) -> list[Scored]:
        """Tensors of a micro-batch are [B, T] here, and one [N] a sample in what comes out."""
        counts = [s.sample.n_active for s in batch]
        logp, loss_logp, entropy = (pad_tokens(x, counts) for x in own)
        active = token_mask(counts, device=logp.device)
        mask = active
        if self.overlong_filter:
            cut = torch.tensor([s.sample.truncated for s in batch], device=mask.device)
            mask = mask & ~cut.unsqueeze(-1)
        ratio = torch.zeros_like(logp)
        taught = self.sampled and any(s.signal is not None for s in batch)
        if taught:
            theirs = pad_tokens(torch.cat([_logprob(s.signal) for s in batch]).to(logp.device, logp.dtype), counts)
            ratio = teacher_logratio(theirs, loss_logp, active, clip=self.logratio_clip).to(logp.dtype)
            self._note("teacher_kl", k3_estimate(ratio)[active])
            self._note("teacher_logratio", ratio[active])
        task = torch.tensor(base, dtype=logp.dtype, device=logp.device)
        advantage = opd_advantage(task, ratio, mask, coef=self.coef)
        self._note("advantage/task", task.unsqueeze(-1).expand_as(mask)[mask].abs())
        self._note("advantage/teacher", (self.coef * ratio)[mask].abs())
        counted = mask
        if self.position:
            places = position_weights(counts, self.position).to(logp.device, logp.dtype)
            counted = mask * pad_tokens(places, counts)
        weights = token_weights(counted, self.loss.reduction, dtype=logp.dtype)
        if self.rollout_mode is not None:  # they multiply the token's loss, the denominator stays
            drawn = pad_tokens(_sampler_logp(batch, logp), counts)
            options = {"mode": self.rollout_mode, "threshold": self.rollout_threshold}
            weights = weights * rollout_weights(logp, drawn, active, **options)
        keep = (entropy >= threshold).to(logp.dtype) if self.top_entropy < 1 else None
        known = pad_tokens(torch.cat(reference), counts).to(logp.device) if reference is not None else None
        return [
            Scored(
                s.sample,
                s.signal,
                s.teacher,
                Policy(
                    advantage=advantage[i, :n],
                    weight=weights[i, :n],
                    old_logp=logp[i, :n] if self.reuses else None,
                    ref_logp=None if known is None else known[i, :n].to(logp.dtype),
                    keep=None if keep is None else keep[i, :n],
                    logratio=ratio[i, :n] if taught else None,
                    amount=denominator(counted[i : i + 1], self.loss.reduction, fixed_length=self.max_length),
                ),
            )
            for i, (s, n) in enumerate(zip(batch, counts, strict=True))
        ]

    def _note_mismatch(self, accelerator: Accelerator, batches: list[list[Scored]], own: list[Tensor]) -> None:
        """How far the student as it is trained is from the student as it sampled, over the batch of all ranks."""
        counts = [s.sample.n_active for batch in batches for s in batch]
        drawn = [_sampler_logp(batch, logp) for batch, logp in zip(batches, own, strict=True)]
        mine = (counts, *(torch.cat(x).cpu() if x else torch.empty(0) for x in (own, drawn)))
        every, *flat = zip(*parallel.gather(accelerator, mine), strict=True)
        if accelerator.is_main_process:
            lengths = [n for counts in every for n in counts]
            train, rollout = (pad_tokens(torch.cat(x), lengths) for x in flat)
            options = {"mode": self.rollout_mode, "threshold": self.rollout_threshold}
            values = rollout_metrics(train, rollout, token_mask(lengths), **options)
            self.found |= {f"rollout_correction/{name}": (value, 1.0) for name, value in values.items()}

    def _note(self, name: str, values: Tensor) -> None:
        total, count = self.found.get(name, (0.0, 0.0))
        self.found[name] = total + float(values.double().sum()), count + values.numel()


def _sampler_logp(batch: Sequence[Scored], like: Tensor) -> Tensor:
    """What the sampler said of the tokens that it drew, [N]."""
    told = [s.sample.sampler_logp for s in batch]
    assert all(logp is not None for logp in told), "the sampler keeps no log-probabilities"
    return torch.tensor([x for logp in told for x in logp or ()], dtype=like.dtype, device=like.device)


def _logprob(signal: object) -> Tensor:
    """The log-probabilities [N] of the sampled tokens, from an answer to `sampled`."""
    assert isinstance(signal, TopK)
    return signal.logprobs[:, 0]
