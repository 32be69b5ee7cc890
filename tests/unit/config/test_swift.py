"""ms-swift's commands: every flag of its published examples is ours, renamed, without need, or refused with advice."""

from __future__ import annotations

import dataclasses

import pytest
from tests.unit.config.swift_names import NAMES
from transformers import TrainingArguments

from limbeck.config import parse, trl
from limbeck.config.commands import COMMANDS
from limbeck.config.flags import all_flags, flags_of, read
from limbeck.config.swift import DIFFERENCES, FLAGS, NotNeeded, Refused, Renamed, lookup
from limbeck.errors import ConfigError

# What the published examples for GKD, OPD-RL, OPSD and SFT pass, as data.
EXAMPLE_FLAGS = [
    "rlhf_type",
    "model",
    "teacher_model",
    "train_type",
    "tuner_type",
    "dataset",
    "split_dataset_ratio",
    "seq_kd",
    "lmbda",
    "beta",
    "torch_dtype",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "learning_rate",
    "gradient_accumulation_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "max_length",
    "max_completion_length",
    "output_dir",
    "warmup_ratio",
    "save_only_model",
    "dataloader_num_workers",
    "dataset_num_proc",
    "deepspeed",
    "attn_impl",
    "use_vllm",
    "vllm_mode",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_gpu_memory_utilization",
    "vllm_tensor_parallel_size",
    "vllm_max_model_len",
    "sleep_level",
    "teacher_deepspeed",
    "teacher_model_server",
    "gkd_logits_topk",
    "report_to",
    "temperature",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "packing",
    "sft_alpha",
    "enable_thinking",
    "loss_scale",
    "multi_turn_scheduler",
    "max_turns",
    "truncation_strategy",
    "log_completions",
    "advantage_estimator",
    "offload_model",
    "offload_optimizer",
    "offload_teacher_model",
    "num_generations",
    "num_iterations",
    "external_plugins",
    "gradient_checkpointing",
    "teacher_model_group",
    "use_mopd",
    "reward_funcs",
    "columns",
    "load_from_cache_file",
    "lr_scheduler_type",
    "system",
    "max_grad_norm",
    "epsilon",
    "epsilon_high",
    "scale_rewards",
    "model_author",
    "model_name",
    "freeze_vit",
    "infer_backend",
    "val_dataset",
    "max_new_tokens",
    "write_batch_size",
    "result_path",
    "gpu_memory_utilization",
    "max_model_len",
    "seed",
]


@pytest.mark.parametrize("flag", EXAMPLE_FLAGS)
def test_every_flag_of_the_examples_is_known(flag):
    assert flag in all_flags() or lookup(flag) is not None


@pytest.mark.parametrize("group", NAMES)
def test_every_name_of_its_argument_classes_is_known(group):
    known = {alias for command in COMMANDS.values() for alias in command.aliases} | set(all_flags()) | set(trl.FLAGS)
    assert not [name for name in NAMES[group].split() if name not in known and lookup(name) is None]


def test_every_name_of_transformers_training_arguments_is_known():
    names = [field.name for field in dataclasses.fields(TrainingArguments)]
    known = set(all_flags()) | set(trl.FLAGS)
    assert len(names) > 100 and not [name for name in names if name not in known and lookup(name) is None]


def test_the_table_says_nothing_of_our_own_flags():
    assert sorted(set(FLAGS) & set(all_flags())) == []


def test_renamed_flags_lead_to_ours():
    targets = {entry.to for entry in FLAGS.values() if isinstance(entry, Renamed)}
    assert targets <= set(all_flags())


def test_every_entry_speaks():
    for name, entry in FLAGS.items():
        match entry:
            case NotNeeded(why=text) | Refused(instead=text):
                assert len(text) > 10, name
            case Renamed():
                pass


def test_differences_name_our_flags():
    names = {name.strip() for item in DIFFERENCES for name in item.flag.split(",")}
    assert names <= set(flags_of(COMMANDS["rlhf"].config))


