"""One row of the distinct tokens: what a batch has in common is computed once, and no padding at all.

A causal model's state of a token depends on the tokens before it alone. So sequences that begin alike share the states
of their beginning: the completions of one prompt share the prompt. Everything but attention works token by token, and
runs on one row [1, U] of the U distinct tokens. Attention gathers queries, keys and values from it into the padded
batch [B, T], runs as it always does, and gives back one row again. On a CPU, where a call costs little, it goes from
sequence to sequence instead, with nothing padded and nothing twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "limbeck_packed"  # the name of the attention implementation


@dataclass(frozen=True, slots=True)
class Packing:
    """input_ids, position_ids [1, U]. spread [B * T]: the place in the row of each place in the batch (any, for
    padding). fold [U]: the inverse, for the sequence that brought the token. shape: (B, T). spans: on a CPU, for each
    sequence that brought any, where its own tokens begin and end in the row, and the places [length] of all its tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    spread: Tensor
    fold: Tensor
    shape: tuple[int, int]
    spans: tuple[tuple[int, int, Tensor], ...] = ()

    @property
    def no_mask(self) -> Tensor:
        """Four dimensions tell transformers to make none; `packed_attention` does not look at it."""
        return torch.zeros(1, 1, 1, 1, device=self.fold.device)

    def place(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Places [N] in the row of places in the batch."""
        return self.spread.view(self.shape)[rows, cols]


def pack(input_ids: Tensor, lengths: Tensor) -> Packing:
    """Right-padded ids [B, T] whose first `lengths` [B] count -> their distinct tokens. Beginnings are looked for in
    neighbouring rows only, so sequences that begin alike should stand together."""
    batch, width = input_ids.shape
    real = torch.arange(width, device=input_ids.device) < lengths[:, None]
    alike = (input_ids[1:] == input_ids[:-1]) & real[1:] & real[:-1]
    fresh = real.clone()
    fresh[1:] &= ~alike.cumprod(1).bool()
    number = fresh.flatten().cumsum(0).view(batch, width) - 1
    row = torch.arange(batch, device=input_ids.device)[:, None]
    owner = torch.where(fresh, row, -1).cummax(0).values  # the nearest row above that brought this column's token
    fold = fresh.flatten().nonzero().squeeze(-1)
    spread = number.gather(0, owner.clamp(min=0)).clamp(min=0)
    spans = []
    if input_ids.device.type == "cpu":
        ends = fresh.sum(1).cumsum(0).tolist()
        for begin, end, places, length in zip([0, *ends], ends, spread, lengths.tolist(), strict=False):
            if end > begin:
                spans.append((begin, end, places[:length]))
    return Packing(
        input_ids=input_ids.flatten()[fold][None],
        position_ids=(fold % width)[None],
        spread=spread.flatten(),
        fold=fold,
        shape=(batch, width),
        spans=tuple(spans),
    )


def pack_positions(input_ids: Tensor, rows: Tensor, cols: Tensor) -> Packing:
    """`pack` of all that the states at (rows [N], cols [N]) depend on; N > 0."""
    lengths = torch.zeros_like(input_ids[:, 0]).scatter_reduce(0, rows, cols + 1, "amax")
    return pack(input_ids[:, : int(lengths.max())], lengths)


def computed_positions(input_ids: Tensor, rows: Tensor, cols: Tensor, *, packs: bool) -> int:
    """How many positions `hidden_states` runs the model on for this batch. packs: as `enable_packing` said."""
    return pack_positions(input_ids, rows, cols).fold.numel() if packs and rows.numel() else input_ids.numel()


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' sdpa attention, [1, heads, U, D] -> [1, U, heads, D]; without a `packing` among the arguments it is
    just that."""
    packing: Packing | None = kwargs.pop("packing", None)
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if packing.spans:
        parts = [_attend(module, query, key, value, *span, **kwargs) for span in packing.spans]
        return torch.cat(parts, 1), None
    batch, width = packing.shape

    def spread(x: Tensor) -> Tensor:
        rows = x[0].transpose(0, 1).index_select(0, packing.spread)
        return rows.view(batch, width, *rows.shape[1:]).transpose(1, 2)

    out, _ = sdpa_attention_forward(module, spread(query), spread(key), spread(value), None, **kwargs)
    return out.flatten(0, 1).index_select(0, packing.fold)[None], None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, begin: int, end: int, places: Tensor, **kwargs: Any
) -> Tensor:
    """One sequence's own tokens, its last ones, to all of its tokens."""
    count, length = end - begin, places.numel()
    own = torch.ones(count, length, dtype=torch.bool).tril(length - count)[None, None] if count < length else None
    at = slice(begin, end)
    if own is None:
        key, value = key[:, :, at], value[:, :, at]
    else:
        key, value = key.index_select(2, places), value.index_select(2, places)
    return sdpa_attention_forward(module, query[:, :, at], key, value, own, **kwargs)[0]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)  # for calls that do not pack, such as `generate`
