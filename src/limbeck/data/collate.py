"""Sequences of ids -> one right-padded batch, and the places in it that predict an active token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.data.render import Rendered


@dataclass(frozen=True, slots=True)
class Batch:
    """input_ids [B, T], padded on the right. The hidden state at (rows[n], cols[n]) predicts targets[n], all [N] int64,
    ordered by sequence and, inside it, by position.

    No attention mask: under causal attention a real token never sees the padding to its right.
    """

    input_ids: Tensor
    rows: Tensor
    cols: Tensor
    targets: Tensor
    counts: tuple[int, ...]  # active tokens by sequence; they add up to N
    n_tokens: int  # real tokens, the padding left out

    def to(self, device: torch.device | str) -> Batch:
        moved = (t.to(device, non_blocking=True) for t in (self.input_ids, self.rows, self.cols, self.targets))
        return Batch(*moved, counts=self.counts, n_tokens=self.n_tokens)


def collate(sequences: Sequence[Rendered], pad_id: int) -> Batch:
    """No sequences give one of a single padding token, with N = 0.

    Raises AssertionError when an active token stands first in its sequence: nothing there predicts it.
    """
    lengths = [len(s.prompt_ids) + len(s.response_ids) for s in sequences]
    input_ids = torch.full((max(len(sequences), 1), max(lengths, default=1)), pad_id, dtype=torch.long)
    rows, cols, targets, counts = [], [], [], []
    for row, s in enumerate(sequences):
        ids = s.prompt_ids + s.response_ids
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        active = [len(s.prompt_ids) + i for i, on in enumerate(s.response_mask) if on]
        assert not active or active[0] > 0, "the first token of a sequence has nothing that predicts it"
        rows += [row] * len(active)
        cols += [place - 1 for place in active]
        targets += [ids[place] for place in active]
        counts.append(len(active))
    as_index = (torch.tensor(x, dtype=torch.long) for x in (rows, cols, targets))
    return Batch(input_ids, *as_index, counts=tuple(counts), n_tokens=sum(lengths))
