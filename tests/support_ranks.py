"""Several runs of the command line in one process, or in one pair of processes: `python -m tests.support_ranks FILE`.

FILE is JSON: {"runs": [[word, ...], ...], "copy": {number of a run: [from, to]}}; a copy is made before its run. Prints
`RUN i STATUS` after each.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import module


def main(path: str) -> None:
    from limbeck.cli.main import main as cli
    from limbeck.train import parallel

    parallel.leave_group = lambda: None  # one group for all runs
    work = json.loads(Path(path).read_text())
    for i, argv in enumerate(work["runs"]):
        if str(i) in work["copy"]:
            copy(*map(Path, work["copy"][str(i)]))
        status = cli(argv)
        # at once: `print` writes the end of the line apart, and the other rank's may come between
        sys.stdout.write(f"RUN {i} {status}\n")
        sys.stdout.flush()


def copy(source: Path, target: Path) -> None:
    """By the first rank; the others wait, and see a whole folder or none."""
    if os.environ.get("RANK", "0") == "0":
        partial = Path(shutil.copytree(source, target.parent.with_name(f"{target.parent.name}.partial")))
        target.parent.mkdir(parents=True)
        partial.rename(target)
    while not target.exists():
        time.sleep(0.01)


def run_all(
    folder: Path, runs: Sequence[Sequence[Any]], *, processes: int, copy: dict[int, tuple[Path, Path]] | None = None
) -> list[int]:
    """Exit statuses of the first rank to say; the output of all is in `folder`/PROCESSES.log."""
    file = folder / f"runs-{processes}.json"
    copies = {number: list(map(str, paths)) for number, paths in (copy or {}).items()}
    file.write_text(json.dumps({"runs": [list(map(str, argv)) for argv in runs], "copy": copies}))
    done = module("tests.support_ranks", file, processes=processes)
    (folder / f"{processes}.log").write_text(done.stdout + done.stderr)
    found = dict(line.split()[1:3] for line in done.stdout.splitlines() if line.startswith("RUN "))
    assert len(found) == len(runs), f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return [int(found[str(i)]) for i in range(len(runs))]


if __name__ == "__main__":
    main(sys.argv[1])
