"""The commands and the Python face on tiny models, in this process where that will do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import limbeck as library
from limbeck.cli.main import main
from limbeck.errors import ConfigError
from tests.support import make_folder, make_rows, metrics, without_times


def run(*argv: object) -> int:
    return main([str(word) for word in argv])


def gkd(tiny: Path, folder: Path, *more: object) -> list[object]:
    return [
        *("rlhf", "--rlhf_type", "gkd", "--model", tiny / "student", "--teacher_model", tiny / "teacher"),
        *("--dataset", tiny / "rows.jsonl", "--output_dir", folder, "--max_completion_length", 5, "--use_cpu"),
        *("--max_steps", 2, "--logging_steps", 1, *more),
    ]


def test_a_plan_that_is_written_is_a_run_and_runs_the_same_twice(tiny: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "run.yaml"
    assert run("plan", *gkd(tiny, tmp_path / "one")[1:], "--write", file) == 0
    out = capsys.readouterr().out
    assert "one row" in out
    assert "⟦" in out
    assert run("rlhf", file) == 0
    assert run("rlhf", tmp_path / "one" / "config.yaml", "--output_dir", tmp_path / "two") == 0
    assert without_times(metrics(tmp_path / "one")) == without_times(metrics(tmp_path / "two"))


def test_sft_learns_the_text(tiny: Path, tmp_path: Path) -> None:
    argv = ["sft", "--model", tiny / "student", "--dataset", tiny / "rows.jsonl", "--tuner_type", "full", "--use_cpu"]
    more = ["--learning_rate", 3e-3, "--num_train_epochs", 4, "--logging_steps", 1, "--output_dir", tmp_path / "run"]
    assert run(*argv, *more) == 0
    rows = metrics(tmp_path / "run")
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["ce"])


def test_eval_gives_the_numbers_of_plain_transformers(tiny: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    sides = ["--model", tiny / "student", "--teacher_model", tiny / "teacher"]
    assert run("eval", *sides, "--dataset", tiny / "held_out.jsonl", "--result_path", result, "--use_cpu") == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny / "student")
    models = [AutoModelForCausalLM.from_pretrained(tiny / s, dtype=torch.float64) for s in ("student", "teacher")]
    forward, ce, agree = [], [], []
    for line in (tiny / "held_out.jsonl").read_text().splitlines():
        messages = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        text = tokenizer.encode(messages[-1]["content"], add_special_tokens=False)
        ids = torch.tensor([[*prompt, *text, tokenizer.eos_token_id]])
        with torch.no_grad():
            q, p = (m(ids).logits[0, len(prompt) - 1 : -1, : len(tokenizer)].log_softmax(-1) for m in models)
        forward.append((p.exp() * (p - q)).sum(-1))
        agree.append((p.argmax(-1) == q.argmax(-1)).double())
        ce.append(-q.gather(-1, ids[0, len(prompt) :, None]).squeeze(-1))
    values = json.loads(result.read_text())
    assert values["tokens"] == torch.cat(ce).numel()
    for name, expected in (("forward_kl", forward), ("ce", ce), ("top1_agreement", agree)):
        assert values[name] == pytest.approx(torch.cat(expected).mean().item(), rel=1e-5)


def test_generate_goes_on_where_it_was_stopped(tiny: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "answers.jsonl"
    argv = ["generate", "--model", tiny / "student", "--dataset", tiny / "held_out.jsonl", "--result_path", path]
    argv += ["--num_generations", 2, "--max_completion_length", 4, "--use_cpu"]
    assert run(*argv) == 0
    whole = path.read_text().splitlines()
    assert len(whole) == 12
    path.write_text("\n".join(whole[:5]) + '\n{"messages": [{"ro')  # killed in the middle of a line
    assert run(*argv) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((r["origin"], r["copy"]) for r in rows) == sorted(
        (r["origin"], r["copy"]) for r in map(json.loads, whole)
    )
    assert "holds 5 answers; 7 are left" in capsys.readouterr().out


class Watcher(TrainerCallback):
    def __init__(self) -> None:
        self.logs: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.logs.append(logs)
        control.should_training_stop = True


def test_from_python_with_a_callback_that_stops(tiny: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    outcome = library.distil(
        model=str(tiny / "student"),
        teacher_model=str(tiny / "teacher"),
        dataset=[str(tiny / "rows.jsonl")],
        val_dataset=[str(tiny / "held_out.jsonl")],
        output_dir=tmp_path / "run",
        max_completion_length=5,
        max_steps=50,
        use_cpu=True,
        callbacks=[watcher],
    )
    assert (outcome.step, outcome.stopped_by) == (1, "callback")
    assert watcher.logs[0]["loss"] > 0
    assert outcome.evaluation["before"]["eval_forward_kl"] > 0
    with pytest.raises(ConfigError, match="there is no flag modle"):
        library.distil(modle="x")


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny: Path, tmp_path: Path, capsys) -> None:
    argv = gkd(tiny, tmp_path / "run", "--lmbda", 0, "--tuner_type", "full", "--learning_rate", 1e37)
    assert run(*argv, "--warmup_steps", 0, "--lr_scheduler_type", "constant") == 1
    assert "is not finite" in capsys.readouterr().err
    saved = (tmp_path / "run" / "nonfinite-step-2-rank-0.jsonl").read_text().splitlines()
    assert json.loads(saved[0])["origin"].startswith(str(tiny / "rows.jsonl"))
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").exists()  # as it was before the broken step


def test_broken_weights_are_named_before_anything_runs(tiny: Path, tmp_path: Path, capsys) -> None:
    broken = make_folder(tmp_path / "broken", seed=1)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert run("eval", "--model", broken, "--dataset", tiny / "held_out.jsonl", "--use_cpu") == 2
    assert "logits that are not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--eval_on_policy", "--split_dataset_ratio", 0.1, "--eval_steps", 1], id="on-policy evaluation"),
        pytest.param(["--save_strategy", "epoch", "--num_generations", 4, "--lmbda", 1], id="groups"),
        pytest.param(["--mixed_precision", "bf16", "--sft_alpha", 0.1, "--lmbda", 0], id="bf16"),
        pytest.param(["--report_to", "tensorboard", "--max_grad_norm", 0, "--log_completions", "false"], id="trackers"),
        pytest.param(["--attn_impl", "eager", "--gkd_logits_topk", 100, "--loss_impl", "reference"], id="reference"),
    ],
)
def test_flags_that_are_less_travelled(tiny: Path, tmp_path: Path, more: list[object]) -> None:
    assert run(*gkd(tiny, tmp_path / "run", *more)) == 0
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]


def wrong(tiny: Path, tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    prompts = make_rows(tmp_path / "prompts.jsonl", 4, answered=False)
    other = tmp_path / "other"
    if not other.exists():
        make_folder(other)
        (other / "tokenizer.json").write_text(
            (other / "tokenizer.json").read_text().replace('"<|im_end|>"', '"<|fin|>"')
        )
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    base = gkd(tiny, tmp_path / "run")
    rows = base.index(tiny / "rows.jsonl")
    return {
        "no file": ([*base[:rows], tmp_path / "rwos.jsonl", *base[rows + 1 :]], "rwos.jsonl"),
        "empty file": ([*base[:rows], empty, *base[rows + 1 :]], "empty.jsonl"),
        "no response": ([*base[:rows], prompts, *base[rows + 1 :]], "4 rows have none"),
        "too short": ([*base, "--max_length", 3], "longer than max_length 3"),
        "typo": ([*base, "--learning_rat", 1], "--learning_rate"),
        "no such model": (["eval", "--model", tmp_path / "gone", "--dataset", tiny / "rows.jsonl"], "does not exist"),
        "not an adapter": ([*base, "--adapters", tmp_path / "gone"], "does not exist"),
        "server": ([*base, "--teacher_model_server", "http://localhost:1"], "two teachers"),
        "held out": ([*base, "--val_dataset", prompts], "4 held-out rows have no response"),
        "groups": ([*base, "--num_generations", 5], "--num_generations 5"),
        "more than all": ([*base, "--gkd_logits_topk", 1000], "the tokenizer has 320 ids"),
        "tokenizers": ([*base, "--teacher_model", other], "different tokenizers"),
    }


MISTAKES = (
    *("no file", "empty file", "no response", "too short", "typo", "no such model", "not an adapter", "server"),
    *("held out", "groups", "more than all", "tokenizers"),
)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_three_lines(tiny: Path, tmp_path: Path, capsys, name: str) -> None:
    argv, part = wrong(tiny, tmp_path)[name]
    assert run(*argv) == 2
    said = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in said if line.startswith(("error:", "  where:", "  fix:"))]
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("  fix: ")
    assert 2 <= len(lines) <= 3
    assert part in "\n".join(lines)
    assert "Traceback" not in "\n".join(said)
