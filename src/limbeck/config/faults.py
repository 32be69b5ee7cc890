"""pydantic's complaints in our words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from limbeck.errors import ConfigError

# pydantic's error type -> (what is wrong, how to mend it); {ctx} is pydantic's context.
_SAYINGS: dict[str, tuple[str, str]] = {
    "no_steps": ("is 0: there would be nothing to run", "give the number of steps, or leave it out for whole epochs"),
    "greater_than_equal": ("must be at least {ge}", "give {ge} or more"),
    "greater_than": ("must be greater than {gt}", "give more than {gt}"),
    "less_than_equal": ("must be at most {le}", "give {le} or less"),
    "less_than": ("must be less than {lt}", "give less than {lt}"),
    "finite_number": ("must be a finite number", "give a number such as 0.5"),
    "int_parsing": ("is not a whole number", "give a whole number such as 4"),
    "int_from_float": ("is not a whole number", "give a whole number such as 4"),
    "int_type": ("is not a whole number", "give a whole number such as 4"),
    "float_parsing": ("is not a number", "give a number such as 0.5"),
    "float_type": ("is not a number", "give a number such as 0.5"),
    "bool_parsing": ("is neither true nor false", "write true or false"),
    "bool_type": ("is neither true nor false", "write true or false"),
    "string_type": ("is not text", "put the value in quotes"),
    "path_type": ("is not a path", "put the value in quotes"),
    "list_type": ("is not a list", "write one value, or [a, b]"),
    "dict_type": ("is not a mapping", "write it as a mapping, such as {{min_lr: 1.0e-6}}"),
}


def refusal(error: ValidationError, where: Mapping[str, str], choices: Mapping[str, tuple[str, ...]]) -> ConfigError:
    """The first complaint in full; the other fields that are wrong are named with it."""
    complaints: dict[str, Any] = {}
    for item in error.errors():
        complaints.setdefault([str(part) for part in item["loc"] or ("",)][:2][-1], item)
    name, item = next(iter(complaints.items()))
    if item["type"] == "one_of_two":
        return ConfigError(item["ctx"]["what"], where=item["ctx"].get("where", ""), fix=item["ctx"]["fix"])
    no_choices: tuple[str, ...] = ()
    saying, fix = _say(item, choices.get(name, no_choices))
    others = [other for other in complaints if other != name]
    more = f" (and {', '.join(f'--{other}' for other in others)} {'is' if len(others) == 1 else 'are'} wrong too)"
    return ConfigError(
        f"--{name} {saying}" + (more if others else ""), where=where.get(name, f"--{name} {item['input']}"), fix=fix
    )


def _say(item: Mapping[str, Any], choices: tuple[str, ...]) -> tuple[str, str]:
    if item["type"] == "literal_error":
        near = difflib.get_close_matches(str(item["input"]), choices, n=1)
        options = f"choose one of: {', '.join(choices)}"
        return f"has no choice {item['input']!r}", f"did you mean {near[0]}? ({options})" if near else options
    if item["type"] in ("routes", "saying"):
        return item["ctx"]["what"], item["ctx"]["fix"]
    saying, fix = _SAYINGS.get(item["type"], (item["msg"], "see --help"))
    context = {key: f"{value:g}" if isinstance(value, float) else value for key, value in item.get("ctx", {}).items()}
    return saying.format(**context), fix.format(**context)
