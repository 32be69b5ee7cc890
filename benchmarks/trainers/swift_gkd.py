"""ms-swift's GKD trainer on the benchmark's rows: python swift_gkd.py JOB.json

Rows go in as messages and through its chatml template: SmolLM2's own without the system turn, and with the newline
after the last `<|im_end|>` as one more trained token. Its loss is the mean of the micro-batches' token means; with one
sequence a micro-batch and lengths that differ this is another number than the mean over the step's tokens.
"""

from __future__ import annotations

from typing import Any

from clock import StepClock, job
from swift import callbacks_map
from swift.pipelines import rlhf_main

CLOCK = StepClock()


class Clock(StepClock):
    """The clock under the signature that ms-swift makes callbacks with."""

    def __new__(cls, args: Any, trainer: Any) -> Any:
        return CLOCK


def main() -> None:
    o = job()
    callbacks_map["clock"] = Clock
    flags = {
        "rlhf_type": "gkd",
        "model": o["student"],
        "teacher_model": o["teacher"],
        "model_type": "llama",
        "teacher_model_type": "llama",
        "template": "chatml",
        "dataset": o["rows"],
        "split_dataset_ratio": 0,
        "output_dir": o["folder"],
        "tuner_type": "full",
        "torch_dtype": "float32",
        "lmbda": 0,
        "beta": 0.5,
        "temperature": 1.0,  # theirs divides the loss's logits too
        "per_device_train_batch_size": o["micro_batch"],
        "gradient_accumulation_steps": o["batch"] // o["micro_batch"],
        "max_steps": o["steps"],
        "logging_steps": 1,
        "learning_rate": o["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "weight_decay": 0,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "callbacks": "clock",
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataset_num_proc": 1,
        **o["flags"],
    }
    rlhf_main(
        [
            word
            for name, value in flags.items()
            for word in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))
        ]
    )
    CLOCK.write(o["result"])


if __name__ == "__main__":
    main()
