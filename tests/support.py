"""Tiny models, a tokenizer made on the spot, rows, and the command line as a process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = (
    "the a red blue small large cat dog bird house tree river sees likes finds near under over and then today".split()  # noqa: SIM905
)
TIMES = {"time", "tokens_per_second", "seconds/sample", "seconds/score", "seconds/learn", "peak_memory_gib"}


def make_tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a handful of words, with a chatml template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    fast.chat_template = CHATML
    return fast


def make_model(
    tokenizer: Any, *, layers: int = 2, seed: int = 0, surplus: int = 0, tied: bool = True, hidden: int = 32
) -> LlamaForCausalLM:
    """A random Llama; `surplus`: rows of the head beyond the tokenizer's ids."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + surplus,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,  # far from uniform, so that divergences are not tiny
    )
    return LlamaForCausalLM(config)


def make_folder(path: Path, **kwargs: Any) -> Path:
    """A model folder with its tokenizer, as `save_pretrained` writes it."""
    tokenizer = make_tokenizer()
    make_model(tokenizer, **kwargs).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def sentence(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def make_rows(path: Path, n: int, *, seed: int = 0, answered: bool = True) -> Path:
    """JSONL of `messages` with responses of 1 to 12 words."""
    rng = random.Random(seed)
    lines = []
    for _ in range(n):
        messages = [{"role": "user", "content": sentence(rng, 1, 8)}]
        if answered:
            messages.append({"role": "assistant", "content": sentence(rng, 1, 12)})
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n")
    return path


def limbeck(*argv: Any, processes: int = 1, ok: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """`limbeck ARGV` in a process of its own, or in several through torchrun."""
    done = subprocess.run(command(*argv, processes=processes), capture_output=True, text=True, env=env(), **kwargs)
    if ok:
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def command(*argv: Any, processes: int = 1, name: str = "limbeck.cli.main") -> list[str]:
    run = ["-m", name]
    if processes > 1:
        run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *run]
    return [sys.executable, *run, *map(str, argv)]


def module(name: str, *argv: Any, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """`python -m NAME ARGV` in a process of its own, or in several through torchrun."""
    words = command(*argv, processes=processes, name=name)
    return subprocess.run(words, capture_output=True, text=True, env=env(), timeout=900)


def env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def metrics(run_folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
