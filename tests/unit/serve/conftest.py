from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_running import Running, serving


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The tiny teacher, whose head is wider than its tokenizer; hidden states allowed, no key."""
    with serving(tiny / "teacher", tmp_path_factory.mktemp("head"), allow_hidden=True, max_model_len=200) as running:
        yield running


@pytest.fixture
def serve(tiny: Path, tmp_path: Path) -> Callable[..., Any]:
    """As `server`, with other limits."""
    return lambda **limits: serving(tiny / "teacher", tmp_path, **limits)
