"""What the claims' scripts share: a task, tiny transformers, the accuracy of a model, results that are kept, a plot.

The task: digits are given, their running sums modulo 10 are asked for, each step written down ("5873" -> "5308"). An
answer counts where all of it is right. Every model learns it from scratch, through Limbeck's own SFT.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

import limbeck
from limbeck.data import load_examples, render_all
from limbeck.models import end_token_ids, load_tokenizer, valid_ids
from limbeck.rollouts import HFSampler, Sampling

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 6  # digits of a prompt
SPECIAL = ("<pad>", "<user>", "<end>", "<assistant>")
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
HELD_OUT = 256  # prompts that accuracy is measured on; never trained on
WHOLE = ("end", "callback")  # how a run stops by itself
Curve = list[tuple[int, float]]


# --- the task


def running_sums(digits: str) -> str:
    total, out = 0, ""
    for digit in digits:
        total = (total + int(digit)) % 10
        out += str(total)
    return out


def questions(count: int, seed: int | str) -> list[str]:
    """Prompts of LENGTH digits, none twice. Held out are those whose first three digits sum to a multiple of 4: no
    other set holds one of them."""
    rng, found = random.Random(f"questions:{seed}"), dict[str, None]()
    while len(found) < count:
        text = "".join(rng.choices("0123456789", k=LENGTH))
        if (sum(map(int, text[:3])) % 4 == 0) == (seed == "held out"):
            found[text] = None
    return list(found)


def row(question: str, answer: str | None = None, **columns: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, **columns}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def solved(path: Path, count: int, seed: int | str) -> str:
    """Rows with the right answer, which is also the column `solution`."""
    asked = questions(count, seed)
    return write_rows(path, [row(q, running_sums(q), solution=running_sums(q)) for q in asked])


# --- models


def make_model(folder: Path, *, layers: int, hidden: int, seed: int) -> Path:
    """A Llama with random weights and its tokenizer, one token a character."""
    alphabet = [*SPECIAL, *"0123456789 =;"]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(alphabet)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<end>",
        pad_token="<pad>",
        extra_special_tokens=["<user>", "<assistant>"],
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(
    run: Path,
    *,
    model: Path | str,
    dataset: str,
    steps: int,
    callbacks: Sequence[TrainerCallback] = (),
    again: bool = False,
    **flags: Any,
) -> dict[str, Any]:
    """`limbeck.distil` with what all runs share; the run's summary. An attempt that was cut off starts anew, a finished
    one is kept, but where `again` says that its callbacks' findings are what is wanted. Exits where the run was
    interrupted: half an arm is no result."""
    if again or _summary(run).get("stopped_by") not in WHOLE:
        shutil.rmtree(run, ignore_errors=True)
        shared = {
            "tuner_type": "full",
            "gradient_checkpointing": False,
            "weight_decay": 0.0,
            "warmup_steps": 10,
            "lr_scheduler_type": "constant_with_warmup",
            "logging_steps": 20,
            "save_strategy": "no",
            "report_html": False,
            "log_completions": False,
            "gradient_accumulation_steps": 1,
            "per_device_train_batch_size": 64,
            "use_cpu": True,
            "rollout_batch_size": 256,
            "max_completion_length": LENGTH + 2,
            "preflight": False,
        }
        given = shared | {"model": str(model), "dataset": [dataset], "max_steps": steps, "output_dir": str(run)} | flags
        outcome = limbeck.distil(callbacks=callbacks, **given)
        if outcome.stopped_by not in WHOLE:
            sys.exit(f"stopped by {outcome.stopped_by}; the same command goes on with this arm")
    return _summary(run)


def _summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def sft(run: Path, *, model: Path, dataset: str, steps: int, **flags: Any) -> Path:
    """Cross-entropy on the dataset; the folder of the model that came out."""
    train(run, model=model, dataset=dataset, steps=steps, rlhf_type=None, **({"learning_rate": 1e-3} | flags))
    return run / "last"


class Accuracy(TrainerCallback):
    """Share of held-out prompts whose greedy answer is right, before training and every `every` steps. `curve`:
    (step, accuracy). stop_at: ends the run once it is reached."""

    def __init__(self, every: int, *, folder: Path, stop_at: float = 2.0) -> None:
        self.every, self.stop_at, self.curve = every, stop_at, Curve()
        self.measure = grader(folder)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.curve = [(0, self.measure(kwargs["model"]))]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.curve.append((state.global_step, self.measure(kwargs["model"])))
            control.should_training_stop = self.curve[-1][1] >= self.stop_at


def grader(folder: Path, prompt: Callable[[str], str] = str) -> Callable[[Any], float]:
    """model -> accuracy on the held-out prompts. folder: of a model, for its tokenizer. prompt: how one is asked."""
    path = folder.parent / f"held_out_{os.getpid()}.jsonl"
    tokenizer = load_tokenizer(str(folder))
    asked = questions(HELD_OUT, "held out")
    write_rows(path, [row(prompt(q), running_sums(q), solution=running_sums(q)) for q in asked])
    examples, _ = load_examples([str(path)], seed=0)
    path.unlink()
    ends = end_token_ids(tokenizer)
    rows, _ = render_all(examples, tokenizer, end_ids=ends)
    assert len(rows) == HELD_OUT

    def measure(model: Any) -> float:
        sampler = HFSampler(
            model=model,
            sampling=Sampling(temperature=0, max_new_tokens=LENGTH + 2),
            end_ids=ends,
            pad_id=tokenizer.pad_token_id,
            valid=valid_ids(tokenizer),
            batch_size=HELD_OUT,
        )
        training = model.training
        model.eval()
        samples = sampler(rows, seed=0)
        model.train(training)
        texts = [tokenizer.decode(s.tokens.response_ids, skip_special_tokens=True) for s in samples]
        right = [text == s.example.columns["solution"] for text, s in zip(texts, samples, strict=True)]
        return sum(right) / len(right)

    return measure


def pair(work: Path, seed: int, *, start_at: float) -> tuple[Path, Path]:
    """The teacher, trained until it solves the task, and a student of the same size from other weights, stopped as soon
    as it solves `start_at` of it. Claims share them."""
    data = solved(work / "sft.jsonl", 20000, f"sft {seed}")
    folders = []
    for i, (name, stop_at, every) in enumerate((("teacher", 0.99, 20), (f"student-{start_at}", start_at, 5))):
        first = make_model(work / f"{name}-init", layers=2, hidden=128, seed=2 * seed + i)
        until = Accuracy(every, folder=first, stop_at=stop_at)
        folders.append(sft(work / name, model=first, dataset=data, steps=800, seed=seed + i, callbacks=[until]))
    return folders[0], folders[1]


def accuracy(folder: Path, prompt: Callable[[str], str] = str) -> float:
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    return grader(folder, prompt)(model.eval())


def tokens_trained(run: Path) -> int:
    """Active tokens that the run's optimizer steps saw, as its own log counts them."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return int([line for line in lines if line["kind"] == "train"][-1]["tokens"])


