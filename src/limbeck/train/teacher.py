"""The teacher of the method's row, from the configuration: none, models loaded here, servers, or the student itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from limbeck.config.choices import Source
from limbeck.config.defaults import Choice
from limbeck.config.routes import ModelRoute, ServerRoute
from limbeck.config.schema import Config
from limbeck.errors import ConfigError
from limbeck.models import check_head, enable_packing, fingerprint, load_model, tokenizer_fingerprint
from limbeck.signal import Ask
from limbeck.teachers import LocalTeacher, RoutedTeacher, Shadow, Teacher
from limbeck.teachers.connection import KEY_VARIABLE
from limbeck.teachers.discovery import described
from limbeck.teachers.server import ServerTeacher, check_server, discover
from limbeck.teachers.store import StoredTeacher
from limbeck.train.chosen import teacher_dtype
from limbeck.train.lengths import server_too_long
from limbeck.train.prepare import Prepared


@dataclass(frozen=True)
class _Site:
    """What every kind of teacher is built from. say: for a person, while a server is waited for."""

    prepared: Prepared
    accelerator: Accelerator
    student: nn.Module
    choices: list[Choice]
    say: Callable[[str], None]

    @property
    def config(self) -> Config:
        return self.prepared.config

    def local(self, model: nn.Module, name: str, **more: Any) -> LocalTeacher:
        return LocalTeacher(
            model,
            name=name,
            ask=more.pop("ask", None) or ask_of(self.config),
            valid=self.prepared.valid,
            pad_id=self.prepared.tokenizer.pad_token_id,
            device=more.pop("device", self.accelerator.device),
            autocast=self.accelerator.autocast,
            **more,
        )


def ask_of(config: Config) -> Ask:
    """What the method needs to know of the teacher at every active token."""
    method = config.method
    k, temperature = method.gkd_logits_topk, method.loss_temperature
    if method.rlhf_type == "grpo" and config.policy.opd_signal == "sampled":
        return Ask("sampled", temperature=temperature)
    if k is None:
        return Ask("hidden", temperature=temperature)
    kinds = {
        "teacher": Ask("topk", k, temperature),
        "student": Ask("named", 0, temperature, named_k=k),
        "union": Ask("union", k, temperature, named_k=k),
    }
    return kinds[method.topk_support]


def build_teacher(
    prepared: Prepared,
    accelerator: Accelerator,
    student: nn.Module,
    choices: list[Choice],
    *,
    say: Callable[[str], None] = print,
) -> Teacher | None:
    """Loads it, or finds its server, and puts the store around it. Raises ConfigError or ModelError for what cannot
    work, and TeacherError for a server that stays away."""
    config, source = prepared.config, prepared.method.source
    if source == "none":
        return None
    teacher = _BUILDERS[source](_Site(prepared, accelerator, student, choices, say))
    if config.teacher.teacher_cache is None:
        return teacher
    return StoredTeacher(
        teacher,
        teacher.ask,
        config.teacher.teacher_cache,
        tokenizer=tokenizer_fingerprint(prepared.tokenizer),
        valid=prepared.valid,
    )


def build_reference(
    prepared: Prepared, accelerator: Accelerator, student: nn.Module, say: Callable[[str], None] = print
) -> Teacher | None:
    """The model that path B's KL with weight --beta holds the student to: the base under a fresh adapter, else the
    student as it starts. None where beta is 0: then none is kept."""
    config = prepared.config
    if prepared.method.path != "advantage" or not config.method.beta:
        return None
    site = _Site(prepared, accelerator, student, [], print)
    ask = Ask("sampled", temperature=config.rollout.temperature or 1.0)
    fresh = isinstance(student, PeftModel) and not config.model.adapters
    view = {"view": student.disable_adapter} if fresh else {"shadow": Shadow(student)}
    say(f"reference: {'the model under the fresh adapter' if fresh else 'a copy of the student as it starts'} (--beta)")
    return site.local(student, "reference", ask=ask, **view)


def _model(site: _Site) -> Teacher:
    t = site.config.teacher
    if isinstance(t.teacher_model, list):
        each = [(route.tags, _load(site, route)) for route in t.teacher_model]
        return RoutedTeacher(each, t.teacher_tag_key)
    assert t.teacher_model is not None
    route = ModelRoute(tags=[], model=t.teacher_model, revision=t.teacher_model_revision, adapters=t.teacher_adapters)
    return _load(site, route)


def _load(site: _Site, route: ModelRoute) -> LocalTeacher:
    t, m, home = site.config.teacher, site.config.model, site.accelerator.device
    device = _device(t.teacher_device) if t.teacher_device else home
    held = str(next(site.student.parameters()).dtype).removeprefix("torch.")
    chosen = teacher_dtype(site.config, route.model, device.type, held)
    dtype = cast(Any, t.teacher_torch_dtype if chosen is None else chosen.value)
    told = [] if chosen is None else [chosen]
    told += [] if t.teacher_device else [Choice("teacher_device", str(device), "the student's")]
    site.choices.extend(choice for choice in told if choice not in site.choices)  # of several teachers once
    model = load_model(
        route.model,
        revision=route.revision,
        dtype=dtype,
        attn_impl=m.attn_impl,
        adapters=route.adapters,
        trust_remote_code=m.trust_remote_code,
        trainable=False,
        quant_bits=t.teacher_quant_bits,
    )
    check_head(model)
    enable_packing(model)
    if not t.offload_teacher_model and t.teacher_quant_bits is None:
        cast(nn.Module, model).to(device)
    answers = None if device == home else home
    return site.local(model, route.model, device=device, answer_device=answers, offload=t.offload_teacher_model)


def _device(name: str) -> torch.device:
    """Raises ConfigError for one that is not here."""
    device = torch.device(name)
    count = 1 if device.type == "cpu" else _how_many(device.type)
    if (device.index or 0) >= count:
        known = f"cuda has {count}: they are counted from 0" if count else f"torch sees no {device.type} device here"
        raise ConfigError(
            f"there is no device {name}", where=f"--teacher_device {name}", fix=f"{known}; leave it out, or write cpu"
        )
    return device


def _how_many(kind: str) -> int:
    module = getattr(torch, kind, None)
    return int(module.device_count()) if module is not None and module.is_available() else 0


def _server(site: _Site) -> Teacher:
    t = site.config.teacher
    if isinstance(t.teacher_model_server, list):
        each = [(route.tags, _connect(site, route)) for route in t.teacher_model_server]
        return RoutedTeacher(each, t.teacher_tag_key)
    assert t.teacher_model_server is not None
    return _connect(site, ServerRoute(tags=[], url=t.teacher_model_server))


def _connect(site: _Site, route: ServerRoute) -> Teacher:
    t, ask = site.config.teacher, ask_of(site.config)
    info = discover(route.url, key=t.teacher_api_key, patience=t.teacher_patience, say=site.say)
    key = "--teacher_api_key" if t.teacher_api_key else KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else "none"
    site.say(f"server: {described(info)}; key {key}")
    settings = {"topk_mode": site.config.method.topk_mode, "key": t.teacher_api_key, "patience": t.teacher_patience}
    for note in check_server(info, ask, site.prepared.tokenizer, **settings, say=site.say):
        site.say(f"note: {note}")
    if info.max_model_len is not None:
        p, room = site.prepared, info.max_model_len - int(info.kind == "vllm")  # which has to make one token
        for text in server_too_long(p.config, p.method, p.rows, p.held_out, route, room):
            site.say(f"warning: {text}")
    return ServerTeacher(
        info,
        ask,
        site.prepared.valid,
        bits=t.teacher_wire_bits,
        key=t.teacher_api_key,
        timeout=t.teacher_timeout,
        patience=t.teacher_patience,
        concurrency=t.teacher_concurrency,
        say=site.say,
    )


def _base(site: _Site) -> Teacher:
    student = site.student
    assert isinstance(student, PeftModel)
    teacher = site.local(student, "base", view=student.disable_adapter)
    teacher.identity = fingerprint(student, adapters=False)  # the same whatever the adapter has learnt
    return teacher


def _live(site: _Site) -> Teacher:
    return site.local(site.student, "live", moves=True)


def _frozen(site: _Site) -> Teacher:
    return site.local(site.student, "frozen", shadow=Shadow(site.student))


def _ema(site: _Site) -> Teacher:
    decay = site.config.teacher.teacher_ema_decay
    return site.local(site.student, "ema", moves=True, shadow=Shadow(site.student, decay))


_BUILDERS: dict[Source, Callable[[_Site], Teacher]] = {
    "model": _model,
    "server": _server,
    "base": _base,
    "live": _live,
    "frozen": _frozen,
    "ema": _ema,
}
