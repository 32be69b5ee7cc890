from __future__ import annotations

import pytest
from accelerate import Accelerator
from tests.support import make_model, make_tokenizer

from limbeck.errors import ConfigError
from limbeck.train.shard import layers, shard
from limbeck.train.student import StudentStep


def test_one_process_has_nothing_to_shard_over() -> None:
    model = make_model(make_tokenizer(), layers=3)
    assert layers(model) == list(model.model.layers)
    with pytest.raises(ConfigError, match="there is one process"):
        shard(StudentStep(model, lambda *a, **k: None, 320), Accelerator(cpu=True))  # type: ignore[arg-type]
