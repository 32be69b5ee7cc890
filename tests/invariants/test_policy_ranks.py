"""Path B in float64 over one process and over two: every loss type, estimator and scale, the same to rounding.

The samples are the rows' own, so that those of a prompt differ and yet do not depend on who draws them; the reward
depends on a sample's tokens alone. `python -m tests.invariants.test_policy_ranks FOLDER` is one of the processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from limbeck.data.formats import Example
from limbeck.data.render import Rendered
from limbeck.errors import TrainError
from limbeck.losses import PolicyLoss
from limbeck.models import valid_ids
from limbeck.rewards import RewardTable
from limbeck.rollouts import sample_dataset
from limbeck.signal import Ask
from limbeck.teachers import LocalTeacher
from limbeck.train import parallel
from limbeck.train.objective import AdvantageLoss
from limbeck.train.policy import Judge
from limbeck.train.shard import unsharded
from limbeck.train.step import Parts, Plan, sample, train_step
from limbeck.train.student import StudentStep
from tests.support import make_model, make_tokenizer, module

# prompts of a generation batch of two steps: 9 samples each, of 5 and 4 a rank, so that a prompt's lie on both
PROMPTS, STEPS = 6, 2
TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
ESTIMATORS = ("grpo", "rloo", "reinforce_plus_plus")
SCALES = ("group", "batch", "none")
CASES: dict[str, dict[str, Any]] = {
    **{kind: {"loss": {"loss_type": kind}} for kind in TYPES},
    **{
        f"{estimator}, {scale}": {"estimator": estimator, "scale": scale}
        for estimator in ESTIMATORS
        for scale in SCALES
    },
    "reinforce_plus_plus, one sample a prompt": {"estimator": "reinforce_plus_plus", "group": 1},
    "reinforce_plus_plus, one sample, none": {"estimator": "reinforce_plus_plus", "group": 1, "scale": "none"},
    "teacher, sequence, entropy": {
        "loss": {"loss_type": "dapo", "level": "sequence", "beta": 0.1},
        "coef": 0.7,
        "top_entropy": 0.6,
        "overlong_filter": True,
    },
}


def rows(group: int) -> list[tuple[Example, Rendered]]:
    """By place: prompts of `group` samples each that differ in tokens and length."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(PROMPTS):
        prompt = torch.randint(3, 250, (3 + i,), generator=generator).tolist()
        for _ in range(group):
            n = int(torch.randint(1, 12, (), generator=generator))
            ids = torch.randint(3, 250, (n,), generator=generator).tolist()
            made.append(
                (Example("x", "y", {"weight": 1.0 + i}, f"row:{i}"), Rendered(tuple(prompt), tuple(ids), (True,) * n))
            )
    return made


def reward(samples: Any) -> RewardTable:
    """Of the sample and its row alone; every seventh is missing, and prompt 4 tells its samples apart nowhere."""
    worth = [s.example.columns["weight"] * (sum(s.tokens.response_ids) % 11) for s in samples]
    worth = [2.0 if s.example.origin == "row:4" else w for s, w in zip(samples, worth, strict=True)]
    failed = torch.tensor([[sum(s.tokens.response_ids) % 7 == 0] for s in samples], dtype=torch.bool)
    values = torch.tensor([[w] for w in worth], dtype=torch.float64).masked_fill(failed, torch.nan)
    return RewardTable(("x",), torch.ones(1, dtype=torch.float64), values, failed, {})


def parts_of(accelerator: Accelerator, case: dict[str, Any]) -> Parts:
    options = dict(case)
    loss, group = PolicyLoss(**{"epsilon": 0.01, **options.pop("loss", {})}), options.pop("group", 3)
    coef = options.pop("coef", 0.0)
    tokenizer = make_tokenizer()
    valid = valid_ids(tokenizer)
    other = make_model(tokenizer, seed=2, layers=3, surplus=5, hidden=48, tied=False).double()
    teacher = LocalTeacher(other, name="teacher", valid=valid, pad_id=0, ask=Ask("sampled", temperature=1.1))
    student = StudentStep(make_model(tokenizer, seed=1).double(), AdvantageLoss(loss, 0.9, 1.1, None, coef), valid)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    judge = Judge(
        loss,
        *(group, coef, 0.9, 1.1, 24, 0, True),
        reward=reward,
        reference=teacher if loss.beta else None,
        **options,
    )
    # a row for each place, a group of them a prompt: a sampler that is given a row has its sample
    made = rows(group)
    plan = Plan(1.0, 3, len(made) // STEPS, STEPS, 1, 1, None, 0.0, seed=0, data_seed=0, shuffle=False)
    return Parts(
        plan,
        accelerator,
        made,
        {"student": lambda rows, *, seed, done=None: sample_dataset(rows)},
        teacher if coef else None,
        accelerator.prepare_model(student),
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        pad_id=0,
        whole=unsharded(student),
        judge=judge,
    )


def steps(accelerator: Accelerator, case: dict[str, Any]) -> dict[str, Any]:
    """Both steps on one generation batch, and the weights afterwards."""
    parts, generation, found = parts_of(accelerator, case), None, []
    for _ in range(STEPS):
        generation, result = train_step(parts, generation, stats=False)
        found.append([result.loss, result.grad_norm, float(result.tokens)])
    assert parts.judge is not None
    weights = torch.cat([p.detach().flatten() for p in parts.student.parameters()])
    return {"steps": found, "weights": weights, "reward": parts.judge.found.get("reward")}  # the main rank tells


def broken_on_one_rank(accelerator: Accelerator) -> str:
    """What each rank says where the last one alone cannot sample."""
    parts = parts_of(accelerator, {})

    def sampler(rows: Any, *, seed: int, done: Any = None) -> Any:
        if accelerator.process_index == accelerator.num_processes - 1:
            raise TrainError("the logits are not finite", where="the sampler", fix="lower the learning rate")
        return sample_dataset(rows)

    parts.samplers = {"student": sampler}
    try:
        sample(parts, 0, 0)
    except TrainError as error:
        return error.what
    return "nothing"


def main(folder: str) -> None:
    accelerator = Accelerator(cpu=True)
    parallel.keep_group()
    found = {name: steps(accelerator, case) for name, case in CASES.items()}
    said = parallel.gather(accelerator, broken_on_one_rank(accelerator))
    if accelerator.is_main_process:
        file = Path(folder) / str(accelerator.num_processes)
        torch.save(found, file.with_suffix(".pt"))
        file.with_suffix(".json").write_text(json.dumps(said))
    accelerator.end_training()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for processes in (1, 2):
        done = module("tests.invariants.test_policy_ranks", folder, processes=processes)
        assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_the_update_does_not_depend_on_the_ranks(found: Path, case: str) -> None:
    one, two = (torch.load(found / f"{n}.pt", weights_only=True)[case] for n in (1, 2))
    assert one["steps"][0][1] > 1e-3
    for a, b in zip(one["steps"], two["steps"], strict=True):
        assert b == pytest.approx(a, rel=1e-7, abs=1e-12)
    assert two["reward"] == pytest.approx(one["reward"], rel=1e-12)
    apart: Tensor = (one["weights"] - two["weights"]).abs().max()
    assert float(apart) < 1e-8


def test_a_sampler_that_fails_on_one_rank_stops_them_all(found: Path) -> None:
    for processes in (1, 2):
        said = json.loads((found / f"{processes}.json").read_text())
        assert said == ["the logits are not finite"] * processes


if __name__ == "__main__":
    main(sys.argv[1])
