"""TRL's GKDTrainer on the benchmark's rows: python trl_gkd.py JOB.json

Rows are handed over as ids with a completion mask, which its collator takes, so that all trainers learn from the same
tokens. Its loss is the sum over the step's tokens over their number: the same normalisation as ours.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from clock import StepClock, job
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer


def main() -> None:
    o, clock = job(), StepClock()
    rows = [json.loads(line) for line in Path(o["tokens"]).read_text().splitlines()]
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(o[name], dtype=torch.float32) for name in ("student", "teacher")
    )
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(
            output_dir=o["folder"],
            lmbda=0.0,
            beta=0.5,
            max_length=None,
            per_device_train_batch_size=o["micro_batch"],
            gradient_accumulation_steps=o["batch"] // o["micro_batch"],
            max_steps=o["steps"],
            logging_steps=1,
            learning_rate=o["learning_rate"],
            adam_beta2=0.95,
            lr_scheduler_type="constant",
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to=[],
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
            **{"gradient_checkpointing": False, **o["flags"]},
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(o["teacher"]),
        callbacks=[clock],
    )
    trainer.train()
    clock.write(o["result"])


if __name__ == "__main__":
    main()
