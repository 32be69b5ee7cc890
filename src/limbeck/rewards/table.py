"""What the rewards said of a batch, with the rows that they could not speak of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RewardTable:
    """Rewards of B completions by F functions.

    names:   of the functions, F.
    weights: [F] float64.
    values:  [B, F] float64, nan where there is none.
    failed:  [B, F] bool, True where there should be one: the function raised, was late, or gave no finite number.
             A value that is missing without having failed is a None: the function said that the row is not its own.
    reasons: by function, how many rows failed for each reason.
    """

    names: tuple[str, ...]
    weights: Tensor
    values: Tensor
    failed: Tensor
    reasons: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> Tensor:
        """[B] float64: the weighted sum of each row's values, nan where the row has none to be compared by.

        Totals are compared with one another, so a total must not be lower only because a part of it got lost:
        - a None is left out of its row's sum (the function is not meant for the row);
        - a function that failed on every row of the batch is left out of all sums, which are short of the same part;
        - a function that failed on this row but not on all makes the row's total missing;
        - a row of which no function gave a value is missing.
        """
        present = ~self.values.isnan()
        lost = (self.failed & present.any(0)).any(1) | ~present.any(1)
        total = (self.values.nan_to_num(nan=0.0) * self.weights).sum(1)
        return total.masked_fill(lost, torch.nan)

    def row(self, index: int) -> RewardTable:
        """One row as a table; `reasons`, which have been said, stay behind."""
        at = slice(index, index + 1)
        return RewardTable(self.names, self.weights, self.values[at], self.failed[at], {})

    def metrics(self) -> dict[str, float]:
        """Means and standard deviations (of the values themselves, not of a population) over the rows that have one,
        by function "rewards/NAME/mean", "rewards/NAME/std" and of the total "reward", "reward_std"; how many rows
        have none, "rewards/NAME/missing", "rewards/NAME/failed" (those that are missing and no None) and
        "reward_missing". A mean of nothing is left out."""
        metrics: dict[str, float] = {}
        for i, name in enumerate(self.names):
            column = self.values[:, i]
            metrics |= _moments(column, f"rewards/{name}/mean", f"rewards/{name}/std")
            metrics[f"rewards/{name}/missing"] = float(column.isnan().sum())
            metrics[f"rewards/{name}/failed"] = float(self.failed[:, i].sum())
        total = self.total
        metrics |= _moments(total, "reward", "reward_std")
        metrics["reward_missing"] = float(total.isnan().sum())
        return metrics


def join_tables(tables: Sequence[RewardTable]) -> RewardTable:
    """Tables of the same rewards, such as several ranks', as one, rows in the order given. Note that `total` judges a
    failure of a whole call by the rows of the table that it stands in."""
    first = tables[0]
    assert all(table.names == first.names for table in tables)
    reasons: dict[str, Counter[str]] = {}
    for table in tables:
        for name, counts in table.reasons.items():
            reasons.setdefault(name, Counter()).update(counts)
    return RewardTable(
        first.names,
        first.weights,
        torch.cat([table.values for table in tables]),
        torch.cat([table.failed for table in tables]),
        reasons,
    )


def _moments(column: Tensor, mean: str, std: str) -> dict[str, float]:
    column = column[~column.isnan()]
    if not len(column):
        return {}
    return {mean: float(column.mean()), std: float(column.std(correction=0))}
