"""One process, two with DDP and two with FSDP2 learn the same: losses, gradient norms, evaluations and weights.

Every training path through the linear losses is in a row of CASES, and no row has only what others have too. All runs
of a kind share one process, or one pair.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support import make_folder, make_rows, metrics, without_times
from tests.support_ranks import run_all

# 17 rows in steps of 8: the last step has one row, so that one rank has none and goes through the motions.
# Adam's epsilon is far above the gradients' rounding: its steps are in proportion to the gradient, and comparable.
COMMON = (
    *("--per_device_train_batch_size", 2, "--num_train_epochs", 0.425, "--use_cpu"),
    *("--logging_steps", 1, "--learning_rate", 1e-2, "--adam_epsilon", 1e-3, "--lora_dropout", 0),
    *("--max_grad_norm", 0.1, "--eval_steps", 2, "--preflight", False, "--report_html", False),
)
GKD = ("--rlhf_type", "gkd")
TOLD = ("--teacher_prompt_template", "{{ prompt }} the answer: {{ response }}")
MOVED = ("--log_privileged_kl", True)
REWARDS = ("--reward_funcs", "repetition", "--advantage_estimator", "reinforce_plus_plus")
FULL, LORA = ("--tuner_type", "full"), ("--tuner_type", "lora")
# name: (student, teacher or none, flags)
CASES: dict[str, tuple[str, str | None, tuple[object, ...]]] = {
    "full, tied": ("tied", "teacher", (*GKD, *FULL, "--lmbda", 0)),
    "full, untied, checkpointing": (
        *("untied", "teacher"),
        (*GKD, *FULL, "--lmbda", 0, "--beta", 1, "--sft_alpha", 0.3, "--gradient_checkpointing", True),
    ),
    "full, tied, checkpointing, top-k": (
        *("tied", "teacher"),
        (*GKD, *FULL, "--lmbda", 0, "--gkd_logits_topk", 8, "--gradient_checkpointing", True),
    ),
    "full, untied, named by the student": (
        *("untied", "teacher"),
        (*GKD, *FULL, "--lmbda", 0, "--gkd_logits_topk", 8, "--topk_support", "student", "--token_loss_clip", 2),
    ),
    "full, reference": ("tied", "teacher", (*GKD, *FULL, "--lmbda", 0, "--loss_impl", "reference")),
    "lora, tied": ("tied", "teacher", (*GKD, *LORA, "--lmbda", 0, "--beta", 0)),
    "lora, untied, on the head": (
        *("untied", "teacher"),
        (*GKD, *LORA, "--lmbda", 0, "--target_modules", "q_proj", "v_proj", "lm_head"),
    ),
    "lora, base": ("tied", None, (*GKD, *LORA, "--lmbda", 0, "--teacher_source", "base", *TOLD)),
    "full, live": ("tied", None, (*GKD, *FULL, "--lmbda", 0, "--teacher_source", "live", *TOLD, *MOVED)),
    "full, late tokens": (
        *("tied", "teacher"),
        (*GKD, *FULL, "--lmbda", 0, "--sft_alpha", 0.3, "--position_weights", 0.25, 0.3, 0.1),
    ),
    "full, ema": (
        *("tied", None),
        (*GKD, *FULL, "--lmbda", 0, "--teacher_source", "ema", "--teacher_ema_decay", 0.5, *TOLD),
    ),
    # one token is left to draw from, so that all ranks draw alike
    "opd": (
        *("tied", "teacher"),
        ("--rlhf_type", "grpo", *FULL, "--top_k", 1, "--beta", 0.1, "--num_generations", 1, *REWARDS),
    ),
    "sft": ("untied", None, FULL),
}
KINDS = {"one": (1, ()), "ddp": (2, ()), "fsdp2": (2, ("--fsdp", "fsdp2"))}
EQUAL = ("loss", "grad_norm", "tokens", "completion_length/mean", "prompt_length/mean", "active_share")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with KIND/CASE, the run folders, after all of them."""
    folder = tmp_path_factory.mktemp("parallel")
    make_folder(folder / "tied", seed=1)
    make_folder(folder / "untied", seed=1, tied=False)
    make_folder(folder / "teacher", seed=2, layers=3, surplus=5, hidden=48, tied=False)
    make_rows(folder / "rows.jsonl", 40, seed=3)
    make_rows(folder / "held_out.jsonl", 5, seed=4)
    for processes in (1, 2):
        argvs = [
            argv_of(folder, kind, case, more)
            for kind, (number, more) in KINDS.items()
            for case in CASES
            if number == processes
        ]
        statuses = run_all(folder, argvs, processes=processes)
        assert statuses == [0] * len(argvs), (folder / f"{processes}.log").read_text()[-6000:]
    return folder


