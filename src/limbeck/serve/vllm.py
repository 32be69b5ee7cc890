"""A vLLM server as a child process: its command line, the wait until it answers, and its end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from limbeck.config.beside import DeployConfig
from limbeck.errors import ConfigError
from limbeck.serve.listen import address, bind

STEP = 0.5  # seconds between two looks at its health
SAY = 10.0  # seconds between two lines about the wait
KEY = "VLLM_API_KEY"  # the environment is not shown to every user of the machine, a command line is


def run(config: DeployConfig) -> int:
    """Starts vLLM, waits for it, passes SIGTERM and SIGINT on, and ends with its exit status."""
    serve = config.serve
    python = serve.vllm_python or sys.executable
    check(config, python)
    with bind(serve.host, serve.port) as sock:  # taken and let go: a port that is in use is told at once
        url, port = address(sock, serve.host), sock.getsockname()[1]
    words = command(config, python, port)
    print(f"starting {shlex.join(words)}", flush=True)
    env = os.environ | ({KEY: serve.api_key} if serve.api_key else {})
    child = subprocess.Popen(words, env=env, start_new_session=True)  # the terminal's Ctrl-C comes through us alone
    before = {
        number: signal.signal(number, lambda got, _: child.send_signal(got))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        if wait_until_healthy(child, url):
            print(f"serving {served_name(config)} on {url}  (vLLM; Ctrl-C ends it)", flush=True)
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if child.poll() is None:
            child.kill()
    if status:
        print(f"vLLM ended with status {status}; what it said stands above", file=sys.stderr)
    return 128 - status if status < 0 else status


def check(config: DeployConfig, python: str) -> None:
    """Raises ConfigError for what vLLM cannot do, and where the interpreter has no vLLM."""
    if config.serve.allow_hidden:
        raise ConfigError(
            "vLLM gives out log-probabilities only, no hidden states",
            where="--allow_hidden true",
            fix="leave it out, or use --infer_backend transformers",
        )
    if len(config.model.adapters) > 1:
        raise ConfigError(
            "vLLM serves one adapter on its base, and here are several",
            where=f"--adapters {' '.join(config.model.adapters)}",
            fix="merge all but the last into the model first, or use --infer_backend transformers",
        )
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        found = subprocess.run([python, "-c", look], check=False, capture_output=True).returncode == 0
    except OSError:
        found = False
    if not found:
        raise ConfigError(
            "--infer_backend vllm needs vLLM, which this interpreter has not",
            where=python,
            fix="pip install vllm (in an environment of its own), then --vllm_python ENVIRONMENT/bin/python; or "
            "--infer_backend transformers",
        )


def served_name(config: DeployConfig) -> str:
    return config.serve.served_model_name or config.model.model


def command(config: DeployConfig, python: str, port: int) -> list[str]:
    """vLLM's command line. An adapter is what the served name means; its base is called NAME-base."""
    m, serve, name = config.model, config.serve, served_name(config)
    options: dict[str, Any] = {
        "model": m.model,
        "revision": m.model_revision,
        "dtype": m.torch_dtype,
        "served-model-name": f"{name}-base" if m.adapters else name,
        "host": serve.host,
        "port": port,
        "max-logprobs": serve.max_logprobs,
        "max-model-len": serve.max_model_len,
        "tensor-parallel-size": serve.vllm_tensor_parallel_size,
        "gpu-memory-utilization": serve.vllm_gpu_memory_utilization,
    }
    if serve.default_max_tokens is not None:
        options["override-generation-config"] = json.dumps({"max_new_tokens": serve.default_max_tokens})
    words = [python, "-m", "vllm.entrypoints.openai.api_server"]
    for flag, value in options.items():
        words += [] if value is None else [f"--{flag}", str(value)]
    if m.trust_remote_code:
        words.append("--trust-remote-code")
    if m.adapters:
        words += ["--enable-lora", "--lora-modules", f"{name}={m.adapters[0]}", "--max-lora-rank", _rank(m.adapters[0])]
    return words + shlex.split(serve.vllm_args)


def _rank(adapter: str) -> str:
    """vLLM takes these ranks only, and must know the highest beforehand."""
    file = Path(adapter).expanduser() / "adapter_config.json"
    rank = int(json.loads(file.read_text()).get("r", 16)) if file.is_file() else 64
    return str(next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), 512))


def wait_until_healthy(child: subprocess.Popen[Any], url: str) -> bool:
    """Whether it answers; False where it ended before. There is no deadline: it may be fetching the model."""
    began = said = time.monotonic()
    while child.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5.0, trust_env=False).status_code == 200:
                return True
        except httpx.HTTPError:
            pass
        now = time.monotonic()
        if now - said >= SAY:
            print(f"waiting for vLLM, {now - began:.0f} s so far", flush=True)
            said = now
        time.sleep(STEP)
    return False
