"""`limbeck sft`: cross-entropy on the dataset's responses; the method's row without a teacher."""

from __future__ import annotations

from limbeck.cli.rlhf import run

__all__ = ["run"]
