"""argv + YAML -> configuration: precedence, spellings, places, suggestions, and the way back to YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from limbeck.config import Config, parse, resolve_defaults, to_yaml
from limbeck.config.beside import EvalConfig, GenerateConfig, PlanConfig, ShrinkConfig
from limbeck.config.flags import located, read
from limbeck.errors import ConfigError

BASE = ("--model", "m", "--dataset", "d")


def rlhf(*words: str) -> Config:
    config = parse("rlhf", [*BASE, *words])
    assert isinstance(config, Config)
    return config


def error_of(command: str, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(command, words)
    return str(caught.value)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(text: str) -> str:
        Path("run.yaml").write_text(text)
        return "run.yaml"

    return make


def test_default_then_yaml_then_flag(write):
    path = write("model: m\ndataset: d\nlearning_rate: 1e-5\nlora_rank: 16\n")
    config = parse("rlhf", [path, "--lora-rank", "32"])
    assert (config.optim.learning_rate, config.model.lora_rank, config.model.lora_alpha) == (1e-5, 32, 32)


def test_yaml_flat_by_room_and_mixed_are_the_same(write):
    flat = parse("rlhf", [write("model: m\ndataset: [a, b]\nlmbda: 1\ntemperature: 0.5\n")])
    rooms = parse(
        "rlhf", [write("model:\n  model: m\ndata:\n  dataset: [a, b]\nmethod:\n  lmbda: 1\ntemperature: 0.5")]
    )
    assert flat == rooms
    assert flat.data.dataset == ["a", "b"]


@pytest.mark.parametrize("words", [["--lora-rank", "4"], ["--lora_rank", "4"], ["--lora_rank=4"], ["--lora-rank=4"]])
def test_dash_underscore_and_equals(words):
    assert rlhf(*words).model.lora_rank == 4


def test_a_yaml_key_may_have_dashes(write):
    assert parse("rlhf", [write("model: m\ndataset: d\nlora-rank: 3\n")]).model.lora_rank == 3


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--use_cpu"], True),
        (["--use_cpu", "true"], True),
        (["--use_cpu=true"], True),
        (["--use_cpu", "false"], False),
        (["--use_cpu=false"], False),
        (["--use-cpu", "False"], False),
        ([], False),
    ],
)
def test_switches(words, value):
    assert rlhf(*words).run.use_cpu is value


def test_a_switch_before_another_flag():
    assert rlhf("--use_cpu", "--seed", "7").run.model_dump(include={"use_cpu", "seed"}) == {"use_cpu": True, "seed": 7}


def test_lists_tables_and_negative_numbers():
    config = rlhf("--dataset", "a", "b#5", "--lr_scheduler_kwargs", '{"min_lr": 1e-6}', "--max_steps", "-1")
    assert config.data.dataset == ["a", "b#5"]
    assert config.optim.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert config.optim.max_steps == -1
    assert rlhf("--dataset", '["a", "b c"]').data.dataset == ["a", "b c"]


def test_none_opens_an_optional_value_again(write):
    path = write("model: m\ndataset: d\nmax_length: 5\n")
    assert parse("rlhf", [path, "--max_length", "none"]).data.max_length is None
    assert parse("rlhf", [path, "--resume_from_checkpoint", "none"]).run.resume_from_checkpoint == "none"


def test_a_value_that_looks_like_a_flag_goes_after_equals():
    assert rlhf("--system=--be brief").data.system == "--be brief"


def test_yaml_no_is_the_choice_no(write):
    config = parse("rlhf", [write("model: m\ndataset: d\nsave_strategy: no\neval_strategy: no\nmixed_precision: no\n")])
    assert (config.run.save_strategy, config.run.eval_strategy, config.optim.mixed_precision) == ("no", "no", "no")


def test_a_flag_given_twice_counts_once_and_is_noted():
    parsed = read("rlhf", [*BASE, "--seed", "1", "--seed", "2"])
    assert parsed.config.run.seed == 2
    assert parsed.notes == ["--seed is given twice, and the last one counts: --seed 2"]


def test_where_every_value_was_given(write):
    parsed = read("rlhf", [write("model: m\n\ndataset:\n  - a\nmethod:\n  beta: 1   # reverse\n"), "--lora-rank=4"])
    assert parsed.where == {
        "model": "run.yaml:1  model: m",
        "dataset": "run.yaml:3  dataset:",
        "beta": "run.yaml:6  beta: 1   # reverse",
        "lora_rank": "--lora_rank 4",
    }


def test_a_later_error_is_placed_in_the_file():
    error = ConfigError("two", where="--teacher_model t, --beta 2", fix="one")
    placed = located(error, {"beta": "run.yaml:7  beta: 2", "seed": "--seed 1"})
    assert placed.where == "run.yaml:7  beta: 2"
    assert located(ConfigError("row", where="a.jsonl:3"), {"beta": "x"}).where == "a.jsonl:3"


# ---------------------------------------------------------------- errors, word for word

FLAG_ERRORS = {
    "unknown flag": (
        ["--learing-rate", "1"],
        "error: unknown flag --learing_rate\n  where: --learing_rate 1\n  fix:   did you mean --learning_rate?",
    ),
    "nothing near": (
        ["--xyzzy", "1"],
        "error: unknown flag --xyzzy\n  where: --xyzzy 1\n  fix:   see `limbeck rlhf --help` for all that there are",
    ),
    "no value": (
        ["--beta"],
        "error: --beta needs a value\n  where: --beta\n  fix:   write --beta VALUE",
    ),
    "two values": (
        ["--system", "be", "brief"],
        "error: --system takes one value and got 2\n  where: --system be brief\n"
        '  fix:   put a value with spaces in quotes: --system "be brief"',
    ),
    "no number": (
        ["--beta", "half"],
        "error: --beta is not a number\n  where: --beta half\n  fix:   give a number such as 0.5",
    ),
    "no whole number": (
        ["--lora_rank", "2.5"],
        "error: --lora_rank is not a whole number\n  where: --lora_rank 2.5\n  fix:   give a whole number such as 4",
    ),
    "no truth": (
        ["--use_cpu", "perhaps"],
        "error: --use_cpu is neither true nor false\n  where: --use_cpu perhaps\n  fix:   write true or false",
    ),
    "too small": (
        ["--lora_rank", "0"],
        "error: --lora_rank must be at least 1\n  where: --lora_rank 0\n  fix:   give 1 or more",
    ),
    "too large": (
        ["--lmbda", "2"],
        "error: --lmbda must be at most 1\n  where: --lmbda 2\n  fix:   give 1 or less",
    ),
    "no choice": (
        ["--topk_mode", "tial"],
        "error: --topk_mode has no choice 'tial'\n  where: --topk_mode tial\n"
        "  fix:   did you mean tail? (choose one of: tail, renorm)",
    ),
    "no JSON": (
        ["--lr_scheduler_kwargs", "min_lr"],
        "error: --lr_scheduler_kwargs is not JSON\n  where: --lr_scheduler_kwargs min_lr\n"
        "  fix:   write it as --lr_scheduler_kwargs '{\"min_lr\": 1e-6}'",
    ),
    "no tracker": (
        ["--report_to", "tensorbord"],
        "error: --report_to has no choice 'tensorbord'\n  where: --report_to tensorbord\n"
        "  fix:   did you mean tensorboard? (choose one of: tensorboard, wandb, swanlab, trackio)",
    ),
    "two at once": (
        ["--lora_rank", "0", "--beta", "x"],
        "error: --lora_rank must be at least 1 (and --beta is wrong too)\n  where: --lora_rank 0\n"
        "  fix:   give 1 or more",
    ),
}


@pytest.mark.parametrize("name", FLAG_ERRORS)
def test_errors_in_flags(name):
    words, text = FLAG_ERRORS[name]
    assert error_of("rlhf", *BASE, *words) == text


YAML_ERRORS = {
    "unknown key": (
        "model: m\n\nmethod:\n  bta: 1\n",
        "error: unknown key bta\n  where: run.yaml:4  bta: 1\n  fix:   did you mean beta?",
    ),
    "unknown room": (
        "model: m\nrolout:\n  temperature: 1\n",
        "error: unknown key rolout\n  where: run.yaml:2  rolout:\n  fix:   did you mean rollout?",
    ),
    "bad value": (
        "model: m\ndataset: d\nlora_rank: many\n",
        "error: --lora_rank is not a whole number\n  where: run.yaml:3  lora_rank: many\n"
        "  fix:   give a whole number such as 4",
    ),
    "twice": (
        "model: m\nbeta: 1\nmethod:\n  beta: 0\n",
        "error: beta is given twice\n  where: run.yaml:2  beta: 1, run.yaml:4  beta: 0\n  fix:   keep one of the two",
    ),
    "no mapping": (
        "- model\n",
        "error: run.yaml must be settings, one a line\n  where: run.yaml:1\n"
        "  fix:   write `key: value`, flat or under a room's name",
    ),
    "no YAML": (
        "model: m\ndataset: [a\n",
        "error: run.yaml is not YAML: expected ',' or ']', but got '<stream end>'\n  where: run.yaml:3\n"
        "  fix:   check indentation and quotes",
    ),
    "a flag of ms-swift": (
        "model: m\ndataset: d\nuse_vllm: true\n",
        "error: --use_vllm is a flag of ms-swift that Limbeck has not\n  where: run.yaml:3  use_vllm: true\n"
        "  fix:   leave it out: responses are sampled with transformers' generate in this version",
    ),
}


@pytest.mark.parametrize("name", YAML_ERRORS)
def test_errors_in_yaml_name_the_line(name, write):
    text, expected = YAML_ERRORS[name]
    assert error_of("rlhf", write(text)) == expected


def test_a_file_that_is_not_there():
    assert error_of("rlhf", "absent.yaml") == (
        "error: cannot read absent.yaml: No such file or directory\n  where: absent.yaml\n"
        "  fix:   the first argument is a YAML file; flags begin with --"
    )


def test_an_empty_file_says_nothing(write):
    assert parse("rlhf", [write("# later\n"), *BASE]) == rlhf()


@pytest.mark.parametrize(
    ("command", "words", "missing", "example"),
    [
        ("rlhf", ["--dataset", "d"], "model", "--model Qwen/Qwen3-0.6B"),
        ("sft", ["--model", "m"], "dataset", "--dataset rows.jsonl"),
        ("generate", BASE, "result_path", "--result_path answers.jsonl"),
        ("shrink", ["--model", "m", "--num_layers", "2"], "output_dir", "--output_dir student"),
    ],
)
def test_what_is_missing_is_named(command, words, missing, example):
    assert error_of(command, *words) == (
        f"error: limbeck {command} needs --{missing}\n  where: limbeck {command}\n  fix:   add {example}"
    )


# ---------------------------------------------------------------- the commands


def test_sft_has_no_teacher(write):
    path = write("model: m\ndataset: d\nrlhf_type: gkd\nteacher_model: t\nlmbda: 0.5\n")
    parsed = read("sft", [path])
    assert parsed.config.method.rlhf_type is None
    assert parsed.notes == ["limbeck sft does not use rlhf_type, teacher_model of run.yaml"]
    text = "model: m\ndataset: d\nrlhf_type: gkd\nteacher_model: t\nbeta: 0\n"
    path = write(f"{text}topk_mode: renorm\nteacher_source: model\nsft_alpha: 1\n")
    note = "limbeck sft does not use rlhf_type, teacher_model, beta, topk_mode and 2 other keys of run.yaml"
    assert read("sft", [path]).notes == [note]
    assert error_of("sft", *BASE, "--teacher_model", "t") == (
        "error: limbeck sft does not use --teacher_model\n  where: --teacher_model t\n"
        "  fix:   leave it out (`limbeck rlhf`, `limbeck eval`, `limbeck data score`, `limbeck plan` use it)"
    )


def test_rlhf_does_not_run_what_sft_wrote(write):
    text = error_of("rlhf", write("model: m\ndataset: d\nrlhf_type: null\n"))
    assert "limbeck rlhf needs --rlhf_type" in text
    assert "limbeck sft" in text


def test_plan_describes_either(write):
    plan = parse("plan", [*BASE, "--rlhf_type", "none", "--write", "out.yaml"])
    assert isinstance(plan, PlanConfig)
    assert plan.method.rlhf_type is None
    assert plan.plan.write == Path("out.yaml")


def test_generate_has_its_own_rooms():
    config = parse("generate", [*BASE, "--result_path", "o.jsonl", "--temperature", "0", "--max_new_tokens", "9"])
    assert isinstance(config, GenerateConfig)
    assert (config.output.result_path, config.rollout.temperature) == (Path("o.jsonl"), 0)
    assert config.rollout.max_completion_length == 9
    assert "does not use --lora_rank" in error_of("generate", *BASE, "--result_path", "o", "--lora_rank", "3")


def test_shrink_takes_one_of_two():
    config = parse("shrink", ["--model", "m", "--output_dir", "o", "--keep_layers", "0", "2"])
    assert isinstance(config, ShrinkConfig)
    assert config.shrink.keep_layers == [0, 2]
    assert error_of("shrink", "--model", "m", "--output_dir", "o") == (
        "error: limbeck shrink needs --num_layers\n  fix:   add --num_layers 12, or --keep_layers 0 1 2 11"
    )
    both = error_of("shrink", "--model", "m", "--output_dir", "o", "--num_layers", "2", "--keep_layers", "0")
    assert both.startswith("error: --num_layers and --keep_layers both say which layers stay")


def test_eval_takes_the_held_out_rows_of_a_runs_own_file(write):
    path = write("data:\n  val_dataset: [held]\n  dataset: [train]\nmodel: m\nlmbda: 1\nteacher_model: t\n")
    parsed = read("eval", [path, "--model", "run/last"])
    assert isinstance(parsed.config, EvalConfig)
    assert parsed.config.data.dataset == ["held"]
    assert parsed.config.model.model == "run/last"
    assert parsed.notes == ["limbeck eval does not use lmbda of run.yaml"]


# ---------------------------------------------------------------- back to YAML


FULL = [
    *("--teacher_model", "t", "--beta", "0", "--lmbda", "1", "--dataset", "a", "b#3", "--val_dataset", "v"),
    *("--learning_rate", "1e-5", "--max_time", "2h", "--output_dir", "some/where", "--save_strategy", "no"),
    *("--lr_scheduler_kwargs", '{"min_lr": 1e-7}', "--system", "Überlege: yes", "--report_to", "tensorboard"),
]


@pytest.mark.parametrize("command", ["rlhf", "sft", "plan"])
@pytest.mark.parametrize("resolved", [False, True])
def test_yaml_round_trip(command, resolved, write):
    words = FULL if command != "sft" else FULL[FULL.index("--dataset") :]
    config = parse(command, ["--model", "m", *words])
    assert isinstance(config, Config)
    if resolved:
        config, _ = resolve_defaults(config, world_size=2)
    parsed = read(command, [write(to_yaml(config))])
    assert parsed.config == config
    assert parsed.notes == []


def test_yaml_is_by_room_and_plain():
    tree = yaml.safe_load(to_yaml(rlhf("--output_dir", "o")))
    assert list(tree) == [
        "model",
        "data",
        "method",
        "policy",
        "reward",
        "teacher",
        "rollout",
        "optim",
        "run",
        "report",
        "hub",
    ]
    assert tree["run"]["output_dir"] == "o"


@pytest.mark.parametrize("given", [(), (0.25, 0.3, 0.1), (0, 0.3, -0.01)])
def test_position_weights(given):
    words = ["--position_weights", *map(str, given)] if given else []
    assert parse("rlhf", ["--model", "m", "--dataset", "d", *words]).method.position_weights == list(given)


@pytest.mark.parametrize("given", [("0.25",), ("1", "0.3", "0.1"), ("-0.1", "0.3", "0.1"), ("0.25", "0.3", "0")])
def test_position_weights_that_are_no_ramp(given):
    with pytest.raises(ConfigError) as caught:
        parse("rlhf", ["--model", "m", "--dataset", "d", "--position_weights", *given])
    assert caught.value.what == "--position_weights is not a ramp of three numbers"
    assert "0.25 0.3 0.1" in caught.value.fix
