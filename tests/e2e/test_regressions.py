"""Faults that a demanding user met once: each stays mended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

import limbeck as library
from limbeck.cli.main import main
from limbeck.errors import TrainError
from limbeck.models import load_model, load_tokenizer
from limbeck.report import write_card
from limbeck.rollouts import HFSampler, Sampling
from tests.e2e.test_command_line import gkd, run
from tests.support import make_folder, make_model, make_rows, make_tokenizer, metrics


def generate(model: Path, rows: Path, path: Path, *more: object) -> int:
    argv = ["generate", "--model", model, "--dataset", rows, "--result_path", path, "--max_completion_length", 6]
    return run(*argv, "--use_cpu", *more)


def answers(path: Path) -> dict[tuple[str, int], str]:
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    return {(row["origin"], row["copy"]): row["messages"][-1]["content"] for row in rows}


def test_the_makers_generation_config_does_not_reach_the_sampler(tiny: Path) -> None:
    model, tokenizer = load_model(str(tiny / "student"), trainable=False), load_tokenizer(str(tiny / "student"))
    prompts = [tuple(tokenizer.encode("the cat sees a tree"))] * 8
    sampling = Sampling(temperature=1.0, max_new_tokens=6)
    sampler = HFSampler(model, sampling, frozenset([tokenizer.eos_token_id]), tokenizer.pad_token_id, len(tokenizer))
    plain = sampler.generate(prompts, seed=1)
    makers = model.generation_config
    makers.min_p, makers.top_k, makers.repetition_penalty, makers.do_sample = 0.9999, 1, 3.0, True
    makers.suppress_tokens = list(range(3, 200))
    assert sampler.generate(prompts, seed=1) == plain
    assert len(set(plain)) > 1  # sampled indeed
    assert model.generation_config is makers


def test_sampled_tokens_follow_the_models_distribution() -> None:
    """First tokens of 20,000 draws against softmax(logits / T) over the valid ids: 5 standard errors each."""
    tokenizer, draws, temperature = make_tokenizer(), 20_000, 1.3
    model = make_model(tokenizer, seed=5, surplus=7)
    valid = len(tokenizer)
    sampler = HFSampler(model, Sampling(temperature=temperature, max_new_tokens=1), frozenset([2]), 0, valid)
    found = torch.zeros(valid + 7)
    for ids in sampler.generate([(5, 6, 7)] * draws, seed=3):
        found[ids[0]] += 1
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7]])).logits[0, -1, :valid].double()
    expected = (logits / temperature).softmax(-1)
    assert not found[valid:].any()
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((found[:valid] / draws - expected).abs() < 5 * error + 1 / draws).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_is_not_finite_does_not_sample(temperature: float) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    model.model.norm.weight.data[0] = float("nan")
    sampler = HFSampler(model, Sampling(temperature=temperature, max_new_tokens=2), frozenset([2]), 0, len(tokenizer))
    with pytest.raises(TrainError, match="not finite while it samples"):
        sampler.generate([(5, 6)], seed=0)


def test_a_resume_takes_a_new_learning_rate_and_goes_on_with_the_moments(tiny: Path, tmp_path: Path) -> None:
    argv = gkd(tiny, tmp_path / "run", "--lmbda", 0, "--lr_scheduler_type", "constant", "--warmup_steps", 0)
    assert run(*argv, "--learning_rate", 1e-2) == 0
    more = ["--learning_rate", 1e-5, "--max_steps", 4, "--weight_decay", 0.5, "--resume_from_checkpoint", "auto"]
    assert run(*argv, *more) == 0
    assert [row["learning_rate"] for row in metrics(tmp_path / "run")] == [1e-2, 1e-2, 1e-5, 1e-5]
    state = torch.load(tmp_path / "run" / "checkpoint-4" / "rank-0.pt", weights_only=True)["optimizer"]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.5, 0.0]
    assert {float(s["step"]) for s in state["state"].values()} == {4.0}


def test_the_learning_rate_of_a_line_is_that_of_its_step(tiny: Path, tmp_path: Path) -> None:
    argv = gkd(tiny, tmp_path / "run", "--lmbda", 0, "--lr_scheduler_type", "linear", "--warmup_steps", 0)
    assert run(*argv, "--learning_rate", 1e-2) == 0
    assert [row["learning_rate"] for row in metrics(tmp_path / "run")] == pytest.approx([1e-2, 5e-3])


def test_more_copies_are_other_answers_and_a_file_of_others_is_refused(tiny: Path, tmp_path: Path, capsys) -> None:
    path, rows = tmp_path / "answers.jsonl", tiny / "held_out.jsonl"
    assert generate(tiny / "student", rows, path) == 0
    first = answers(path)
    assert generate(tiny / "student", rows, path, "--num_generations", 2) == 0
    both = answers(path)
    assert {key: both[key] for key in first} == first
    assert [both[o, 0] for o, _ in sorted(first)] != [both[o, 1] for o, _ in sorted(first)]
    before = path.read_text()
    assert generate(tiny / "student", rows, path, "--temperature", 0.1) == 2
    assert "temperature 0.9 there, 0.1 here" in capsys.readouterr().err
    assert generate(tiny / "teacher", rows, path) == 2
    assert path.read_text() == before
    assert generate(tiny / "student", rows, tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err


def test_an_answer_with_a_line_separator_does_not_break_a_resume(tiny: Path, tmp_path: Path) -> None:
    path, rows = tmp_path / "answers.jsonl", tiny / "held_out.jsonl"
    assert generate(tiny / "student", rows, path) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["messages"][-1]["content"] = "one\u2028two\u0085three"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert generate(tiny / "student", rows, path) == 0
    assert len(answers(path)) == len(lines)


def test_equal_models_do_not_move_under_the_default_weight_decay(tiny: Path, tmp_path: Path) -> None:
    argv = gkd(tiny, tmp_path / "run", "--lmbda", 0.5, "--tuner_type", "full", "--learning_rate", 0.1)
    argv[argv.index(tiny / "teacher")] = tiny / "student"
    assert run(*argv) == 0
    before, after = (load_file(f / "model.safetensors") for f in (tiny / "student", tmp_path / "run" / "last"))
    assert all(after[k].equal(before[k]) for k in before)


def test_a_folder_that_is_not_this_run_is_left_alone(tiny: Path, tmp_path: Path, capsys) -> None:
    one, two, mine = tmp_path / "one", tmp_path / "two", tmp_path / "mine"
    assert run(*gkd(tiny, one, "--lmbda", 0)) == run(*gkd(tiny, two, "--lmbda", 0)) == 0
    kept = {p.name: p.read_bytes() for p in two.iterdir() if p.is_file()}
    foreign = gkd(tiny, two, "--lmbda", 0, "--max_steps", 3, "--resume_from_checkpoint", one / "checkpoint-2")
    assert run(*foreign) == 2
    assert {p.name: p.read_bytes() for p in two.iterdir() if p.is_file()} == kept
    mine.mkdir()
    (mine / "README.md").write_text("mine")
    assert run(*gkd(tiny, mine, "--resume_from_checkpoint", "auto")) == 2
    assert (mine / "README.md").read_text() == "mine"
    (tmp_path / "file").write_text("")
    assert run(*gkd(tiny, tmp_path / "file")) == 2
    assert "is a file" in capsys.readouterr().err
    assert run(*foreign[:-1], one / "checkpoint-2", "--output_dir", tmp_path / "three") == 0  # a new folder will do


def test_a_run_that_cannot_be_built_does_not_use_up_its_folder(tiny: Path, tmp_path: Path) -> None:
    argv = gkd(tiny, tmp_path / "run", "--lmbda", 0)
    assert run(*argv, "--target_modules", "nosuch") == 2
    assert run(*argv, "--lr_scheduler_kwargs", '{"foo": 1}') == 2
    assert run(*argv) == 0


def test_a_line_of_sft_is_one_quantity_and_only_samples_are_truncated(tiny: Path, tmp_path: Path) -> None:
    argv = ["sft", "--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--use_cpu", "--logging_steps", 3]
    assert run(*argv, "--max_steps", 6, "--learning_rate", 1e-2, "--output_dir", tmp_path / "sft") == 0
    for row in metrics(tmp_path / "sft"):
        assert row["ce"] == row["loss"]
        assert "truncated_share" not in row
    assert run(*gkd(tiny, tmp_path / "mix", "--lmbda", 0.5, "--max_steps", 6, "--logging_steps", 6)) == 0
    last = metrics(tmp_path / "mix")[-1]
    assert {"loss/dataset", "loss/student"} <= set(last)
    assert last["truncated_share"] > 0.9  # random models rarely end within 5 tokens; with the dataset's rows: below 0.8


def test_top_k_numbers_have_names_of_their_own(tiny: Path, tmp_path: Path) -> None:
    assert run(*gkd(tiny, tmp_path / "run", "--lmbda", 0, "--gkd_logits_topk", 4)) == 0
    row = metrics(tmp_path / "run")[0]
    assert "topk_forward_kl" in row
    assert not {"forward_kl", "reverse_kl", "student_entropy", "teacher_entropy"} & set(row)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--val_dataset", "rows.jsonl", "--max_length", 26], "no held-out row is left"),
        (["--dataset", "rows.jsonl#1", "--split_dataset_ratio", 0.5], "cannot be split"),
        (["--max_steps", 0], "nothing to run"),
    ],
)
def test_what_would_have_passed_without_a_word_is_refused(
    tiny: Path, tmp_path: Path, capsys, more: list[object], part: str
) -> None:
    rows = make_rows(tmp_path / "short.jsonl", 4)
    rows.write_text(
        "".join('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]}\n' * 4)
    )
    long = make_rows(tmp_path / "rows.jsonl", 3, seed=9)
    words = [str(long) + str(w).removeprefix("rows.jsonl") if str(w).startswith("rows.jsonl") else w for w in more]
    argv = gkd(tiny, tmp_path / "run")
    argv[argv.index(tiny / "rows.jsonl")] = rows
    assert run(*argv, *words) == 2
    assert part in capsys.readouterr().err


class StopAt(TrainerCallback):
    def __init__(self, event: str) -> None:
        setattr(self, event, self.stop)

    def stop(self, args, state, control, **kwargs):
        control.should_training_stop = True
        return control


@pytest.mark.parametrize(("event", "steps"), [("on_train_begin", 0), ("on_save", 2)])
def test_a_callback_may_stop_the_run_from_any_event(tiny: Path, tmp_path: Path, event: str, steps: int) -> None:
    outcome = library.distil(
        model=tiny / "student",
        teacher_model=tiny / "teacher",
        dataset=tiny / "rows.jsonl",
        output_dir=tmp_path / "run",
        lmbda=0.0,
        max_steps=6,
        save_steps=2,
        use_cpu=True,
        callbacks=[StopAt(event)],
    )
    assert (outcome.step, outcome.stopped_by) == (steps, "callback")


def test_a_part_of_an_epoch_ends_with_an_evaluation_and_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    argv = gkd(tiny, tmp_path / "run", "--lmbda", 0, "--val_dataset", tiny / "held_out.jsonl")
    assert run(*argv, "--save_strategy", "epoch", "--eval_strategy", "epoch") == 0
    assert [row["step"] for row in metrics(tmp_path / "run", "eval")] == [0, 2]
    assert (tmp_path / "run" / "checkpoint-2").exists()


def test_an_evaluation_that_is_not_finite_is_an_error(tiny: Path, tmp_path: Path, capsys) -> None:
    broken = make_folder(tmp_path / "broken", seed=1)
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][300:] = float("inf")  # ids that the first look does not read
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    result = tmp_path / "result.json"
    assert main(
        ["eval", "--model", str(broken), "--dataset", str(tiny / "held_out.jsonl"), "--result_path", str(result)]
    )
    assert "not finite" in capsys.readouterr().err
    assert not result.exists()


def test_the_card_names_the_method_and_counts_what_was_held_out(tiny: Path, tmp_path: Path) -> None:
    assert run(*gkd(tiny, tmp_path / "run", "--lmbda", 0, "--val_dataset", tiny / "held_out.jsonl")) == 0
    card = write_card(tmp_path / "run").read_text()
    assert "- gkd" in card
    assert "agarwal2024onpolicy" in card
    assert "6 rows" in card
