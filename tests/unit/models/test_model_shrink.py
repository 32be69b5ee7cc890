"""Cutting layers: which ones, and that the saved folder is a plain model that generates the same."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from limbeck.cli import shrink
from limbeck.errors import ConfigError, ModelError
from limbeck.models import add_lora, check_head, even_layers, hidden_states, keep_layers


@pytest.mark.parametrize(
    ("total", "keep", "expected"),
    [
        (30, 15, [0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27, 29]),
        (9, 5, [0, 2, 4, 6, 8]),
        (12, 4, [0, 4, 7, 11]),
        (4, 3, [0, 2, 3]),
        (5, 2, [0, 4]),
        (5, 1, [0]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_even_layers_by_hand(total, keep, expected) -> None:
    assert even_layers(total, keep) == expected


def test_even_layers_keep_the_ends_and_spread_evenly() -> None:
    for total in range(2, 41):
        for keep in range(2, total + 1):
            layers = even_layers(total, keep)
            gaps = [b - a for a, b in pairwise(layers)]
            assert (layers[0], layers[-1], len(layers)) == (0, total - 1, keep)
            assert min(gaps) >= 1
            spread, steps = total - 1, keep - 1  # in exact arithmetic, times the number of steps
            assert all(abs(gap * steps - spread) < steps for gap in gaps)
            assert all(2 * abs(layer * steps - i * spread) <= steps for i, layer in enumerate(layers))


@pytest.mark.parametrize("keep", [0, 31, -1])
def test_even_layers_refuses_what_is_not_there(keep) -> None:
    with pytest.raises(ConfigError, match="of 30 layers"):
        even_layers(30, keep)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
        ("mistral", {}),
        ("gemma2", {"sliding_window": 4}),
        ("gemma3_text", {"sliding_window": 4}),
        ("smollm3", {"no_rope_layer_interval": 2}),
        ("cohere2", {"sliding_window": 4}),
    ],
)
def test_the_cut_model_computes_those_layers(make, batch, kind, changes, tied) -> None:
    model = make(kind, tie_word_embeddings=tied, **changes)
    untouched = {key: value.clone() for key, value in model.state_dict().items()}
    layers = [0, 1, 3]
    small = keep_layers(model, layers)

    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1, 2]
    assert small.config.num_hidden_layers == 3
    if getattr(model.config, "layer_types", None):
        assert small.config.layer_types == [model.config.layer_types[i] for i in layers]
    assert (small.lm_head.weight is small.model.embed_tokens.weight) == tied
    for new, old in enumerate(layers):
        ours, theirs = small.model.layers[new].state_dict(), model.model.layers[old].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    check_head(small)

    # The old model with its other layers turned into the identity: their output projections are zero.
    ids, _, positions = batch
    with torch.no_grad():
        got = hidden_states(small, ids, positions)
        small.model.layers[0].mlp.down_proj.weight.zero_()  # the copies are copies
        skipped = model.model.layers[2]
        saved = skipped.forward
        skipped.forward = lambda hidden, *args, **kwargs: hidden
        expected = hidden_states(model, ids, positions)
        skipped.forward = saved
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(untouched[key], value) for key, value in model.state_dict().items())
    assert len(model.model.layers) == model.config.num_hidden_layers == 4


@pytest.mark.parametrize("layers", [[], [0, 4], [-1, 2], [1, 1]])
def test_layers_that_do_not_exist_are_refused(make, layers) -> None:
    with pytest.raises(ConfigError, match="no such choice of layers"):
        keep_layers(make("llama"), layers)


def test_models_of_another_build_are_refused_by_name(make) -> None:
    with pytest.raises(ModelError, match="GPT2LMHeadModel cannot be cut layer by layer"):
        keep_layers(make("gpt2"), [0, 3])
    with pytest.raises(ModelError, match="carries adapters"):
        keep_layers(add_lora(make("llama"), seed=0), [0, 3])
    # A dense layer first and experts after it, by a number in the config: other layers cannot take its place.
    mixed = make("deepseek_v3", dtype=torch.float32, first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2)
    with pytest.raises(ModelError, match="DeepseekV3ForCausalLM cannot be cut"):
        keep_layers(mixed, [1, 3])


def test_a_list_as_long_as_the_model_is_deep_is_not_cut_when_it_is_not_per_layer(make) -> None:
    model = make("llama", eos_token_id=[2, 3, 4, 5])
    model.generation_config = GenerationConfig(eos_token_id=[2, 3, 4, 5], temperature=0.3, do_sample=True)
    small = keep_layers(model, [0, 3])
    assert small.config.eos_token_id == [2, 3, 4, 5]
    assert small.generation_config.eos_token_id == [2, 3, 4, 5]
    assert small.generation_config.temperature == 0.3


@pytest.fixture
def saved(make, tmp_path):
    """A tiny Llama with a word tokenizer, saved as a folder."""
    folder = tmp_path / "teacher"
    model = make("llama", dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=[2, 5], pad_token_id=0, bos_token_id=1)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w0", unk_token="w3")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} w2 {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def configured(folder, output, **choice):
    loading = {"model_revision": None, "torch_dtype": "auto", "trust_remote_code": False}
    return SimpleNamespace(
        model=SimpleNamespace(model=str(folder), **loading),
        shrink=SimpleNamespace(**({"num_layers": None, "keep_layers": []} | choice)),
        run=SimpleNamespace(output_dir=output),
    )


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_written_folder_is_a_plain_model_that_generates_the_same(saved, tmp_path, capsys, use_cache) -> None:
    output = tmp_path / "student"
    assert shrink.run(configured(saved, output, num_layers=3)) == 0
    said = capsys.readouterr().out
    assert "3 of 4 layers: 0, 2, 3" in said
    assert str(output) in said

    teacher = AutoModelForCausalLM.from_pretrained(saved)
    in_memory = keep_layers(teacher, [0, 2, 3])
    loaded = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert loaded.generation_config.eos_token_id == [2, 5]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w7 w9"}], return_dict=False) == [7, 9, 2]
    assert sorted(file.suffix for file in output.iterdir() if file.suffix in (".safetensors", ".bin")) == [
        ".safetensors"
    ]

    prompt = torch.tensor([[7, 8, 9, 10], [11, 12, 13, 14]])
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 96, "use_cache": use_cache}
    expected = in_memory.generate(prompt, **settings)
    assert torch.equal(loaded.generate(prompt, **settings), expected)
    assert torch.equal(loaded.generate(prompt, **(settings | {"use_cache": not use_cache})), expected)
    assert not torch.equal(teacher.generate(prompt, **settings), expected)


def test_an_occupied_folder_and_no_folder_are_refused(saved, tmp_path) -> None:
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        shrink.run(configured(saved, occupied, num_layers=2))
    assert [file.name for file in occupied.iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigError, match="no place to go"):
        shrink.run(configured(saved, None, num_layers=2))


def test_chosen_layers_are_kept_in_their_order(saved, tmp_path, capsys) -> None:
    shrink.run(configured(saved, tmp_path / "student", keep_layers=[0, 1]))
    assert "2 of 4 layers: 0, 1" in capsys.readouterr().out
    teacher, student = (AutoModelForCausalLM.from_pretrained(f) for f in (saved, tmp_path / "student"))
    assert torch.equal(student.model.layers[1].mlp.up_proj.weight, teacher.model.layers[1].mlp.up_proj.weight)
