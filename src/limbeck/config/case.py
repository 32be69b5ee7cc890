"""What the table of what is legal is made of: a case, which is looked at, and a rule, which may refuse it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from limbeck.config.choices import MethodRow
from limbeck.config.room import room_of
from limbeck.config.schema import Config
from limbeck.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Case:
    """What a rule looks at: the configuration, the row that it makes, and two facts about the data."""

    config: Config
    row: MethodRow
    rows_without_response: int

    @property
    def has_teacher(self) -> bool:
        teacher = self.config.teacher
        return bool(teacher.teacher_model or teacher.teacher_model_server or teacher.teacher_adapters) or (
            teacher.teacher_source != "auto"
        )

    @property
    def starts_as_teacher(self) -> bool:
        """The student is its teacher, word for word, so that every divergence between them is zero."""
        config, source = self.config, self.row.source
        if self.row.privileged:
            return False
        if source in ("live", "frozen", "ema"):
            return True
        if config.model.adapters or config.teacher.teacher_adapters:
            return False
        named = (config.teacher.teacher_model, config.teacher.teacher_model_revision)
        return source == "base" or (source == "model" and named == (config.model.model, config.model.model_revision))

    @property
    def has_held_out(self) -> bool:
        return bool(self.config.data.val_dataset) or self.config.data.split_dataset_ratio > 0

    @property
    def learns_from_text(self) -> bool:
        """Cross-entropy on the dataset's tokens has a say."""
        return self.config.method.sft_alpha > 0 and self.row.lmbda < 1

    @property
    def has_rewards(self) -> bool:
        return bool(self.config.reward.reward_funcs)

    @property
    def epsilon_high(self) -> float:
        policy = self.config.policy
        return policy.epsilon if policy.epsilon_high is None else policy.epsilon_high

    @property
    def compares_sampler(self) -> bool:
        r = self.config.rollout
        return r.rollout_importance_sampling_mode is not None or r.log_rollout_offpolicy_metrics

    @property
    def filters_samples(self) -> bool:
        r = self.config.rollout
        return r.top_p < 1 or r.top_k > 0 or r.min_p > 0 or r.repetition_penalty != 1 or r.temperature == 0


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the legality table: the run is refused when `broken`. In `what` and `fix`, {c} is the case."""

    name: str
    broken: Callable[[Case], bool]
    what: str
    fix: str
    flags: tuple[str, ...]

    def error(self, case: Case) -> ConfigError:
        given = {flag: getattr(getattr(case.config, room_of(type(case.config), flag)), flag) for flag in self.flags}
        where = ", ".join(f"--{flag} {_words(value)}" for flag, value in given.items() if value not in (None, []))
        return ConfigError(self.what.format(c=case), where=where, fix=self.fix.format(c=case))


def _words(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return " ".join(map(str, cast(list[object], value)))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
