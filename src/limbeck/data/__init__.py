"""Rows of any known format -> examples -> prompt ids, response ids and a mask by construction."""

from limbeck.data.formats import Example, Message, RowError, to_example
from limbeck.data.render import Rendered, render, render_all, show
from limbeck.data.sources import Dropped, load_examples

__all__ = [
    "Dropped",
    "Example",
    "Message",
    "Rendered",
    "RowError",
    "load_examples",
    "render",
    "render_all",
    "show",
    "to_example",
]
