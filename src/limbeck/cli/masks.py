"""A row as text, with what is trained in green."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from limbeck.data import Rendered, show


def masked(tokens: Rendered, tokenizer: Any) -> Text:
    """The row's text; targets in green and between ⟦ and ⟧, so that they show without colour too."""
    text = Text()
    learnt = False
    for piece, target in show(tokens, tokenizer):
        if target != learnt:
            text.append("⟦" if target else "⟧", style="green")
            learnt = target
        text.append(piece, style="green" if target else "dim")
    return text.append("⟧", style="green") if learnt else text
