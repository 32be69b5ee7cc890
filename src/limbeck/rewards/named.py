"""The rewards that have a name. `NAMED` is the one table: to add one, write its maker and a line there."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from limbeck.errors import ConfigError
from limbeck.rewards.base import Missing, Reward, RewardOptions
from limbeck.rewards.math_pool import math_pool
from limbeck.rewards.monitors import repeated_share

Ids = Sequence[Sequence[int]]
Column = Sequence[Any]

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
TAG = re.compile(r"</?(?:think|answer)>")


def answer_text(completion: str) -> str:
    """What a completion answers: the text of its last <answer></answer>; without one, what stands after </think>;
    without that, all of it. Thinking that was never closed is no answer: an empty one."""
    tagged = ANSWER.findall(completion)
    if tagged:
        return tagged[-1].strip()
    _, closed, rest = completion.rpartition("</think>")
    if not closed and "<think>" in completion:
        return ""
    return rest.strip()


def gold_text(value: Any) -> str:
    """The answer in a `solution` or `answer` column: inside <answer></answer>, after the last ####, or all of it."""
    text = "" if value is None else str(value)
    tagged = ANSWER.findall(text)
    return (tagged[-1] if tagged else text.rpartition("####")[2]).strip()


def _golds(count: int, solution: Column | None, answer: Column | None) -> list[Any]:
    """`solution` where a row has it, else `answer`, else None."""
    none = [None] * count
    pairs = zip(solution or none, answer or none, strict=True)
    return [second if first is None else first for first, second in pairs]


def accuracy(options: RewardOptions) -> Reward:
    """1 where the completion's answer equals the row's `solution` (or `answer`) by math-verify, else 0."""
    _needs("accuracy", "math_verify", "math-verify", "limbeck[math]")
    pool = math_pool(options.accuracy_time_limit, options.accuracy_workers)
    margin = 0.9 * options.reward_timeout  # rows that are done count also where others hold up the call

    def accuracy(completions: list[str], solution: Column | None = None, answer: Column | None = None) -> list:
        golds = [gold_text(gold) for gold in _golds(len(completions), solution, answer)]
        rows = [i for i, gold in enumerate(golds) if gold]
        values: list[float | None] = [None] * len(completions)
        pairs = [(golds[i], answer_text(completions[i])) for i in rows]
        for i, value in zip(rows, pool.verify(pairs, timeout=margin), strict=True):
            values[i] = value
        return values

    return accuracy


def cosine(options: RewardOptions) -> Reward:
    """Accuracy scaled by length (arXiv 2502.03373, section 4.2), with eta_0 the value at length 0 and eta_L at L_max:
    eta_L + (eta_0 - eta_L) (1 + cos(pi L / L_max)) / 2; beyond L_max it stays eta_L."""
    verified: Any = accuracy(options)
    longest = options.cosine_max_len or options.max_completion_length
    ends = {
        True: (options.cosine_min_len_value_correct, options.cosine_max_len_value_correct),
        False: (options.cosine_min_len_value_wrong, options.cosine_max_len_value_wrong),
    }

    def scaled(right: float | None, tokens: int) -> float | None:
        if right is None or math.isnan(right):
            return right
        start, end = ends[right >= 1]
        return end + (start - end) * (1 + math.cos(math.pi * min(tokens, longest) / longest)) / 2

    def cosine(
        completions: list[str], completion_ids: Ids, solution: Column | None = None, answer: Column | None = None
    ) -> list:
        values = verified(completions, solution, answer)
        return [scaled(value, len(ids)) for value, ids in zip(values, completion_ids, strict=True)]

    return cosine


def form(options: RewardOptions) -> Reward:
    """1 where the whole completion is <think>...</think><answer>...</answer>, each tag once, with nothing but white
    space before, between and after, else 0."""

    def format(completions: list[str]) -> list:
        return [float(bool(FORMAT.fullmatch(text)) and len(TAG.findall(text)) == 4) for text in completions]

    return format


def repetition(options: RewardOptions) -> Reward:
    """`repetition_max_penalty` times the share of n-grams of words that stood earlier in the completion."""
    n, penalty = options.repetition_n_grams, options.repetition_max_penalty
    if penalty > 0:
        raise ConfigError(
            f"--repetition_max_penalty is {penalty:g}, which would pay for repetition", fix="give 0 or less, such as -1"
        )

    def repetition(completions: list[str]) -> list:
        return [penalty * repeated_share(text, n) for text in completions]

    return repetition


