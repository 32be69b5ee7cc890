"""Several teachers on one flag: read from JSON, YAML and Python, and refused where tags do not part the rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.config.flags import parse, to_yaml
from limbeck.config.flat import from_flat
from limbeck.config.routes import ModelRoute, ServerRoute
from limbeck.errors import ConfigError

TWO = [{"url": "http://a:1", "tags": ["math"]}, {"url": "http://b:2", "tags": ["code", "chat"]}]
BASE = ("--model", "student", "--dataset", "rows.jsonl")


def test_json_yaml_and_python_say_the_same(tmp_path: Path) -> None:
    from_json = parse("rlhf", [*BASE, "--teacher_model_server", json.dumps(TWO)])
    (tmp_path / "run.yaml").write_text(to_yaml(from_json))
    from_yaml = parse("rlhf", [str(tmp_path / "run.yaml")])
    from_python = from_flat({"model": "student", "dataset": ["rows.jsonl"], "teacher_model_server": TWO})
    assert from_json.teacher.teacher_model_server == [ServerRoute(**route) for route in TWO]
    assert from_json == from_yaml
    assert from_python.teacher == from_json.teacher


def test_one_name_stays_one() -> None:
    assert parse("rlhf", [*BASE, "--teacher_model", "teacher"]).teacher.teacher_model == "teacher"
    routes = parse("rlhf", [*BASE, "--teacher_model", '[{"model": "t", "tags": ["x"]}]']).teacher.teacher_model
    assert routes == [ModelRoute(model="t", tags=["x"])]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[{"url": "a", "tags": ["x"]}, {"url": "b", "tags": ["x"]}]', "gives the tag 'x' to two teachers"),
        ('[{"url": "a", "tags": []}]', "gives a no tags"),
        ('[{"url": "a"}]', "tags: Field required"),
        ('[{"url": "a", "tags": ["x"], "port": 1}]', "port: Extra inputs"),
        ('["a", "b"]', "got 2 names, and several teachers need tags"),
        ("[]", "names no teacher"),
        ('[{"url": "a"', "is not JSON"),
    ],
)
def test_what_is_no_routing_is_refused_with_an_example(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match="--teacher_model_server") as caught:
        parse("rlhf", [*BASE, "--teacher_model_server", text])
    assert what in str(caught.value)
    assert '"tags": ["math"]' in caught.value.fix


def test_the_key_of_a_server_is_never_written() -> None:
    config = parse("rlhf", [*BASE, "--teacher_model_server", "http://a:1", "--teacher_api_key", "secret"])
    assert config.teacher.teacher_api_key == "secret"
    assert "secret" not in to_yaml(config)
    assert "secret" not in repr(config)
