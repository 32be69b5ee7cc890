"""Preprocessors of rows by the name of a data set, registered in a file of --external_plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from limbeck.data.turns import brief
from limbeck.errors import ConfigError, DataError

Row = dict[str, Any]
F = TypeVar("F", bound=Callable[[Row], Mapping[str, Any] | None])

registered: dict[str, Callable[[Row], Mapping[str, Any] | None]] = {}


def register_dataset(name: str) -> Callable[[F], F]:
    """Decorator: a function that every row of the data set `name` goes through before it is read.

    name: the data set as --dataset names it (without #N), or its tag: a file's stem, a folder's name, a hub id.
    The function gets the row as a dict, its columns renamed, and gives the row to read, or None to leave it out (which
    is counted). Raises ConfigError where the name is taken.
    """

    def register(function: F) -> F:
        if name in registered:
            code = function.__code__ if hasattr(function, "__code__") else None
            place = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
            what = f"there is a preprocessor of the data set {name!r} already"
            raise ConfigError(what, where=place, fix="keep one of the two")
        registered[name] = function
        return function

    return register


def preprocessor_of(name: str, tag: str) -> str | None:
    """The registered name that a data set goes by, if there is one."""
    return next((own for own in (name, tag) if own in registered), None)


def preprocess(own: str, row: Any, origin: str) -> Row | None:
    """The row as the preprocessor `own` makes it. Raises DataError where it fails: a fault of the plugin, not of a
    row, so that nothing is dropped."""
    fix = f"mend the preprocessor of {own!r}; it may return None to leave a row out"
    try:
        made = registered[own](row)
    except Exception as error:
        line = error.__traceback__.tb_next if error.__traceback__ else None
        place = f", line {line.tb_lineno} of {line.tb_frame.f_code.co_filename}" if line else ""
        raise DataError(
            f"the preprocessor of {own!r} fails: {type(error).__name__}: {error}", where=f"{origin}{place}", fix=fix
        ) from error
    if made is not None and not isinstance(made, Mapping):
        what = f"the preprocessor of {own!r} gives neither a row nor None"
        raise DataError(what, where=f"{origin}  {brief(made)}", fix=fix)
    return None if made is None else dict(made)
