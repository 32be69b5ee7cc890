"""Rows of any known format -> examples -> prompt ids, response ids and a mask by construction."""

from limbeck.data.dropped import Dropped
from limbeck.data.formats import Example, to_example
from limbeck.data.preprocess import register_dataset
from limbeck.data.render import Rendered, render, render_all, show
from limbeck.data.sources import check_names, load_examples
from limbeck.data.turns import Message, RowError

__all__ = [
    "Dropped",
    "Example",
    "Message",
    "Rendered",
    "RowError",
    "check_names",
    "load_examples",
    "register_dataset",
    "render",
    "render_all",
    "show",
    "to_example",
]
