"""The losses against plainer ways and peers: seconds, peak memory, and whether all computed the same number.

    OMP_NUM_THREADS=1 python benchmarks/losses.py --suite --json losses.json      # every row, about 25 minutes of CPU
    OMP_NUM_THREADS=1 python benchmarks/losses.py --suite --only policy topk_tail
    OMP_NUM_THREADS=1 python benchmarks/losses.py --vocab 49152 --student 576 --teacher 960 --tokens 1024 --beta 1

Every measurement is a process of its own, and the contenders take turns (A B A B). Time is CPU seconds with one thread,
the median of the runs; memory is the peak resident set over what the loaded inputs take (Linux), the median too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import queue
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from contenders import LIGER, LIGER_FOLDER, RUNS, Inputs, Load
from quality import errors, smollm2

SMALL, LARGE = Load(49_152, 576, 960, 1024), Load(151_936, 1024, 2048, 1024)
# Contenders agree on loss and gradient norms to this relative difference; float32 sums of full logits are the worst.
AGREE = 2e-3


@dataclass(frozen=True)
class Case:
    """A workload of a row of the table, and how often each contender runs."""

    load: Load
    repeats: dict[str, int]


@dataclass(frozen=True)
class Bar:
    """ratio = what of `ours` (case, contender) over what of `other`, and its bound; a lower one unless at_least."""

    row: str
    what: str  # "seconds" or "peak"
    ours: tuple[str, str]
    other: tuple[str, str]
    bound: float
    at_least: bool = False


def head_cases() -> dict[str, Case]:
    return {
        "beta 0": Case(replace(LARGE, beta=0.0), {"matmuls": 3, "ours": 3, "full logits": 1}),
        "beta 0.5": Case(LARGE, {"ours": 3, "full logits": 1, "liger": 1}),
        "beta 1": Case(replace(LARGE, beta=1.0), {"ours": 3, "full logits": 2, "liger": 2, "checkpoint": 1}),
    }


def small_cases() -> dict[str, Case]:
    every = {"ours": 3, "ours, with statistics": 2, "full logits": 2, "checkpoint": 1, "liger": 1}
    return {
        f"beta {beta:g}": Case(replace(SMALL, beta=beta), ({"matmuls": 3} if beta == 0 else {}) | every)
        for beta in (0.0, 0.5, 1.0)
    }


FROZEN = replace(LARGE, frozen=True)
TOPK = replace(LARGE, k=64)
MASKED = replace(SMALL, tokens=2048, active=0.25)
LONG = replace(SMALL, tokens=4096)
SUITE: dict[str, dict[str, Case]] = {
    "jsd_head": head_cases(),
    "jsd_frozen": {
        "chunk 256": Case(replace(FROZEN, beta=1.0, chunk_rows=256), {"matmuls": 2, "ours": 2, "full logits": 2}),
        "small chunk": Case(replace(FROZEN, beta=1.0, chunk_rows=48), {"ours": 1}),
    },
    "policy": {
        "trainable": Case(LARGE, {"ours, policy": 3, "full logits, policy": 3, "matmuls, policy": 3}),
        "frozen": Case(
            FROZEN,
            {"ours, policy": 3, "ours, log-probabilities": 2, "full logits, policy": 3, "matmuls, policy": 3},
        ),
        "scoring": Case(FROZEN, {"ours, scoring": 2, "full logits, scoring": 2}),
    },
    "both": {
        label: Case(replace(SMALL, beta=1.0, k=k), {"ours, both": 3, "two passes, both": 3})
        for label, k in (("full", 0), ("k 64", 64))
    },
    "topk_tail": {"k 64": Case(TOPK, {"ours, tail": 3, "full logits, tail": 3})},
    "topk_renorm": {
        "trainable": Case(TOPK, {"ours, renorm": 3, "full logits, renorm": 2}),
        "frozen": Case(replace(TOPK, frozen=True), {"ours, renorm": 3, "full logits, renorm": 2}),
    },
    "jsd_masked": {"25%": Case(MASKED, {"ours": 3, "full logits": 2, "liger": 2, "checkpoint": 1})},
    "jsd_long": {
        "N 512": Case(replace(LONG, tokens=512), {"ours": 1}),
        "N 4,096": Case(LONG, {"ours": 2, "full logits": 1, "liger": 1}),
        "N 8,192": Case(replace(LONG, tokens=8192), {"ours": 1}),
    },
    "jsd_small": small_cases(),
}


def bars() -> list[Bar]:
    def bar(row: str, what: str, case: str, bound: float, *, ours="ours", other="full logits", base="", **more) -> Bar:
        return Bar(row, what, (case, ours), (base or case, other), bound, **more)

    tail, policy = ("ours, tail", "full logits, tail"), ("ours, policy", "full logits, policy")
    return [
        *(bar("jsd_head", "seconds", f"beta {b}", 1.10, other="matmuls", base="beta 0") for b in ("0", "0.5", "1")),
        bar("jsd_head", "seconds", "beta 1", 0.65),
        bar("jsd_head", "seconds", "beta 1", 0.75, other="liger"),
        bar("jsd_head", "peak", "beta 1", 0.20),
        bar("jsd_head", "peak", "beta 0.5", 0.13),
        bar("jsd_head", "peak", "beta 0.5", 0.15, other="liger"),
        bar("jsd_long", "seconds", "N 4,096", 0.5),
        bar("jsd_long", "peak", "N 4,096", 1 / 40),
        bar("jsd_long", "peak", "N 8,192", 1.10, other="ours", base="N 4,096"),
        bar("jsd_frozen", "seconds", "chunk 256", 0.85),
        bar("jsd_frozen", "peak", "chunk 256", 1 / 14),
        bar("jsd_frozen", "peak", "small chunk", 1 / 45, base="chunk 256"),
        bar("jsd_masked", "seconds", "25%", 0.22),
        bar("jsd_masked", "seconds", "25%", 0.20, other="liger"),
        bar("jsd_masked", "peak", "25%", 1 / 12),
        *(bar("both", "seconds", case, 0.70, ours="ours, both", other="two passes, both") for case in ("full", "k 64")),
        bar("topk_tail", "seconds", "k 64", 0.92, ours=tail[0], other=tail[1]),
        bar("topk_tail", "peak", "k 64", 0.45, ours=tail[0], other=tail[1]),
        *(
            bar("topk_renorm", "seconds", case, 1 / times, ours="ours, renorm", other="full logits, renorm")
            for case, times in (("trainable", 15), ("frozen", 25))
        ),
        bar("policy", "seconds", "trainable", 0.85, ours=policy[0], other=policy[1]),
        bar("policy", "peak", "trainable", 0.35, ours=policy[0], other=policy[1]),
        bar("policy", "seconds", "frozen", 0.80, ours=policy[0], other=policy[1]),
        bar("policy", "peak", "frozen", 0.08, ours=policy[0], other=policy[1]),
        bar("policy", "peak", "scoring", 0.15, ours="ours, scoring", other="full logits, scoring"),
    ]


def measure(load: Load, name: str, device: str, results: Any) -> None:
    """One run in this process: seconds, peak bytes, and the numbers that all contenders must agree on."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    cuda = device == "cuda"
    RUNS[name](tiny := replace(load, vocab=512, student=8, teacher=8, tokens=8), Inputs(tiny, device))  # lazy imports
    x = Inputs(load, device)
    start = torch.cuda.memory_allocated() if cuda else _status("VmRSS")
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    began = clock()
    loss = RUNS[name](load, x)
    if cuda:
        torch.cuda.synchronize()
    seconds = clock() - began
    peak = (torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")) - start
    grads = [g.double().norm().item() for g in (x.hs.grad, x.ws.grad) if g is not None]
    results.put({"seconds": seconds, "peak": peak, "numbers": [] if loss is None else [loss.item(), *grads]})


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))


