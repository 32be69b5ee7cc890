"""README.md of a run folder: the model card of what it trained, as the Hugging Face hub reads it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from limbeck.report.console import FIELDS, sparkline
from limbeck.report.folder import Run, read_run, spread
from limbeck.report.format import duration, number
from limbeck.report.results import evaluation_of, held_out, measures

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
# what a reader wants to know of the configuration: for every run, and beside it what the run's own method looks at
_ALWAYS = (
    *("max_length", "learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("tuner_type", "torch_dtype", "seed"),
)
_LORA = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules")
_SAMPLED = ("temperature", "top_p", "top_k", "min_p", "max_completion_length", "num_generations")
_DIVERGENCE = ("loss_temperature", "jsd_normalize", "token_loss_clip")
_POLICY = ("loss_type", "epsilon", "epsilon_high", "num_iterations", "advantage_estimator", "scale_rewards")
CURVES = (
    *("loss", "forward_kl", "reverse_kl", "topk_forward_kl", "topk_reverse_kl", "top1_agreement", "ce"),
    *("reward", "completion_length/mean", "grad_norm"),
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
    sections = (_head, _method, _data, _results, _curves, _hyperparameters, _use, _citations)
    return _front_matter(run) + "\n\n".join(text for section in sections if (text := section(run))) + "\n"


def run_card(model: Path) -> str | None:
    """The card of the run that left this model folder (`RUN/last`, `RUN/checkpoint-N`), for wherever the model goes:
    it names no file of the run. None where the folder lies in no run."""
    run_dir = model.resolve().parent
    if not (model.is_dir() and (run_dir / "env.json").is_file() and (run_dir / "summary.json").is_file()):
        return None
    return re.sub(r" Curves, samples and .*?\(report\.html\)\.", "", card(read_run(run_dir, completions=0)))


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
        [[row.title + (f", {row.unit}" if row.unit else ""), row.before, row.after, row.change] for row in rows],
    )
    return f"## Evaluation\n\nOn held-out rows{f' ({where})' if where else ''}.\n\n{table}"


def _curves(run: Run) -> str:
    """Every metric of the console that a step has, as a line of bars from the first logged step to the last."""
    rows = []
    for name, title, _ in FIELDS:
        values = [float(row[name]) for row in run.train if isinstance(row.get(name), (int, float))]
        if name in CURVES and len(values) > 1:
            chosen = [values[i] for i in spread(len(values), 32)]
            rows.append([title, f"`{sparkline(chosen)}`", number(values[0]), number(values[-1])])
    return "## Training\n\n" + _table(("", "over the steps", "first", "last"), rows) if rows else ""


def _hyperparameters(run: Run) -> str:
    flat, last = run.flat_config, run.train[-1] if run.train else {}
    rows = [[f"`{key}`", _setting(flat[key])] for key in settings(run) if flat.get(key) is not None]
    rows += [["steps", number(run.last_step)]] if run.last_step is not None else []
    rows += [["tokens", number(last["tokens"])]] if last.get("tokens") is not None else []
    rows += [["wall time", duration(run.summary["seconds"])]] if "seconds" in run.summary else []
    return "## Hyperparameters\n\n" + _table(("name", "value"), rows) if rows else ""


def settings(run: Run) -> list[str]:
    """The flags that had a say in this run, by its method's row: the sampler's where the student sampled, a teacher's
    where there was one, and so on."""
    row, flat = _row(run), run.flat_config
    policy = row.get("path") == "advantage"
    taught = row.get("source") not in ("none", None)
    sampled = row.get("sampling") not in ("dataset", None)
    names: list[str] = []
    if taught and not policy:
        names += ["beta", "lmbda", *_DIVERGENCE]
        names += ["sft_alpha"] if flat.get("sft_alpha") else []
    if policy:
        names += ["beta"] if flat.get("beta") else []
        names += _POLICY
        names += ["reward_funcs", "reward_weights"] if flat.get("reward_funcs") else []
        names += ["teacher_kl_coef", "opd_signal", "loss_temperature", "teacher_logratio_clip"] if taught else []
    if taught and flat.get("gkd_logits_topk"):
        names += ["gkd_logits_topk", "topk_mode", "topk_support"]
    names += ["position_weights"] if flat.get("position_weights") else []
    if sampled:
        names += _SAMPLED
    names += ["teacher_ema_decay"] if str(row.get("source", "")).startswith("ema") else []
    lora = _LORA if flat.get("tuner_type") == "lora" else ()
    silent = {"jsd_normalize": False, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "reward_weights": []}
    return [name for name in (*names, *_ALWAYS, *lora) if flat.get(name) != silent.get(name, ...)]


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
