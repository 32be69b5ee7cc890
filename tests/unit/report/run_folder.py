"""A run folder as a run leaves it, with made-up numbers, for the tests of this room."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import yaml

CONFIG = {
    "model": {"model": "HuggingFaceTB/SmolLM2-135M", "tuner_type": "full"},
    "data": {"dataset": ["prompts.jsonl", "org/answers#500"], "max_length": None, "truncation_strategy": "delete"},
    "method": {"rlhf_type": "gkd", "beta": 0.5, "lmbda": 0.5, "loss_temperature": 1.0, "sft_alpha": 0.0},
    "teacher": {"teacher_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "teacher_model_server": None},
    "rollout": {"temperature": 0.9, "max_completion_length": 512},
    "optim": {"learning_rate": 1e-5, "weight_decay": 0.1, "seed": 42, "target_modules": ["all-linear"]},
    "run": {"output_dir": "runs/demo", "hub_token": "hf_verysecret", "logging_steps": 5},
}
ENV = {
    "limbeck": "0.1.0",
    "python": "3.11.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "device": "cpu, 2 threads",
    "platform": "Linux x86_64",
    "command": "limbeck rlhf run.yaml",
}
SUMMARY = {
    "method": {
        "name": "GKD",
        "sampling": "lmbda 0.5: half dataset, half student",
        "divergence": "JSD(beta = 0.5)",
        "granularity": "full vocabulary",
        "path": "loss",
        "source": "local model",
    },
    "model": "HuggingFaceTB/SmolLM2-135M",
    "teacher": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "choices": [
        {"flag": "gradient_accumulation_steps", "value": 4, "reason": "a total batch of 16 with 4 rows a device"},
        {"flag": "max_length", "value": 612, "reason": "the longest prompt has 100 tokens, and 512 for the completion"},
        {"flag": "dtype", "value": "float32", "reason": "no GPU here, and bfloat16 is slow on this CPU"},
    ],
    "warnings": ["3 rows dropped: 2 empty (prompts.jsonl:4, prompts.jsonl:9), 1 over max_length (prompts.jsonl:31)"],
    "evaluation": {
        "before": {"forward_kl": 2.314, "reverse_kl": 3.871, "top1_agreement": 0.412, "ce": 3.92, "tokens": 4096},
        "after": {"forward_kl": 0.688, "reverse_kl": 0.912, "top1_agreement": 0.703, "ce": 2.31, "tokens": 4096},
    },
    "answers": [
        {
            "prompt": "Why is the sky blue?",
            "teacher": "The sky appears blue because molecules of the air scatter short waves more than long.",
            "before": "The sky sky is the the of blue of a the and and and the the",
            "after": "The sky is blue because the air scatters blue light more than red light.",
        },
        {
            "prompt": "Name three fruits.\nOne a line.",
            "teacher": "Apple\nBanana\nCherry",
            "before": "fruits fruits fruits",
            "after": "Apple\nOrange\nBanana",
        },
    ],
    "seconds": 913.2,
    "cpu_seconds": 1712.9,
    "peak_memory_gib": 3.41,
}
TEXT = (
    " the sky is blue because of a small molecule in air that scatters light more strongly at short wavelengths , "
    "so we see it from every side .\n And when sun sets red remains"
)
WORDS = TEXT.split(" ")


def metrics_line(step: int, steps: int, rng: random.Random) -> dict:
    done = step / steps

    def falling(start: float, end: float, noise: float) -> float:
        return end + (start - end) * math.exp(-4 * done) * (1 + noise * rng.gauss(0, 1))

    kl = falling(2.3, 0.65, 0.06)
    return {
        "step": step,
        "kind": "train",
        "epoch": 3 * done,
        "time": 1.8 * step,
        "loss": 0.2 * kl,
        "loss/dataset": 0.22 * kl,
        "loss/student": 0.18 * kl if rng.random() < 0.7 else None,
        "forward_kl": kl,
        "reverse_kl": 1.4 * falling(2.4, 0.6, 0.08),
        "student_entropy": falling(4.1, 2.2, 0.03),
        "teacher_entropy": 1.9 + 0.1 * rng.gauss(0, 1),
        "top1_agreement": min(1, 0.72 - 0.3 * math.exp(-4 * done) + 0.02 * rng.gauss(0, 1)),
        "ce": falling(3.9, 2.3, 0.04),
        "completion_length/mean": 60 + 40 * done + 6 * rng.gauss(0, 1),
        "completion_length/max": 512 if rng.random() < 0.3 else 180,
        "prompt_length/mean": 41 + 3 * rng.gauss(0, 1),
        "truncated_share": max(0.0, 0.4 - 0.5 * done + 0.05 * rng.gauss(0, 1)),
        "grad_norm": abs(falling(5, 0.8, 0.3)),
        "learning_rate": 1e-4 * (1 - done),
        "tokens": 700 * step,
        "tokens_per_second": 390 + 30 * rng.gauss(0, 1),
        "seconds/sample": 0.9 + 0.3 * done + 0.05 * abs(rng.gauss(0, 1)),
        "seconds/score": 0.35 + 0.03 * abs(rng.gauss(0, 1)),
        "seconds/learn": 0.8 + 0.05 * abs(rng.gauss(0, 1)),
        "peak_memory_gib": 3.2 + 0.2 * done,
        "support_mass/teacher": 0.97,
        "support_mass/student": 0.9 + 0.05 * done,
    }


def eval_line(step: int, steps: int) -> dict:
    kl = 0.69 + 1.62 * math.exp(-4 * step / steps)
    return {
        "step": step,
        "kind": "eval",
        "eval_loss": 0.2 * kl,
        "eval_forward_kl": kl,
        "eval_reverse_kl": 1.3 * kl,
        "eval_top1_agreement": 0.7 - 0.29 * math.exp(-4 * step / steps),
        "eval_ce": 2.3 + kl / 2,
    }


def completion(step: int, rng: random.Random, *, length: int = 60) -> dict:
    tokens = [(" " + w if w and i else w) for i, w in enumerate(rng.choices(WORDS, k=length))] + ["<|im_end|>"]
    divergence = [rng.expovariate(3) ** 2 for _ in tokens]
    return {
        "step": step,
        "source": rng.choice(["dataset", "student"]),
        "origin": f"prompts.jsonl:{step}",
        "dataset": "prompts",
        "prompt": "Why is the sky blue, and why is it red in the evening?",
        "tokens": tokens,
        "divergence": divergence,
        "student_logp": [-abs(rng.gauss(0, 2)) for _ in tokens],
        "teacher_logp": [-abs(rng.gauss(0, 1.5)) for _ in tokens],
        "truncated": rng.random() < 0.2,
    }


def write_run(path: Path, *, steps: int = 300, every: int = 5, completions: int = 60, seed: int = 0) -> Path:
    """A whole run folder at `path`: `steps` / `every` logged steps, ten evaluations, logged completions."""
    rng = random.Random(seed)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    (path / "env.json").write_text(json.dumps(ENV))
    (path / "summary.json").write_text(json.dumps(SUMMARY))
    lines = [metrics_line(step, steps, rng) for step in range(every, steps + 1, every)]
    lines += [eval_line(step, steps) for step in range(0, steps + 1, max(1, steps // 10))]
    lines.sort(key=lambda line: (line["step"], line["kind"] == "eval"))
    write_lines(path / "metrics.jsonl", lines)
    rows = [completion(round((i + 1) * steps / completions), rng) for i in range(completions)]
    write_lines(path / "completions.jsonl", rows)
    write_lines(path / "histograms.jsonl", [histograms_line(step, rng) for step in range(every, steps + 1, every)])
    return path


def histograms_line(step: int, rng: random.Random) -> dict:
    edges = [10 ** (i / 4) for i in range(-8, 4)]
    return {
        "step": step,
        "lengths": [[16 * i, rng.randrange(1, 9)] for i in range(1, 9)] + [[144, 0]],
        "divergences": [[edge, rng.randrange(40)] for edge in edges] + [[10.0, 0]],
        "tokens": [[word, rng.randrange(1, 9), rng.random()] for word in WORDS[:20]],
        "places": [[place, 16, 16 * rng.random()] for place in (0, 1, 2, 3, 4, 6, 8)],
        "prompts": [[f"prompts.jsonl:{rng.randrange(50)}", "Why is the sky blue?", 40, rng.random()] for _ in range(5)],
    }


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
