"""Head(hidden) against the model's own logits, and its gradients against autograd through the model's own forward."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from limbeck.errors import ModelError
from limbeck.models import add_lora, check_head, hidden_states, model_head

# kind, config changes, what the head must be: (softcap, scale, has a bias)
KINDS = [
    ("llama", {}, (None, 1.0, False)),
    ("llama", {"tie_word_embeddings": True}, (None, 1.0, False)),
    ("qwen2", {}, (None, 1.0, False)),
    ("gemma2", {"final_logit_softcapping": 5.0}, (5.0, 1.0, False)),
    ("cohere", {"logit_scale": 0.25}, (None, 0.25, False)),
    ("granite", {"logits_scaling": 3.0}, (None, 1 / 3.0, False)),
    ("hyperclovax", {"logits_scaling": 3.0}, (None, 3.0, False)),
    (
        "falcon_h1",
        {"lm_head_multiplier": 0.7, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 4},
        (None, 0.7, False),
    ),
    ("phi", {}, (None, 1.0, True)),
    ("gpt2", {}, (None, 1.0, False)),
    ("mpt", {"logit_scale": 0.5}, (None, 1.0, False)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "changes", "expected"), KINDS, ids=lambda value: str(value)[:40])
def test_head_of_every_kind(make, batch, kind, changes, expected, dtype) -> None:
    model = make(kind, dtype=dtype, **changes)
    check_head(model)
    head = model_head(model)
    assert (head.softcap, head.bias is not None) == (expected[0], expected[2])
    assert head.scale == pytest.approx(expected[1], rel=1e-15)

    ids, _, (rows, cols) = batch
    with torch.no_grad():
        logits = model(input_ids=ids).logits[rows, cols]
        got = head.logits(hidden_states(model, ids, (rows, cols)))
    assert got.dtype == logits.dtype
    torch.testing.assert_close(got, logits, rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-5)


def test_gradients_are_those_of_the_models_own_logits(make, batch) -> None:
    model = make("gemma2", final_logit_softcapping=5.0)  # tied: the head's gradient adds to the embedding's, once
    ids, _, (rows, cols) = batch
    weights = torch.randn(len(rows), 97, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((logits * weights).sum(), list(model.parameters())))

    ours = gradients(model_head(model).logits(hidden_states(model, ids, (rows, cols))))
    theirs = gradients(model(input_ids=ids).logits[rows, cols])
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_valid_ids_are_cut_and_too_many_are_refused(make) -> None:
    model = make("llama")
    assert model_head(model, valid=90).valid == 90
    with pytest.raises(ModelError, match="knows 98 ids, but the output head of LlamaForCausalLM has only 97"):
        model_head(model, valid=98)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_head_of_another_kind_is_refused_by_name(make, kind) -> None:
    model = make(kind, is_decoder=True)
    with pytest.raises(ModelError, match=f"output head of {type(model).__name__} is not understood"):
        check_head(model)


def test_a_config_key_that_is_not_in_the_table_is_noticed(make, monkeypatch) -> None:
    model = make("granite", logits_scaling=3.0)
    monkeypatch.delitem(__import__("limbeck.models.head", fromlist=["HEAD_KEYS"]).HEAD_KEYS, "logits_scaling")
    with pytest.raises(ModelError, match="logits differ"):
        check_head(model)


def test_a_soft_cap_that_is_missed_is_noticed(make, monkeypatch) -> None:
    model = make("gemma2", dtype=torch.float32)
    monkeypatch.delitem(__import__("limbeck.models.head", fromlist=["HEAD_KEYS"]).HEAD_KEYS, "final_logit_softcapping")
    with pytest.raises(ModelError, match="logits differ"):
        check_head(model)


def test_check_head_leaves_modes_alone(make) -> None:
    model = make("llama").train()
    model.model.layers[0].eval()
    check_head(model)
    assert model.training
    assert not model.model.layers[0].mlp.training
    assert model.model.layers[1].mlp.training


def lora_on_head(make, **changes):
    model = add_lora(
        make("llama", **changes), rank=3, alpha=6, dropout=0.0, target_modules=["q_proj", "lm_head"], seed=1
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, where any scaling would pass
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_lora_on_the_head_gives_the_effective_weight_with_gradients_to_a_and_b(make, batch, tied) -> None:
    model = lora_on_head(make, tie_word_embeddings=tied).double()
    check_head(model)
    ids, _, (rows, cols) = batch
    trained = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * (4 + 1)
    ours = model_head(model).logits(hidden_states(model, ids, (rows, cols)))
    theirs = model(input_ids=ids).logits[rows, cols]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for one, two in zip(
        torch.autograd.grad(ours.square().sum(), trained),
        torch.autograd.grad(theirs.square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_head_follows_the_adapters_state(make) -> None:
    model = lora_on_head(make).double()
    base = model.get_base_model().lm_head.base_layer.weight.clone()
    adapted = model_head(model).weight
    assert (adapted - base).abs().max() > 0.1
    with model.disable_adapter():
        check_head(model)
        torch.testing.assert_close(model_head(model).weight, base, rtol=0, atol=0)
    model.merge_adapter()
    check_head(model)
    torch.testing.assert_close(model_head(model).weight, adapted, rtol=0, atol=1e-12)


def test_saved_head_module_is_read_from_the_active_adapter(make) -> None:
    model = get_peft_model(make("llama"), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.add_(1.0)
    check_head(model)
    trained = model_head(model).weight
    assert trained.requires_grad
    with model.disable_adapter():
        check_head(model)
        assert (trained - model_head(model).weight).abs().min() > 0.9


def test_dora_on_the_head_is_refused_even_while_it_is_the_identity(make) -> None:
    model = get_peft_model(make("llama"), LoraConfig(r=2, target_modules=["lm_head"], use_dora=True))
    with pytest.raises(ModelError, match="is not understood"):
        model_head(model)


def test_a_quantised_head_is_refused(make) -> None:
    model = make("llama")
    model.lm_head.weight = nn.Parameter(torch.zeros(97, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="LlamaForCausalLM is not understood"):
        model_head(model)
