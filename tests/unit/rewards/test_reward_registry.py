"""Names, plugin files, weights and columns."""

from __future__ import annotations

from dataclasses import fields

import pytest

from limbeck.config.schema import Reward as SchemaReward
from limbeck.errors import ConfigError
from limbeck.rewards import (
    RewardOptions,
    check_columns,
    load_plugin,
    named_rewards,
    register_reward,
    registry,
    reward_names,
    score,
)


@pytest.fixture(autouse=True)
def no_traces(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_plugins", {})
    monkeypatch.setattr("sys.path", [*__import__("sys").path])


def refused(call, *args, **options):
    with pytest.raises(ConfigError) as error:
        call(*args, **options)
    lines = str(error.value).splitlines()
    assert len(lines) == 3, lines
    return lines


def test_all_names_are_known():
    assert set(reward_names()) == {
        "accuracy", "cosine", "exact", "format", "reasoning_gym", "repetition", "soft_overlong",
    }  # fmt: skip
    rewards = named_rewards(["accuracy", "format"], [1, 0.5], RewardOptions())
    assert [(r.name, r.weight) for r in rewards] == [("accuracy", 1.0), ("format", 0.5)]


def test_what_is_refused():
    assert "did you mean accuracy?" in refused(named_rewards, ["acuracy"])[2]
    assert "--external_plugins" in refused(named_rewards, ["nothing_like_it"])[2]
    assert "2 rewards, but 1 weights" in refused(named_rewards, ["format", "exact"], [1.0])[0]
    assert "twice" in refused(named_rewards, ["format", "format"])[0]
    assert "nan" in refused(named_rewards, ["format"], [float("nan")])[0]


def test_registering():
    @register_reward("short")
    def short(completions):
        return [-float(len(text)) for text in completions]

    @register_reward("stateful")
    class Stateful:
        def __call__(self, completions, **columns):
            return [1.0] * len(completions)

    table = score(named_rewards(["short", "stateful"]), ["ab", "c"], [{}, {}])
    assert table.total.tolist() == [-1.0, 0.0]
    assert short(["abc"]) == [-3.0]
    for name in ("short", "accuracy"):
        assert "already" in refused(register_reward(name), short)[0]


def test_a_plugin_file(tmp_path):
    (tmp_path / "beside_the_plugin.py").write_text("VALUE = 4.0\n")
    plugin = tmp_path / "json.py"  # the name of a module that others import
    plugin.write_text(
        "from limbeck.rewards import register_reward\nfrom beside_the_plugin import VALUE\n"
        "@register_reward('four')\nasync def four(completions, **kwargs):\n    return [VALUE for _ in completions]\n"
    )
    assert load_plugin(plugin) == load_plugin(str(plugin)) == ["four"]
    assert score(named_rewards(["four"]), ["a"], [{}]).total.tolist() == [4.0]
    import json

    assert json.loads("1") == 1


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("x = 1\ndef f(:\n", 2, "SyntaxError"),
        ("import os\n\nimport no_such_module_anywhere\n", 3, "no_such_module_anywhere"),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError"),
        ("import sys\nsys.exit(1)\n", 2, "SystemExit"),
        (
            "from limbeck.rewards import register_reward\n@register_reward('accuracy')\ndef f(completions): ...\n",
            2,
            "already",
        ),
    ],
)
def test_a_plugin_that_does_not_load_is_named_with_its_line(tmp_path, text, line, said):
    plugin = tmp_path / "broken.py"
    plugin.write_text(text)
    lines = refused(load_plugin, plugin)
    assert said in lines[0] and lines[1].endswith(f"{plugin}:{line}")


def test_half_a_plugin_registers_nothing(tmp_path):
    plugin = tmp_path / "half.py"
    plugin.write_text("from limbeck.rewards import register_reward\nregister_reward('a')(print)\n1 / 0\n")
    refused(load_plugin, plugin)
    assert "a" not in reward_names()
    plugin.write_text("from limbeck.rewards import register_reward\nregister_reward('a')(print)\n")
    assert load_plugin(plugin) == ["a"]


def test_no_plugin_file(tmp_path):
    assert "no plugin file" in refused(load_plugin, tmp_path / "none.py")[0]
    (tmp_path / "plugin.txt").write_text("")
    assert "not a Python file" in refused(load_plugin, tmp_path / "plugin.txt")[0]


def test_columns_that_no_row_has():
    def wants(completions, completion_ids, level, hint=None, **kwargs):
        return [0.0]

    lines = refused(check_columns, named_rewards([wants]), {"dataset", "solution"})
    assert "wants needs the column level" in lines[0] and "dataset, solution" in lines[1]
    check_columns(named_rewards([wants]), {"level"})
    rewards = named_rewards(["accuracy", "exact", "format"])
    assert "solution or answer" in refused(check_columns, rewards, {"dataset"})[0]
    check_columns(rewards, {"answer"})
    check_columns(named_rewards(["format", print]), set())


def test_the_defaults_of_the_flags_are_those_of_the_rewards() -> None:
    options, flags = RewardOptions(), SchemaReward()
    shared = [f.name for f in fields(RewardOptions) if f.name in SchemaReward.model_fields]
    assert len(shared) >= 10
    assert {name: getattr(flags, name) for name in shared} == {name: getattr(options, name) for name in shared}
