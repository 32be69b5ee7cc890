"""The four choices: the row of every method, and every refusal with its words."""

from __future__ import annotations

import pytest

from limbeck.config import Config
from limbeck.config.flat import from_flat
from limbeck.config.method import RULES, resolve_method
from limbeck.errors import ConfigError


def config_of(**flags) -> Config:
    return from_flat({"model": "student", "dataset": ["rows.jsonl"], **flags})


def row_of(*, prompt=False, missing=0, **flags):
    return resolve_method(config_of(**flags), has_teacher_prompt=prompt, rows_without_response=missing)


GKD = {"teacher_model": "teacher"}

LEGAL = {
    "sft": ({"rlhf_type": None}, ("SFT", "dataset", "cross-entropy", "-", "loss", "none")),
    "gkd": (GKD, ("GKD", "mix, lmbda 0.5", "JSD(0.5)", "full vocabulary", "loss", "model")),
    "off-policy": (GKD | {"lmbda": 0, "beta": 0}, ("GKD", "dataset", "forward KL", "full vocabulary", "loss", "model")),
    "on-policy": (GKD | {"lmbda": 1, "beta": 1}, ("GKD", "student", "reverse KL", "full vocabulary", "loss", "model")),
    "top-k": (GKD | {"gkd_logits_topk": 64}, ("GKD", "mix, lmbda 0.5", "JSD(0.5)", "top-64", "loss", "model")),
    "base by name": (
        {"teacher_model": "student", "adapters": ["a"]},
        ("GKD", "mix, lmbda 0.5", "JSD(0.5)", "full vocabulary", "loss", "base"),
    ),
    "base outright": (
        {"teacher_source": "base", "adapters": ["a"]},
        ("GKD", "mix, lmbda 0.5", "JSD(0.5)", "full vocabulary", "loss", "base"),
    ),
    "base as an anchor of cross-entropy": (
        {"teacher_source": "base", "sft_alpha": 1, "lmbda": 0},
        ("GKD", "dataset", "JSD(0.5)", "full vocabulary", "loss", "base"),
    ),
    "own weights, all trained": (
        {"teacher_model": "student", "tuner_type": "full"},
        ("GKD", "mix, lmbda 0.5", "JSD(0.5)", "full vocabulary", "loss", "model"),
    ),
    "opsd": (
        {"prompt": True, "lmbda": 1},
        ("OPSD (GKD)", "student", "JSD(0.5)", "full vocabulary", "loss", "live with a privileged prompt"),
    ),
    "opsd against a frozen copy": (
        {"prompt": True, "teacher_source": "frozen"},
        ("OPSD (GKD)", "mix, lmbda 0.5", "JSD(0.5)", "full vocabulary", "loss", "frozen with a privileged prompt"),
    ),
    "server": (
        {"teacher_model_server": "http://host:1", "gkd_logits_topk": 8},
        ("GKD", "mix, lmbda 0.5", "JSD(0.5)", "top-8", "loss", "server"),
    ),
    "server's hidden states": (
        {"teacher_model_server": "http://host:1", "teacher_hidden_states": True},
        ("GKD", "mix, lmbda 0.5", "JSD(0.5)", "full vocabulary", "loss", "server"),
    ),
    "opd-rl": (
        {"rlhf_type": "grpo", "teacher_model": "teacher"},
        ("OPD-RL", "student", "reverse KL", "sampled", "advantage", "model"),
    ),
    "opd-rl, low variance": (
        {"rlhf_type": "grpo", "teacher_model": "teacher", "opd_signal": "topk", "gkd_logits_topk": 64},
        ("OPD-RL", "student", "reverse KL", "top-64", "advantage", "model"),
    ),
    "opd-rl from a server": (
        {"rlhf_type": "grpo", "teacher_model_server": "http://host:1"},
        ("OPD-RL", "student", "reverse KL", "sampled", "advantage", "server"),
    ),
    "grpo": (
        {"rlhf_type": "grpo", "reward_funcs": ["format"]},
        ("GRPO", "student", "none", "-", "advantage", "none"),
    ),
    "opsd by advantage": (
        {"prompt": True, "rlhf_type": "grpo"},
        ("OPSD (OPD-RL)", "student", "reverse KL", "sampled", "advantage", "live with a privileged prompt"),
    ),
    "average of an adapter": (
        {"teacher_source": "ema", "sft_alpha": 0.1},
        ("GKD", "mix, lmbda 0.5", "JSD(0.5)", "full vocabulary", "loss", "ema"),
    ),
    "another revision of the student": (
        {"teacher_model": "student", "teacher_model_revision": "old"},
        ("GKD", "mix, lmbda 0.5", "JSD(0.5)", "full vocabulary", "loss", "model"),
    ),
}


