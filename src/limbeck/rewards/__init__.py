"""Rewards of completions, by name, by plugin file, and as plain functions.

rewards = named_rewards(["accuracy", "format"], [1.0, 0.2], RewardOptions())
table = score(rewards, completions, rows, prompts=prompts, completion_ids=ids)
table.total, table.metrics()
"""

from __future__ import annotations

from limbeck.rewards.base import Missing, NamedReward, Reward, RewardOptions
from limbeck.rewards.monitors import (
    HEDGING,
    hedging_share,
    length,
    longest_quote,
    quotes,
    repeated_share,
    text_metrics,
)
from limbeck.rewards.registry import check_columns, load_plugin, named_rewards, register_reward, reward_names
from limbeck.rewards.score import score
from limbeck.rewards.table import RewardTable, join_tables

__all__ = [
    "HEDGING",
    "Missing",
    "NamedReward",
    "Reward",
    "RewardOptions",
    "RewardTable",
    "check_columns",
    "hedging_share",
    "join_tables",
    "length",
    "load_plugin",
    "longest_quote",
    "named_rewards",
    "quotes",
    "register_reward",
    "repeated_share",
    "reward_names",
    "score",
    "text_metrics",
]
