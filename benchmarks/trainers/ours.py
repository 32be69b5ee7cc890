"""Limbeck's trainer on the benchmark's rows: python ours.py JOB.json"""

from __future__ import annotations

import json
from pathlib import Path

from clock import StepClock, job

import limbeck


def main() -> None:
    o, clock = job(), StepClock()
    run = Path(o["folder"])
    limbeck.distil(
        model=o["student"],
        teacher_model=o["teacher"],
        dataset=[o["rows"]],
        output_dir=run,
        tuner_type="full",
        torch_dtype="float32",
        lmbda=0.0,
        beta=0.5,
        per_device_train_batch_size=o["micro_batch"],
        gradient_accumulation_steps=o["batch"] // o["micro_batch"],
        max_steps=o["steps"] + 1,  # the last step writes statistics and is left out
        logging_steps=10**6,
        learning_rate=o["learning_rate"],
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        weight_decay=0.0,
        save_strategy="no",
        report_html=False,
        log_completions=False,
        use_cpu=True,
        callbacks=[clock],
        **o["flags"],
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for values in (clock.seconds, clock.peak_mb, clock.static_mb):
        values.pop()
    clock.write(o["result"], loss={lines[0]["step"]: lines[0]["loss"]}, metrics=lines)


if __name__ == "__main__":
    main()
