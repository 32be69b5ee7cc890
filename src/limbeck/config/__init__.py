"""What a run is made of, checked before anything heavy is loaded: nothing in here imports torch."""

from __future__ import annotations

from limbeck.config.choices import MethodRow
from limbeck.config.defaults import Choice, resolve_defaults
from limbeck.config.flags import parse, to_yaml
from limbeck.config.method import resolve_method
from limbeck.config.schema import Config, Data, Method, Model, Optim, Report, Rollout, Run, Teacher

__all__ = [
    "Choice",
    "Config",
    "Data",
    "Method",
    "MethodRow",
    "Model",
    "Optim",
    "Report",
    "Rollout",
    "Run",
    "Teacher",
    "parse",
    "resolve_defaults",
    "resolve_method",
    "to_yaml",
]