OFFLINE = (
    "--rlhf_type gkd --model s --teacher_model t --train_type full --dataset new_dataset.jsonl --torch_dtype bfloat16 "
    "--num_train_epochs 1 --per_device_train_batch_size 4 --per_device_eval_batch_size 4 --learning_rate 1e-5 "
    "--gradient_accumulation_steps 1 --eval_steps 100 --save_steps 100 --save_total_limit 2 --logging_steps 5 "
    "--max_length 2048 --output_dir output --warmup_ratio 0.05 --save_only_model true --dataloader_num_workers 4 "
    "--dataset_num_proc 4 --attn_impl flash_attn --seq_kd false --lmbda 0"
)


def test_a_published_gkd_command_runs():
    parsed = read("rlhf", OFFLINE.split())
    config = parsed.config
    assert (config.model.tuner_type, config.model.attn_impl, config.method.lmbda) == ("full", "flash_attention_2", 0)
    assert [note.split()[0] for note in parsed.notes] == [
        "--train_type",
        "--save_only_model",
        "--dataloader_num_workers",
        "--dataset_num_proc",
    ]


def test_all_refusals_at_once():
    words = [*OFFLINE.split(), "--deepspeed", "zero3", "--use_vllm", "true", "--vllm_mode", "colocate"]
    with pytest.raises(ConfigError) as caught:
        parse("rlhf", words)
    assert caught.value.what == "--deepspeed, --use_vllm, --vllm_mode are flags of ms-swift that Limbeck has not"
    assert "--use_vllm, --vllm_mode: leave it out" in caught.value.fix


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--bf16", "true"], "bf16"),
        (["--bf16", "true", "--fp16", "false"], "bf16"),
        (["--bf16"], "bf16"),
        (["--bf16", "false"], "auto"),
    ],
)
def test_bf16_is_a_choice_and_fp16_is_refused(words, expected):
    assert parse("rlhf", ["--model", "m", "--dataset", "d", *words]).optim.mixed_precision == expected
    with pytest.raises(ConfigError, match="fp16"):
        parse("rlhf", ["--model", "m", "--dataset", "d", *words, "--fp16", "true"])


def test_a_renamed_key_of_a_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndataset: d\nbf16: true\ntrain_type: full\nattn_impl: flash_attn\n")
    config = parse("rlhf", [str(path)])
    assert config.optim.mixed_precision == "bf16"
    assert (config.model.tuner_type, config.model.attn_impl) == ("full", "flash_attention_2")


@pytest.mark.parametrize("words", [["--use_vllm", "false"], ["--seq_kd=false"], ["--packing", "false"]])
def test_a_feature_that_is_switched_off_is_no_matter(words):
    assert read("rlhf", ["--model", "m", "--dataset", "d", *words]).notes == []


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("default", "default"),
        ("last_round", "last_round"),
        ("ignore_empty_think", "ignore_empty_think"),
        ("default+ignore_empty_think", "ignore_empty_think"),
        ("last_round+ignore_empty_think", "last_round_with_ignore_empty_think"),
        ("last_round+-", "last_round"),
    ],
)
def test_loss_scales(given, ours):
    assert parse("rlhf", ["--model", "m", "--dataset", "d", "--loss_scale", given]).data.loss_scale == ours


@pytest.mark.parametrize("given", ["all", "hermes", "last_round+react"])
def test_loss_scales_that_weigh_are_refused_with_the_reason(given):
    with pytest.raises(ConfigError) as caught:
        parse("rlhf", ["--model", "m", "--dataset", "d", "--loss_scale", given])
    assert "each token once" in caught.value.what
    assert caught.value.where == f"--loss_scale {given}"
    assert "loss" in caught.value.fix


def test_a_system_message_may_lie_in_a_text_file(tmp_path):
    words = ["--model", "m", "--dataset", "d", "--system"]
    file = tmp_path / "prompt.txt"
    file.write_text("Think first.\nThen answer.\n")
    assert parse("rlhf", [*words, str(file)]).data.system == "Think first.\nThen answer."
    assert parse("rlhf", [*words, "You write .txt files."]).data.system == "You write .txt files."
    with pytest.raises(ConfigError) as caught:
        parse("rlhf", [*words, str(tmp_path / "none.txt")])
    assert caught.value.what == "--system names a file that cannot be read"
    assert caught.value.fix == "give the message itself, or the .txt file that holds it"
