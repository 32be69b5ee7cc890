from __future__ import annotations

import math

import pytest
import torch

from limbeck.losses import denominator, position_weights, token_weights

MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("reduction", "wanted"),
    (
        ("tokens", (1 + 2 + 3 + 4 + 5 + 6) / 6),
        ("sequences", ((1 + 2) / 2 + (3 + 4 + 5 + 6) / 4) / 2),
        ("fixed", (1 + 2 + 3 + 4 + 5 + 6) / (3 * 10)),
    ),
)
def test_weighted_sums_over_the_summed_denominators(reduction, wanted):
    values = torch.zeros(3, 4).masked_scatter(MASK, torch.arange(1.0, 7.0))

    def parts(rows):
        weights = token_weights(MASK[rows], reduction)
        return (weights * values[rows]).sum().item(), denominator(MASK[rows], reduction, fixed_length=10)

    whole = parts(slice(None))
    split = [parts([i]) for i in range(3)]
    assert whole[0] / whole[1] == pytest.approx(wanted)
    assert sum(v for v, _ in split) / sum(d for _, d in split) == pytest.approx(wanted)


def test_position_weights_by_hand():
    """Of two sequences, places 1/4 and 3/4, and 1/2; a step; a falling ramp mirrors a rising one."""
    found = position_weights([2, 0, 1], (0.25, 0.3, 0.1))
    wanted = [0.25 + 0.75 / (1 + math.exp(-(r - 0.3) / 0.1)) for r in (0.25, 0.75, 0.5)]
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx(wanted, rel=1e-14)
    assert position_weights([4], (0.0, 0.5, -1e-4)).tolist() == [1, 1, 0, 0]
    up, down = (position_weights([7], (0.1, 0.5, width)) for width in (0.2, -0.2))
    torch.testing.assert_close(up.flip(0), down)
    assert position_weights([], (0.25, 0.3, 0.1)).shape == (0,)


@pytest.mark.parametrize(
    ("reduction", "wanted"),
    (
        ("tokens", (0.5 * 1 + 0.25 * 2 + 3 + 0.1 * 6) / (0.5 + 0.25 + 1 + 0.1)),
        ("sequences", ((0.5 * 1 + 0.25 * 2) / 0.75 + (3 + 0.1 * 6) / 1.1) / 2),
        ("fixed", (0.5 * 1 + 0.25 * 2 + 3 + 0.1 * 6) / (3 * 10)),
    ),
)
def test_weights_in_the_place_of_the_mask(reduction, wanted):
    counted = torch.tensor([[0.5, 0.25, 0, 0], [1, 0, 0, 0.1], [0, 0, 0, 0]], dtype=torch.float64)
    values = torch.zeros(3, 4, dtype=torch.float64).masked_scatter(MASK, torch.arange(1.0, 7.0, dtype=torch.float64))
    weights = token_weights(counted, reduction, dtype=torch.float64)
    found = (weights * values).sum() / denominator(counted, reduction, fixed_length=10)
    assert float(found) == pytest.approx(wanted, rel=1e-14)