# --- results


def options(doc: str | None, name: str, **defaults: int) -> argparse.Namespace:
    """--seed, --seeds, --out, --work, and an integer flag for each of `defaults`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=2, help="how many, one after the other")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of JSON and plot")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "claims", help="folder of the runs")
    for flag, value in defaults.items():
        parser.add_argument(f"--{flag}", type=int, default=value)
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit(
            "error: the plot needs the package matplotlib, which Limbeck itself does not\n"
            f"  where: {Path(sys.argv[0]).name}\n  fix:   pip install matplotlib"
        )
    torch.set_num_threads(1)
    o = parser.parse_args()
    o.models, o.work = o.work / "models", o.work / name
    return o


class Results:
    """The results of a claim's arms in one JSON file, written after each arm: a script that was killed goes on."""

    def __init__(self, name: str, o: argparse.Namespace) -> None:
        self.path, self.plot = o.out / f"{name}.json", o.out / f"{name}.svg"
        o.out.mkdir(parents=True, exist_ok=True)
        settings = {k: v for k, v in vars(o).items() if k not in ("out", "work", "models", "seed", "seeds")}
        self.data: dict[str, Any] = {"settings": settings, "arms": {}}
        if self.path.exists():
            self.data = json.loads(self.path.read_text())
            if self.data["settings"] != settings:
                sys.exit(
                    f"error: {self.path} was made with other settings\n  where: {self.data['settings']}, now {settings}"
                    "\n  fix:   name another --out and --work, or remove the file and the runs"
                )

    def arm(self, name: str, seed: int, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The arm's result, from the file or by `make`, with the CPU seconds that it took."""
        arms, key = self.data["arms"].setdefault(name, {}), str(seed)
        if key not in arms:
            began = time.process_time()
            arms[key] = make() | {"cpu_seconds": round(time.process_time() - began, 1)}
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.data, indent=1) + "\n")
            part.replace(self.path)
        print(f"### {name}, seed {seed}: {shown(arms[key])}", flush=True)
        return arms[key]

    def values(self, name: str, field: str) -> list[float]:
        return [result[field] for result in self.data["arms"][name].values()]

    def table(self, fields: Sequence[str]) -> None:
        """Mean and spread (largest minus smallest, over seeds) of each arm's fields."""
        print(f"\n| arm | seeds | {' | '.join(fields)} |\n|---|---|{'---|' * len(fields)}")
        for name, seeds in self.data["arms"].items():
            cells = [spread([r[f] for r in seeds.values() if f in r]) for f in fields]
            print(f"| {name} | {len(seeds)} | {' | '.join(cells)} |")
        spent = sum(r["cpu_seconds"] for seeds in self.data["arms"].values() for r in seeds.values())
        print(f"\n{spent:.0f} CPU seconds; {self.path}, {self.plot}")

    def curves(self, title: str, lines: Mapping[str, float]) -> None:
        """Accuracy over updates, one line a seed, one colour an arm; `lines`: dotted, by name."""
        plt, (figure, axes) = plots()
        for i, (name, seeds) in enumerate(self.data["arms"].items()):
            for j, result in enumerate(r for r in seeds.values() if "curve" in r):
                steps, values = zip(*result["curve"], strict=True)
                axes.plot(steps, values, color=f"C{i}", label=name if j == 0 else None, linewidth=1.2)
        for name, value in lines.items():
            axes.axhline(value, color="grey", linestyle=":", linewidth=1)
            axes.text(0, value, name, fontsize=7, va="bottom")
        axes.set(title=title, xlabel="optimizer updates", ylabel="accuracy, held out", ylim=(-0.02, 1.02))
        axes.legend(fontsize=7)
        save_plot(plt, figure, self.plot)


def plots() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "limbeck"  # the same results give the same file
    import matplotlib.pyplot as plt

    return plt, plt.subplots(figsize=(7, 4.2), layout="constrained")


def save_plot(plt: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = statistics.mean(values)
    return f"{mean:.3g}" + (f" ± {(max(values) - min(values)) / 2:.2g}" if len(values) > 1 else "")


def shown(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in result.items() if isinstance(v, int | float))
