"""`limbeck eval`: how far a student is from its teacher, or from the text, on held-out rows."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from accelerate import Accelerator

from limbeck.config.commands import EvalConfig
from limbeck.config.schema import Config, Run
from limbeck.errors import ModelError
from limbeck.models import check_head
from limbeck.report.format import number
from limbeck.rollouts import sample_dataset
from limbeck.train.build import load_frozen, objective_of
from limbeck.train.evaluate import evaluate
from limbeck.train.prepare import prepare
from limbeck.train.student import StudentStep
from limbeck.train.teacher import build_teacher

SHOWN = (
    *("forward_kl", "reverse_kl", "top1_agreement", "ce", "student_entropy", "teacher_entropy"),
    *("topk_forward_kl", "topk_reverse_kl", "student_mass", "teacher_mass"),
)


def run(config: EvalConfig) -> int:
    """Prints means over the active tokens; --result_path gets them as JSON."""
    accelerator = Accelerator(mixed_precision="no", cpu=config.run.use_cpu)
    has_teacher = config.teacher.teacher_model is not None
    method = config.method.model_copy(update={"rlhf_type": "gkd" if has_teacher else None, "beta": 0.0, "lmbda": 0.0})
    whole = Config(
        model=config.model.model_copy(update={"tuner_type": "full" if not config.model.adapters else "lora"}),
        data=config.data,
        method=method,
        teacher=config.teacher,
        optim=config.optim,
        run=Run(use_cpu=config.run.use_cpu),
    )
    prepared = prepare(whole, world_size=accelerator.num_processes, answered_only=True)
    model = load_frozen(whole.model, accelerator.device)
    check_head(model)
    prepared = replace(prepared, method=replace(prepared.method, source="model" if has_teacher else "none"))
    teacher = build_teacher(prepared, accelerator, model, choices := [])
    result = evaluate(
        accelerator,
        StudentStep(model, objective_of(prepared.config), prepared.valid),
        teacher,
        sample_dataset(prepared.rows),
        batch_size=config.optim.per_device_eval_batch_size or 4,
        pad_id=prepared.tokenizer.pad_token_id,
    )
    if not math.isfinite(result["loss"]):
        raise ModelError(
            "the loss is not finite", where=config.model.model, fix="its weights, or the teacher's, are broken"
        )
    if not accelerator.is_main_process:
        return 0
    for choice in choices:
        print(f"chosen: {choice}")
    for dropped in prepared.dropped.values():
        if str(dropped):
            print(f"warning: {dropped}")
    against = f" against {config.teacher.teacher_model}" if has_teacher else ""
    print(f"{config.model.model}{against} on {int(result['rows'])} rows, {int(result['tokens']):,} tokens:")
    for name in SHOWN:
        if name in result:
            print(f"  {name:<18}{number(result[name])}")
    if config.output.result_path is not None:
        config.output.result_path.parent.mkdir(parents=True, exist_ok=True)
        config.output.result_path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"written: {config.output.result_path}")
    return 0
