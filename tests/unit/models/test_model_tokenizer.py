"""Which ids count, which end a response, and whether two tokenizers are the same: all from their content."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from limbeck.models import end_token_ids, load_tokenizer, tokenizer_difference, tokenizer_fingerprint, valid_ids

MERGES = [("a", "b"), ("c", "d"), ("ab", "c"), ("1", "2"), ("12", "3"), ("Ġ", "a"), ("Ġa", "b")]


def byte_level(*, merges=MERGES, digits: bool = False, added=("<end>", "<turn>"), names=None, **roles):
    """A byte-level BPE tokenizer with the given merges; its ids are the bytes, the merged pieces, the added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + sorted({"".join(pair) for pair in MERGES})
    vocabulary = {(names or {}).get(piece, piece): i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, list(merges)))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split]) if digits else split
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"eos_token": "<end>"} | roles))


def test_equal_tokenizers_do_not_differ_whatever_their_roles_and_templates() -> None:
    chat = byte_level(eos_token="<turn>", pad_token="<end>")
    chat.chat_template = "{{ messages[0]['content'] }}"
    assert tokenizer_difference(byte_level(), byte_level()) is None
    assert tokenizer_difference(byte_level(), chat) is None


@pytest.mark.parametrize(
    "other",
    [
        byte_level(digits=True),
        byte_level(merges=[MERGES[1], MERGES[0], *MERGES[2:5]]),
        byte_level(added=("<end>", "<stop>")),
        byte_level(added=("<end>", "<turn>", "<pad>")),
        byte_level(added=("<turn>", "<end>")),
    ],
    ids=["digits", "merges", "other token", "one more token", "order"],
)
def test_the_fingerprint_tells_apart_what_gives_other_ids_and_nothing_else(other) -> None:
    chat = byte_level(eos_token="<turn>", pad_token="<end>")
    assert tokenizer_fingerprint(byte_level()) == tokenizer_fingerprint(byte_level()) == tokenizer_fingerprint(chat)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(byte_level())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (byte_level(digits=True), r"the text '0 1 22 .* gets other ids: .*\['123'.* in the first .*\['1', '2'"),
        (byte_level(merges=[MERGES[1], MERGES[0], *MERGES[2:5]]), r"gets other ids"),
        (byte_level(added=("<end>", "<stop>")), r"is '<turn>' in the first tokenizer and '<stop>' in the second"),
        (byte_level(added=("<end>", "<turn>", "<pad>")), r"'<pad>' in the second tokenizer and missing in the other"),
        (byte_level(added=("<turn>", "<end>")), r"is '<end>' in the first tokenizer and '<turn>' in the second"),
    ],
    ids=["digits", "merges", "other token", "one more token", "order"],
)
def test_the_first_difference_is_named(other, said) -> None:
    import re

    first = byte_level()
    sentence = tokenizer_difference(first, other)
    assert sentence is not None
    assert re.search(said, sentence)
    assert "\n" not in sentence
    assert tokenizer_difference(other, first) is not None


def test_a_token_that_is_only_sometimes_special_is_a_difference() -> None:
    plain = byte_level(added=("<end>",))
    plain.add_tokens(["<turn>"])
    assert tokenizer_difference(byte_level(), plain) is None  # both match it whole
    # The same entries, but in one of them "<turn>" is a word of the model, which text never reaches.
    backend = Tokenizer.from_str(byte_level(added=("<end>",)).backend_tokenizer.to_str())
    vocabulary = backend.get_vocab(with_added_tokens=False)
    size = len(vocabulary)
    hidden = Tokenizer(models.BPE(vocabulary | {"<end>": size, "<turn>": size + 1}, MERGES))
    hidden.pre_tokenizer, hidden.decoder = backend.pre_tokenizer, backend.decoder
    hidden.add_special_tokens(["<end>"])
    other = PreTrainedTokenizerFast(tokenizer_object=hidden, eos_token="<end>")
    assert other.get_vocab() == byte_level().get_vocab()
    sentence = tokenizer_difference(byte_level(), other)
    assert sentence is not None
    assert "<turn>" in sentence


def test_a_special_token_that_swallows_the_space_beside_it_is_a_difference() -> None:
    greedy = byte_level(added=("<end>", AddedToken("<turn>", lstrip=True, special=True)))
    sentence = tokenizer_difference(byte_level(), greedy)
    assert sentence is not None
    assert "'<turn>'" in sentence


def test_merges_that_only_rare_words_show_are_found() -> None:
    """The merge of two rare symbols, in no probe text: only texts made from the vocabulary itself can show it."""
    rare = [("Ð", "Į"), ("ÐĮ", "x")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())

    def build(merges):
        pieces = [*alphabet, "ÐĮ", "ÐĮx"]
        backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=backend)

    assert tokenizer_difference(build(rare), build(rare)) is None
    assert tokenizer_difference(build(rare), build(rare[:1])) is not None


def test_valid_ids_is_the_highest_id_and_one() -> None:
    tokenizer = byte_level()
    assert valid_ids(tokenizer) == 256 + 7 + 2 == len(tokenizer)
    tokenizer.add_tokens(["<more>"])
    assert valid_ids(tokenizer) == 256 + 7 + 3


def test_every_end_token_of_tokenizer_and_generation_config_counts() -> None:
    tokenizer = byte_level()
    end, turn = tokenizer.convert_tokens_to_ids(["<end>", "<turn>"])
    assert end_token_ids(tokenizer) == {end}
    assert end_token_ids(tokenizer, None) == {end}
    assert end_token_ids(tokenizer, GenerationConfig(eos_token_id=turn)) == {end, turn}
    assert end_token_ids(tokenizer, GenerationConfig(eos_token_id=[turn, 7])) == {end, turn, 7}
    model = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=[turn]))
    assert end_token_ids(tokenizer, model) == {end, turn}
    tokenizer.eos_token = None
    assert end_token_ids(tokenizer) == frozenset()


def test_a_tokenizer_without_padding_pads_with_its_end_token(tmp_path) -> None:
    byte_level().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "<end>"
    byte_level(pad_token="<turn>").save_pretrained(tmp_path / "padded")
    assert load_tokenizer(str(tmp_path / "padded")).pad_token == "<turn>"
