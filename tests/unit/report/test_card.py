from __future__ import annotations

import json

import pytest
import yaml
from run_folder import CONFIG, SUMMARY, write_run

from limbeck.report import write_card, write_report
from limbeck.report.card import CITATIONS, is_hub_id


def parts(text: str) -> tuple[dict, str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_card_of_a_whole_run(tmp_path):
    run = write_run(tmp_path / "demo")
    write_report(run)
    (run / "last").mkdir()
    front, body = parts(write_card(run).read_text())
    assert front == {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["limbeck", "distillation", "gkd"],
        "datasets": ["org/answers"],
    }
    for expected in (
        "# demo\n",
        "| lmbda 0.5: half dataset, half student | JSD(beta = 0.5) | full vocabulary | loss | local model |",
        "- `prompts.jsonl`\n- `org/answers#500`",
        "On held-out rows (4,096 tokens).",
        "| Forward KL (teacher ‖ student), nats/token | 2.314 | 0.688 | -70.3% |",
        "| `learning_rate` | 1e-05 |",
        "| steps | 300 |",
        "[report.html](report.html)",
        "AutoModelForCausalLM.from_pretrained",
        "arXiv:2306.13649",
    ):
        assert expected in body, expected
    assert "hf_verysecret" not in body
    assert "2402.03300" not in body


@pytest.mark.parametrize(
    ("name", "cited"), [("OPD-RL", ["opd"]), ("OPSD (GKD)", ["gkd", "opsd"]), ("GRPO", ["grpo"]), ("SFT", [])]
)
def test_the_method_is_cited(tmp_path, name, cited):
    run = write_run(tmp_path / "demo")
    summary = SUMMARY | {"method": SUMMARY["method"] | {"name": name}}
    (run / "summary.json").write_text(json.dumps(summary))
    text = write_card(run).read_text()
    assert [key for key, entry in CITATIONS.items() if entry in text] == cited


def test_local_paths_are_not_published(tmp_path):
    run = write_run(tmp_path / "demo")
    config = {**CONFIG, "data": {"dataset": ["/home/me/private/rows.jsonl"]}, "model": {"tuner_type": "lora"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    summary = SUMMARY | {"model": "/home/me/student", "teacher": "/home/me/big.gguf"}
    (run / "summary.json").write_text(json.dumps(summary))
    front, body = parts(write_card(run).read_text())
    assert "/home/me" not in body
    assert "`rows.jsonl`" in body
    assert "`big.gguf`" in body
    assert "base_model" not in front
    assert front["library_name"] == "peft"


def test_card_of_an_empty_folder(tmp_path):
    front, body = parts(write_card(tmp_path).read_text())
    assert front["tags"] == ["limbeck", "distillation"]
    assert "A language model, trained with Limbeck." in body


def test_is_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "student").mkdir(parents=True)
    named = ["gpt2", "org/model", "org/model-1.5B", "./x", "/abs/model", "a/b/c", "model.gguf", "runs/student", ""]
    assert [name for name in named if is_hub_id(name)] == ["gpt2", "org/model", "org/model-1.5B"]
