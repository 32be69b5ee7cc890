"""report.html: one self-contained page that shows a run, from whatever its folder holds so far.

Charts are drawn by uPlot (MIT, static/uplot.LICENSE), bundled into the page; nothing is fetched, and the page's own
content policy forbids it. What users wrote reaches the page in two ways only: through jinja2's autoescape, or as
JSON whose every "<" is escaped, put into the page by `textContent`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from limbeck.report.charts import drawings, unchanged
from limbeck.report.folder import Run, read_run
from limbeck.report.format import MISSING, duration, number
from limbeck.report.results import evaluation_of, held_out, measures
from limbeck.report.spread import disagreement, maps

# the four choices in the framework's order: (heading, question, keys of summary.json's "method")
CHOICES = (
    ("Sampling", "Whose tokens?", ("sampling",)),
    ("Teacher signal", "How is the difference measured?", ("divergence", "granularity")),
    ("Signal path", "How does it reach the student?", ("path",)),
    ("Teacher source", "Who is the teacher?", ("source",)),
)
ANSWERS = (("teacher", "Teacher"), ("before", "Student before"), ("after", "Student after"))
COLOUR_QUANTILE = 0.98  # of the shown divergences: the strongest colour; a few outliers must not pale the rest
STOPPED = {
    "end": ("", ""),
    "max_time": ("paused", "paused: --max_time was over"),
    "callback": ("paused", "stopped by a callback"),
    "collapse": ("bad", "stopped: the student collapses"),
}
YAML_WORDS: dict[Any, str] = {"True": "true", "False": "false", "None": "null"}
ENV_FIRST = ("limbeck", "python", "torch", "transformers", "accelerate", "device", "cuda", "platform")


def write_report(run_dir: Path | str, target: Path | None = None) -> Path:
    """Write RUN/report.html, or `target`, from the files of a run folder, finished or still growing; the page's path.

    The page replaces an older one at once, so a browser never reads half of it.
    """
    run_dir = Path(run_dir)
    return put(target or run_dir / "report.html", render(read_run(run_dir)))


def put(target: Path, page: str) -> Path:
    """Write a page at once or not at all."""
    partial = target.with_name(target.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, target)
    return target


def render(run: Run) -> str:
    """The page as text."""
    summary, charts, evaluation = run.summary, drawings(run), evaluation_of(run)
    completions = [_completion(row) for row in run.completions]
    coloured = next((key for key in ("advantage", "divergence") if any(row[key] for row in completions)), "")
    spreads = maps(run)
    data = {
        "charts": {section: [asdict(drawing) for drawing in found] for section, found in charts.items()},
        "maps": [asdict(spread) for spread in spreads],
        "completions": completions,
        "coloured": coloured,
        "strongest": _strongest(completions, coloured),
    }
    return fill(
        "template.html.j2",
        data,
        name=run.path.resolve().name,
        student=str(summary.get("model") or run.flat_config.get("model") or "student"),
        teacher=str(summary.get("teacher") or run.flat_config.get("teacher_model") or ""),
        method=str(_method(summary).get("name") or ""),
        choices_strip=_strip(summary),
        facts=_facts(run),
        status=_status(run),
        collapse=_mapping(summary.get("collapse")),
        measures=[
            (heading, held_out(evaluation, on_policy=on_policy), rows)
            for heading, on_policy in (("", False), ("On its own fresh answers to these rows", True))
            if (rows := [row for row in measures(evaluation) if row.on_policy is on_policy])
        ],
        charts={section: [drawing.title for drawing in found] for section, found in charts.items()},
        unchanged=[(key, number(value)) for key, value in unchanged(run)],
        maps=[spread.title for spread in spreads],
        disagreement=disagreement(run),
        answers=_answers(summary),
        completions=completions,
        coloured=data["coloured"],
        pointed=any(row["student_logp"] or row["divergence"] for row in completions),
        sayers=_sayers(completions),
        completions_logged=run.completions_logged,
        warnings=[str(text) for text in _list(summary.get("warnings"))],
        choices=[
            {**choice, "value": YAML_WORDS.get(choice.get("value"), choice.get("value"))}
            for choice in _list(summary.get("choices"))
            if isinstance(choice, dict)
        ],
        config=_tables(run.config),
        env=_table(run.env, first=ENV_FIRST),
        notes=run.notes,
    )


def fill(template: str, data: dict[str, Any], **values: Any) -> str:
    """A template of this room, which extends page.html.j2, as text; data: what its script reads."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_static)
    )
    return environment.get_template(template).render(
        css=Markup(_static("static/uplot.min.css") + _static("static/report.css")),
        js=Markup(_static("static/uplot.min.js") + "\n" + _static("static/report.js")),
        data=Markup(_json(data)),
        **values,
    )


def _static(name: str) -> str:
    return files("limbeck.report").joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that can stand inside a script element: no "<" means no "</script>" and no "<!--"."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _method(summary: dict[str, Any]) -> dict[str, Any]:
    return _mapping(summary.get("method"))


