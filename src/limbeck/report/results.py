"""Held-out measures before and after, with the change put into words, for the page and for the model card."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.report.folder import Run
from limbeck.report.format import MISSING, number, percent

Verdict = Literal["better", "worse", ""]


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table, ready to print. `share` is after/before, where that means something; `on_policy`: of fresh
    samples instead of the held-out responses."""

    name: str
    unit: str
    before: str
    after: str
    change: str
    verdict: Verdict
    share: float | None
    value: float | None = None  # after
    on_policy: bool = False

    @property
    def title(self) -> str:
        """The name, where rows of both kinds stand in one table without a heading of their own."""
        return f"{self.name}, on its own answers" if self.on_policy else self.name


# key: (name, unit, which way is better: -1 down, 1 up)
KNOWN: dict[str, tuple[str, str, int]] = {
    "forward_kl": ("Forward KL (teacher ‖ student)", "nats/token", -1),
    "reverse_kl": ("Reverse KL (student ‖ teacher)", "nats/token", -1),
    "jsd": ("Jensen-Shannon divergence", "nats/token", -1),
    "top1_agreement": ("Top-1 agreement with the teacher", "share of tokens", 1),
    "ce": ("Cross-entropy on the data", "nats/token", -1),
    "perplexity": ("Perplexity on the data", "", -1),
    "loss": ("Loss", "", -1),
    "accuracy": ("Accuracy", "share", 1),
    "reward": ("Reward", "", 1),
    "student_entropy": ("Student's entropy", "nats/token", 0),
    "teacher_entropy": ("Teacher's entropy", "nats/token", 0),
}
ON_POLICY = "on_policy_"
# Of fresh samples the student's cross-entropy is about its own entropy, which is neither good nor bad; and k3 estimates
# the reverse KL on the student's own tokens only.
OWN = KNOWN | {
    "ce": ("Cross-entropy", "nats/token", 0),
    "teacher_kl": ("Teacher's k3 estimate of the reverse KL", "nats/token", -1),
}
SHARES = ("top1_agreement", "accuracy", "truncated_share")
COUNTS = ("tokens", "rows", "examples", "samples", "sequences")
HIDDEN = ("refused", "divergence", "teacher_kl")  # a count, what the loss says already, and what estimates nothing here
# of the rewards the means are shown; how they spread and how many failed is in metrics.jsonl
NO_MEAN = re.compile("reward_(std|missing)|rewards/.+/(std|missing|failed)")


def evaluation_of(run: Run) -> Any:
    """{"before", "after"} of the summary, or, while a run has written none, its evaluations at step 0 and of late."""
    written = run.summary.get("evaluation")
    if written or not run.evals:
        return written
    first, last = run.evals[0], run.evals[-1]
    sides = {"before": first if first["step"] == 0 else {}, "after": last if last["step"] > 0 else {}}
    return {
        side: {k: v for k, v in row.items() if (plain := _plain(k)) in (*OWN, *COUNTS) or plain.startswith("rewards/")}
        for side, row in sides.items()
    }


def measures(evaluation: Any) -> list[Measure]:
    """Rows for {"before": {...}, "after": {...}}; known measures first, keys with and without the prefix `eval_`; those
    of fresh samples (`on_policy_`) after the others."""
    if not isinstance(evaluation, dict):
        return []
    before, after = _numbers(evaluation.get("before")), _numbers(evaluation.get("after"))
    known = [*KNOWN, *(f"{ON_POLICY}{key}" for key in OWN)]
    keys = [key for key in dict.fromkeys([*known, *before, *after]) if key in before or key in after]
    keys.sort(key=lambda key: key.startswith(ON_POLICY))
    for prefix in ("", ON_POLICY):  # a policy's loss has no meaning outside of training: there it is the cross-entropy
        loss, ce = ([side.get(f"{prefix}{key}", 0.0) for side in (before, after)] for key in ("loss", "ce"))
        if all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(loss, ce, strict=True)):
            keys = [key for key in keys if key != f"{prefix}loss"]
    return [_measure(key, before.get(key), after.get(key)) for key in keys]


def held_out(evaluation: Any, *, on_policy: bool = False) -> str:
    """What the measures were taken on: "1,234 tokens, 64 rows", or nothing. on_policy: the fresh samples'."""
    if not isinstance(evaluation, dict):
        return ""
    found = {**(evaluation.get("before") or {}), **(evaluation.get("after") or {})}
    found = {key.removeprefix("eval_"): value for key, value in found.items()}
    counts = {key: found.get(f"{ON_POLICY}{key}" if on_policy else key) for key in COUNTS}
    return ", ".join(f"{number(value)} {key}" for key, value in counts.items() if isinstance(value, int))


def _shown(key: str) -> bool:
    plain = key.removeprefix(ON_POLICY)
    hidden = plain in (*COUNTS, *HIDDEN) or NO_MEAN.fullmatch(plain) is not None
    return not hidden or (key != plain and plain in OWN)


def _plain(key: str) -> str:
    return key.removeprefix("eval_").removeprefix(ON_POLICY)


def _numbers(side: Any) -> dict[str, float]:
    found = {str(key).removeprefix("eval_"): value for key, value in (side or {}).items()}
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _shown(key)
    }


def _measure(key: str, before: float | None, after: float | None) -> Measure:
    plain, on_policy = key.removeprefix(ON_POLICY), key.startswith(ON_POLICY)
    known = OWN if on_policy else KNOWN
    if part := re.fullmatch("rewards/(.+)/mean", plain):
        known = {plain: (f"Reward {part[1]}", "", 1)}
    name, unit, better = known.get(plain, (plain.replace("_", " "), "", 0))
    show: Callable[[Any], str] = percent if plain in SHARES else number
    change, verdict, share = MISSING, "", None
    if before is not None and after is not None and math.isfinite(before) and math.isfinite(after):
        change = _change(plain, before, after)
        if better and after != before:
            verdict = "better" if (after > before) == (better > 0) else "worse"
        if better and before > 0 and after >= 0:
            share = after / before
    return Measure(name, unit, show(before), show(after), change, verdict, share, after, on_policy)


def _change(key: str, before: float, after: float) -> str:
    if key in SHARES:
        return _signed(100 * (after - before), f"{abs(100 * (after - before)):.1f} points")
    if before > 0 and after >= 0:
        relative = after / before - 1
        return (
            _signed(relative, f"{100 * abs(relative):.1f}%") if relative < 9 else f"{number(after / before, 3)} times"
        )
    return _signed(after - before, number(abs(after - before)))


def _signed(value: float, text: str) -> str:
    return text if value == 0 else ("+" if value > 0 else "-") + text
