"""Numbers and times as people read them: the one place that decides on digits."""

from __future__ import annotations

import math
from typing import Any

MISSING = "-"


def number(value: Any, digits: int = 4) -> str:
    """A value in `digits` significant digits: 0.04321, 3.142, 1,235, 1.2e-5; whole numbers whole; text unchanged."""
    if value is None:
        return MISSING
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e7):
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: Any) -> str:
    """A share in [0, 1] as 71.3%."""
    return f"{100 * share:.1f}%" if isinstance(share, (int, float)) and math.isfinite(share) else number(share)


def duration(seconds: Any) -> str:
    """Seconds as 0.42s, 7.3s, 4m 05s, 3h 07m, 2d 04h."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{number(float(seconds), 2 if seconds < 10 else 3)}s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}h"
    return f"{hours}h {m:02}m" if hours else f"{minutes}m {s:02}s"
