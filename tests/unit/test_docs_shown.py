"""What the documentation shows is what the program has: defaults, tables, listings, printed lines."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from limbeck.config.flags import all_flags
from limbeck.data import load_examples, render_all, to_example
from limbeck.models import gguf, load_tokenizer
from limbeck.models.head import HEAD_KEYS
from limbeck.rewards.monitors import HEDGING
from limbeck.teachers import connection, segments
from tests.e2e.test_command_line import gkd, run
from tests.support import metrics

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.rglob("*.md"))}
GENERATED = ("flags.md", "coming-from-ms-swift.md", "coming-from-trl.md")
# `--flag` (64), `--flag` lines (3), `--flag` (10 min)
GIVEN = re.compile(r"`--([a-z_]+)`(?: [a-z]+)? \((-?[\d.,]*\d)( min)?")
BESIDE = re.compile(r"`([a-z_]+)` (-?\d[\d.]*)(?=[,| ])")  # `flag` -0.5, in the tables of rewards


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, the head left out."""
    text = f"\n{PAGES[page]}".split(f"# {heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table
    return [[c.strip() for c in line.strip("|\n ").split(" | ")] for line in table.group().splitlines()[2:]]


def names(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)))


def defaults() -> list[tuple[str, str, float]]:
    found = [
        (page, flag, float(number.replace(",", "")) * (60 if minutes else 1))
        for page, text in PAGES.items()
        if page not in GENERATED
        for flag, number, minutes in GIVEN.findall(text)
    ]
    table = PAGES["rewards.md"].split("## By name", 1)[1].split("\n\nLengths", 1)[0]
    return found + [("rewards.md", flag, float(number)) for flag, number in BESIDE.findall(table)]


def test_there_are_defaults() -> None:
    assert len(defaults()) >= 18


@pytest.mark.parametrize(("page", "flag", "value"), defaults())
def test_a_default(page: str, flag: str, value: float) -> None:
    if flag not in all_flags():  # ms-swift's name, which stands beside ours
        assert flag == "max_new_tokens"
        return
    assert all_flags()[flag].info.default == value


def test_rows_are_read_as_their_table_says() -> None:
    told = PAGES["data.md"].split("## Rows", 1)[1].split("\n\n- Roles", 1)[0]
    examples = [json.loads(text) for text in re.findall(r"`(\{.*?\})`(?=[;| ])", told) if '"' in text]
    kinds = [to_example(row, origin="a.jsonl:1", tag="a").kind for row in examples[:-3]]
    assert kinds == ["messages", "conversations", "conversation", "prompt + completion", "prompt"]
    kinds = [to_example(row, origin="a.jsonl:1", tag="a").kind for row in examples[-3:]]
    assert kinds == ["prompt", "query + response", "instruction + input + output"]