def in_child(function: Any, *args: Any) -> Any:
    """What `function(*args, queue)` puts into the queue, from a process of its own; None where that one died."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=function, args=(*args, results))
    child.start()
    found = None
    while found is None and (child.is_alive() or not results.empty()):
        try:
            found = results.get(timeout=1)
        except queue.Empty:
            continue
    child.join()
    return found


def run_row(row: str, cases: dict[str, Case], device: str) -> list[dict[str, Any]]:
    """All contenders of a row, in turns; one result a case and contender."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for turn in range(max(times for case in cases.values() for times in case.repeats.values())):
        for label, case in cases.items():
            for name, times in case.repeats.items():
                if turn < times:
                    found = in_child(measure, case.load, name, device)
                    if found is None:
                        print(f"  {row} {label} {name}: the process died (out of memory?)", flush=True)
                    else:
                        runs.setdefault((label, name), []).append(found)
    return [summary(row, label, name, cases[label].load, found) for (label, name), found in runs.items()]


def summary(row: str, case: str, name: str, load: Load, found: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [f["seconds"] for f in found]
    return {
        "row": row, "case": case, "contender": name, "load": asdict(load), "workload": str(load),
        "seconds": statistics.median(seconds), "least_seconds": min(seconds), "runs": len(found),
        "peak": statistics.median(f["peak"] for f in found), "numbers": found[0]["numbers"],
    }  # fmt: skip


def disagreement(results: list[dict[str, Any]]) -> float:
    """Largest relative difference of loss and gradient norms among a case's contenders; Liger's own extra is cut."""
    worst, groups = 0.0, {}
    for r in results:
        if r["numbers"]:
            groups.setdefault((r["row"], r["case"]), []).append(r["numbers"])
    for numbers in groups.values():
        for column in zip(*numbers, strict=False):
            worst = max(worst, (max(column) - min(column)) / max(map(abs, column)))
    return worst


def judge(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by = {(r["row"], r["case"], r["contender"]): r for r in results}
    judged = []
    for bar in bars():
        mine, other = by.get((bar.row, *bar.ours)), by.get((bar.row, *bar.other))
        if mine is None or other is None:
            continue
        ratio = mine[bar.what] / other[bar.what]
        what = f"{bar.what}, {bar.ours[0]}, over {bar.other[1]}" + (
            "" if bar.other[0] == bar.ours[0] else f" at {bar.other[0]}"
        )
        judged.append({"row": bar.row, "what": what, "value": ratio, "bound": bar.bound, "met": ratio <= bar.bound})
    return judged


def judge_errors(found: dict[str, float]) -> list[dict[str, Any]]:
    def entry(row: str, what: str, value: float, bound: float) -> dict[str, Any]:
        return {"row": row, "what": what, "value": value, "bound": bound, "met": value <= bound}

    gradients = [v for k, v in found.items() if k.startswith("bf16 ours") and not k.endswith("loss")]
    return [
        entry("bf16", "error of the loss, beta 0.5", found["bf16 ours beta 0.5 loss"], 1e-4),
        entry("bf16", "error of the gradients, worst", max(gradients), 3e-3),
        *(
            entry(
                "topk_tail",
                f"error of the {what} gradient over renorm's, {student}",
                found[f"top-64 tail, {student} student, {what}"] / found[f"top-64 renorm, {student} student, {what}"],
                0.4,
            )
            for student in ("near", "far")
            for what in ("hidden", "head")
        ),
    ]


def quality(folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    results.put(errors(folder))


def install_liger() -> None:
    """Into a folder of its own: only its chunked losses are imported, which need nothing but torch."""
    if not LIGER_FOLDER.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(LIGER_FOLDER), LIGER]
        subprocess.run(command, check=True)


def machine() -> dict[str, Any]:
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model, "torch": torch.__version__, "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
        "memory": psutil.virtual_memory().total, "load_average": os.getloadavg(), "liger": LIGER,
    }  # fmt: skip


def write(path: Path | None, about: dict[str, Any], results: list[dict[str, Any]], wrong: dict[str, float]) -> Any:
    """Everything as JSON, where a path is given; returns the bars."""
    judged = judge(results) + (judge_errors(wrong) if wrong else [])
    if path is not None:
        parts = {"machine": about, "results": results, "errors": wrong, "bars": judged}
        path.write_text(json.dumps(parts | {"disagreement": disagreement(results)}, indent=1))
    return judged


def print_results(results: list[dict[str, Any]]) -> None:
    if results:
        print(f"\n{results[0]['row']}")
    for case in dict.fromkeys(r["case"] for r in results):
        print(f"  {next(r['workload'] for r in results if r['case'] == case)}")
        group = [r for r in results if r["case"] == case]
        mine = next((r for r in group if r["contender"].startswith("ours")), group[0])
        for r in group:
            print(
                f"    {r['contender']:26}{r['seconds']:9.3f} s (least {r['least_seconds']:.3f}, {r['runs']} runs)"
                f"{r['seconds'] / mine['seconds']:7.2f} x {r['peak'] / 1e6:8.0f} MB{r['peak'] / mine['peak']:7.1f} x",
                flush=True,
            )


def print_bars(judged: list[dict[str, Any]]) -> None:
    if not judged:
        return
    print(f"\n{'row':14}{'what':58}{'value':>10}{'bar':>10}")
    for b in judged:
        met = "met" if b["met"] else "NOT MET"
        print(f"{b['row']:14}{b['what']:58}{b['value']:10.3g}{b['bound']:10.3g}  {met}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="store_true", help="every row of the table, with its bars")
    parser.add_argument("--only", nargs="*", help="rows of the suite, or contenders of one workload")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M for the errors (default: made once)")
    for name in ("vocab", "student", "teacher", "tokens", "k"):
        parser.add_argument(f"--{name}", type=int, default=getattr(SMALL, name))
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--frozen", action="store_true", help="no gradient for the student's head")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    install_liger()
    rows = SUITE
    if not o.suite:
        load = Load(o.vocab, o.student, o.teacher, o.tokens, o.beta, o.k, o.frozen, dtype=o.dtype)
        names = o.only or ["matmuls", "ours", "ours, with statistics", "full logits", "checkpoint", "liger"]
        rows = {"one workload": {"": Case(load, dict.fromkeys(names, o.repeat))}}
    elif o.only:
        rows = {name: SUITE[name] for name in SUITE if name in o.only}
    report(o, rows)


def report(o: argparse.Namespace, rows: dict[str, dict[str, Case]]) -> None:
    about = machine()
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    results: list[dict[str, Any]] = []
    for row, cases in rows.items():
        found = run_row(row, cases, o.device)
        print_results(found)
        results += found
        write(o.json, about, results, {})  # a long run that is cut short leaves what it has
    wrong: dict[str, float] = {}
    if o.suite and (not o.only or "bf16" in o.only):
        wrong = in_child(quality, o.model or smollm2()) or {}
        print("\nrelative errors on real hidden states")
        for name, value in wrong.items():
            print(f"  {name:40}{value:10.2e}")
    worst = disagreement(results)
    print(f"\nlargest relative difference of loss and gradient norms among contenders: {worst:.1e}")
    print_bars(write(o.json, about, results, wrong))
    if worst > AGREE:
        raise SystemExit("the contenders did not compute the same number")


if __name__ == "__main__":
    main()
