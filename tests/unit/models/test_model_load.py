"""Loading: types, adapters, and what is said when there is nothing to load."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from tests.support import make_model, make_tokenizer
from transformers import GenerationConfig

from limbeck.errors import ModelError
from limbeck.models import (
    add_lora,
    describe,
    fingerprint,
    hidden_states,
    load_generation_config,
    load_model,
    load_tokenizer,
    skeleton,
)


@pytest.fixture
def folder(make, tmp_path):
    model = make("llama", dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=[2, 5])
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize(
    ("dtype", "trainable", "expected"),
    [
        ("auto", False, torch.bfloat16),
        ("auto", True, torch.float32),
        ("bfloat16", True, torch.bfloat16),
        ("float32", False, torch.float32),
        ("float16", False, torch.float16),
    ],
)
def test_types_and_what_is_trained(folder, dtype, trainable, expected) -> None:
    model = load_model(str(folder), dtype=dtype, trainable=trainable)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert {parameter.requires_grad for parameter in model.parameters()} == {trainable}
    assert not model.training
    assert load_model(str(folder), attn_impl="eager", trainable=False).config._attn_implementation == "eager"


def test_fresh_lora_is_seeded_float32_and_changes_nothing_at_first(folder, batch) -> None:
    ids, _, positions = batch
    plain = load_model(str(folder), trainable=False)
    expected = hidden_states(plain, ids, positions)
    one, two, other = (
        add_lora(load_model(str(folder), trainable=False), rank=4, alpha=8, dropout=0.5, seed=seed)
        for seed in (1, 1, 2)
    )
    state = torch.get_rng_state()
    adapters = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in (one, two, other)]
    assert all("lora" in name and p.dtype == torch.float32 for name, p in adapters[0].items())
    assert len(adapters[0]) == 2 * 7 * 4  # all seven linear layers of four decoder layers, and not the head
    assert all(torch.equal(p, adapters[1][name]) for name, p in adapters[0].items())
    assert any(not torch.equal(p, adapters[2][name]) for name, p in adapters[0].items())
    assert not any(module.training for module in one.modules())  # as the model was: no dropout sneaks in
    torch.testing.assert_close(hidden_states(one, ids, positions), expected, rtol=0, atol=0)
    add_lora(load_model(str(folder), trainable=False), seed=9)
    assert torch.equal(torch.get_rng_state(), state)  # the run's own random numbers go on undisturbed


def test_lora_names_that_do_not_exist_are_refused_with_those_that_do(make) -> None:
    with pytest.raises(ModelError, match=r"target_modules: qproj(.|\n)*q_proj"):
        add_lora(make("llama"), target_modules=["qproj"])


@pytest.fixture
def adapters(folder, tmp_path):
    """Two adapters that change the model by different amounts."""
    paths = []
    for seed in (1, 2):
        model = add_lora(load_model(str(folder), dtype="float32", trainable=False), rank=2, alpha=4, seed=seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.05 * seed)
        paths.append(str(tmp_path / f"adapter-{seed}"))
        model.save_pretrained(paths[-1])
    return paths


def test_adapters_add_up_and_only_the_last_is_trained(folder, adapters) -> None:
    def weight(model, path="model.layers.1.self_attn.q_proj"):
        module = getattr(model, "get_base_model", lambda: model)().get_submodule(path)
        base = getattr(module, "base_layer", module).weight
        return base + module.get_delta_weight("default") if hasattr(module, "get_delta_weight") else base

    def load(*chosen, trainable=False):
        return load_model(str(folder), dtype="float32", adapters=chosen, trainable=trainable)

    base = weight(load())
    deltas = [weight(load(adapter)) - base for adapter in adapters]
    assert deltas[0].abs().max() > 1e-3
    both = load(*adapters, trainable=True)
    torch.testing.assert_close(weight(both), base + deltas[0] + deltas[1], rtol=0, atol=1e-6)
    trained = [name for name, parameter in both.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 4
    assert all("lora" in name for name in trained)
    assert not any(parameter.requires_grad for parameter in load(*adapters).parameters())


def test_nothing_that_a_user_cannot_act_on_is_said(folder, adapters) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        add_lora(load_model(str(folder), trainable=False))  # type: ignore[arg-type]
        load_model(str(folder), adapters=adapters, trainable=True)
    assert [str(warning.message) for warning in seen] == []


def test_an_adapter_keeps_the_base_in_its_own_type(folder, adapters) -> None:
    model = load_model(str(folder), adapters=adapters[:1], trainable=True)
    types = {("lora" in name, parameter.dtype) for name, parameter in model.named_parameters()}
    assert types == {(False, torch.bfloat16), (True, torch.float32)}


def test_describe_counts_tied_tensors_once_and_needs_no_weights(make, folder, tmp_path) -> None:
    # embedding and head, then for each of 4 layers: q, k, v, o, three of the MLP, two norms; the last norm
    per_layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 48 + 2 * 32
    untied = 2 * 97 * 32 + 4 * per_layer + 32
    facts = describe(load_model(str(folder), trainable=True))
    assert (facts.parameters, facts.trainable, facts.layers, facts.hidden, facts.vocabulary) == (
        untied,
        untied,
        4,
        32,
        97,
    )
    assert (facts.architecture, facts.dtype, facts.tied) == ("LlamaForCausalLM", "float32", False)
    assert "4 layers, hidden 32, vocabulary 97, float32, untied head" in str(facts)

    make("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    (tmp_path / "tied" / "model.safetensors").unlink()
    drawn = skeleton(str(tmp_path / "tied"))
    assert all(parameter.is_meta for parameter in drawn.parameters())
    assert (describe(drawn).parameters, describe(drawn).tied) == (untied - 97 * 32, True)


def test_generation_config_of_a_folder_and_of_one_that_has_none(folder, tmp_path) -> None:
    assert load_generation_config(str(folder)).eos_token_id == [2, 5]
    assert load_generation_config(str(tmp_path)) is None


def write(path, **files):
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_what_is_said_when_nothing_loads(tmp_path, adapters) -> None:
    broken = {
        tmp_path / "nowhere": r"does not exist(.|\n)*check the path",
        write(tmp_path / "empty"): "has no config.json(.|\n)*nothing in it",
        write(tmp_path / "notes", notes__txt="x"): "has no config.json(.|\n)*notes.txt",
        write(tmp_path / "unknown", config__json={"model_type": "unheard-of"}): "cannot be loaded(.|\n)*unheard-of",
        write(tmp_path / "t5", config__json={"model_type": "t5"}): "cannot be loaded(.|\n)*decoder-only",
        write(tmp_path / "weightless", config__json={"model_type": "llama", "num_hidden_layers": 1}): "safetensors",
        write(tmp_path / "torn", config__json={"model_type": "llama"}, model__safetensors="x"): "damaged",
        adapters[0]: r"is an adapter, not a model(.|\n)*--adapters",
        tmp_path / "model.gguf": r"does not exist(.|\n)*downloaded first",
    }
    for path, message in broken.items():
        with pytest.raises(ModelError, match=message) as caught:
            load_model(str(path), trainable=False)
        assert str(caught.value).startswith("error: ")
        assert len(str(caught.value).splitlines()) <= 3
        assert caught.value.fix
    with pytest.raises(ModelError, match=r"tokenizer .*empty cannot be loaded"):
        load_tokenizer(str(tmp_path / "empty"))


def test_an_adapter_that_is_missing_or_of_another_model_is_refused(make, folder, adapters, tmp_path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(str(folder), adapters=[str(tmp_path / "nowhere")], trainable=False)
    with pytest.raises(ModelError, match=r"base has no adapter_config.json(.|\n)*model.safetensors"):
        load_model(str(folder), adapters=[str(folder)], trainable=False)
    make("llama", hidden_size=16, head_dim=4).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ModelError, match=r"the adapter .* cannot be loaded(.|\n)*size mismatch"):
        load_model(str(tmp_path / "narrow"), adapters=adapters[:1], trainable=False)


def test_a_hub_that_cannot_be_reached(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"some-one/some-model cannot be loaded(.|\n)*fix: "):
        load_model("some-one/some-model", trainable=False)


def test_a_fingerprint_tells_models_apart(make, folder) -> None:
    first = fingerprint(load_model(str(folder), trainable=False))
    assert fingerprint(load_model(str(folder), trainable=False)) == first
    others = [make("llama", seed=9), make("llama", dtype=torch.float32)]
    changed = load_model(str(folder), trainable=False)
    with torch.no_grad():
        changed.get_input_embeddings().weight.mul_(1.1)
    weak, strong = (add_lora(load_model(str(folder), trainable=False), alpha=alpha) for alpha in (16, 32))  # type: ignore[arg-type]
    assert len({first, *(fingerprint(model) for model in (*others, changed, weak, strong))}) == 6


def test_the_base_under_an_adapter_has_one_identity_whatever_the_adapter_learns():
    model = add_lora(make_model(make_tokenizer(), seed=1), seed=0)
    base, whole = fingerprint(model, adapters=False), fingerprint(model)
    assert base == fingerprint(add_lora(make_model(make_tokenizer(), seed=1), seed=7), adapters=False)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).add_(1.0)
    assert fingerprint(model, adapters=False) == base
    assert fingerprint(model) != whole
    assert fingerprint(add_lora(make_model(make_tokenizer(), seed=2), seed=0), adapters=False) != base


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "most"), [(8, 0.1), (4, 0.6)])
def test_a_quantised_teacher_is_near_the_whole_one(smollm2, bits, most):
    """SmolLM2 in 8 bits and in NormalFloat of 4, by the forward KL from its float32 self; its head is left as it is."""
    pytest.importorskip("bitsandbytes")
    ids = torch.tensor(
        [load_tokenizer(str(smollm2)).encode("Water boils at 100 degrees, and the sun rises in the east.")]
    )
    whole = load_model(str(smollm2), dtype="float32", trainable=False)
    few = load_model(str(smollm2), dtype="float32", trainable=False, quant_bits=bits)
    assert few.get_memory_footprint() < 0.45 * whole.get_memory_footprint()
    assert few.get_output_embeddings().weight.equal(whole.get_output_embeddings().weight)
    with torch.no_grad():
        p, q = (m(ids).logits.double().log_softmax(-1) for m in (whole, few))
    assert 1e-4 < float((p.exp() * (p - q)).sum(-1).mean()) < most
