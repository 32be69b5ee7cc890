from __future__ import annotations

import pytest
import torch

from limbeck.losses import denominator, token_weights

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
