"""Rewards by name: ours, those of a plugin file, and plain functions."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from limbeck.data import preprocess
from limbeck.errors import ConfigError
from limbeck.rewards.base import NamedReward, Reward, RewardOptions
from limbeck.rewards.named import NAMED, Entry

GIVEN = ("prompts", "completions", "completion_ids", "response_token_ids", "trainer_state")
"""What every reward can ask for, whatever the rows' columns are."""

_registered: dict[str, Entry] = {}
_plugins: dict[Path, list[str]] = {}
F = TypeVar("F", bound=Callable)


def register_reward(name: str) -> Callable[[F], F]:
    """Decorator: make a reward function (or a class whose instances are called) known as `name`.

    Raises ConfigError where the name is taken.
    """

    def register(function: Any) -> Any:
        if name in NAMED or name in _registered:
            raise ConfigError(f"there is a reward {name!r} already", where=_place(function), fix="take another name")
        reward: Any = function() if inspect.isclass(function) else function
        _registered[name] = Entry(lambda options: reward)
        return function

    return register


def load_plugin(path: str | Path) -> list[str]:
    """Run a Python file that registers rewards and preprocessors of rows; the names of its rewards. A file is run
    once, and may import the files beside it. Raises ConfigError, naming the line, where the file does not load."""
    file = Path(path).expanduser().resolve()
    if file in _plugins:
        return _plugins[file]
    if not file.is_file():
        raise ConfigError(f"no plugin file {path}", where=f"--external_plugins {path}", fix="give a path that exists")
    before, datasets = set(_registered), set(preprocess.registered)
    # a name of its own, so that two plugins of one name, or of an installed module's, do not meet
    name = f"limbeck_plugin_{file.stem}_{hashlib.sha1(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin {path} is not a Python file", where=str(path), fix="give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        for added in set(_registered) - before:  # half a plugin is none
            del _registered[added]
        for added in set(preprocess.registered) - datasets:
            del preprocess.registered[added]
        said = error.what if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"plugin {path} does not load: {said}", where=f"{path}:{_line(error, file)}", fix="mend that line"
        ) from error
    _plugins[file] = [added for added in _registered if added not in before]
    return _plugins[file]


def reward_names() -> list[str]:
    """All names that can be given, ours and registered ones."""
    return sorted({**NAMED, **_registered})


def named_rewards(
    rewards: Sequence[str | Reward],
    weights: Sequence[float] | None = None,
    options: RewardOptions = RewardOptions(),  # noqa: B008  immutable
) -> list[NamedReward]:
    """The rewards of a run, by name or as functions, each with its weight (1 where none are given).

    Raises ConfigError for an unknown name, the same name twice, a number of weights that is not the rewards', a package
    that is not installed, or options that a reward cannot work with.
    """
    if weights is not None and len(weights) != len(rewards):
        raise ConfigError(
            f"{len(rewards)} rewards, but {len(weights)} weights",
            where=f"--reward_weights {' '.join(f'{weight:g}' for weight in weights)}",
            fix="give one weight for each of --reward_funcs, in the same order",
        )
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    found: list[NamedReward] = []
    for reward, weight in zip(rewards, weights, strict=True):
        name = reward if isinstance(reward, str) else getattr(reward, "__name__", type(reward).__name__)
        if any(other.name == name for other in found):
            raise ConfigError(f"the reward {name} is named twice", where="--reward_funcs", fix="name it once")
        if not math.isfinite(weight):
            raise ConfigError(f"the weight of {name} is {weight}", where="--reward_weights", fix="give a number")
        entry = _entry(reward) if isinstance(reward, str) else Entry(lambda options, reward=reward: reward)
        found.append(NamedReward(name, entry.make(options), float(weight), entry.any_of))
    return found


def check_columns(rewards: Sequence[NamedReward], columns: Collection[str]) -> None:
    """Raises ConfigError for a reward that asks for a column that no row has. columns: those of all rows together."""
    for reward in rewards:
        wanted = [name for name in _required(reward.function) if name not in GIVEN and name not in columns]
        if reward.any_of and not set(reward.any_of) & set(columns):
            wanted.append(" or ".join(reward.any_of))
        if wanted:
            raise ConfigError(
                f"the reward {reward.name} needs the column {', '.join(wanted)}, which no row has",
                where=f"columns: {', '.join(sorted(columns)) or 'none'}",
                fix="add or rename the column in the data set, or leave the reward out",
            )


def _entry(name: str) -> Entry:
    entry = NAMED.get(name) or _registered.get(name)
    if entry is None:
        near = get_close_matches(name, reward_names(), n=1)
        raise ConfigError(
            f"no reward is called {name!r}",
            where=f"--reward_funcs {name}",
            fix=f"did you mean {near[0]}? "
            if near
            else f"take one of {', '.join(reward_names())}, or name its file with --external_plugins",
        )
    return entry


def _required(function: Reward) -> list[str]:
    """Parameters that a call must give by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in by_name and p.default is inspect.Parameter.empty]


def _place(function: Callable) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else getattr(function, "__qualname__", "")


def _line(error: BaseException, file: Path) -> int:
    """The last line of the plugin that the error went through; a syntax error's own line."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return (lines[-1] if lines else 1) or 1