def _status(run: Run) -> tuple[str, str]:
    """(class of the chip, what it says) of a run that did not simply end; empty where it did, or nothing is known."""
    stopped = run.summary.get("stopped_by")
    if stopped is None:
        return ("going", "not finished") if run.train else ("", "")
    return STOPPED.get(stopped, ("paused", f"stopped by {stopped}"))


def _strip(summary: dict[str, Any]) -> list[dict[str, str]]:
    method = _method(summary)
    return [
        {
            "heading": heading,
            "question": question,
            "answer": str(method.get(keys[0]) or MISSING),
            "more": ", ".join(str(method[key]) for key in keys[1:] if method.get(key) not in (None, "", "-")),
        }
        for heading, question, keys in CHOICES
        if any(method.get(key) for key in keys)
    ]


def _facts(run: Run) -> list[tuple[str, str]]:
    """The line under the title: what was done so far and what it took."""
    summary, last = run.summary, run.train[-1] if run.train else {}
    facts = [
        ("optimizer steps", number(run.last_step) if run.last_step is not None else ""),
        ("resumed at step", ", ".join(number(step) for step in _list(summary.get("resumed_at")))),
        ("tokens trained on", number(last.get("tokens")) if last.get("tokens") is not None else ""),
        ("wall time", duration(run.seconds) if run.seconds is not None else ""),
        ("CPU time", duration(summary["cpu_seconds"]) if "cpu_seconds" in summary else ""),
        ("peak memory", f"{number(summary['peak_memory_gib'], 3)} GiB" if summary.get("peak_memory_gib") else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _answers(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": _text(row.get("prompt")),
            "sides": [(label, _text(row[key])) for key, label in ANSWERS if row.get(key) is not None],
        }
        for row in _list(summary.get("answers"))
        if isinstance(row, dict)
    ]


def _text(value: Any) -> str:
    """A prompt as text: already text, or messages."""
    if isinstance(value, list):
        return "\n\n".join(
            f"{m.get('role', '')}: {m.get('content', '')}" if isinstance(m, dict) else str(m) for m in value
        )
    return "" if value is None else str(value)


def _completion(row: dict[str, Any]) -> dict[str, Any]:
    """A completion for the page: numbers shortened; columns that do not match the tokens in length are dropped."""
    tokens = [str(token) for token in _list(row.get("tokens"))]

    def column(key: str) -> list[float | None] | None:
        values = _list(row.get(key))
        return [_short(value) for value in values] if values and len(values) == len(tokens) else None

    def favourites(key: str) -> list[list[list[Any]]] | None:
        values = _list(row.get(key))
        if len(values) != len(tokens) or not all(isinstance(top, list) for top in values):
            return None
        return [
            [[str(r[0]), p] for r in top if isinstance(r, list) and len(r) == 2 and (p := _short(r[1])) is not None]
            for top in values
        ]

    divergence = column("divergence")
    known = [value for value in divergence or [] if value is not None]
    return {
        "step": row.get("step"),
        "source": str(row.get("source", "")),
        "dataset": str(row.get("dataset", "")),
        "origin": str(row.get("origin", "")),
        "prompt": _text(row.get("prompt")),
        "asked": _text(row.get("asked")),
        "truncated": bool(row.get("truncated")),
        "mean": number(sum(known) / len(known), 3) if known else None,
        "tokens": tokens,
        "divergence": divergence,
        "student_logp": column("student_logp"),
        "teacher_logp": column("teacher_logp"),
        "advantage": column("advantage"),
        "logratio": column("logratio"),
        "student_top": favourites("student_top"),
        "teacher_top": favourites("teacher_top"),
    }


def _sayers(completions: list[dict[str, Any]]) -> str:
    """Whose favourites the tokens of the completions have."""
    sides = [side for side in ("teacher", "student") if any(row[f"{side}_top"] for row in completions)]
    return "both" if len(sides) == 2 else f"the {sides[0]}" if sides else ""


def _short(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")


def _strongest(completions: list[dict[str, Any]], key: str) -> float:
    values = sorted(abs(d) for row in completions for d in row.get(key) or [] if d is not None)
    return max(values[int(COLOUR_QUANTILE * (len(values) - 1))], 1e-6) if values else 1.0


def _tables(config: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration by room, or as one table without a name where it is flat."""
    rooms = {key: value for key, value in config.items() if isinstance(value, dict)}
    rest = {key: value for key, value in config.items() if key not in rooms}
    tables = [("", _table(rest))] if rest else []
    return tables + [(room, _table(values)) for room, values in rooms.items()]


def _table(values: dict[str, Any], first: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    keys = [key for key in first if key in values] + [key for key in values if key not in first]
    return [(str(key), setting(values[key])) for key in keys]


def setting(value: Any) -> str:
    """As it would stand in the YAML: true, false, null, lists and mappings as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
