"""Tokenizers: loading, the ids that count, the tokens that end a response, and whether two are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from limbeck.models.gguf import gguf_file, load_gguf_tokenizer
from limbeck.models.source import check_folder, refusals

Tokenizer = Any  # a PreTrainedTokenizerBase, whose annotations are too wide to be of use

# What tokenizers disagree about: digits, spaces, line ends, contractions, code, accents, scripts, emoji, case.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "0 1 22 333 4444 12345 1234567890 3.14159 1,000,000 2024-11-24 x2y3",
    "  two  spaces\tand\ta tab \n\n\nthree lines\r\n end   ",
    "don't we'll I'VE they're IT'S",
    "def f(x: int) -> str:\n    return f\"{x!r}\"  # {'a': [1, 2]}\n\n\tif x != 0x1F and y >= 1e-9:\n\t\tpass",
    '<p class="a">&amp; http://example.org/?q=1&r=%20</p> $x^2 + \\frac{1}{2}$ ==== ---- ....',
    "Ünïcödé naïve café déjà-vu e\u0301 ﬁ Straße ǅ ½ ² ① Ⅷ",
    "日本語のテキスト。 中文文本 한국어 Русский текст Ελληνικά हिन्दी ไทย עברית العربية ١٢٣",
    "🙂👍🏽👨‍👩‍👧‍👦 ★ → ∑ \u200b\u00a0\ufeff\u3000 \ud7ff",
    "ANTIDISESTABLISHMENTARIANISM camelCaseWords snake_case_words kebab-case-words aaaaaaaaaaaaaaaaaaa",
    " leading space",
    "",
)


def load_tokenizer(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a hub id, a folder, or a GGUF file (or a folder with a single one).

    A tokenizer without a padding token pads with its end token: padding is never read (see `score.hidden_states`).
    Raises ModelError where there is none, or where a GGUF file's tokenizer fails its check.
    """
    path = gguf_file(name)
    if path is None and not Path(name).expanduser().is_dir():
        check_folder(name)
    with refusals(name, "tokenizer"):
        tokenizer = (
            load_gguf_tokenizer(path)
            if path
            else AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def valid_ids(tokenizer: Tokenizer) -> int:
    """How many ids the tokenizer knows: its highest id + 1. Heads are often wider; the surplus never counts."""
    return max(tokenizer.get_vocab().values()) + 1


def end_token_ids(tokenizer: Tokenizer, model_or_generation_config: Any = None) -> frozenset[int]:
    """Every id that ends a response: the tokenizer's end token and all those of the generation config.

    A chat model often has several (end of turn, end of text), and the tokenizer names only one of them.
    """
    config = getattr(model_or_generation_config, "generation_config", model_or_generation_config)
    found = (tokenizer.eos_token_id, getattr(config, "eos_token_id", None))
    ids: set[int] = set()
    for entry in found:
        if entry is not None:
            ids.update(entry if isinstance(entry, (list, tuple)) else [entry])
    return frozenset(int(token) for token in ids)


def tokenizer_difference(first: Tokenizer, second: Tokenizer) -> str | None:
    """None where both give every text the same ids, otherwise a sentence that names the first difference found.

    Compares content: the vocabularies entry by entry, then the ids of probe texts, of texts made from the vocabulary
    itself (which finds other merges) and of the special tokens inside a text. The width of the heads plays no part, nor
    do the roles of special tokens: a base model and its chat version end differently and can still be teacher and
    student.
    """
    ours, theirs = first.get_vocab(), second.get_vocab()
    if ours != theirs:
        return _vocabulary_difference(ours, theirs)
    for text in _probe_texts(first):
        one, two = (tokenizer.encode(text, add_special_tokens=False) for tokenizer in (first, second))
        if one != two:
            at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
            ours, theirs = first.convert_ids_to_tokens(one[at : at + 4]), second.convert_ids_to_tokens(two[at : at + 4])
            return (
                f"the text {_short(text)} gets other ids: from token {at} on {ours} in the first tokenizer, "
                f"{theirs} in the second"
            )
    return None


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of the vocabulary and of the ids of probe texts: equal for two tokenizers, on two machines, that give text
    the same ids. Roles of special tokens play no part, as in `tokenizer_difference`."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))).encode())
    digest.update(json.dumps([tokenizer.encode(text, add_special_tokens=False) for text in PROBES]).encode())
    return digest.hexdigest()


def _vocabulary_difference(ours: dict[str, int], theirs: dict[str, int]) -> str:
    ours_by_id, theirs_by_id = ({i: token for token, i in vocabulary.items()} for vocabulary in (ours, theirs))
    sizes = f"(they have {len(ours)} and {len(theirs)} tokens)"
    for token_id in sorted(ours_by_id.keys() | theirs_by_id.keys()):
        one, two = ours_by_id.get(token_id), theirs_by_id.get(token_id)
        if one == two:
            continue
        if one is None or two is None:
            which, token = ("second", two) if one is None else ("first", one)
            return f"id {token_id} is {token!r} in the {which} tokenizer and missing in the other {sizes}"
        return f"id {token_id} is {one!r} in the first tokenizer and {two!r} in the second {sizes}"
    return f"two tokens share an id in one of the tokenizers {sizes}"


def _probe_texts(tokenizer: Tokenizer, windows: int = 256, width: int = 8) -> Iterator[str]:
    yield from PROBES
    added = tokenizer.get_added_vocab()
    if added:
        yield "a".join(added)
        yield " ".join(added)
    size = valid_ids(tokenizer)
    for start in range(0, size, max(1, size // windows)):
        # Neighbours of an id are likely of one script; a stride mixes common and rare tokens in one text.
        ids = [(start + step * (size // width + 1)) % size for step in range(width)]
        yield tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
