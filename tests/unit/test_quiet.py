"""What is held back while we work, and that it is said again afterwards."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as theirs

from limbeck.quiet import HELD_BACK, SCHEDULER, quiet
from tests.support import env, make_folder, make_rows

TOKENIZERS = "transformers.tokenization_utils_base"
LONG = HELD_BACK[TOKENIZERS]
FROM_PYTHON = """
import sys, limbeck
from pathlib import Path
here = Path(sys.argv[1])
limbeck.distil(model=str(here / "student"), teacher_model=str(here / "student"), dataset=[str(here / "rows.jsonl")],
    output_dir=here / "run", max_steps=1, max_completion_length=4, lmbda=1, use_cpu=True)
print("after", file=sys.stderr)
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM.from_pretrained(here / "student")
AutoTokenizer.from_pretrained(here / "student")("a cat and a dog and a river and a tree")
"""


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A model whose tokenizer thinks that it reads eight tokens."""
    folder = make_folder(tmp_path / "student")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 8}))
    return folder


def test_from_python_nothing_but_our_own_words_and_afterwards_theirs_again(short: Path) -> None:
    make_rows(short.parent / "rows.jsonl", 4)
    argv = [sys.executable, "-c", FROM_PYTHON, str(short.parent)]
    done = subprocess.run(argv, capture_output=True, text=True, env=env(), timeout=300)
    assert done.returncode == 0, done.stderr
    before, after = done.stderr.split("after\n")
    assert before == ""
    assert "Loading weights" in after
    assert LONG in after


def test_all_is_as_it_was_after_an_error_too(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hook(factory, args, kwargs):
        return factory(*args, **kwargs)

    kept = theirs.set_tqdm_hook(hook)
    level, filters = logging.getLogger("transformers").level, list(logging.getLogger(TOKENIZERS).filters)
    shown = list(warnings.filters)
    try:
        with pytest.raises(KeyError), quiet(errors_only=True), quiet():
            AutoModelForCausalLM.from_pretrained(short)
            AutoTokenizer.from_pretrained(short)("a cat and a dog and a river and a tree")
            warnings.warn("Detected call of `lr_scheduler.step()` before `optimizer.step()`.", stacklevel=1)
            raise KeyError
        assert capsys.readouterr().err == ""
        assert theirs.set_tqdm_hook(hook) is hook
    finally:
        theirs.set_tqdm_hook(kept)
    assert logging.getLogger("transformers").level == level
    assert logging.getLogger(TOKENIZERS).filters == filters
    assert warnings.filters == shown
    assert not any(SCHEDULER in str(each) for each in warnings.filters)


def test_other_words_of_a_tokenizer_pass(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(TOKENIZERS)
    logger.addHandler(caplog.handler)
    try:
        with quiet():
            logger.warning(f"{LONG} 8")
            logger.warning("something else")
    finally:
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"something else"}