def argv_of(folder: Path, kind: str, case: str, more: tuple[object, ...]) -> list[object]:
    student, teacher, flags = CASES[case]
    steps = 4 // KINDS[kind][0]
    return [
        "sft" if case == "sft" else "rlhf",
        *("--model", folder / student, "--dataset", folder / "rows.jsonl", "--val_dataset", folder / "held_out.jsonl"),
        *("--output_dir", folder / kind / case, "--gradient_accumulation_steps", steps),
        *(("--teacher_model", folder / teacher) if teacher else ()),
        *(() if case == "sft" else ("--max_completion_length", 6)),
        *COMMON,
        *flags,
        *more,
    ]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(runs: Path, case: str, kind: str) -> None:
    one, two = (metrics(runs / k / case) for k in ("one", kind))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert len(one) >= 3
    measured = {name for name in one[0] if name.endswith(("_kl", "entropy", "divergence")) or name == "ce"}
    assert ("privileged_kl" in measured) == ("--log_privileged_kl" in CASES[case][2])
    for a, b in zip(one, two, strict=True):
        for name in (*EQUAL, *measured):
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=2e-6), (a["step"], name)
    for a, b in zip(metrics(runs / "one" / case, "eval"), metrics(runs / kind / case, "eval"), strict=True):
        assert b.keys() == a.keys()
        assert ("eval_on_policy_reward" in a) == (case == "opd")
        for name in {name for name in a if name.startswith("eval_")} | {"eval_loss", "eval_tokens", "eval_rows"}:
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=2e-6), (a["step"], name)
    before, ours, theirs = weights(runs, case, None), weights(runs, case, kind), weights(runs, case, "one")
    assert ours.keys() == theirs.keys()
    moved = max(float((theirs[name] - before.get(name, 0 * theirs[name])).abs().max()) for name in theirs)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    assert apart < 1e-3 * moved, (apart, moved)


def weights(runs: Path, case: str, kind: str | None) -> dict:
    folder = runs / kind / case / "last" if kind else runs / CASES[case][0]
    return load_file(next(folder.glob("*model.safetensors")))


def test_a_sharded_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Bitwise: the optimizer's shards, an average's weights and a generation batch in its middle come back. And a loss
    that is not finite stops all ranks with the checkpoint of the step before."""
    make_folder(tmp_path / "untied", seed=1, tied=False)
    make_rows(tmp_path / "rows.jsonl", 40, seed=3)
    common = [
        *("rlhf", "--rlhf_type", "gkd", "--model", tmp_path / "untied", "--dataset", tmp_path / "rows.jsonl"),
        *("--teacher_source", "ema", *TOLD, "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 1),
        *("--max_completion_length", 6, "--max_steps", 4, "--save_steps", 1, "--logging_steps", 1, "--use_cpu"),
        *("--steps_per_generation", 2, "--preflight", False, "--report_html", False, "--fsdp", "fsdp2"),
    ]
    runs = [
        [*common, *kind, *more, "--output_dir", tmp_path / f"{kind[1]}-{name}"]
        for kind in (("--tuner_type", "full", "--lmbda", 1), ("--tuner_type", "lora", "--lmbda", 0.5))
        for name, more in (
            ("whole", ()),
            ("resumed", ("--resume_from_checkpoint", tmp_path / f"{kind[1]}-resumed" / "checkpoint-1")),
        )
    ]
    runs.append(
        [*common, "--tuner_type", "full", "--lmbda", 0, "--learning_rate", 1e38, "--output_dir", tmp_path / "broken"]
    )
    copy = {
        number: (tmp_path / f"{kind}-whole" / "checkpoint-1", tmp_path / f"{kind}-resumed" / "checkpoint-1")
        for number, kind in ((1, "full"), (3, "lora"))
    }
    assert run_all(tmp_path, runs, processes=2, copy=copy) == [0, 0, 0, 0, 1], (tmp_path / "2.log").read_text()[-4000:]
    for kind, file in (("full", "model.safetensors"), ("lora", "adapter_model.safetensors")):
        whole, resumed = tmp_path / f"{kind}-whole", tmp_path / f"{kind}-resumed"
        assert without_times(metrics(resumed)) == without_times(metrics(whole))[1:]
        ours, theirs = (load_file(run / "last" / file) for run in (resumed, whole))
        assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert (tmp_path / "broken" / "checkpoint-1" / "model.safetensors").exists()


def test_the_chunk_of_the_loss_is_said(runs: Path) -> None:
    assert "loss: 256 rows of 320 ids a chunk" in (runs / "1.log").read_text()
