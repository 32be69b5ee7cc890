"""The rooms of --rlhf_type grpo: its policy loss and its rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from limbeck.config.room import Count, Names, NotNegative, Positive, Room, Seconds, listed


class Policy(Room):
    """grpo: the policy loss of the sampled tokens."""

    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"] = "grpo"
    """How a token's ratio and advantage become a loss, and what it is divided by."""
    epsilon: NotNegative = 0.2
    """The ratio is clipped below 1 - epsilon, and above 1 + epsilon where --epsilon_high is not given."""
    epsilon_high: NotNegative | None = None
    """The ratio is clipped above 1 + epsilon_high."""
    delta: Positive | None = None
    """Highest ratio of a token with a negative advantage; by default unbounded."""
    tau_pos: Positive = 1.0
    """sapo: temperature of the gate for positive advantages."""
    tau_neg: Positive = 1.05
    """sapo: temperature of the gate for negative advantages."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whose ratio: each token's own, or the sequence's (GSPO)."""
    num_iterations: Count = 1
    """Times that a generation batch is learnt from."""
    advantage_estimator: Literal["grpo", "rloo", "reinforce_plus_plus"] = "grpo"
    """How rewards are compared inside a group."""
    scale_rewards: Literal["group", "batch", "none"] | None = None
    """Divide advantages by the spread of the group's rewards, of the batch's, or not; by default as the estimator's
    paper does (group, none, batch)."""
    overlong_filter: bool = False
    """Leave responses that ran out of tokens out of the loss."""
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the tokens, those of highest entropy, that the policy loss is taken on."""
    opd_signal: Literal["sampled", "topk", "full"] = "sampled"
    """The teacher's part: its log-ratio of the sampled token as advantage, or with less noise its reverse KL as a loss
    beside the policy's: over the full vocabulary (the same mean gradient), or over the --gkd_logits_topk (a lower bound
    of it, and another gradient where the student's mass is off these)."""


class Reward(Room):
    """grpo: rewards of whole responses."""

    reward_funcs: Names = []
    """Rewards by name: accuracy, format, cosine, repetition, soft_overlong, exact, reasoning_gym, or a plugin's."""
    reward_weights: Annotated[list[float], BeforeValidator(listed)] = []
    """Weights of the rewards, in their order; by default 1 each."""
    reward_timeout: Seconds = 60
    """How long the rewards of a batch may take before its values count as missing."""
    accuracy_time_limit: Seconds = 5
    """accuracy, cosine: how long one answer may take; over it the reward is missing, not 0."""
    accuracy_workers: Count = 2
    """accuracy, cosine: processes that compare answers."""
    cosine_min_len_value_wrong: float = -0.5
    """cosine: reward of the shortest wrong answer."""
    cosine_max_len_value_wrong: float = 0.0
    """cosine: reward of the longest wrong answer."""
    cosine_min_len_value_correct: float = 1.0
    """cosine: reward of the shortest right answer."""
    cosine_max_len_value_correct: float = 0.5
    """cosine: reward of the longest right answer."""
    cosine_max_len: Count | None = None
    """cosine: length in tokens that counts as longest; by default --max_completion_length."""
    repetition_n_grams: Count = 3
    """repetition: words of a repeated piece."""
    repetition_max_penalty: float = -1.0
    """repetition: reward of a response that only repeats itself."""
    soft_max_length: Count | None = None
    """soft_overlong: length in tokens that is too long; by default --max_completion_length."""
    soft_cache_length: Count | None = None
    """soft_overlong: tokens before that length over which the penalty grows."""
