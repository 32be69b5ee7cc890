"""histograms.jsonl on the page, and runs side by side, against sums taken by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_folder import CONFIG, SUMMARY, eval_line, write_lines, write_run

from limbeck.cli.main import main
from limbeck.report import write_comparison, write_report
from limbeck.report.charts import CURVES, overlay
from limbeck.report.compare import differences, names_of, rows
from limbeck.report.folder import read_run
from limbeck.report.spread import MAX_COLUMNS, disagreement, maps


def line(step: int, **more: object) -> dict:
    return {
        "step": step,
        "lengths": [[8, 4], [12, 0], [16, 2], [24, 0]],
        "divergences": [[0.1, step], [0.5, 1], [1.0, 0]],
        **more,
    }


def test_quantiles_are_those_of_numbers_spread_evenly_in_their_bins(tmp_path: Path) -> None:
    rng = random.Random(0)
    counts = [rng.randrange(0, 9) + (i == 3) for i in range(10)]
    rows = [{"step": s, "lengths": [[i + 1, n] for i, n in enumerate([*counts, 0])]} for s in (1, 2)]
    write_lines(tmp_path / "histograms.jsonl", rows)
    (found,) = maps(read_run(tmp_path))
    fine = np.concatenate([i + (np.arange(n * 1000) + 0.5) / (n * 1000) for i, n in enumerate(counts)])
    for share, quantile in zip((0.1, 0.5, 0.9), found.quantiles, strict=True):
        assert quantile == pytest.approx([np.quantile(fine, share)] * 2, abs=2e-3)
    assert found.counts == [counts, counts]
    assert found.edges == list(range(1, 12))  # the upper edge of the last bin is known


def test_long_runs_are_added_up_and_nothing_is_lost(tmp_path: Path) -> None:
    write_lines(tmp_path / "histograms.jsonl", [line(step) for step in range(1, 1001)])
    divergence, length = maps(read_run(tmp_path))
    assert len(divergence.steps) <= MAX_COLUMNS
    assert divergence.steps[-1] == 1000
    assert sum(map(sum, divergence.counts)) == sum(range(1, 1001)) + 1000
    assert sum(map(sum, length.counts)) == 6000
    assert length.edges == [8, 12, 16, 24]


def test_one_bin_is_no_map(tmp_path: Path) -> None:
    rows = [{"step": s, "lengths": [[24, 4], [32, 0]]} for s in (1, 2)]
    write_lines(tmp_path / "histograms.jsonl", rows)
    assert maps(read_run(tmp_path)) == []


def test_disagreement_is_over_the_latest_half(tmp_path: Path) -> None:
    old = {"tokens": [["x", 100, 900.0]], "places": [[0, 100, 900.0]], "prompts": [["d:9", "old", 3, 9.0]]}
    first = {
        "tokens": [[" a", 2, 6.0], ["b", 1, 4.0]],
        "places": [[0, 1, 4.0], [4, 2, 6.0]],
        "prompts": [["d:1", "one", 3, 2.0], ["d:2", "two", 4, 1.0]],
    }
    second = {"tokens": [[" a", 2, 1.0]], "places": [[4, 2, 1.0]], "prompts": [["d:1", "one", 3, 0.5]]}
    write_lines(tmp_path / "histograms.jsonl", [line(1, **old), line(2, **old), line(3, **first), line(4, **second)])
    found = disagreement(read_run(tmp_path))
    assert found is not None
    assert (found.first, found.last) == (3, 4)
    assert [(e.label, e.count, e.mean, e.bar) for e in found.tokens] == [("␣a", 4, 1.75, 1.0), ("b", 1, 4.0, 4 / 7)]
    assert found.tokens[0].more == "63.6% of all"  # 7 of 11
    assert [(e.label, e.count, e.mean) for e in found.places] == [("1\N{EN DASH}4", 1, 4.0), ("5 on", 4, 1.75)]
    assert [(e.label, e.more, e.mean) for e in found.prompts] == [("two", "d:2", 1.0), ("one", "d:1", 0.5)]


def test_what_is_not_as_it_should_be_is_left_out(tmp_path: Path) -> None:
    junk = {"tokens": [[1], "x", [["a"], 1, 1.0], ["b", "1", 1.0]], "places": "none", "prompts": [[1, 2]]}
    write_lines(tmp_path / "histograms.jsonl", [line(1, **junk), {"step": "x"}, {"step": 2, "lengths": [["a", 1]]}])
    assert maps(read_run(tmp_path)) == []
    assert disagreement(read_run(tmp_path)) is None
    write_report(tmp_path)


def other_run(path: Path) -> Path:
    run = write_run(path, seed=1)
    config = json.loads(json.dumps(CONFIG))
    config["method"]["beta"] = 1.0
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    better = SUMMARY["evaluation"] | {"after": {"forward_kl": 0.5, "reverse_kl": 1.0, "top1_agreement": 0.8}}
    (run / "summary.json").write_text(json.dumps(SUMMARY | {"evaluation": better}))
    return run


def test_runs_side_by_side(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), other_run(tmp_path / "two")]
    page = write_comparison(runs, tmp_path / "sub" / "c.html").read_text()
    read = [read_run(run) for run in runs]
    found = {row.name: row.cells for row in rows(read)}
    assert found["Forward KL (teacher ‖ student)"] == [("2.314", "0.688", False), ("2.314", "0.5", True)]
    assert found["Reverse KL (student ‖ teacher)"] == [("3.871", "0.912", True), ("3.871", "1", False)]
    assert found["Top-1 agreement with the teacher"] == [("41.2%", "70.3%", False), ("41.2%", "80.0%", True)]
    assert found["Cross-entropy on the data"][1] == ("3.92", "-", False)
    assert differences(read) == [("beta", ["0.5", "1.0"])]
    assert "hf_verysecret" not in page
    loss = overlay(CURVES, read, ["one", "two"])[0]
    assert loss.labels == ["one", "two"]
    for run, column in zip(read, loss.columns[1:], strict=True):
        by_step = {row["step"]: row["loss"] for row in run.train}
        assert dict(zip(loss.columns[0], column, strict=True)) == pytest.approx(by_step, rel=1e-5)


def test_a_run_without_a_metric_keeps_its_colour_elsewhere(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name)) for name in ("one", "two")]
    write_lines(tmp_path / "one" / "metrics.jsonl", [eval_line(3, 3)])
    runs[0] = read_run(tmp_path / "one")
    drawn = {drawing.title: drawing for drawing in overlay(CURVES, runs, ["one", "two"])}
    assert drawn["Loss: all"].labels == ["two"]
    assert drawn["Loss: all"].colours == [1]
    assert drawn["Loss: held out"].colours == [0, 1]
    assert drawn["Loss: held out"].dots == [True, True]


def test_names_tell_runs_apart() -> None:
    assert names_of([Path("/a/b/one"), Path("/a/c/two")]) == ["one", "two"]
    assert names_of([Path("/a/b/run"), Path("/a/c/run")]) == ["b/run", "c/run"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = write_run(tmp_path / "one"), other_run(tmp_path / "two")
    assert main(["report", str(one)]) == 0
    assert (one / "report.html").exists()
    assert main(["report", str(one), str(two)]) == 0
    assert "written: comparison.html" in capsys.readouterr().out
    assert "2 runs compared" in (tmp_path / "comparison.html").read_text()
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "--runs" in capsys.readouterr().err
