"""README.md of a run folder: the model card of what it trained, as the Hugging Face hub reads it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from limbeck.report.folder import Run, read_run
from limbeck.report.format import duration, number
from limbeck.report.results import evaluation_of, held_out, measures

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
# what a reader wants to know of the configuration, where it is set
HYPERPARAMETERS = (
    "beta",
    "lmbda",
    "temperature",
    "loss_temperature",
    "topk_mode",
    "gkd_logits_topk",
    "sft_alpha",
    "teacher_kl_coef",
    "num_generations",
    "max_length",
    "max_completion_length",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "tuner_type",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "torch_dtype",
    "seed",
)
METHOD_ROW = ("sampling", "divergence", "granularity", "path", "source")

CITATIONS = {
    "gkd": """@inproceedings{agarwal2024onpolicy,
  title     = {On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes},
  author    = {Rishabh Agarwal and Nino Vieillard and Yongchao Zhou and Piotr Stanczyk and Sabela Ramos and
               Matthieu Geist and Olivier Bachem},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2306.13649},
}""",
    "opd": """@misc{lu2025onpolicy,
  title        = {On-Policy Distillation},
  author       = {Kevin Lu and {Thinking Machines Lab}},
  year         = {2025},
  howpublished = {Thinking Machines Lab: Connectionism},
  url          = {https://thinkingmachines.ai/blog/on-policy-distillation/},
}""",
    "opsd": """@misc{zhao2026selfdistilled,
  title  = {Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models},
  author = {Siyan Zhao and Zhihui Xie and Mengchen Liu and Jing Huang and Guan Pang and Feiyu Chen and Aditya Grover},
  year   = {2026},
  note   = {arXiv:2601.18734},
}""",
    "grpo": """@misc{shao2024deepseekmath,
  title  = {DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models},
  author = {Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Xiao Bi and Haowei Zhang and
            Mingchuan Zhang and Y. K. Li and Y. Wu and Daya Guo},
  year   = {2024},
  note   = {arXiv:2402.03300},
}""",
}


def write_card(run_dir: Path | str) -> Path:
    """Write RUN/README.md from the files of a run folder, any of which may be missing; the card's path."""
    run_dir = Path(run_dir)
    target = run_dir / "README.md"
    partial = target.with_name(target.name + ".partial")
    partial.write_text(card(read_run(run_dir, completions=0)), encoding="utf-8")
    os.replace(partial, target)
    return target


def card(run: Run) -> str:
    """The card as Markdown with its YAML front matter."""
    sections = (_head, _method, _data, _results, _hyperparameters, _use, _citations)
    return _front_matter(run) + "\n\n".join(text for section in sections if (text := section(run))) + "\n"


def is_hub_id(name: str) -> bool:
    """Whether a model or data set is named by a hub id, rather than by a path that exists or looks like one."""
    return (
        bool(_HUB_ID.match(name))
        and not name.endswith((".gguf", ".jsonl", ".json", ".csv", ".parquet"))
        and not Path(name).exists()
    )


def _public(name: Any) -> str:
    """A hub id as it is (a data set's `#N` too); of a local path only its last part."""
    text = str(name)
    return text if is_hub_id(text.split("#")[0]) else Path(text).name


def _models(run: Run) -> tuple[str, str]:
    flat = run.flat_config
    return str(run.summary.get("model") or flat.get("model") or ""), str(
        run.summary.get("teacher") or flat.get("teacher_model") or ""
    )


def _datasets(run: Run) -> list[str]:
    named = run.flat_config.get("dataset") or []
    return [str(name) for name in (named if isinstance(named, list) else [named])]


def _row(run: Run) -> dict[str, Any]:
    method = run.summary.get("method")
    return method if isinstance(method, dict) else {}


def _front_matter(run: Run) -> str:
    model, _ = _models(run)
    name = str(_row(run).get("name", "")).lower()
    front: dict[str, Any] = {}
    if model and is_hub_id(model):
        front["base_model"] = model
    front["library_name"] = "peft" if run.flat_config.get("tuner_type") == "lora" else "transformers"
    front["pipeline_tag"] = "text-generation"
    front["tags"] = ["limbeck", "distillation", *(tag for tag in CITATIONS if tag in re.split(r"[^a-z]+", name))]
    ids = [name.split("#")[0] for name in _datasets(run)]
    if hub := list(dict.fromkeys(name for name in ids if "/" in name and is_hub_id(name))):
        front["datasets"] = hub
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n"


def _head(run: Run) -> str:
    model, teacher = _models(run)
    text = f"# {run.path.resolve().name}\n\n"
    made = f"`{_public(model)}`" if model else "A language model"
    source = f" by distillation from `{_public(teacher)}`" if teacher else ""
    text += f"{made}, trained{source} with Limbeck."
    if (run.path / "report.html").exists():
        text += " Curves, samples and the whole configuration are in [report.html](report.html)."
    return text


def _method(run: Run) -> str:
    row = _row(run)
    shown = [key for key in METHOD_ROW if row.get(key)]
    if not shown:
        return ""
    return f"## Method\n\n{row.get('name', '')}\n\n" + _table(shown, [[row[key] for key in shown]])


def _data(run: Run) -> str:
    names = _datasets(run)
    return "## Data\n\n" + "\n".join(f"- `{_public(name)}`" for name in names) if names else ""


def _results(run: Run) -> str:
    evaluation = evaluation_of(run)
    rows = measures(evaluation)
    if not rows:
        return ""
    where = held_out(evaluation)
    table = _table(
        ("measure", "before", "after", "change"),
        [[f"{row.name}" + (f", {row.unit}" if row.unit else ""), row.before, row.after, row.change] for row in rows],
    )
    return f"## Evaluation\n\nOn held-out rows{f' ({where})' if where else ''}.\n\n{table}"


def _hyperparameters(run: Run) -> str:
    flat, last = run.flat_config, run.train[-1] if run.train else {}
    rows = [[f"`{key}`", _setting(flat[key])] for key in HYPERPARAMETERS if flat.get(key) is not None]
    rows += [["steps", number(run.last_step)]] if run.last_step is not None else []
    rows += [["tokens", number(last["tokens"])]] if last.get("tokens") is not None else []
    rows += [["wall time", duration(run.summary["seconds"])]] if "seconds" in run.summary else []
    return "## Hyperparameters\n\n" + _table(("name", "value"), rows) if rows else ""


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _use(run: Run) -> str:
    if not (run.path / "last").exists():
        return ""
    kind = (
        "AutoPeftModelForCausalLM" if (run.path / "last" / "adapter_config.json").exists() else "AutoModelForCausalLM"
    )
    package = "peft" if kind.startswith("AutoPeft") else "transformers"
    return f"""## Use

```python
from {package} import {kind}
from transformers import AutoTokenizer

model = {kind}.from_pretrained("last")
tokenizer = AutoTokenizer.from_pretrained("last")
```"""


def _citations(run: Run) -> str:
    name = str(_row(run).get("name", "")).lower()
    words = re.split(r"[^a-z]+", name)
    cited = [text for key, text in CITATIONS.items() if key in words]
    return "## Citation\n\n```bibtex\n" + "\n\n".join(cited) + "\n```" if cited else ""


def _table(head: Any, rows: list[list[Any]]) -> str:
    def line(cells: Any) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *(line(row) for row in rows)])