def test_the_line_of_dropped_rows(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good, empty = {"prompt": "the cat", "completion": "sees"}, {"prompt": "the cat", "completion": " "}
    long = {"prompt": "the cat " * 100, "completion": "sees"}
    for name, rows in (("a", [good] * 3 + [empty] + [good] * 4 + [empty]), ("b", [good, long])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples, dropped = load_examples(["a.jsonl", "b.jsonl"], seed=0)
    tokenizer = load_tokenizer(str(tiny / "student"))
    _, over = render_all(examples, tokenizer, end_ids=frozenset({tokenizer.eos_token_id}), max_length=128)
    assert f"\n    {dropped.merge(over)}\n" in PAGES["data.md"]


def test_the_run_folder_is_what_its_page_says(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(*gkd(tiny, folder, "--lmbda", 1, "--val_dataset", tiny / "held_out.jsonl")) == 0
    files = {name.rstrip("/") for row in cells("run-folder.md", "The run folder") for name in names(row[0])}
    assert {re.sub(r"-\d+$", "-N", path.name) for path in folder.iterdir()} | {
        *("tensorboard", "wandb", "swanlog")  # of trackers
    } == files
    known = {name for row in cells("run-folder.md", "metrics.jsonl") for name in names(row[0])} | {"step", "kind"}
    rows = [row for kind in ("train", "eval") for row in metrics(folder, kind)]
    seen = {name.removeprefix("eval_") for row in rows for name in row}
    assert seen - {"rows", "refused"} <= known  # the two counts of an evaluation stand in its text
    assert {"eval_rows", "eval_tokens", "eval_refused"} <= names(PAGES["run-folder.md"])
    for file in ("completions.jsonl", "histograms.jsonl"):
        line = json.loads((folder / file).read_text().splitlines()[0])
        assert set(line) == {name for row in cells("run-folder.md", file) for name in names(row[0])}
    summary = set(json.loads((folder / "summary.json").read_text()))
    told = {name for row in cells("run-folder.md", "summary.json") for name in names(row[0])}
    assert summary <= told
    assert told - summary == {"answers", "collapse", "resumed_at"}


OPD_RL = (
    *("--rlhf_type", "grpo", "--lmbda", 1, "--reward_funcs", "format", "--num_generations", 4, "--beta", 0.1),
    *("--gradient_accumulation_steps", 4, "--steps_per_generation", 8, "--log_rollout_offpolicy_metrics", "true"),
)
TOPK = ("--gkd_logits_topk", 8, "--lmbda", 0)


@pytest.mark.parametrize("flags", [OPD_RL, TOPK, (*TOPK, "--topk_support", "union")])
def test_every_metric_has_its_line(tiny: Path, tmp_path: Path, flags: tuple) -> None:
    store = () if flags is OPD_RL else ("--teacher_cache", tmp_path / "store")
    assert run(*gkd(tiny, tmp_path / "run", *flags, *store)) == 0
    pages = ("run-folder.md", "rewards.md", "policy-losses.md", "teachers.md", "store.md")
    known = {name for page in pages for name in names(PAGES[page])} | {"step", "kind"}
    known |= {f"topk_{name}" for name in ("student_entropy", "teacher_entropy")}  # topk_forward_kl, ...
    seen = {re.sub("rewards/format/", "rewards/NAME/", name) for row in metrics(tmp_path / "run") for name in row}
    correction = "`rollout_correction/...`" in PAGES["policy-losses.md"]
    assert {name for name in seen if not (correction and name.startswith("rollout_correction/"))} <= known


def texts() -> str:
    """What the program can say: its strings, what is filled in as three dots."""
    found: list[str] = []
    for file in sorted((DOCS.parent / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(" ".join(node.value.split()))
    return "\n".join(found)


def test_warnings_and_notes_are_those_of_the_program() -> None:
    said = texts()
    told = [part for row in cells("troubleshooting.md", "Warnings and notes") for part in row[0].split(", ")]
    assert len(told) > 25
    loose = {"rows dropped", "rows cut", "is ... here"}  # "2 rows cut: ..." and "--lr is --learning_rate 1 here"
    assert [part for part in told if part not in said and part not in loose] == []


def test_tables_of_models() -> None:
    page = PAGES["models.md"]
    assert set(HEAD_KEYS) == {name for row in cells("models.md", "The output head") for name in names(row[0])}
    split = page.split("digits that must be single tokens (", 1)[1].split(")", 1)[0]
    assert names(split) == gguf.SPLIT_DIGITS
    whole = page.split("vocabulary words that are taken whole", 1)[1].split("\n", 1)[0]
    assert names(whole) <= gguf.WHOLE_WORDS


def test_numbers_that_stand_in_sentences() -> None:
    words = re.search(r"words of doubt \(`([^`]+)`", PAGES["run-folder.md"])
    assert words
    assert set(words[1].split()) == set(HEDGING)
    assert segments.HEADER.size == 52 - segments.CRC.size
    assert f"a header of {segments.HEADER.size + segments.CRC.size} bytes with a CRC-32 of its own" in PAGES["store.md"]
    assert f"zlib at level {segments.LEVEL}" in PAGES["store.md"]
    assert f"{(segments.STEPS + 1).bit_length()} bits" in PAGES["store.md"]
    passing = ", ".join(map(str, sorted(connection.PASSING)))
    assert f"HTTP {passing}, 5xx" in PAGES["teachers.md"]
    wait = f"after {connection.FIRST_WAIT:g} s and then twice as long each time up to {connection.LONGEST_WAIT:g} s"
    assert wait in PAGES["teachers.md"]


def test_endpoints_of_the_server() -> None:
    pytest.importorskip("fastapi")
    from limbeck.serve.app import router

    there = {f"{method} {route.path}" for route in router.routes for method in route.methods}  # type: ignore[attr-defined]
    assert there == {name for row in cells("server.md", "Endpoints") for name in names(row[0])}


def test_the_demo_has_one_set_of_numbers() -> None:
    readme = (DOCS.parent / "README.md").read_text().split("on its own fresh answers", 1)[0]
    rows = {row[0]: row[1:] for row in cells("choosing.md", "What our own runs say")}
    for name, shown in (
        ("forward KL", "forward KL(teacher || student)"),
        ("reverse KL", "reverse KL(student || teacher)"),
    ):
        line = next(line for line in readme.splitlines() if line.strip().startswith(shown))
        assert line.split()[-3:] == rows[name]
    line = next(line for line in readme.splitlines() if line.strip().startswith("favourite token agrees"))
    assert line.split()[-3:] == rows["favourite token agrees"]