def soft_overlong(options: RewardOptions) -> Reward:
    """DAPO's punishment of length (arXiv 2503.14476, equation 13): 0 up to L_max - L_cache tokens, from there linear
    to -1 at L_max, and -1 beyond. L_max: `soft_max_length`; L_cache: `soft_cache_length`."""
    longest = options.soft_max_length or options.max_completion_length
    cached = options.soft_cache_length
    if cached is None or not 0 < cached < longest:
        raise ConfigError(
            "the reward soft_overlong needs --soft_cache_length, between 0 and its longest length",
            where=f"--soft_cache_length {cached}, longest {longest} tokens",
            fix=f"add --soft_cache_length {max(1, longest // 5)}, the tokens before the limit that are punished",
        )

    def soft_overlong(completion_ids: Ids) -> list:
        return [-min(1.0, max(0.0, (len(ids) - (longest - cached)) / cached)) for ids in completion_ids]

    return soft_overlong


def exact(options: RewardOptions) -> Reward:
    """1 where the completion and the row's `solution` (or `answer`) are the same text but for white space around."""

    def exact(completions: list[str], solution: Column | None = None, answer: Column | None = None) -> list:
        golds = _golds(len(completions), solution, answer)
        pairs = zip(completions, golds, strict=True)
        return [None if gold is None else float(text.strip() == str(gold).strip()) for text, gold in pairs]

    return exact


def reasoning_gym(options: RewardOptions) -> Reward:
    """What the row's own task of reasoning-gym says of the answer, in [0, 1]. The row has the entry's `answer` and
    `metadata` (with "source_dataset"; an object or JSON), or the whole entry under `entry`."""
    _needs("reasoning_gym", "reasoning_gym", "reasoning-gym", "reasoning-gym")

    def one(text: str, entry: Any) -> float | None:
        if not entry or not entry["metadata"]:
            return None
        try:
            score = _gym_scorer(entry["metadata"]["source_dataset"])
            return float(score(answer_text(text), entry))
        except Exception as error:  # one row's fault is not the others'
            return Missing(f"score_answer raised {type(error).__name__}")

    def reasoning_gym(
        completions: list[str],
        entry: Column | None = None,
        metadata: Column | None = None,
        question: Column | None = None,
        answer: Column | None = None,
    ) -> list:
        none = [None] * len(completions)
        whole = [_object(value) for value in entry or none]
        parts = zip(metadata or none, question or none, answer or none, strict=True)
        pieces = [{"metadata": _object(m), "question": q, "answer": a} for m, q, a in parts]
        entries = [{"metadata": None, **e} if e else p for e, p in zip(whole, pieces, strict=True)]
        return [one(text, e) for text, e in zip(completions, entries, strict=True)]

    return reasoning_gym


@cache
def _gym_scorer(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    return import_module("reasoning_gym").get_score_answer_fn(dataset)


def _object(value: Any) -> Any:
    """An object as it is or from JSON, without the empty keys that a table adds to it; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, dict):
        return None
    return {k: _object(v) if isinstance(v, dict) else v for k, v in value.items() if v is not None}


def _needs(reward: str, module: str, package: str, install: str) -> None:
    if find_spec(module) is None:
        raise ConfigError(
            f"the reward {reward} needs the package {package}",
            where=f"--reward_funcs {reward}",
            fix=f"pip install '{install}'",
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """make: the reward for a run's options. any_of: columns of which the rows must have at least one."""

    make: Callable[[RewardOptions], Reward]
    any_of: tuple[str, ...] = ()


NAMED: dict[str, Entry] = {
    "accuracy": Entry(accuracy, ("solution", "answer")),
    "cosine": Entry(cosine, ("solution", "answer")),
    "exact": Entry(exact, ("solution", "answer")),
    "format": Entry(form),
    "reasoning_gym": Entry(reasoning_gym, ("metadata", "entry")),
    "repetition": Entry(repetition),
    "soft_overlong": Entry(soft_overlong),
}
