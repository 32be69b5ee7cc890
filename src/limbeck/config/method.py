"""The one table of what is legal, and `resolve_method`, which finds a run's row once, after its data has been seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from limbeck.config.case import Case, Rule
from limbeck.config.choices import SELF, MethodRow, method_row
from limbeck.config.schema import Config

# The one table of what is refused. Contradictions come first and what is not built yet last, so that a user is not
# sent to wait for a combination that will never be legal.
RULES: tuple[Rule, ...] = (
    Rule(
        "sft has no teacher",
        lambda c: c.config.method.rlhf_type is None and c.has_teacher,
        "SFT learns from the dataset alone and has no teacher",
        "use `limbeck rlhf --rlhf_type gkd` to learn from the teacher, or leave the teacher out",
        ("teacher_model", "teacher_model_server", "teacher_adapters"),
    ),
    Rule(
        "sft has no divergence",
        lambda c: (
            c.config.method.rlhf_type is None
            and (c.config.method.gkd_logits_topk is not None or c.config.method.sft_alpha > 0)
        ),
        "SFT has no divergence to a teacher that this could change",
        "use `limbeck rlhf --rlhf_type gkd`, or leave the flag out",
        ("gkd_logits_topk", "sft_alpha"),
    ),
    Rule(
        "two teachers",
        lambda c: bool(c.config.teacher.teacher_model and c.config.teacher.teacher_model_server),
        "--teacher_model and --teacher_model_server name two teachers",
        "keep --teacher_model to load the teacher here, or --teacher_model_server to ask a server",
        ("teacher_model", "teacher_model_server"),
    ),
    Rule(
        "source model needs a model",
        lambda c: c.row.source == "model" and not c.config.teacher.teacher_model,
        "--teacher_source model has no model",
        "add --teacher_model",
        ("teacher_source",),
    ),
    Rule(
        "source server needs a server",
        lambda c: c.row.source == "server" and not c.config.teacher.teacher_model_server,
        "--teacher_source server has no server",
        "add --teacher_model_server http://host:port",
        ("teacher_source",),
    ),
    Rule(
        "source contradicts the teacher",
        lambda c: (
            c.row.source != "none"
            and (
                (c.row.source != "server" and bool(c.config.teacher.teacher_model_server))
                or (c.row.source in SELF and c.config.teacher.teacher_model not in (None, c.config.model.model))
            )
        ),
        "--teacher_source {c.row.source} and the teacher that is named are two teachers",
        "leave out --teacher_source, or the name of the teacher",
        ("teacher_source", "teacher_model", "teacher_model_server"),
    ),
    Rule(
        "base needs lora",
        lambda c: c.row.source == "base" and c.config.model.tuner_type == "full",
        "--teacher_source base is the model under the student's adapter, and --tuner_type full has no adapter",
        "use --tuner_type lora, or name the model as --teacher_model {c.config.model.model}",
        ("teacher_source", "tuner_type"),
    ),
    Rule(
        "adapters without a teacher",
        lambda c: bool(c.config.teacher.teacher_adapters) and c.row.source != "model",
        "--teacher_adapters has no --teacher_model to sit on",
        "add --teacher_model, the model that the adapters were trained on",
        ("teacher_adapters",),
    ),
    Rule(
        "gkd needs a teacher",
        lambda c: c.config.method.rlhf_type == "gkd" and c.row.source == "none",
        "--rlhf_type gkd has no teacher",
        "add --teacher_model; to train on the dataset alone use `limbeck sft`",
        ("rlhf_type",),
    ),
    Rule(
        "beta above 1",
        lambda c: c.config.method.rlhf_type == "gkd" and (c.row.beta or 0) > 1,
        "--beta lies between 0 (forward KL) and 1 (reverse KL) for gkd",
        "use --beta 1 for reverse KL; to weigh cross-entropy use --sft_alpha",
        ("beta",),
    ),
    Rule(
        "topk below 1",
        lambda c: c.config.method.gkd_logits_topk is not None and c.config.method.gkd_logits_topk < 1,
        "--gkd_logits_topk counts tokens and must be at least 1",
        "leave it out for the full vocabulary, or use --gkd_logits_topk 64",
        ("gkd_logits_topk",),
    ),
    Rule(
        "renorm over one token",
        lambda c: c.row.topk == 1 and c.config.method.topk_mode == "renorm",
        "--topk_mode renorm over a single token is identically zero: both sides become 1 there",
        "use --topk_mode tail, or a larger --gkd_logits_topk",
        ("gkd_logits_topk", "topk_mode"),
    ),
    Rule(
        "server and full vocabulary",
        lambda c: (
            c.row.source == "server" and c.row.granularity == "full" and not c.config.teacher.teacher_hidden_states
        ),
        "--teacher_model_server returns top-k log-probabilities only",
        "add --gkd_logits_topk 64 (the server must allow --max_logprobs >= 64)",
        ("teacher_model_server",),
    ),
    Rule(
        "hidden states of another source",
        lambda c: c.config.teacher.teacher_hidden_states and (c.row.source != "server" or c.row.granularity != "full"),
        "--teacher_hidden_states is for the full vocabulary from a server, and this run has {c.row.granularity} from "
        "{c.row.source}",
        "leave it out, or leave out --gkd_logits_topk and name a --teacher_model_server",
        ("teacher_hidden_states", "gkd_logits_topk"),
    ),
    Rule(
        "support without topk",
        lambda c: c.config.method.topk_support != "teacher" and c.row.granularity != "top-k",
        "--topk_support {c.config.method.topk_support} has no K: this run compares {c.row.granularity}",
        "add --gkd_logits_topk 64, or leave --topk_support out",
        ("topk_support",),
    ),
    Rule(
        "store of hidden states",
        lambda c: c.config.teacher.teacher_cache is not None and c.row.granularity == "full",
        "--teacher_cache keeps top-k log-probabilities, and this run takes the full vocabulary",
        "add --gkd_logits_topk 64, or leave the store out",
        ("teacher_cache",),
    ),
    Rule(
        "store of a moving teacher",
        lambda c: c.config.teacher.teacher_cache is not None and c.row.source in ("live", "ema", "frozen", "none"),
        "--teacher_cache keeps what a fixed teacher said, and --teacher_source {c.row.source} is none",
        "leave the store out, or name a teacher with --teacher_model or --teacher_model_server",
        ("teacher_cache",),
    ),
    Rule(
        "advantage on off-policy tokens",
        lambda c: (
            c.row.path == "advantage" and "lmbda" in c.config.method.model_fields_set and c.config.method.lmbda < 1
        ),
        "--rlhf_type grpo learns from the student's own tokens only: an advantage on other tokens has no policy "
        "gradient behind it",
        "leave out --lmbda (grpo always samples from the student), or use --rlhf_type gkd",
        ("rlhf_type", "lmbda"),
    ),
    Rule(
        "rows without a response",
        lambda c: c.row.path == "loss" and c.row.lmbda < 1 and c.row.name != "SFT" and c.rows_without_response > 0,
        "--lmbda {c.row.lmbda:g} learns from the dataset's responses too, and {c.rows_without_response} rows have none",
        "use --lmbda 1 to learn from the student's tokens only, or let the teacher answer first: `limbeck generate`",
        ("lmbda",),
    ),
    Rule(
        "sft without a response",
        lambda c: c.row.name == "SFT" and c.rows_without_response > 0,
        "SFT learns from the dataset's responses, and {c.rows_without_response} rows have none",
        "let a model answer them first (`limbeck generate`), or take the rows out",
        ("dataset",),
    ),
    Rule(
        "self-teacher with nothing to teach",
        lambda c: (
            c.row.source in SELF
            and c.config.teacher.teacher_source != "auto"
            and c.starts_as_teacher
            and not c.learns_from_text
            and not c.has_rewards
        ),
        "the student is its own teacher and reads the same prompt: the loss is identically zero",
        "name another teacher with --teacher_model, give the rows a teacher_prompt column, or start from "
        "--adapters with --teacher_source base",
        ("teacher_source",),
    ),
    Rule(
        "all weights of an adapted model",
        lambda c: bool(c.config.model.adapters) and c.config.model.tuner_type == "full",
        "--tuner_type full would train the weights under --adapters, which stay apart from them",
        "use --tuner_type lora to go on with the adapter, or merge it into the model first",
        ("adapters", "tuner_type"),
    ),
    Rule(
        "evaluation without held-out rows",
        lambda c: c.config.run.eval_strategy in ("steps", "epoch") and not c.has_held_out,
        "--eval_strategy {c.config.run.eval_strategy} has no held-out rows to evaluate on",
        "add --val_dataset, or --split_dataset_ratio 0.05 to hold some of the training rows out",
        ("eval_strategy",),
    ),
    Rule(
        "on-policy evaluation with nobody to judge",
        lambda c: bool(c.config.run.eval_on_policy) and c.row.source == "none" and not c.has_rewards,
        "--eval_on_policy has fresh samples judged by a teacher or by rewards, and there is neither",
        "leave it out, or add --teacher_model",
        ("eval_on_policy",),
    ),
    Rule(
        "no privileged prompt to measure",
        lambda c: c.config.report.log_privileged_kl and not c.row.privileged,
        "--log_privileged_kl compares the teacher with and without its teacher_prompt, and no row has one",
        "leave it out, or add --teacher_prompt_template",
        ("log_privileged_kl",),
    ),
    Rule(
        "privileged prompt of a server",
        lambda c: c.config.report.log_privileged_kl and c.row.source == "server",
        "--log_privileged_kl runs the teacher on the whole vocabulary, and here it is a server",
        "leave it out, or load the teacher here: --teacher_model",
        ("log_privileged_kl",),
    ),
    Rule(
        "positions without a teacher",
        lambda c: bool(c.config.method.position_weights) and c.row.path == "loss" and c.row.source == "none",
        "--position_weights weighs what a teacher says of a token, and there is none",
        "leave it out, or add --teacher_model",
        ("position_weights",),
    ),
    Rule(
        "nothing to reward",
        lambda c: c.row.path == "advantage" and c.row.source == "none" and not c.has_rewards,
        "--rlhf_type grpo has neither a teacher nor rewards",
        "add --teacher_model to distil, or --reward_funcs accuracy",
        ("rlhf_type",),
    ),
    Rule(
        "rewards on the loss path",
        lambda c: c.row.path == "loss" and c.has_rewards,
        "rewards are for --rlhf_type grpo: a divergence has no use for them",
        "leave them out, or use --rlhf_type grpo",
        ("reward_funcs",),
    ),
    Rule(
        "rewards without a baseline",
        lambda c: (
            c.has_rewards
            and c.config.rollout.num_generations == 1
            and (
                c.config.policy.advantage_estimator != "reinforce_plus_plus" or c.config.policy.scale_rewards == "group"
            )
        ),
        "one response a prompt has no group to be compared with",
        "use --num_generations 8, or --advantage_estimator reinforce_plus_plus, which compares with the whole batch",
        ("num_generations", "advantage_estimator", "scale_rewards"),
    ),
    Rule(
        "dynamic sampling without groups",
        lambda c: (
            c.config.rollout.dynamic_sample
            and (c.row.path == "loss" or not c.has_rewards or c.config.rollout.num_generations == 1)
        ),
        "--dynamic_sample replaces groups whose rewards are all equal, and this run has no groups with rewards",
        "leave it out, or use --rlhf_type grpo with --reward_funcs and --num_generations 8",
        ("dynamic_sample", "reward_funcs", "num_generations"),
    ),
    Rule(
        "sampler against trainer on the loss path",
        lambda c: c.row.path == "loss" and c.compares_sampler,
        "a divergence does not ask how likely the sampler held a token, a policy loss does: --rlhf_type grpo",
        "leave them out",
        ("rollout_importance_sampling_mode", "log_rollout_offpolicy_metrics"),
    ),
    Rule(
        "sampler without a distribution",
        lambda c: c.compares_sampler and c.config.rollout.temperature == 0,
        "--temperature 0 takes the likeliest token: there is no probability to compare the trainer's with",
        "use --temperature 0.9, or leave out the comparison of sampler and trainer",
        ("temperature", "rollout_importance_sampling_mode", "log_rollout_offpolicy_metrics"),
    ),
    Rule(
        "low variance without a teacher",
        lambda c: c.row.path == "advantage" and c.row.source == "none" and c.config.policy.opd_signal != "sampled",
        "--opd_signal {c.config.policy.opd_signal} is the teacher's part, and there is no teacher",
        "add --teacher_model, or leave it out",
        ("opd_signal",),
    ),
    Rule(
        "low variance on the loss path",
        lambda c: c.row.path == "loss" and c.config.policy.opd_signal != "sampled",
        "--opd_signal is for --rlhf_type grpo: the divergence is the whole loss here",
        "leave it out; --lmbda 1 --beta 1 is the same reverse KL on the student's tokens",
        ("opd_signal",),
    ),
    Rule(
        "clip of no divergence",
        lambda c: (
            c.row.path == "advantage"
            and c.config.policy.opd_signal == "sampled"
            and c.config.method.token_loss_clip is not None
        ),
        "--token_loss_clip bounds a token's divergence, and with --opd_signal sampled there is none",
        "use --teacher_logratio_clip, which bounds the teacher's log-ratio, or --opd_signal full",
        ("token_loss_clip",),
    ),
    Rule(
        "top-k of nothing",
        lambda c: (
            c.row.path == "advantage"
            and c.row.source != "none"
            and (c.row.granularity == "top-k") != (c.config.method.gkd_logits_topk is not None)
        ),
        "--gkd_logits_topk and --opd_signal topk belong together on --rlhf_type grpo",
        "give both for reverse KL over the top-k as a loss, or neither",
        ("gkd_logits_topk", "opd_signal"),
    ),
    Rule(
        "delta without a clip",
        lambda c: c.config.policy.delta is not None and c.config.policy.loss_type in ("cispo", "sapo"),
        "--delta bounds PPO's clipped ratio, which --loss_type {c.config.policy.loss_type} does not have",
        "leave it out, or use --loss_type grpo",
        ("delta", "loss_type"),
    ),
    Rule(
        "delta below the clip",
        lambda c: c.config.policy.delta is not None and c.config.policy.delta <= 1 + c.epsilon_high,
        "--delta must be above 1 + --epsilon_high, {c.epsilon_high:g}",
        "leave it out, or use a larger one",
        ("delta", "epsilon", "epsilon_high"),
    ),
)

# Legal, and said once before the run.
WARNINGS: tuple[tuple[Callable[[Case], bool], str], ...] = (
    (
        lambda c: c.starts_as_teacher and not c.learns_from_text and not c.has_rewards,
        "student and teacher are the same model and read the same prompt: the divergence is zero and nothing is learnt",
    ),
    (
        lambda c: c.config.method.sft_alpha > 0 and c.row.name == "GKD" and c.row.lmbda == 1,
        "--sft_alpha has no effect with --lmbda 1: cross-entropy is taken on the dataset's tokens only",
    ),
    (
        lambda c: c.row.source == "live" and c.row.privileged,
        "the teacher is the live student, which can unlearn to use what it is told: in docs/claims.md it did on one of "
        "two seeds, and --teacher_source frozen held on both",
    ),
    (
        lambda c: c.config.teacher.offload_teacher_model and c.row.source != "model",
        "--offload_teacher_model has no effect: no teacher of its own is loaded here",
    ),
    (
        lambda c: c.config.model.torch_dtype == "float16" and c.config.model.tuner_type == "full",
        "--torch_dtype float16 trains weights of float16 without scaling the loss: small gradients are lost and large "
        "ones overflow; auto holds them in float32",
    ),
    (
        lambda c: "metric_for_best_model" in c.config.run.model_fields_set and not c.has_held_out,
        "--metric_for_best_model has no effect: there are no held-out rows to measure it on",
    ),
    (
        lambda c: c.row.path == "advantage" and c.filters_samples,
        "--temperature 0, --top_p, --top_k, --min_p and --repetition_penalty make the samples off-policy: the policy "
        "gradient takes them for the student's own",
    ),
    (
        lambda c: c.row.path == "advantage" and c.config.method.sft_alpha > 0,
        "--sft_alpha has no effect with --rlhf_type grpo, which learns from the student's own tokens only",
    ),
    (
        lambda c: bool(c.config.data.val_dataset) and c.config.data.split_dataset_ratio > 0,
        "--split_dataset_ratio is not used, since --val_dataset names the held-out rows",
    ),
)


def resolve_method(config: Config, *, has_teacher_prompt: bool, rows_without_response: int) -> MethodRow:
    """The row that a run is.

    has_teacher_prompt: the rows carry a `teacher_prompt` column. rows_without_response: training rows that end in a
    prompt. Raises ConfigError, with the reason and a way out, for a combination that the table refuses.
    """
    case = Case(config, method_row(config, has_teacher_prompt=has_teacher_prompt), rows_without_response)
    for rule in RULES:
        if rule.broken(case):
            raise rule.error(case)
    return replace(case.row, warnings=tuple(text for applies, text in WARNINGS if applies(case)))
