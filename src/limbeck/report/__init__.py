"""What a run says and leaves behind: the console, metrics.jsonl and trackers, report.html, the model card."""

from __future__ import annotations

from limbeck.report.card import run_card, write_card
from limbeck.report.compare import write_comparison
from limbeck.report.console import Console
from limbeck.report.html import write_report
from limbeck.report.trackers import MetricsFile, check_trackers, log, start_trackers, stop_trackers

__all__ = [
    "Console",
    "MetricsFile",
    "check_trackers",
    "log",
    "run_card",
    "start_trackers",
    "stop_trackers",
    "write_card",
    "write_comparison",
    "write_report",
]
