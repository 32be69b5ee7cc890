"""The loss of the first step against the definitions of TRL and ms-swift, on the same model and batch.

Their losses are written here anew, from their sources, on full logits of a plain transformers forward; the
denominator is ours (active tokens of the whole step), since theirs are means of micro-batch means.

    TRL 1.16, trl.experimental.gkd.GKDTrainer.generalized_jsd_loss: log-space mixture, F.kl_div with log targets.
    ms-swift 4.6, swift/trainers/rlhf_trainer/gkd_trainer.py: the same divergence; with gkd_logits_topk both sides are
    renormalised over the teacher's K likeliest ids.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support import limbeck, metrics

ROWS, STEP = 8, 8


def generalized_jsd(student_logits: torch.Tensor, teacher_logits: torch.Tensor, beta: float) -> torch.Tensor:
    """[N, V], [N, V] -> [N]. In TRL's code beta weighs the teacher's side of the mixture, as in the GKD paper."""
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    if beta == 0:
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    if beta == 1:
        return F.kl_div(teacher, student, reduction="none", log_target=True).sum(-1)
    mixture = torch.logsumexp(torch.stack([student + math.log(1 - beta), teacher + math.log(beta)]), dim=0)
    to_teacher = F.kl_div(mixture, teacher, reduction="none", log_target=True).sum(-1)
    to_student = F.kl_div(mixture, student, reduction="none", log_target=True).sum(-1)
    return beta * to_teacher + (1 - beta) * to_student


def batch_logits(folder: Path, rows: list[dict], valid: int) -> torch.Tensor:
    """Logits [N, valid] at the positions that predict the response and its end of turn, one row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    found = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=False)
        answer = tokenizer.encode(row["messages"][-1]["content"], add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])).logits[0]
        found.append(logits[len(prompt) - 1 : -1, :valid])
    return torch.cat(found)


@pytest.mark.parametrize("topk", [None, 5])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_first_loss_is_that_of_the_peers(tiny: Path, tmp_path: Path, beta: float, topk: int | None) -> None:
    limbeck(
        *("rlhf", "--rlhf_type", "gkd", "--model", tiny / "student", "--teacher_model", tiny / "teacher"),
        *("--dataset", f"{tiny / 'rows.jsonl'}", "--dataset_shuffle", "false", "--output_dir", tmp_path / "run"),
        *("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", STEP // 2, "--max_steps", 1),
        *("--lmbda", 0, "--beta", beta, "--tuner_type", "full", "--use_cpu"),
        *(("--gkd_logits_topk", topk, "--topk_mode", "renorm") if topk else ()),
    )
    rows = [json.loads(line) for line in (tiny / "rows.jsonl").read_text().splitlines()[:STEP]]
    valid = len(AutoTokenizer.from_pretrained(tiny / "student"))
    student, teacher = (batch_logits(tiny / side, rows, valid) for side in ("student", "teacher"))
    if topk:
        teacher, ids = teacher.topk(topk, dim=-1)
        student = student.gather(-1, ids)
    expected = generalized_jsd(student, teacher, beta)
    first = metrics(tmp_path / "run")[0]
    assert first["tokens"] == expected.numel()
    assert first["loss"] == pytest.approx(expected.mean().item(), rel=1e-5)
