"""What another project's flag can be here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Renamed:
    """Ours is called `to`. `values` translates values that are spelled otherwise; others pass as they are,
    and an empty translation sets nothing."""

    to: str
    values: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class NotNeeded:
    """Accepted and without effect: it changes speed or convenience there, not what is computed. Nothing is said of
    the values in `off`."""

    why: str
    off: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Not supported. `instead` is what to do; the values in `off` switch the feature off and are accepted."""

    instead: str
    off: tuple[str, ...] = ()


Entry = Renamed | NotNeeded | Refused
