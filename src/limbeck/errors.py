"""Errors that a user can act on: what is wrong, where it stands, how to mend it.

To add one, subclass `LimbeckError` together with the standard error that it also is, so that a caller who knows
nothing of Limbeck can still catch `ValueError` or `RuntimeError`.
"""

from __future__ import annotations


class LimbeckError(Exception):
    """Base of every error of ours. `str(error)` is the three-line form that the command line prints.

    what:  the fault, naming the flag, the row or the model.
    where: file and line, flag and value, or the place in the run; empty when there is none to name.
    fix:   what to do about it, as an instruction.
    """

    exit_code = 2  # the user's fault; 1 is ours

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def __reduce__(self):
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[LimbeckError], what: str, where: str, fix: str) -> LimbeckError:
    return kind(what, where=where, fix=fix)


class ConfigError(LimbeckError, ValueError):
    """A flag, a YAML key or a combination of choices that cannot be run."""


class DataError(LimbeckError, ValueError):
    """A row, a file or a chat template that cannot be used."""


class ModelError(LimbeckError, ValueError):
    """A model, an adapter, a head or a tokenizer that cannot be used."""


class TrainError(LimbeckError, RuntimeError):
    """A run that cannot go on, such as one whose loss is no longer finite."""

    exit_code = 1


class TeacherError(LimbeckError, RuntimeError):
    """A teacher that stays away, or answers what cannot be."""

    exit_code = 1
