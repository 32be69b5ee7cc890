"""The matrix products that a step cannot do without: python matmuls.py JOB.json

Every distinct token of a prompt's group goes through the layers once, every active one through the heads: forward for
the teacher, forward and both gradients for the student. No attention, no norms, no loss, no optimizer: a bound from
below for any trainer that keeps to the type.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import torch
from clock import StepClock, job
from torch import nn

from limbeck.models import load_model


def main() -> None:
    o, clock = job(), StepClock()
    rows = [json.loads(text) for text in Path(o["tokens"]).read_text().splitlines()]
    sizes = []
    for prompt, group in groupby(rows, key=lambda row: row["prompt"]):
        each = list(group)
        before = each[0]["completion_mask"].index(1)
        assert len(prompt) and len({tuple(row["input_ids"][:before]) for row in each}) == 1
        answers = sum(len(row["input_ids"]) - before for row in each)
        # the last token of an answer predicts nothing, and the prompt's last one predicts every answer's first
        sizes.append((before + answers - len(each), sum(sum(row["completion_mask"]) for row in each)))
    shapes = {name: layers(o[name]) for name in ("teacher", "student")}
    for _ in range(o["steps"]):
        clock.on_step_begin(None, None, None)
        for tokens, active in sizes:
            for name, found in shapes.items():
                for inner, outer, head in found:
                    products(active if head else tokens, inner, outer, gradients=name == "student")
        clock.on_step_end(None, None, None)
    clock.write(o["result"], loss={1: float("nan")})


def layers(folder: str) -> list[tuple[int, int, bool]]:
    """In and out of every linear layer, and whether it is the head."""
    model = load_model(folder, dtype="float32", trainable=False)
    head = model.get_output_embeddings()
    return [(m.in_features, m.out_features, m is head) for m in model.modules() if isinstance(m, nn.Linear)]


def products(tokens: int, inner: int, outer: int, *, gradients: bool) -> None:
    x, weight = torch.ones(tokens, inner), torch.ones(outer, inner)
    y = x @ weight.T
    if gradients:
        y @ weight
        y.T @ x


if __name__ == "__main__":
    main()
