"""What a reward is, what it may be told, and how it says that it cannot tell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

Values = list[float | None]
Reward = Callable[..., Values | Awaitable[Values]]
"""`(completions, **columns) -> list[float | None]`, sync or async, one value a completion; None: not a row of mine.

It is given what its signature names, or everything where it takes **kwargs: `prompts`, `completions` (texts),
`completion_ids` (also as `response_token_ids`), every column of the rows, each a list of the same length; and
`trainer_state`.
"""


class Missing(float):
    """A value that should be there and is not: not a number, and the reason why.

    A reward returns one in place of a row's value where only that row failed. The reason is short and free of the
    row's own values, so that rows can be counted by it.
    """

    reason: str

    def __new__(cls, reason: str) -> Missing:
        self = super().__new__(cls, "nan")
        self.reason = reason
        return self

    def __repr__(self) -> str:
        return f"Missing({self.reason!r})"


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """Settings of the named rewards. Lengths are in tokens, times in seconds; None: `max_completion_length`."""

    max_completion_length: int = 512
    reward_timeout: float = 60.0
    accuracy_time_limit: float = 5.0
    accuracy_workers: int = 2
    cosine_min_len_value_wrong: float = -0.5
    cosine_max_len_value_wrong: float = 0.0
    cosine_min_len_value_correct: float = 1.0
    cosine_max_len_value_correct: float = 0.5
    cosine_max_len: int | None = None
    repetition_n_grams: int = 3
    repetition_max_penalty: float = -1.0
    soft_max_length: int | None = None
    soft_cache_length: int | None = None


@dataclass(eq=False, slots=True)
class NamedReward:
    """A reward with its name and weight in a run.

    any_of: columns of which the rows must have at least one. said: reasons that have been told already.
    call: the last one, which may not have come back yet.
    """

    name: str
    function: Reward
    weight: float = 1.0
    any_of: tuple[str, ...] = ()
    said: set[str] = field(default_factory=set)
    call: Future[Any] | None = None
