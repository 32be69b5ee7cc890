"""GGUF files: weights unpacked to plain tensors, and a tokenizer that is repaired and checked.

transformers builds a tokenizer from the file's metadata, but for byte-level vocabularies it leaves out what the merges
alone do not say. llama.cpp keys these rules by `tokenizer.ggml.pre`; the tables below follow its `llama-vocab.cpp`.
A wrong tokenizer is silent (the text still decodes), so every repair is checked on probe texts.
"""

from __future__ import annotations

import json
import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from limbeck.errors import ModelError
from limbeck.models.source import check_folder

logger = logging.getLogger(__name__)

# Every digit is a token of its own, then GPT-2's splitting. transformers' conversion loses the first part.
SPLIT_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
# GPT-2's splitting alone, which is what the conversion builds anyway.
PLAIN_GPT2 = frozenset(
    {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "mellum", "gigachat", "a.x-4.0"}
    | {"jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "roberta-bpe"}
)
# A word that is in the vocabulary is taken whole, whatever the merges say. The conversion loses this.
WHOLE_WORDS = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
)
# The splitting comes with the conversion and nothing is lost.
CONVERTED = frozenset({"qwen2", "qwen35", "deepseek-r1-qwen", "megrez", "gpt-4o", "llama4", "minimax-m2"})
KNOWN = SPLIT_DIGITS | PLAIN_GPT2 | WHOLE_WORDS | CONVERTED

_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_PROBES = ("Hello world, it's 12:30.", "x = 4096 + 17  # sum\n\tif a: pass", "naïve Ünïcödé 日本語 🙂", "  a  b\n\n c ")


def gguf_file(name: str) -> Path | None:
    """The GGUF file that `name` means: the file itself, or the only one of a folder without config.json. Else None.

    Raises ModelError where the folder holds several or the file is one part of a split one.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            raise ModelError(
                f"{name} holds {len(files)} GGUF files",
                where=", ".join(f.name for f in files[:5]),
                fix="name one of them",
            )
        path = files[0] if files else path
    if path.suffix != ".gguf":
        return None
    if not path.is_file():
        check_folder(name)
    if re.search(r"-\d{5}-of-\d{5}$", path.stem):
        raise ModelError(
            f"{path.name} is one part of a split GGUF file", fix="join the parts first: llama-gguf-split --merge"
        )
    return path


@lru_cache(maxsize=4)
def metadata(path: Path) -> dict[str, Any]:
    """The file's metadata, with the length in place of a long array (vocabulary, merges, scores).

    Raises ModelError where the package gguf is missing.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError("GGUF files need the package gguf", fix='pip install "limbeck[gguf]"') from error
    fields = GGUFReader(path).fields.items()
    return {key: field.contents() if len(field.data) <= 64 else len(field.data) for key, field in fields}


def end_ids(path: Path) -> list[int]:
    """Every end token that the metadata names: end of text, of turn, of message."""
    found = (metadata(path).get(f"tokenizer.ggml.{key}") for key in _END_KEYS)
    return sorted({int(token) for token in found if token is not None})


def load_gguf_config(path: Path) -> Any:
    return AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)


def load_gguf_model(path: Path, *, dtype: torch.dtype, attn_impl: str | None) -> PreTrainedModel:
    """A dense model: quantised blocks are unpacked at load time, since packed weights can be neither trained nor saved.

    The generation config gets every end token of the metadata.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=dtype,
        attn_implementation=attn_impl,
    )
    # Plain weights from here on: without this, `save_pretrained` would note a quantisation that is gone.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    ends = end_ids(path)
    if ends and model.generation_config is not None:
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    return model


def load_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer in the file, with what the conversion loses put back, checked on probe texts.

    Raises ModelError where the check fails. An unknown splitting rule is a warning: the ids may not be those that the
    model was trained on.
    """
    facts = metadata(path)
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    drop_phantoms(tokenizer, facts["tokenizer.ggml.tokens"])
    if facts.get("tokenizer.ggml.model") == "gpt2":
        rule = facts.get("tokenizer.ggml.pre", "default")
        if rule not in KNOWN:
            logger.warning(
                "%s: the splitting rule %r (tokenizer.ggml.pre) is not known here, so token ids may be wrong. "
                "Compare with the model's original tokenizer, or use its folder instead of the GGUF file.",
                path.name,
                rule,
            )
        repair_tokenizer(tokenizer, rule)
        check_tokenizer(tokenizer, rule, path.name)
    return tokenizer


def drop_phantoms(tokenizer: Any, count: int) -> None:
    """Take out, in place, the tokens that the conversion adds beyond the file's own `count`.

    It starts from GPT-2's tokenizer, whose "<|endoftext|>" then gets an id that the model has no row for.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    known = [token for token in state["added_tokens"] if token["id"] < count]
    if len(known) == len(state["added_tokens"]):
        return
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state | {"added_tokens": known}))
    vocabulary = tokenizer.get_vocab()
    for role, token in tokenizer.special_tokens_map.items():
        if isinstance(token, str) and token not in vocabulary:
            setattr(tokenizer, role, None)


def repair_tokenizer(tokenizer: Any, rule: str) -> None:
    """Put back, in place, what `tokenizer.ggml.pre` = rule says and the conversion leaves out."""
    if rule in SPLIT_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if rule in WHOLE_WORDS:
        tokenizer.backend_tokenizer.model.ignore_merges = True


def check_tokenizer(tokenizer: Any, rule: str, name: str) -> None:
    """Raises ModelError where a byte-level tokenizer loses text, or does not do what its splitting rule says."""

    def refuse(detail: str) -> ModelError:
        return ModelError(
            f"the tokenizer from {name} fails its check: {detail}",
            where=f"tokenizer.ggml.pre: {rule}",
            fix="use the model's original folder instead of the GGUF file",
        )

    for text in _PROBES:
        ids = tokenizer.encode(text, add_special_tokens=False)
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if back != text:
            raise refuse(f"{text!r} comes back as {back!r}")
    if rule in SPLIT_DIGITS:
        single = {digit: tokenizer.encode(digit, add_special_tokens=False) for digit in "0123456789"}
        for text in ("1234567890", "2024", "007"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            if ids != [token for digit in text for token in single[digit]] or len(ids) != len(text):
                raise refuse(f"the digits of {text!r} are not one token each: {tokenizer.convert_ids_to_tokens(ids)}")
    if rule in WHOLE_WORDS and not tokenizer.backend_tokenizer.model.ignore_merges:
        raise refuse("words of the vocabulary are not taken whole")
