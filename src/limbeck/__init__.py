"""Limbeck distils language models: a student learns from a teacher's distribution over the next token.

    limbeck.distil(model=..., teacher_model=..., dataset=[...], output_dir=...)
    limbeck.Trainer(config).fit()
    limbeck.losses      the losses as plain functions
    @limbeck.register_reward("name")    a reward for grpo, in a file of --external_plugins
    @limbeck.register_dataset("name")   a preprocessor of rows, in the same files

Importing this package imports no torch: the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.api import Trainer, distil
    from limbeck.data import register_dataset
    from limbeck.rewards import register_reward

__version__ = "0.1.0"
__all__ = ["Trainer", "__version__", "distil", "register_dataset", "register_reward"]


def __getattr__(name: str) -> Any:
    if name in ("Trainer", "distil"):
        from limbeck import api

        return getattr(api, name)
    if name == "register_reward":
        from limbeck.rewards import register_reward

        return register_reward
    if name == "register_dataset":
        from limbeck.data import register_dataset

        return register_dataset
    if name == "losses":
        return import_module("limbeck.losses")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