@pytest.mark.parametrize("name", LEGAL)
def test_the_row_of_every_legal_method(name):
    flags, cells = LEGAL[name]
    assert tuple(row_of(**flags).cells().values()) == cells


SERVER = {"teacher_model_server": "http://host:8000"}
REFUSED = {
    "sft has no teacher": (
        {"rlhf_type": None, "teacher_model": "teacher"},
        """error: SFT learns from the dataset alone and has no teacher
  where: --teacher_model teacher
  fix:   use `limbeck rlhf --rlhf_type gkd` to learn from the teacher, or leave the teacher out""",
    ),
    "sft has no divergence": (
        {"rlhf_type": None, "gkd_logits_topk": 4},
        """error: SFT has no divergence to a teacher that this could change
  where: --gkd_logits_topk 4, --sft_alpha 0
  fix:   use `limbeck rlhf --rlhf_type gkd`, or leave the flag out""",
    ),
    "two teachers": (
        GKD | SERVER,
        """error: --teacher_model and --teacher_model_server name two teachers
  where: --teacher_model teacher, --teacher_model_server http://host:8000
  fix:   keep --teacher_model to load the teacher here, or --teacher_model_server to ask a server""",
    ),
    "source model needs a model": (
        {"teacher_source": "model"},
        """error: --teacher_source model has no model
  where: --teacher_source model
  fix:   add --teacher_model""",
    ),
    "source server needs a server": (
        {"teacher_source": "server"},
        """error: --teacher_source server has no server
  where: --teacher_source server
  fix:   add --teacher_model_server http://host:port""",
    ),
    "source contradicts the teacher": (
        GKD | {"teacher_source": "base"},
        """error: --teacher_source base and the teacher that is named are two teachers
  where: --teacher_source base, --teacher_model teacher
  fix:   leave out --teacher_source, or the name of the teacher""",
    ),
    "base needs lora": (
        {"teacher_source": "base", "tuner_type": "full"},
        """error: --teacher_source base is the model under the student's adapter, and --tuner_type full has no adapter
  where: --teacher_source base, --tuner_type full
  fix:   use --tuner_type lora, or name the model as --teacher_model student""",
    ),
    "adapters without a teacher": (
        {"teacher_adapters": ["a"]},
        """error: --teacher_adapters has no --teacher_model to sit on
  where: --teacher_adapters a
  fix:   add --teacher_model, the model that the adapters were trained on""",
    ),
    "gkd needs a teacher": (
        {},
        """error: --rlhf_type gkd has no teacher
  where: --rlhf_type gkd
  fix:   add --teacher_model; to train on the dataset alone use `limbeck sft`""",
    ),
    "beta above 1": (
        GKD | {"beta": 1.5},
        """error: --beta lies between 0 (forward KL) and 1 (reverse KL) for gkd
  where: --beta 1.5
  fix:   use --beta 1 for reverse KL; to weigh cross-entropy use --sft_alpha""",
    ),
    "topk below 1": (
        GKD | {"gkd_logits_topk": 0},
        """error: --gkd_logits_topk counts tokens and must be at least 1
  where: --gkd_logits_topk 0
  fix:   leave it out for the full vocabulary, or use --gkd_logits_topk 64""",
    ),
    "renorm over one token": (
        GKD | {"gkd_logits_topk": 1, "topk_mode": "renorm"},
        """error: --topk_mode renorm over a single token is identically zero: both sides become 1 there
  where: --gkd_logits_topk 1, --topk_mode renorm
  fix:   use --topk_mode tail, or a larger --gkd_logits_topk""",
    ),
    "server and full vocabulary": (
        SERVER,
        """error: --teacher_model_server returns top-k log-probabilities only
  where: --teacher_model_server http://host:8000
  fix:   add --gkd_logits_topk 64 (the server must allow --max_logprobs >= 64)""",
    ),
    "hidden states of another source": (
        GKD | {"teacher_hidden_states": True},
        """error: --teacher_hidden_states is for the full vocabulary from a server, and this run has full from model
  where: --teacher_hidden_states true
  fix:   leave it out, or leave out --gkd_logits_topk and name a --teacher_model_server""",
    ),
    "support without topk": (
        GKD | {"topk_support": "union"},
        """error: --topk_support union has no K: this run compares full
  where: --topk_support union
  fix:   add --gkd_logits_topk 64, or leave --topk_support out""",
    ),
    "store of hidden states": (
        GKD | {"teacher_cache": "store"},
        """error: --teacher_cache keeps top-k log-probabilities, and this run takes the full vocabulary
  where: --teacher_cache store
  fix:   add --gkd_logits_topk 64, or leave the store out""",
    ),
    "store of a moving teacher": (
        {"teacher_source": "ema", "teacher_cache": "store", "gkd_logits_topk": 8, "sft_alpha": 1},
        """error: --teacher_cache keeps what a fixed teacher said, and --teacher_source ema is none
  where: --teacher_cache store
  fix:   leave the store out, or name a teacher with --teacher_model or --teacher_model_server""",
    ),
    "advantage on off-policy tokens": (
        GKD | {"rlhf_type": "grpo", "lmbda": 0.25},
        """error: --rlhf_type grpo learns from the student's own tokens only: an advantage on other tokens has no \
policy gradient behind it
  where: --rlhf_type grpo, --lmbda 0.25
  fix:   leave out --lmbda (grpo always samples from the student), or use --rlhf_type gkd""",
    ),
    "rows without a response": (
        GKD | {"missing": 3},
        """error: --lmbda 0.5 learns from the dataset's responses too, and 3 rows have none
  where: --lmbda 0.5
  fix:   use --lmbda 1 to learn from the student's tokens only, or let the teacher answer first: `limbeck generate`""",
    ),
    "sft without a response": (
        {"rlhf_type": None, "missing": 2},
        """error: SFT learns from the dataset's responses, and 2 rows have none
  where: --dataset rows.jsonl
  fix:   let a model answer them first (`limbeck generate`), or take the rows out""",
    ),
    "self-teacher with nothing to teach": (
        {"teacher_source": "base"},
        """error: the student is its own teacher and reads the same prompt: the loss is identically zero
  where: --teacher_source base
  fix:   name another teacher with --teacher_model, give the rows a teacher_prompt column, or start from \
--adapters with --teacher_source base""",
    ),
    "all weights of an adapted model": (
        GKD | {"adapters": ["a"], "tuner_type": "full"},
        """error: --tuner_type full would train the weights under --adapters, which stay apart from them
  where: --adapters a, --tuner_type full
  fix:   use --tuner_type lora to go on with the adapter, or merge it into the model first""",
    ),
    "evaluation without held-out rows": (
        GKD | {"eval_strategy": "steps"},
        """error: --eval_strategy steps has no held-out rows to evaluate on
  where: --eval_strategy steps
  fix:   add --val_dataset, or --split_dataset_ratio 0.05 to hold some of the training rows out""",
    ),
    "on-policy evaluation with nobody to judge": (
        {"rlhf_type": None, "eval_on_policy": True},
        """error: --eval_on_policy has fresh samples judged by a teacher or by rewards, and there is neither
  where: --eval_on_policy true
  fix:   leave it out, or add --teacher_model""",
    ),
    "no privileged prompt to measure": (
        GKD | {"teacher_model": "teacher", "log_privileged_kl": True},
        """error: --log_privileged_kl compares the teacher with and without its teacher_prompt, and no row has one
  where: --log_privileged_kl true
  fix:   leave it out, or add --teacher_prompt_template""",
    ),
    "privileged prompt of a server": (
        {"teacher_model_server": "http://a", "gkd_logits_topk": 8, "log_privileged_kl": True, "prompt": True},
        """error: --log_privileged_kl runs the teacher on the whole vocabulary, and here it is a server
  where: --log_privileged_kl true
  fix:   leave it out, or load the teacher here: --teacher_model""",
    ),
    "positions without a teacher": (
        {"rlhf_type": None, "position_weights": [0.25, 0.3, 0.1]},
        """error: --position_weights weighs what a teacher says of a token, and there is none
  where: --position_weights 0.25 0.3 0.1
  fix:   leave it out, or add --teacher_model""",
    ),
    "nothing to reward": (
        {"rlhf_type": "grpo"},
        """error: --rlhf_type grpo has neither a teacher nor rewards
  where: --rlhf_type grpo
  fix:   add --teacher_model to distil, or --reward_funcs accuracy""",
    ),
    "rewards on the loss path": (
        GKD | {"reward_funcs": ["format"]},
        """error: rewards are for --rlhf_type grpo: a divergence has no use for them
  where: --reward_funcs format
  fix:   leave them out, or use --rlhf_type grpo""",
    ),
    "rewards without a baseline": (
        {"rlhf_type": "grpo", "reward_funcs": ["format"], "num_generations": 1},
        """error: one response a prompt has no group to be compared with
  where: --num_generations 1, --advantage_estimator grpo
  fix:   use --num_generations 8, or --advantage_estimator reinforce_plus_plus, which compares with the whole batch""",
    ),
    "dynamic sampling without groups": (
        {"rlhf_type": "grpo", "teacher_model": "teacher", "dynamic_sample": True},
        """error: --dynamic_sample replaces groups whose rewards are all equal, and this run has no groups with rewards
  where: --dynamic_sample true
  fix:   leave it out, or use --rlhf_type grpo with --reward_funcs and --num_generations 8""",
    ),
    "sampler against trainer on the loss path": (
        {"teacher_model": "teacher", "lmbda": 1, "rollout_importance_sampling_mode": "token_mask"},
        """error: a divergence does not ask how likely the sampler held a token, a policy loss does: --rlhf_type grpo
  where: --rollout_importance_sampling_mode token_mask, --log_rollout_offpolicy_metrics false
  fix:   leave them out""",
    ),
    "sampler without a distribution": (
        {"rlhf_type": "grpo", "teacher_model": "teacher", "temperature": 0, "log_rollout_offpolicy_metrics": True},
        """error: --temperature 0 takes the likeliest token: there is no probability to compare the trainer's with
  where: --temperature 0, --log_rollout_offpolicy_metrics true
  fix:   use --temperature 0.9, or leave out the comparison of sampler and trainer""",
    ),
    "low variance without a teacher": (
        {"rlhf_type": "grpo", "opd_signal": "full", "reward_funcs": ["accuracy"]},
        """error: --opd_signal full is the teacher's part, and there is no teacher
  where: --opd_signal full
  fix:   add --teacher_model, or leave it out""",
    ),
    "low variance on the loss path": (
        GKD | {"opd_signal": "full"},
        """error: --opd_signal is for --rlhf_type grpo: the divergence is the whole loss here
  where: --opd_signal full
  fix:   leave it out; --lmbda 1 --beta 1 is the same reverse KL on the student's tokens""",
    ),
    "clip of no divergence": (
        {"rlhf_type": "grpo", "teacher_model": "teacher", "token_loss_clip": 0.5},
        """error: --token_loss_clip bounds a token's divergence, and with --opd_signal sampled there is none
  where: --token_loss_clip 0.5
  fix:   use --teacher_logratio_clip, which bounds the teacher's log-ratio, or --opd_signal full""",
    ),
    "top-k of nothing": (
        GKD | {"rlhf_type": "grpo", "gkd_logits_topk": 8},
        """error: --gkd_logits_topk and --opd_signal topk belong together on --rlhf_type grpo
  where: --gkd_logits_topk 8, --opd_signal sampled
  fix:   give both for reverse KL over the top-k as a loss, or neither""",
    ),
    "delta without a clip": (
        GKD | {"rlhf_type": "grpo", "delta": 3, "loss_type": "cispo"},
        """error: --delta bounds PPO's clipped ratio, which --loss_type cispo does not have
  where: --delta 3, --loss_type cispo
  fix:   leave it out, or use --loss_type grpo""",
    ),
    "delta below the clip": (
        GKD | {"rlhf_type": "grpo", "delta": 1.2, "epsilon_high": 0.28},
        """error: --delta must be above 1 + --epsilon_high, 0.28
  where: --delta 1.2, --epsilon 0.2, --epsilon_high 0.28
  fix:   leave it out, or use a larger one""",
    ),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_every_rule_fires_with_its_reason_and_a_way_out(rule):
    flags, text = REFUSED[rule]
    with pytest.raises(ConfigError) as caught:
        row_of(**flags)
    assert str(caught.value) == text
    assert caught.value.exit_code == 2


def test_the_table_of_refusals_is_covered():
    assert list(REFUSED) == [rule.name for rule in RULES]


def test_prompt_only_rows_are_fine_on_policy():
    assert row_of(**GKD, lmbda=1, missing=10).sampling == "student"


def test_grpo_does_not_trip_over_the_default_lmbda():
    assert row_of(**GKD, rlhf_type="grpo").lmbda == 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"teacher_model": "student"}, "same model"),
        ({"teacher_model": "student", "tuner_type": "full"}, "same model"),
        (GKD | {"sft_alpha": 1, "lmbda": 1}, "sft_alpha has no effect"),
        ({"prompt": True}, "--teacher_source frozen held on both"),
        (GKD | {"val_dataset": ["v"], "split_dataset_ratio": 0.1}, "split_dataset_ratio is not used"),
    ],
)
def test_what_is_legal_but_odd_is_said_once(flags, text):
    (warning,) = row_of(**flags).warnings
    assert text in warning


@pytest.mark.parametrize("flags", [flags for flags, _ in LEGAL.values() if flags.get("tuner_type") != "full"])
def test_an_ordinary_row_has_no_warnings(flags):
    row = row_of(**flags)
    assert row.warnings == () or (row.source, row.privileged, len(row.warnings)) == ("live", True, 1)


def test_the_row_prints_as_in_the_designs_table():
    assert str(row_of(**GKD)).splitlines() == [
        "method | sampling       | divergence | granularity     | path | source",
        "GKD    | mix, lmbda 0.5 | JSD(0.5)   | full vocabulary | loss | model",
    ]
