"""What student and teacher will have to read, against the longest sequence that their configs name: before any weight.

Not an error: a rotary model goes on beyond it, only worse. A server refuses such a row, which is then counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.config.choices import SELF, MethodRow
from limbeck.config.routes import ModelRoute, ServerRoute, routes_of
from limbeck.config.schema import Config, Model
from limbeck.data.rendered import Rendered
from limbeck.models import load_config, position_limit
from limbeck.rollouts import Row

BEYOND = "beyond that its positions are untrained (answers get worse) or do not exist (an error)"
REFUSED = "longer ones are refused and counted, and teach nothing"


@dataclass(frozen=True)
class Reads:
    """What one model reads, in tokens.

    prompts: of rows that are answered anew, each with up to `completion` tokens. whole: rows with their responses.
    privileged: some of them begin with a prompt of the teacher's own.
    """

    prompts: list[int]
    whole: list[int]
    completion: int
    privileged: bool = False

    def beyond(self, limit: int) -> tuple[str, str] | None:
        """Which of it is longer than `limit`, and the flags that mend it; None where nothing is."""
        faults, fixes = [], []
        if (longest := max(self.prompts, default=0)) + self.completion > limit and self.prompts:
            count = sum(n + self.completion > limit for n in self.prompts)
            faults.append(
                f"{count:,} of {len(self.prompts):,} prompts leave no room for --max_completion_length "
                f"{self.completion} (the longest has {longest:,} tokens)"
            )
            room = limit - longest
            fixes.append(f"--max_completion_length {room}" if room > 0 else self._shorter_prompts(limit))
        if (longest := max(self.whole, default=0)) > limit:
            count = sum(n > limit for n in self.whole)
            faults.append(
                f"{count:,} of {len(self.whole):,} rows with their responses are longer (up to {longest:,} tokens)"
            )
            fixes.append("a shorter teacher_prompt" if self.privileged else f"--max_length {limit} drops these rows")
        return (" and ".join(faults), ", and ".join(dict.fromkeys(fixes))) if faults else None

    def _shorter_prompts(self, limit: int) -> str:
        if self.privileged:
            return "a shorter teacher_prompt"
        return f"a lower --max_completion_length, and --max_length {limit} to drop prompts that fill all of it"


def reads(
    config: Config, method: MethodRow, rows: Sequence[Row], held_out: Sequence[Row], *, teacher: bool = False
) -> Reads:
    """What the student reads of these rows, or the teacher."""

    def told(tokens: Rendered) -> Rendered:
        return tokens.teacher or tokens if teacher else tokens

    scored = [] if config.run.eval_strategy == "no" else held_out
    answered = [*(rows if method.lmbda > 0 else []), *(scored if config.run.eval_on_policy else [])]
    read = [*(rows if method.lmbda < 1 else []), *scored]
    return Reads(
        prompts=[len(told(tokens).prompt_ids) for _, tokens in answered],
        whole=[
            len(told(tokens).prompt_ids) + len(tokens.response_ids) for _, tokens in read if len(tokens.response_ids)
        ],
        completion=config.rollout.max_completion_length,
        privileged=teacher and any(tokens.teacher for _, tokens in (*answered, *read)),
    )


def too_long(config: Config, method: MethodRow, rows: Sequence[Row], held_out: Sequence[Row]) -> list[str]:
    """A warning for each model here that would read more than its config names, one where several are alike."""
    student = _limit(config, config.model.model, config.model.model_revision)
    found: dict[tuple[int, str, str], list[str]] = {}

    def compare(name: str, limit: int | None, what: Reads) -> None:
        if limit is not None and (faulty := what.beyond(limit)):
            found.setdefault((limit, *faulty), []).append(name)

    compare(f"the student {config.model.model}", student, reads(config, method, rows, held_out))
    if method.source in SELF and method.privileged:
        compare("the teacher (the student itself)", student, reads(config, method, rows, held_out, teacher=True))
    if method.source == "model":
        for route in _local(config):
            own, out = (of_route(route, config, part) for part in (rows, held_out))
            limit = _limit(config, route.model, route.revision)
            compare(f"the teacher {route.model}", limit, reads(config, method, own, out, teacher=True))
    return [_told(names, *what) for what, names in found.items()]


def model_too_long(m: Model, read: Reads) -> list[str]:
    """The same for a model that is only asked: `limbeck generate`, `limbeck eval`."""
    limit = position_limit(load_config(m.model, revision=m.model_revision, trust_remote_code=m.trust_remote_code))
    faulty = read.beyond(limit) if limit is not None else None
    return [_told([m.model], limit, *faulty)] if limit is not None and faulty else []


def _told(names: Sequence[str], limit: int, fault: str, fix: str) -> str:
    return (
        f"{' and '.join(names)} read{'s' if len(names) == 1 else ''} {limit:,} tokens at most "
        f"(max_position_embeddings), and {fault}: {BEYOND}. What helps: {fix}"
    )


def of_route(route: ModelRoute | ServerRoute, config: Config, rows: Sequence[Row]) -> list[Row]:
    """The rows that this teacher is asked about: those with its tags, or all where it is the only one."""
    key = config.teacher.teacher_tag_key
    return [row for row in rows if not route.tags or str(row[0].columns.get(key)) in route.tags]


def server_too_long(
    config: Config, method: MethodRow, rows: Sequence[Row], held_out: Sequence[Row], route: ServerRoute, limit: int
) -> list[str]:
    """The same for a teacher behind an address that takes `limit` tokens."""
    own, out = (of_route(route, config, part) for part in (rows, held_out))
    faulty = reads(config, method, own, out, teacher=True).beyond(limit)
    if faulty is None:
        return []
    fault, fix = faulty
    flag = "a larger --max_model_len there (vLLM: --max-model-len)"
    return [
        f"the teacher at {route.url} takes {limit:,} tokens at most, and {fault}: {REFUSED}. What helps: {fix}; {flag}"
    ]


def _local(config: Config) -> list[ModelRoute]:
    t = config.teacher
    if isinstance(t.teacher_model, str):
        return [ModelRoute(tags=[], model=t.teacher_model, revision=t.teacher_model_revision)]
    return routes_of(t.teacher_model)


def _limit(config: Config, name: str, revision: str | None) -> int | None:
    return position_limit(load_config(name, revision=revision, trust_remote_code=config.model.trust_remote_code))
