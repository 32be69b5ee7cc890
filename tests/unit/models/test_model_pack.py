"""Packing: the same states and gradients, from fewer positions; refused where it would not be the same."""

from __future__ import annotations

import pytest
import torch
from tests.support import make_model, make_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from limbeck.models import computed_positions, enable_packing, hidden_states
from limbeck.models.pack import Packing, pack

# Sequences of 6, 5, 5, 4 tokens; the second and third begin as the first for 3 tokens, the third as the second for 4.
IDS = torch.tensor(
    [[5, 6, 7, 8, 9, 10, 0], [5, 6, 7, 20, 21, 0, 0], [5, 6, 7, 20, 31, 0, 0], [40, 6, 7, 20, 0, 0, 0]],
    dtype=torch.long,
)
ROWS, COLS = torch.tensor([0, 0, 1, 2, 2, 3]), torch.tensor([3, 5, 4, 2, 4, 3])


def test_pack_by_hand() -> None:
    packing = pack(IDS[:, :6], torch.tensor([6, 5, 5, 4]))
    assert packing.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 20, 21, 31, 40, 6, 7, 20]]
    assert packing.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 4, 0, 1, 2, 3]]
    spread = packing.spread.view(4, 6)
    assert spread[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert spread[1, :5].tolist() == [0, 1, 2, 6, 7]
    assert spread[2, :5].tolist() == [0, 1, 2, 6, 8]
    assert spread[3, :4].tolist() == [9, 10, 11, 12]
    assert packing.place(ROWS, COLS).tolist() == [3, 5, 7, 2, 8, 12]


def test_positions_by_hand() -> None:
    assert computed_positions(IDS, ROWS, COLS, packs=True) == 13
    assert computed_positions(IDS, ROWS, COLS, packs=False) == 28


@pytest.mark.parametrize("spans", [True, False], ids=["by sequence", "padded attention"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_states_and_gradients_are_those_without(
    spans: bool, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(make_tokenizer()).double().train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    mix = torch.randn(len(ROWS), 32, dtype=torch.float64)

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        states = hidden_states(model, IDS, (ROWS, COLS))
        (states * mix).sum().backward()
        return states.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, plain_gradients = run()
    assert enable_packing(model)
    if not spans:  # what other devices do
        made = Packing.__init__
        monkeypatch.setattr(Packing, "__init__", lambda self, **kw: made(self, **{**kw, "spans": ()}))
    seen = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2]))
    packed, gradients = run()
    hook.remove()
    assert seen[0] == (1, 13)
    # the model's norms work in float32, whatever the weights are
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-5, atol=1e-5)


def test_a_model_with_windows_is_refused() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=320, num_hidden_layers=1, sliding_window=4, **shape)
    model = MistralForCausalLM(config)
    assert not enable_packing(model)
    assert model.config._attn_implementation == "sdpa"


def test_generate_is_not_touched() -> None:
    model = make_model(make_tokenizer()).eval()
    mask = torch.ones_like(IDS)
    mask[:, :2] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    before = model.generate(IDS, **asked)
    assert enable_packing(model)
    assert model.generate(IDS, **asked).equal(before)
