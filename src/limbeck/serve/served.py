"""What is served: the model with its tokenizer, its names and its limits, and each automatic choice with its reason."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig

from limbeck.config.beside import Serve
from limbeck.config.defaults import Choice
from limbeck.models import (
    check_head,
    end_token_ids,
    fingerprint,
    model_head,
    position_limit,
    tokenizer_fingerprint,
    unwrap,
    valid_ids,
)
from limbeck.serve.engine import Engine
from limbeck.serve.metrics import Metrics
from limbeck.teachers.wire import MAGIC

BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
FALLBACK_LENGTH = 4096


@dataclass
class Served:
    """limits: the flags, with every automatic choice made. root: where the model comes from. head: the hash that
    `Answer.head` holds; head_file: the safetensors file of the head, where it may be given out."""

    name: str
    root: str
    tokenizer: Any
    engine: Engine
    metrics: Metrics
    limits: Serve
    valid: int
    width: int
    hidden_size: int
    end_ids: frozenset[int]
    max_model_len: int
    max_logprobs: int
    identity: str
    tokenizer_hash: str
    template_hash: str | None
    choices: list[Choice] = field(default_factory=list)
    head: str = ""
    head_file: Path | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.word = lru_cache(maxsize=1 << 18)(self._word)

    def _word(self, token: int) -> str:
        """One id as text; part of a character is U+FFFD, as vLLM has it."""
        return self.tokenizer.decode([token])

    def card(self) -> dict[str, Any]:
        """The entry of /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "limbeck",
            "root": self.root,
            "max_model_len": self.max_model_len,
            "limbeck": {
                "version": version("limbeck"),
                "identity": self.identity,
                "tokenizer": self.tokenizer_hash,
                "valid": self.valid,
                "head": self.width,
                "end_ids": sorted(self.end_ids),
                "chat_template": self.template_hash,
                "max_logprobs": self.max_logprobs,
                "hidden": self.limits.allow_hidden,
                "wire": MAGIC.decode(),
            },
        }


def make_served(model: nn.Module, tokenizer: Any, limits: Serve, *, root: str, folder: Path) -> Served:
    """The model, loaded and on its device, as something to serve. folder: where the head's file is written, if any.

    Raises ModelError where the head is not understood or does not fit the tokenizer.
    """
    check_head(model)
    base: Any = unwrap(model)
    valid, end_ids = valid_ids(tokenizer), end_token_ids(tokenizer, base)
    base.generation_config = GenerationConfig()  # transformers fills what a request leaves open from the makers' own
    limits, choices = _chosen(limits, base, next(model.parameters()).device)
    assert limits.max_model_len is not None and limits.max_batch_tokens is not None
    metrics = Metrics()
    head = model_head(model, valid)
    served = Served(
        name=limits.served_model_name or root,
        root=root,
        tokenizer=tokenizer,
        engine=Engine(
            model,
            valid=valid,
            pad_id=tokenizer.pad_token_id,
            budget=limits.max_batch_tokens,
            max_queue=limits.max_queue,
            metrics=metrics,
        ),
        metrics=metrics,
        limits=limits,
        valid=head.vocab,
        width=head.weight.shape[0],
        hidden_size=head.weight.shape[1],
        end_ids=end_ids,
        max_model_len=limits.max_model_len,
        max_logprobs=head.vocab if limits.max_logprobs < 0 else min(limits.max_logprobs, head.vocab),
        identity=fingerprint(model),
        tokenizer_hash=tokenizer_fingerprint(tokenizer),
        template_hash=_sha(tokenizer.chat_template),
        choices=choices,
    )
    if limits.allow_hidden:
        served.head, served.head_file = write_head(model, valid, folder)
    return served


def write_head(model: nn.Module, valid: int, folder: Path) -> tuple[str, Path]:
    """Writes the head's valid rows as safetensors, with softcap, scale, valid and hash as metadata; the hash, the file.

    An absent soft-cap is an empty text."""
    head = model_head(model, valid)
    tensors = {"weight": head.weight.detach()[: head.vocab].cpu().contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias.detach()[: head.vocab].cpu().contiguous()
    softcap = "" if head.softcap is None else repr(head.softcap)
    meta = {"softcap": softcap, "scale": repr(head.scale), "valid": str(head.vocab)}
    digest = hashlib.blake2b(repr(sorted(meta.items())).encode(), digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    meta["hash"] = digest.hexdigest()
    path = folder / "head.safetensors"
    save_file(tensors, path, metadata=meta)
    return meta["hash"], path


def _chosen(limits: Serve, base: Any, device: torch.device) -> tuple[Serve, list[Choice]]:
    choices = []
    if limits.max_model_len is None:
        length = position_limit(base.config)
        reason = "the model's max_position_embeddings" if length else "the model's config names no longest sequence"
        choices.append(Choice("max_model_len", int(length or FALLBACK_LENGTH), reason))
    if limits.max_batch_tokens is None:
        reason = f"the default on {'a GPU' if device.type == 'cuda' else 'a CPU'}"
        choices.append(Choice("max_batch_tokens", BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]), reason))
    return limits.model_copy(update={c.flag: c.value for c in choices}), choices


def _sha(template: Any) -> str | None:
    return None if not template else hashlib.sha256(str(template).encode()).hexdigest()
