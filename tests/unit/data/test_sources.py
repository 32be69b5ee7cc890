"""Files, folders, sampling, and what is counted on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from limbeck.data import preprocess, sources
from limbeck.data.dropped import Dropped
from limbeck.data.preprocess import register_dataset
from limbeck.data.sources import check_names, load_examples
from limbeck.data.turns import RowError
from limbeck.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def prompts(examples):
    return [example.prompt for example in examples]


def test_jsonl_line_by_line(here):
    text = (
        '\ufeff{"prompt": "a\u2028b"}\n\n{"prompt": "b"\n"c"\r\n  \n{"prompt": "d", "dataset": "x"}\r\n{"prompt": "e"}'
    )
    (here / "a.jsonl").write_bytes(text.encode())
    examples, dropped = load_examples(["a.jsonl"], seed=0)
    assert prompts(examples) == ["a\u2028b", "d", "e"]
    assert [example.origin for example in examples] == ["a.jsonl:1", "a.jsonl:6", "a.jsonl:7"]
    assert [example.columns["dataset"] for example in examples] == ["a", "x", "a"]
    assert str(dropped) == "2 rows dropped: 1 not JSON (a.jsonl:3), 1 row is not an object (a.jsonl:4)"


def test_bytes_that_are_not_utf8_cost_one_row(here):
    (here / "a.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n{"prompt": "c"}\n')
    examples, dropped = load_examples(["a.jsonl"], seed=0)
    assert prompts(examples) == ["a", "c"]
    assert str(dropped) == "1 row dropped: 1 not UTF-8 (a.jsonl:2)"


def test_strict_raises_the_first_rows_error(here):
    name = write(here / "a.jsonl", [{"prompt": "a"}, {"prompt": ""}, {"prompt": 4}])
    with pytest.raises(RowError, match=r"a\.jsonl:2"):
        load_examples([name], seed=0, strict=True)
    (here / "b.jsonl").write_text('{"prompt": "a"}\n{"prompt" "b"}')
    with pytest.raises(RowError, match=r"b\.jsonl:2 .*column 11"):
        load_examples(["b.jsonl"], seed=0, strict=True)


def test_json_csv_parquet_agree_with_jsonl(here):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "a, b", "completion": "4", "n": "1"}, {"prompt": 'c\n"d"', "completion": "NA", "n": "2"}]
    (here / "a.json").write_text(json.dumps(rows, indent=1))
    write(here / "lines.json", rows)
    table = datasets.Dataset.from_list(rows)
    table.to_parquet("p.parquet")
    table.to_csv("c.csv", index=False)
    table.save_to_disk("saved")
    reference = load_examples([write(here / "a.jsonl", rows)], seed=0)[0]
    for name, tag, origin in [
        ("a.json", "a", "a.json:2"),
        ("lines.json", "lines", "lines.json:2"),
        ("p.parquet", "p", "p.parquet:2"),
        ("c.csv", "c", "c.csv:4"),  # the line on which the row ends
        ("saved", "saved", "saved:2"),
    ]:
        examples, dropped = load_examples([name], seed=0)
        assert prompts(examples) == prompts(reference), name
        assert [e.response for e in examples] == ["4", "NA"], name
        assert [e.columns for e in examples] == [{"n": "1", "dataset": tag}, {"n": "2", "dataset": tag}], name
        assert examples[1].origin == origin
        assert dropped.total == 0


def test_csv_cells(here):
    (here / "a.csv").write_text("prompt,completion\n2+2=,4\nonly a prompt,\nshort\na,b,c\n")
    examples, dropped = load_examples(["a.csv"], seed=0)
    assert [(e.prompt, e.response) for e in examples] == [("2+2=", "4"), ("only a prompt", None), ("short", None)]
    assert str(dropped) == "1 row dropped: 1 more cells than the header has (a.csv:5)"


def test_parquet_messages_of_unequal_shape(here):
    datasets = pytest.importorskip("datasets")
    turns = [{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "content": "yo", "name": "bot"}]
    datasets.Dataset.from_list([{"messages": turns, "prompt": None}]).to_parquet("m.parquet")
    (example,), _ = load_examples(["m.parquet"], seed=0)
    assert example.prompt == ({"role": "user", "content": "hi"},)
    assert example.response == ({"role": "assistant", "content": "yo", "name": "bot"},)


def test_a_folder_is_one_data_set(here):
    (here / "sums").mkdir()
    write(here / "sums" / "b.jsonl", [{"prompt": "b1"}, {"prompt": "b2"}])
    write(here / "sums" / "a.jsonl", [{"prompt": "a1"}])
    (here / "sums" / "README.md").write_text("sums")
    examples, _ = load_examples(["sums"], seed=0)
    assert prompts(examples) == ["a1", "b1", "b2"]
    assert {example.columns["dataset"] for example in examples} == {"sums"}
    assert examples[2].origin == os.path.join("sums", "b.jsonl") + ":2"
    assert len(load_examples(["sums#2"], seed=0)[0]) == 2


def test_n_rows_are_drawn_once_each_in_order_by_the_seed(here):
    name = write(here / "a.jsonl", [{"prompt": str(n)} for n in range(100)])
    one = prompts(load_examples([f"{name}#20"], seed=1)[0])
    assert len(set(one)) == 20
    assert one == sorted(one, key=int)
    assert one == prompts(load_examples([f"{name}#20"], seed=1)[0])
    assert one != prompts(load_examples([f"{name}#20"], seed=2)[0])
    assert one != [str(n) for n in range(20)]
    other = write(here / "b.jsonl", [{"prompt": "b"}])
    assert prompts(load_examples([other, f"{name}#20"], seed=1)[0]) == ["b", *one]


def test_n_rows_are_the_same_in_another_process(here):
    name = write(here / "a.jsonl", [{"prompt": str(n)} for n in range(100)])
    code = (
        "from limbeck.data.sources import load_examples\n"
        "print([e.prompt for e in load_examples(['a.jsonl#9'], seed=3, shuffle=True)[0]])"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], env=env, cwd=here, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(prompts(load_examples([f"{name}#9"], seed=3, shuffle=True)[0]))


def test_n_counts_usable_rows(here):
    rows = [{"prompt": str(n) if n % 2 else ""} for n in range(20)]
    name = write(here / "a.jsonl", rows)
    examples, dropped = load_examples([f"{name}#10"], seed=0)
    assert prompts(examples) == [str(n) for n in range(1, 20, 2)]
    assert dropped.total <= 10
    assert not dropped.notes
    examples, dropped = load_examples([f"{name}#11"], seed=0)
    assert len(examples) == 10
    assert str(dropped).endswith("; a.jsonl#11 has 10 usable rows: all taken")


def test_n_of_all_and_n_above(here):
    name = write(here / "a.jsonl", [{"prompt": str(n)} for n in range(5)])
    for wanted, said in ((5, ""), (6, "a.jsonl#6 has 5 usable rows: all taken")):
        examples, dropped = load_examples([f"{name}#{wanted}"], seed=0)
        assert prompts(examples) == list("01234")
        assert str(dropped) == said
        assert dropped.total == 0


def test_shuffle_mixes_data_sets_by_seed(here):
    names = [write(here / f"{tag}.jsonl", [{"prompt": f"{tag}{n}"} for n in range(30)]) for tag in "ab"]
    plain = prompts(load_examples(names, seed=0)[0])
    mixed = prompts(load_examples(names, seed=0, shuffle=True)[0])
    assert plain == [f"a{n}" for n in range(30)] + [f"b{n}" for n in range(30)]
    assert mixed != plain
    assert sorted(mixed) == sorted(plain)
    assert mixed == prompts(load_examples(names, seed=0, shuffle=True)[0])


def test_system_reaches_the_rows(here):
    name = write(here / "a.jsonl", [{"query": "hi"}])
    (example,), _ = load_examples([name], seed=0, system="Be brief.")
    assert [turn["role"] for turn in example.prompt] == ["system", "user"]


def test_a_file_with_a_number_sign_in_its_name(here):
    write(here / "a#1", [])
    (here / "a.jsonl#1").mkdir()
    write(here / "a.jsonl#1" / "b.jsonl", [{"prompt": "b"}, {"prompt": "c"}])
    assert len(load_examples(["a.jsonl#1"], seed=0)[0]) == 2


@pytest.mark.parametrize(
    ("spec", "what", "where"),
    [
        ("trian.jsonl", "no file trian.jsonl", "near: train.jsonl"),
        ("nowhere/train.jsonl", "no file nowhere/train.jsonl", "there is no folder nowhere either"),
        ("zzz", "no file zzz", "data set zzz"),
        ("empty.jsonl", "empty.jsonl holds no rows", "empty.jsonl"),
        ("blank.jsonl", "blank.jsonl holds no rows", "blank.jsonl"),
        ("empty.json", "empty.json holds no rows", "empty.json"),
        ("header.csv", "header.csv holds no rows", "header.csv"),
        ("notes.txt", "cannot read files of type .txt", "notes.txt"),
        ("broken.json", "broken.json is not JSON", "line 1"),
        ("train.jsonl#0", "cannot read the number of rows", "train.jsonl#0"),
        ("train.jsonl#many", "cannot read the number of rows", "train.jsonl#many"),
        ("train.jsonl#", "cannot read the number of rows", "train.jsonl#"),
        ("bad.jsonl", "no row of bad.jsonl can be used", "2 rows dropped: 1 not JSON (bad.jsonl:1), 1 empty prompt"),
        ("bad.parquet", "cannot load the data set bad.parquet", "bad.parquet"),
        ("void", "cannot load the data set void", "void"),
    ],
)
def test_data_sets_that_cannot_be_used(here, spec, what, where):
    write(here / "train.jsonl", [{"prompt": "a"}])
    (here / "empty.jsonl").touch()
    (here / "blank.jsonl").write_text("\n  \n")
    (here / "empty.json").write_text("[]")
    (here / "header.csv").write_text("prompt,completion\n")
    (here / "notes.txt").write_text("a")
    (here / "broken.json").write_text('[{"prompt": "a"')
    (here / "bad.jsonl").write_text('{"prompt"\n{"prompt": ""}\n')
    (here / "bad.parquet").write_text("not parquet")
    (here / "void").mkdir()
    with pytest.raises(DataError) as caught:
        load_examples([spec], seed=0)
    assert caught.value.what.startswith(what)
    assert where in caught.value.where
    assert len(str(caught.value).splitlines()) == 3


def test_hub_ids_go_through_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        if args[1] == "missing":
            raise ValueError("BuilderConfig 'missing' not found. Available: ['main']\nand more")
        return datasets.Dataset.from_list([{"prompt": str(n)} for n in range(4)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples, _ = load_examples(["org/sums:main#2"], seed=0)
    assert asked == [(("org/sums", "main"), {"split": "train", "streaming": False})]
    assert len(examples) == 2
    assert examples[0].columns["dataset"] == "org/sums"
    assert examples[0].origin == f"org/sums:main[train]:{int(examples[0].prompt) + 1}"
    with pytest.raises(DataError, match=r"cannot load the data set org/sums:missing\n.*Available: \['main'\]\n  fix"):
        load_examples(["org/sums:missing"], seed=0)


def test_dropped_in_words():
    dropped = Dropped()
    assert str(dropped) == ""
    dropped.add("longer than max_length 128", "b.jsonl:2")
    other = Dropped()
    for line in (4, 9):
        other.add("empty response", f"a.jsonl:{line}")
    dropped.merge(other)
    assert dropped.total == 3
    expected = "3 rows dropped: 2 empty response (a.jsonl:4, a.jsonl:9), 1 longer than max_length 128 (b.jsonl:2)"
    assert str(dropped) == expected
    for line in (11, 12):
        dropped.add("empty response", f"a.jsonl:{line}")
    assert "4 empty response (a.jsonl:4, a.jsonl:9, a.jsonl:11, ...)" in str(dropped)
    assert other.total == 2  # merging leaves the other as it was
    dropped.cut("on the right to max_length 8", "a.jsonl:1")
    assert str(dropped).endswith("; 1 row cut: 1 on the right to max_length 8 (a.jsonl:1)")
    assert dropped.total == 5


def jsonl(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_a_stream_takes_the_first_rows_and_reads_no_further(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "0"}\n\nno json\n{"prompt": "1"}\n\xff\xfe never read\n')
    examples, dropped = load_examples([f"{path}#2"], seed=0, streaming=True)
    assert [(e.prompt, e.origin) for e in examples] == [("0", f"{path}:1"), ("1", f"{path}:4")]
    assert str(dropped) == f"1 row dropped: 1 not JSON ({path}:3)"
    examples, dropped = load_examples([f"{path}#9"], seed=0, streaming=True)
    assert [e.prompt for e in examples] == ["0", "1"]
    assert f"{path}#9 has 2 usable rows: all taken" in str(dropped)


def test_a_stream_from_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    pulled = []

    def rows():
        for n in range(100):
            pulled.append(n)
            yield {"prompt": str(n)}

    def load_dataset(*args, streaming, **options):
        assert streaming
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples, _ = load_examples(["org/sums#3"], seed=0, streaming=True)
    assert [(e.prompt, e.origin) for e in examples] == [(str(n), f"org/sums[train]:{n + 1}") for n in range(3)]
    assert pulled == [0, 1, 2]
    assert len(load_examples(["org/sums#300"], seed=0, streaming=True)[0]) == 100
    with pytest.raises(DataError, match="how many rows"):
        load_examples(["org/sums"], seed=0, streaming=True)


def test_columns_and_how_rows_were_read(tmp_path):
    one = jsonl(tmp_path / "one.jsonl", {"question": "2+2?", "answer": "4"}, {"prompt": "3+3="})
    columns = {"question": "query", "answer": "response"}
    examples, dropped = load_examples([one], seed=0, columns=columns)
    assert [e.response for e in examples] == ["4", None]
    assert dropped.kinds == {f"{one}: query + response": 1, f"{one}: prompt": 1}
    assert check_names(columns, dropped) == []
    with pytest.raises(DataError, match="no row has the column reply"):
        check_names(columns | {"reply": "x"}, dropped)


@pytest.fixture
def no_preprocessors(monkeypatch):
    monkeypatch.setattr(preprocess, "registered", registered := {})
    monkeypatch.setattr(sources, "registered", registered)


@pytest.mark.parametrize("by", ["path", "stem"])
def test_preprocessors(tmp_path, no_preprocessors, by):
    path = jsonl(tmp_path / "sums.jsonl", {"a": 2, "b": 2}, {"a": 9, "b": 9}, {"a": 3, "b": 3})
    other = jsonl(tmp_path / "other.jsonl", {"prompt": "hi"})

    @register_dataset({"path": path, "stem": "sums"}[by])
    def sums(row):
        return {"prompt": f"{row['a']}+{row['b']}=", "completion": str(row["a"] + row["b"])} if row["a"] < 9 else None

    examples, dropped = load_examples([path, other], seed=0)
    assert [(e.prompt, e.response) for e in examples] == [("2+2=", "4"), ("3+3=", "6"), ("hi", None)]
    name = {"path": path, "stem": "sums"}[by]
    assert str(dropped) == f"1 row dropped: 1 left out by the preprocessor of {name} ({path}:2)"
    assert check_names({}, dropped) == []
    assert check_names({}, load_examples([other], seed=0)[1]) == [
        f"no data set is called {name!r}: its preprocessor has nothing to do"
    ]


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda row: row["absent"], "the preprocessor of 'sums' fails: KeyError: 'absent'"),
        (lambda row: [row], "the preprocessor of 'sums' gives neither a row nor None"),
    ],
)
def test_a_preprocessor_that_fails_stops_the_run(tmp_path, no_preprocessors, function, what):
    path = jsonl(tmp_path / "sums.jsonl", {"prompt": "2+2="})
    register_dataset("sums")(function)
    with pytest.raises(DataError) as caught:
        load_examples([path], seed=0)
    assert caught.value.what == what
    assert f"{path}:1" in caught.value.where
    assert "mend the preprocessor" in caught.value.fix
    with pytest.raises(ConfigError, match="already"):
        register_dataset("sums")(function)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_streaming_takes_the_first_rows_of_any_file(tmp_path, suffix):
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(40)]
    file = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "json":
        file.write_text(json.dumps(rows))
    elif suffix == "csv":
        file.write_text("prompt,completion\n" + "".join(f"p{i},c{i}\n" for i in range(40)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    first, _ = load_examples([f"{file}#3"], seed=1, streaming=True)
    drawn, _ = load_examples([f"{file}#3"], seed=1)
    assert [example.prompt for example in first] == ["p0", "p1", "p2"]
    assert [example.prompt for example in drawn] != ["p0", "p1", "p2"]


def test_what_else_lies_in_a_folder_is_told_of(tmp_path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"prompt": "hi"}\n')
    (tmp_path / "notes.txt").write_text("hi")
    (tmp_path / "c.jsonl.gz").write_bytes(b"")
    (tmp_path / "more").mkdir()
    (tmp_path / ".hidden").write_text("")
    examples, dropped = load_examples([str(tmp_path)], seed=0)
    assert len(examples) == 2
    assert dropped.notes == [f"{tmp_path} also holds 3 entries that are not read as rows (c.jsonl.gz, more, notes.txt)"]
