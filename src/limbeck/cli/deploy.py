"""`limbeck deploy` (alias `serve`): a model behind HTTP until a signal comes."""

from __future__ import annotations

import importlib.util
import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.cli import voice
from limbeck.config.beside import DeployConfig
from limbeck.errors import ConfigError
from limbeck.quiet import quiet

if TYPE_CHECKING:
    from limbeck.serve.served import Served

KEY = "LIMBECK_API_KEY"


def run(config: DeployConfig) -> int:
    """Serves in this process, or starts vLLM. Returns the exit status; raises ConfigError and ModelError."""
    config = _with_key(config)
    if config.serve.infer_backend == "vllm":
        from limbeck.serve import vllm

        return vllm.run(config)
    _check(config)
    from limbeck.serve.listen import address, bind, is_local, listen

    with bind(config.serve.host, config.serve.port) as sock, tempfile.TemporaryDirectory(prefix="limbeck-") as folder:
        from limbeck.serve.app import make_app

        served = _load(config, Path(folder))
        url = address(sock, config.serve.host)
        print("\n".join(_facts(config, served)), flush=True)
        if config.serve.api_key is None and not is_local(config.serve.host):
            voice.warn(
                f"no key is asked for, and other machines can reach this address: set {KEY} (or --api_key), "
                "or leave --host out"
            )
        return listen(make_app(served), sock, f"serving on {url}  (Ctrl-C ends it)")


def _load(config: DeployConfig, folder: Path) -> Served:
    import torch

    from limbeck.models import load_tokenizer
    from limbeck.serve.served import make_served
    from limbeck.train.build import load_frozen
    from limbeck.train.chosen import frozen_choices

    m = config.model
    device = torch.device("cuda" if torch.cuda.is_available() and not config.run.use_cpu else "cpu")
    chosen = frozen_choices(m, device, use_cpu=config.run.use_cpu)
    tokenizer = load_tokenizer(m.model, revision=m.model_revision, trust_remote_code=m.trust_remote_code)
    with quiet():
        model = load_frozen(m, device)
    served = make_served(model, tokenizer, config.serve, root=m.model, folder=folder)
    served.choices = [*chosen, *served.choices]
    return served


def _facts(config: DeployConfig, served: Served) -> list[str]:
    """What is served, and every automatic choice with its reason."""
    from limbeck.models import describe

    limits, engine = served.limits, served.engine
    adapters = f" with {' '.join(config.model.adapters)}" if config.model.adapters else ""
    given = "from --api_key" if config.serve.api_key != os.environ.get(KEY) else f"from {KEY}"
    key = f"needed, {given}" if limits.api_key else "none"
    return [
        f"model    {served.name}{adapters} on {engine.device}",
        f"         {describe(engine.model)}",
        f"ids      {served.valid:,} of {served.width:,} rows of the head; ends at {sorted(served.end_ids)}",
        f"limits   {served.max_model_len:,} tokens a sequence, {limits.max_request_tokens:,} and "
        f"{limits.max_request_mb} MB a request, {limits.max_queue} requests at a time",
        f"answers  {limits.default_max_tokens or 'all that fit (/v1/completions: 16)'} tokens by default",
        f"gives    {served.max_logprobs:,} log-probabilities a position; hidden states "
        f"{'too' if limits.allow_hidden else 'not'}; key {key}",
        *(f"chosen   {choice}" for choice in served.choices),
    ]


def _with_key(config: DeployConfig) -> DeployConfig:
    """The key from the environment, where no flag gives one: a command line can be read by every user of a machine."""
    key = config.serve.api_key or os.environ.get(KEY) or None
    return config.model_copy(update={"serve": config.serve.model_copy(update={"api_key": key})})


def _check(config: DeployConfig) -> None:
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"limbeck deploy needs {', '.join(missing)}", where="limbeck deploy", fix='pip install "limbeck[serve]"'
        )
    for flag in ("vllm_args", "vllm_python", "vllm_tensor_parallel_size", "vllm_gpu_memory_utilization"):
        value = getattr(config.serve, flag)
        if value:
            given = shlex.quote(str(value))
            raise ConfigError(
                f"--{flag} is for vLLM", where=f"--{flag} {given}", fix="add --infer_backend vllm, or leave it out"
            )
