"""Whose tokens a generation batch is made of."""

from limbeck.rollouts.base import Done, Row, Sampler, draw_source, last_turn_prompt
from limbeck.rollouts.dataset import sample_dataset
from limbeck.rollouts.hf import HFSampler, Sampling

__all__ = ["Done", "HFSampler", "Row", "Sampler", "Sampling", "draw_source", "last_turn_prompt", "sample_dataset"]
