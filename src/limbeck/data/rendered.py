"""One example in ids, for the student and, where it reads something else, for the teacher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rendered:
    """Ids of one example. response_mask[i]: response_ids[i] is a training target (end-of-turn tokens included).

    turns="last": all True. turns="all": prompt_ids end before the first assistant turn, and what lies between assistant
    turns stands in response_ids with mask False. Prompt only: no response ids.
    teacher: the same targets after what the teacher reads instead (a `teacher_prompt`), None where it reads this.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    response_mask: tuple[bool, ...]
    teacher: Rendered | None = None

    @property
    def targets(self) -> tuple[int, ...]:
        """The ids that are learnt, in order."""
        return tuple(i for i, on in zip(self.response_ids, self.response_mask, strict=True) if on)
