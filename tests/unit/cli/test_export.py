"""`limbeck export`: merged weights against the sum in float64, the type, the card, GGUF."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.cli.main import main


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two LoRA steps."""
    run = tmp_path_factory.mktemp("trained") / "run"
    argv = ["rlhf", "--model", tiny / "student", "--teacher_model", tiny / "teacher", "--dataset", tiny / "rows.jsonl"]
    argv += ["--val_dataset", tiny / "held_out.jsonl", "--output_dir", run, "--use_cpu", "--lmbda", 0]
    argv += ["--max_steps", 3, "--learning_rate", 0.05, "--logging_steps", 1, "--report_html", "false"]
    assert main([str(word) for word in argv]) == 0
    return run


def export(*argv: object) -> int:
    return main(["export", *map(str, argv)])


def test_merged_weights_are_the_sum(tiny: Path, trained: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "merged"
    assert export("--adapters", trained / "last", "--output_dir", out) == 0  # the base is the adapter's own
    merged, base = load_file(out / "model.safetensors"), load_file(tiny / "student" / "model.safetensors")
    adapter = load_file(trained / "last" / "adapter_model.safetensors")
    config = json.loads((trained / "last" / "adapter_config.json").read_text())
    moved = 0
    for name, weight in base.items():
        expected = weight.double()
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{key}A.weight" in adapter:
            a, b = (adapter[f"{key}{side}.weight"].double() for side in "AB")
            expected = expected + config["lora_alpha"] / config["r"] * b @ a
            moved += 1
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-6)
    assert moved == 14  # seven linear layers in each of two blocks
    said = capsys.readouterr().out
    assert re.search(r"logits differ from theirs by [\d.]+e(-0[5-9]|\+00)", said), said
    assert "with the card of its run" in said


def test_the_type_and_what_must_not_be_overwritten(tiny: Path, trained: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "half"
    argv = ("--model", tiny / "student", "--adapters", trained / "last", "--output_dir", out)
    assert export(*argv, "--torch_dtype", "bfloat16") == 0
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert export(*argv) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_the_card_names_the_folder_and_only_what_counted(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    assert export("--adapters", trained / "last", "--merge_lora", "false", "--output_dir", out) == 0
    assert (out / "adapter_model.safetensors").exists()
    card = (out / "README.md").read_text()
    for expected in ("| GKD |", "## Evaluation", "## Training", "`lmbda`", "`beta`", "arXiv:2306.13649", "rows.jsonl"):
        assert expected in card.replace("GKD\n\n| sampling", "| GKD |\n\n| sampling"), expected
    assert re.search("[▁▂▃▄▅▆▇█]{2,}", card)
    for foreign in ("teacher_kl_coef", "topk_mode", "epsilon", "`temperature`", "report.html", str(tmp_path.parent)):
        assert foreign not in card.replace(str(out), ""), foreign


def test_gguf_is_written_by_the_tool_and_missed_by_name(tiny: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    argv = ("--model", tiny / "student", "--gguf_type", "q8_0", "--output_dir")
    assert export(*argv, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 3
    assert "convert_hf_to_gguf.py, which is not installed" in error
    assert not (tmp_path / "out").exists()  # said before the weights were loaded
    tool = tmp_path / "convert_hf_to_gguf.py"
    tool.write_text('import sys, pathlib\npathlib.Path(sys.argv[3]).write_text(" ".join(sys.argv[1:]))\n')
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    assert export(*argv, tmp_path / "out") == 0
    out = tmp_path / "out"
    assert (out / "out-q8_0.gguf").read_text() == f"{out} --outfile {out / 'out-q8_0.gguf'} --outtype q8_0"
    tool.write_text("raise SystemExit('Model LlamaForCausalLM is not supported')")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    assert export(*argv, tmp_path / "again") == 2
    assert "Model LlamaForCausalLM is not supported" in capsys.readouterr().err
    tool.write_text("import a_package_that_nobody_has")
    assert export(*argv, tmp_path / "third") == 2
    assert "fix:   `pip install a_package_that_nobody_has`" in capsys.readouterr().err
