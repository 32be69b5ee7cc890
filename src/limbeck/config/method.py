"""The four choices, the method that they make, and the one table of what is legal.

A method is a row of answers to four questions: whose tokens, how the difference is measured, how it reaches the
student, and who the teacher is. `resolve_method` finds a run's row once, after its data has been seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

from limbeck.config.schema import Config, room_of
from limbeck.errors import ConfigError

Sampling = Literal["dataset", "student", "mix"]
Divergence = Literal["cross-entropy", "forward KL", "reverse KL", "JSD", "none"]
Granularity = Literal["full", "top-k", "sampled", "none"]
Path = Literal["loss", "advantage"]
Source = Literal["none", "model", "server", "live", "base", "frozen", "ema"]

SELF: tuple[Source, ...] = ("live", "base", "frozen", "ema")


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One row of the table of methods; `beta`, `topk` and `lmbda` are the numbers behind the words.

    warnings: to be said once before the run, of what is legal and probably not meant.
    """

    name: str
    sampling: Sampling
    divergence: Divergence
    granularity: Granularity
    path: Path
    source: Source
    lmbda: float = 0.0
    beta: float | None = None
    topk: int | None = None
    privileged: bool = False
    warnings: tuple[str, ...] = ()

    def cells(self) -> dict[str, str]:
        """The row as it is printed: choice -> answer."""
        divergence = f"JSD({self.beta:g})" if self.divergence == "JSD" else self.divergence
        return {
            "method": self.name,
            "sampling": f"mix, lmbda {self.lmbda:g}" if self.sampling == "mix" else self.sampling,
            "divergence": divergence,
            "granularity": {"full": "full vocabulary", "top-k": f"top-{self.topk}", "none": "-"}.get(
                self.granularity, self.granularity
            ),
            "path": self.path,
            "source": self.source + (" with a privileged prompt" if self.privileged else ""),
        }

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(len(head), len(cell)) for head, cell in cells.items()]
        lines = (
            " | ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()
            for texts in (cells.keys(), cells.values())
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Case:
    """What a rule looks at: the configuration, the row that it makes, and two facts about the data."""

    config: Config
    row: MethodRow
    rows_without_response: int

    @property
    def has_teacher(self) -> bool:
        teacher = self.config.teacher
        return bool(teacher.teacher_model or teacher.teacher_model_server or teacher.teacher_adapters) or (
            teacher.teacher_source != "auto"
        )

    @property
    def starts_as_teacher(self) -> bool:
        """The student is its teacher, word for word, so that every divergence between them is zero."""
        config, source = self.config, self.row.source
        if self.row.privileged:
            return False
        if source in ("live", "frozen", "ema"):
            return True
        if config.model.adapters or config.teacher.teacher_adapters:
            return False
        named = (config.teacher.teacher_model, config.teacher.teacher_model_revision)
        return source == "base" or (source == "model" and named == (config.model.model, config.model.model_revision))

    @property
    def has_held_out(self) -> bool:
        return bool(self.config.data.val_dataset) or self.config.data.split_dataset_ratio > 0

    @property
    def learns_from_text(self) -> bool:
        """Cross-entropy on the dataset's tokens has a say."""
        return self.config.method.sft_alpha > 0 and self.row.lmbda < 1


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the legality table: the run is refused when `broken`. In `what` and `fix`, {c} is the case."""

    name: str
    broken: Callable[[Case], bool]
    what: str
    fix: str
    flags: tuple[str, ...]

    def error(self, case: Case) -> ConfigError:
        given = {flag: getattr(getattr(case.config, room_of(type(case.config), flag)), flag) for flag in self.flags}
        where = ", ".join(f"--{flag} {_words(value)}" for flag, value in given.items() if value not in (None, []))
        return ConfigError(self.what.format(c=case), where=where, fix=self.fix.format(c=case))


def _words(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return " ".join(map(str, cast(list[object], value)))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def resolve_source(config: Config, *, has_teacher_prompt: bool) -> Source:
    """Who the teacher is, from what was named. The rules say afterwards whether that makes sense."""
    teacher, student = config.teacher, config.model
    if config.method.rlhf_type is None:
        return "none"
    if teacher.teacher_source != "auto":
        return teacher.teacher_source
    if teacher.teacher_model_server:
        return "server"
    if teacher.teacher_model:
        base = (
            student.tuner_type == "lora"
            and not teacher.teacher_adapters
            and (teacher.teacher_model, teacher.teacher_model_revision) == (student.model, student.model_revision)
            and teacher.teacher_torch_dtype in ("auto", student.torch_dtype)
        )
        return "base" if base else "model"
    return "live" if has_teacher_prompt else "none"


def _row(config: Config, *, has_teacher_prompt: bool) -> MethodRow:
    method, source = config.method, resolve_source(config, has_teacher_prompt=has_teacher_prompt)
    if method.rlhf_type is None:
        return MethodRow("SFT", "dataset", "cross-entropy", "none", "loss", source)
    privileged = has_teacher_prompt and source != "none"
    if method.rlhf_type == "grpo":
        name = "GRPO" if source == "none" else "OPSD (OPD-RL)" if privileged else "OPD-RL"
        measure: tuple[Divergence, Granularity] = ("none", "none") if source == "none" else ("reverse KL", "sampled")
        return MethodRow(
            name, "student", *measure, "advantage", source, lmbda=1.0, beta=method.beta, privileged=privileged
        )
    beta = 0.5 if method.beta is None else method.beta
    named: dict[float, Divergence] = {0.0: "forward KL", 1.0: "reverse KL"}
    sampled: dict[float, Sampling] = {0.0: "dataset", 1.0: "student"}
    return MethodRow(
        "OPSD (GKD)" if privileged else "GKD",
        sampled.get(method.lmbda, "mix"),
        named.get(beta, "JSD"),
        "full" if method.gkd_logits_topk is None else "top-k",
        "loss",
        source,
        lmbda=method.lmbda,
        beta=beta,
        topk=method.gkd_logits_topk,
        privileged=privileged,
    )


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
            and c.row.path == "loss"
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
        "on-policy evaluation without a teacher",
        lambda c: c.config.run.eval_on_policy and c.row.source == "none",
        "--eval_on_policy compares fresh samples with a teacher, and there is none",
        "leave it out, or add --teacher_model",
        ("eval_on_policy",),
    ),
    Rule(
        "grpo is not built",
        lambda c: c.row.path == "advantage",
        "--rlhf_type grpo is not built yet: the teacher's signal cannot be an advantage in this version",
        "use --rlhf_type gkd --lmbda 1 --beta 1, the same reverse KL on the student's tokens as a loss",
        ("rlhf_type",),
    ),
)

# Legal, and said once before the run.
WARNINGS: tuple[tuple[Callable[[Case], bool], str], ...] = (
    (
        lambda c: c.starts_as_teacher and not c.learns_from_text and c.row.path == "loss",
        "student and teacher are the same model and read the same prompt: the divergence is zero and nothing is learnt",
    ),
    (
        lambda c: c.config.method.sft_alpha > 0 and c.row.name == "GKD" and c.row.lmbda == 1,
        "--sft_alpha has no effect with --lmbda 1: cross-entropy is taken on the dataset's tokens only",
    ),
    (
        lambda c: c.config.teacher.offload_teacher_model and c.row.source != "model",
        "--offload_teacher_model has no effect: no teacher of its own is loaded here",
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
    case = Case(config, _row(config, has_teacher_prompt=has_teacher_prompt), rows_without_response)
    for rule in RULES:
        if rule.broken(case):
            raise rule.error(case)
    return replace(case.row, warnings=tuple(text for applies, text in WARNINGS if applies(case)))
