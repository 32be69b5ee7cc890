"""`limbeck infer`: a conversation in the terminal, with one model or two side by side; or the answers to a data set."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from limbeck.cli import generate, voice
from limbeck.config.after import InferConfig
from limbeck.config.beside import Answers, GenerateConfig
from limbeck.config.schema import Model
from limbeck.errors import ConfigError
from limbeck.models import end_token_ids, load_tokenizer
from limbeck.rollouts import HFSampler
from limbeck.train.build import load_frozen, sampler_of
from limbeck.train.chosen import frozen_choices

HELP = "/clear forgets the conversation, /system TEXT sets the system message, /quit or Ctrl-D ends it"


def run(config: InferConfig) -> int:
    """Answers --val_dataset into --result_path where there is one; talks otherwise."""
    if config.data.dataset:
        return _answer_rows(config)
    if config.output.result_path is not None:
        raise ConfigError(
            "there are no rows to answer", where="--result_path", fix="add --val_dataset FILE, or leave it out"
        )
    speakers = [load_speaker(config, model) for model in _models(config)]
    for speaker in speakers:
        if speaker.tokenizer.chat_template is None:
            unused = " and a system message is not read" if config.data.system else ""
            voice.note(f"{speaker.name} has no chat template: it goes on with the conversation as plain text{unused}")
    print(HELP, file=sys.stderr)
    converse(speakers, _lines(), show=_columns if len(speakers) > 1 and sys.stdout.isatty() else _one_by_one)
    return 0


def _answer_rows(config: InferConfig) -> int:
    path = config.output.result_path
    if path is None:
        raise ConfigError(
            "there is no place for the answers", where="--val_dataset", fix="add --result_path answers.jsonl"
        )
    models = _models(config)
    if len(models) == 1:
        return _answers_of(config, models[0], path)
    first, other = (path.with_name(f"{path.stem}.{name}{path.suffix}") for name in ("model", "other_model"))
    for model, file in zip(models, (first, other), strict=True):
        _answers_of(config, model, file)
    beside(first, other, path)
    return 0


def _answers_of(config: InferConfig, model: Model, path: Path) -> int:
    rooms = {"data": config.data, "rollout": config.rollout, "run": config.run}
    return generate.run(GenerateConfig(model=model, output=Answers(result_path=path), **rooms))


def beside(first: Path, other: Path, path: Path) -> None:
    """Writes `path`: the rows of `first`, each with the other model's answer to it as `other_response`.

    Rows that only one of the two could read (the other's template or --max_length dropped them) are left out and
    counted.
    """
    ours, theirs = ({(row["origin"], row["copy"]): row for row in _rows(file)} for file in (first, other))
    both = [key for key in ours if key in theirs]
    lines = [
        json.dumps(
            ours[key] | {"other_response": _text(theirs[key]), "other_truncated": theirs[key]["truncated"]},
            ensure_ascii=False,
        )
        for key in both
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    same = sum(_text(ours[key]) == _text(theirs[key]) for key in both)
    print(f"{len(both)} rows with both answers, {same} of them the same; written: {path}")
    if alone := len(ours) + len(theirs) - 2 * len(both):
        print(f"warning: {alone} answers have no other beside them, and are in {first} or {other} alone")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def _text(row: dict[str, Any]) -> str:
    return row["messages"][-1]["content"] if "messages" in row else row["completion"]


def _models(config: InferConfig) -> list[Model]:
    o = config.output
    if o.other_model is None and not o.other_adapters:
        return [config.model]
    other = {"model": o.other_model or config.model.model, "adapters": o.other_adapters, "model_revision": None}
    return [config.model, config.model.model_copy(update=other)]


@dataclass
class Speaker:
    """A model in a conversation, with its own memory of it: what the other one said is not told."""

    name: str
    sampler: HFSampler
    tokenizer: Any
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    cut: bool = False  # its last answer ran out of tokens

    def hear(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def speak(self, say: Callable[[str], None], seed: int) -> None:
        """Answers what was heard; `say` gets the text piece by piece. Ctrl-C leaves the answer as far as it came."""
        streamer = _Pieces(self.tokenizer, say)
        try:
            (ids,) = self.sampler.generate([self._prompt()], seed=seed, streamer=streamer)
            self.cut = ids[-1] not in self.sampler.end_ids
        except KeyboardInterrupt:
            streamer.end()
        self.messages.append({"role": "assistant", "content": streamer.text.strip()})

    def clear(self) -> None:
        self.messages.clear()

    def _prompt(self) -> tuple[int, ...]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        if self.tokenizer.chat_template is None:  # a base model goes on with the text
            ids = self.tokenizer("".join(message["content"] for message in self.messages))["input_ids"]
        else:
            ids = self.tokenizer.apply_chat_template(
                [*first, *self.messages], add_generation_prompt=True, return_dict=False
            )
        return tuple(ids)


class _Pieces(TextStreamer):
    """transformers' streamer, which waits for whole words, with a callback in place of the screen."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.say, self.text = say, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self.say(text)


def load_speaker(config: InferConfig, m: Model) -> Speaker:
    device = torch.device("cuda" if torch.cuda.is_available() and not config.run.use_cpu else "cpu")
    tokenizer = load_tokenizer(m.model, revision=m.model_revision, trust_remote_code=m.trust_remote_code)
    for choice in frozen_choices(m, device, use_cpu=config.run.use_cpu):
        print(f"chosen: {choice}", file=sys.stderr)
    model = load_frozen(m, device)
    sampler = sampler_of(model, config.rollout, tokenizer, end_token_ids(tokenizer, model))
    name = " + ".join([m.model, *m.adapters])
    return Speaker(Path(name).name, sampler, tokenizer, config.data.system)


Show = Callable[[list[Speaker], int], None]


def converse(speakers: list[Speaker], lines: Iterator[str], *, show: Show) -> None:
    """Until `lines` end or say /quit. Every answer of a conversation has a seed of its own, the same in every run."""
    for turn, line in enumerate(lines):
        word, _, rest = line.strip().partition(" ")
        if word in ("/quit", "/exit"):
            return
        if word in ("/clear", "/system"):
            for speaker in speakers:
                speaker.clear()
                speaker.system = rest.strip() or None if word == "/system" else speaker.system
        elif word.startswith("/"):
            print(HELP, file=sys.stderr)
        elif word:
            for speaker in speakers:
                speaker.hear(line.strip())
            show(speakers, turn)
            for speaker in speakers:
                if speaker.cut:
                    longest = speaker.sampler.sampling.max_new_tokens
                    print(f"({speaker.name} was cut off at --max_completion_length {longest})", file=sys.stderr)


def _one_by_one(speakers: list[Speaker], turn: int) -> None:
    """Each answer under the other, as it comes."""
    for speaker in speakers:
        print(f"{speaker.name}: " if len(speakers) > 1 else "", end="")
        speaker.speak(lambda text: print(text, end="", flush=True), turn)
        print(flush=True)


def _columns(speakers: list[Speaker], turn: int) -> None:
    """The answers beside each other, each filling its column as it comes."""
    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    said = ["" for _ in speakers]

    def view() -> Table:
        table = Table.grid(expand=True)
        for _ in speakers:
            table.add_column(ratio=1)
        table.add_row(*(Panel(Text(text), title=s.name) for text, s in zip(said, speakers, strict=True)))
        return table

    with Live(view(), refresh_per_second=8, vertical_overflow="visible") as live:
        for place, speaker in enumerate(speakers):

            def add(text: str, place: int = place) -> None:
                said[place] += text
                live.update(view())

            speaker.speak(add, turn)


def _lines() -> Iterator[str]:
    """What is typed, or what comes through a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import contextlib

    with contextlib.suppress(ImportError):  # arrow keys and history, where the system has them
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            return
