"""`limbeck report`: a run's page written anew, or several runs compared on one page. No weights, no torch."""

from __future__ import annotations

from pathlib import Path

from limbeck.config.beside import ReportConfig
from limbeck.config.limits import check_target
from limbeck.errors import ConfigError
from limbeck.report import write_comparison, write_report

LEAVES = ("metrics.jsonl", "summary.json", "config.yaml")  # one of them, at least, is in a run folder


def run(config: ReportConfig) -> int:
    """Prints where the page lies. Raises ConfigError for a folder that no run left."""
    target = config.pages.result_path
    if target is not None:
        check_target(target, "result_path")
    runs = list(dict.fromkeys(config.pages.runs))
    for folder in runs:
        if not any((folder / name).exists() for name in LEAVES):
            raise ConfigError(
                f"{folder} is no run folder" if folder.is_dir() else f"there is no folder {folder}",
                where=f"limbeck report {folder}",
                fix="name the --output_dir of a run: the folder with metrics.jsonl",
            )
    page = (
        write_report(runs[0], target) if len(runs) == 1 else write_comparison(runs, target or Path("comparison.html"))
    )
    print(f"written: {page}")
    return 0
