"""The four choices as types, and the row of answers that a configuration makes: its method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from limbeck.config.schema import Config

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


def method_row(config: Config, *, has_teacher_prompt: bool) -> MethodRow:
    method, source = config.method, resolve_source(config, has_teacher_prompt=has_teacher_prompt)
    if method.rlhf_type is None:
        return MethodRow("SFT", "dataset", "cross-entropy", "none", "loss", source)
    privileged = has_teacher_prompt and source != "none"
    if method.rlhf_type == "grpo":
        name = "GRPO" if source == "none" else "OPSD (OPD-RL)" if privileged else "OPD-RL"
        grain: dict[str, Granularity] = {"sampled": "sampled", "topk": "top-k", "full": "full"}
        signal = grain[config.policy.opd_signal]
        measure: tuple[Divergence, Granularity] = ("none", "none") if source == "none" else ("reverse KL", signal)
        return MethodRow(
            name,
            "student",
            *measure,
            "advantage",
            source,
            lmbda=1.0,
            beta=method.beta,
            topk=method.gkd_logits_topk,
            privileged=privileged,
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
