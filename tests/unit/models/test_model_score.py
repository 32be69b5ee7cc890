"""Hidden states of right-padded batches: no mask, no head, the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import nn

from limbeck.errors import ModelError
from limbeck.models import add_lora, backbone, dropout_off, evaluating, hidden_states


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("gemma3_text", {"sliding_window": 8}),
        ("mistral", {"sliding_window": 8}),
        ("gpt2", {}),
    ],
)
def test_no_mask_is_needed_for_padding_on_the_right(make, batch, kind, changes, attention) -> None:
    model = make(kind, **changes)
    model.set_attn_implementation(attention)
    ids, mask, (rows, cols) = batch
    with torch.no_grad():
        expected = backbone(model)(input_ids=ids, attention_mask=mask).last_hidden_state[rows, cols]
        got = hidden_states(model, ids, (rows, cols))
        other_padding = hidden_states(model, torch.where(mask.bool(), ids, 50), (rows, cols))
    assert torch.isfinite(expected).all()  # windows reach a real token from every padding position
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(other_padding, got, rtol=0, atol=0)


def test_positions_come_in_the_order_asked_for(make, batch) -> None:
    model = make("llama")
    ids, _, (rows, cols) = batch
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        straight, mixed = (hidden_states(model, ids, p) for p in ((rows, cols), (rows[order], cols[order])))
    torch.testing.assert_close(mixed, straight[order], rtol=0, atol=0)


def test_the_head_never_runs(make, batch, monkeypatch) -> None:
    model = add_lora(make("llama"), seed=0)

    def fail(*_args, **_kwargs):
        raise AssertionError("the output head ran")

    monkeypatch.setattr(model.get_base_model().lm_head, "forward", fail)
    assert hidden_states(model, batch[0], batch[2]).shape == (26, 32)


def test_lora_with_gradient_checkpointing_gives_the_same_gradients(make, batch) -> None:
    plain = add_lora(make("llama"), rank=2, dropout=0.0, seed=0)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    saving = copy.deepcopy(plain)
    saving.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    gradients = []
    for model in (plain.train(), saving.train()):
        hidden_states(model, batch[0], batch[2]).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(gradients[0]) == 2 * 7 * 4  # A and B of seven linear layers in four decoder layers
    for one, two in zip(*gradients, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"attention_dropout": 0.5}),
        ("gpt2", {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}),
        ("phi", {"attention_dropout": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}),
        ("opt", {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5}),
    ],
)
def test_dropout_off_makes_training_mode_compute_what_evaluation_does(make, batch, kind, changes) -> None:
    model = add_lora(make(kind, **changes), dropout=0.0, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        expected = hidden_states(model.eval(), batch[0], batch[2])
        noisy = hidden_states(model.train(), batch[0], batch[2])
        dropout_off(model)
        assert (noisy - expected).abs().max() > 1e-3
        torch.testing.assert_close(hidden_states(model.train(), batch[0], batch[2]), expected, rtol=0, atol=0)


def test_dropout_off_leaves_the_adapters_own_dropout(make) -> None:
    model = add_lora(make("llama", attention_dropout=0.5), dropout=0.25, seed=0)
    dropout_off(model)
    attention = model.get_base_model().model.layers[0].self_attn
    assert attention.attention_dropout == 0
    assert attention.q_proj.lora_dropout["default"].p == 0.25


def test_prompt_tuning_is_refused(make) -> None:
    model = get_peft_model(make("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="virtual tokens"):
        backbone(model)


def test_a_model_without_a_backbone_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="Linear has no backbone"):
        backbone(nn.Linear(2, 2))


def test_evaluating_puts_modes_back_after_an_error(make) -> None:
    model = make("llama").train()
    model.model.norm.eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        raise RuntimeError
    assert model.training
    assert not model.model.norm.training
    assert torch.is_grad_enabled()
