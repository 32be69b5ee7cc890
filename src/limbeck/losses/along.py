"""What a divergence's pass over the head takes along: cross-entropy, or any function of a token's log-probability."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .reduce import check_weights, outside
from .tokens import Objective, differentiate


@dataclass(frozen=True)
class TokenTerm:
    """sum_t weights_t objective(log q(y_t), t), as in `linear_policy_loss`, beside a divergence in one pass.

    ids: y [N] int64. weights [N], 1 where None: a token of weight 0 is never looked at. temperature: of q.
    objective: None for the cross-entropy -log q(y), reported as "ce"; else "loss", "logp" and "entropy" are.
    """

    ids: Tensor
    weights: Tensor | None = None  # never None after `term_of`
    temperature: float = 1.0
    objective: Objective | None = None

    @property
    def name(self) -> str:
        return "ce" if self.objective is None else "loss"

    @property
    def stats(self) -> tuple[str, ...]:
        return ("ce",) if self.objective is None else ("loss", "logp", "entropy")

    def beside(self, weights: Tensor) -> Tensor:
        """The rows [n] that have this term, and no divergence of weights [N]."""
        assert self.weights is not None
        return ((weights == 0) & (self.weights != 0)).nonzero().squeeze(-1)

    def at(
        self, lq: Tensor, index: slice | Tensor, *, grads: bool, stats: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Log-probabilities [b, V] of the rows `index` -> values [b], the derivative of weight times value by
        log q(y) [b], and statistics; zeros at rows of weight 0."""
        assert self.weights is not None
        weights, none = self.weights[index], self.weights[index] == 0
        logp = lq.gather(-1, self.ids[index].unsqueeze(-1)).squeeze(-1).masked_fill(none, 0)
        if self.objective is None:
            return -logp, -weights, {}
        rows = torch.arange(index.start, index.stop, device=lq.device) if isinstance(index, slice) else index
        value, slope = differentiate(self.objective, logp, rows, weights, grads)
        found = {"logp": logp, "entropy": -(lq.exp() * lq).nansum(-1).masked_fill(none, 0)} if stats else {}
        return value.masked_fill(none, 0), slope.masked_fill(none, 0), found


def term_of(
    along: TokenTerm | None,
    ce_ids: Tensor | None,
    ce_weights: Tensor | None,
    *,
    rows: int,
    vocab: int,
    dtype: torch.dtype,
) -> TokenTerm | None:
    """The term to take along, its weights as numbers and its ids checked; None where there is none.

    Raises ValueError for both kinds at once, a wrong shape, and ids of non-zero weight that are not below vocab.
    """
    if ce_ids is None and ce_weights is not None:
        raise ValueError("ce_weights without ce_ids")
    if along is not None and ce_ids is not None:
        raise ValueError("one pass takes one term along: cross-entropy or another")
    term = TokenTerm(ce_ids, ce_weights) if ce_ids is not None else along
    if term is None:
        return None
    name = "ce_" if along is None else "along."
    if term.ids.shape != (rows,):
        raise ValueError(f"{name}ids must be [{rows}], got shape {tuple(term.ids.shape)}")
    if not term.temperature > 0:
        raise ValueError(f"temperature must be positive, got {term.temperature}")
    weights = check_weights(term.weights, rows, f"{name}weights")
    weights = torch.ones(rows, dtype=dtype, device=term.ids.device) if weights is None else weights.to(dtype)
    ids = torch.where(weights != 0, term.ids, 0)
    if outside(ids, vocab):
        raise ValueError(f"{name}ids of non-zero weight must lie below {vocab}")
    return replace(term, ids=ids, weights=weights)
