"""Starting vLLM: its command line, and a stand-in for its process that says what it was given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.support import command as limbeck_command
from tests.support import env

from limbeck.cli.main import main
from limbeck.config import parse
from limbeck.config.beside import DeployConfig
from limbeck.serve.vllm import command

STAND_IN = """
import json, os, signal, sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() - began > 1 else 503)
        self.end_headers()
    def log_message(self, *args): pass

began = time.monotonic()
if "--fail" in sys.argv:
    sys.exit(7)
server = HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("GOT", json.dumps([sys.argv[1:], os.environ.get("VLLM_API_KEY")]), flush=True)
server.serve_forever()
sys.exit(3)
"""


def deploy_config(*words: str) -> DeployConfig:
    config = parse("deploy", ["--infer_backend", "vllm", *words])
    assert isinstance(config, DeployConfig)
    return config


def test_the_command_line() -> None:
    words = ["--model", "org/model", "--max_logprobs", "20", "--tensor_parallel_size", "2", "--torch_dtype", "bf16"]
    words += ["--vllm_max_model_len", "512", "--gpu_memory_utilization", "0.5", "--vllm_args=--enforce-eager --x 'a b'"]
    assert command(deploy_config(*words), "python", 8123) == [
        *("python", "-m", "vllm.entrypoints.openai.api_server", "--model", "org/model", "--dtype", "bfloat16"),
        *("--served-model-name", "org/model", "--host", "127.0.0.1", "--port", "8123", "--max-logprobs", "20"),
        *("--max-model-len", "512", "--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.5"),
        *("--enforce-eager", "--x", "a b"),
    ]


def test_swifts_lengths(tmp_path: Path) -> None:
    words = command(deploy_config("--model", "m", "--max_length", "512", "--max_new_tokens", "99"), "python", 1)
    assert words[words.index("--max-model-len") + 1] == "512"
    assert json.loads(words[words.index("--override-generation-config") + 1]) == {"max_new_tokens": 99}


def test_an_adapter_has_the_served_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 12}))
    words = command(deploy_config("--model", "m", "--adapters", str(tmp_path), "--served_model_name", "t"), "p", 1)
    assert words[words.index("--served-model-name") + 1] == "t-base"
    at = words.index("--enable-lora")
    assert words[at:] == ["--enable-lora", "--lora-modules", f"t={tmp_path}", "--max-lora-rank", "16"]


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """The environment of an interpreter that has a package called vllm."""
    folder = tmp_path / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    (folder / "api_server.py").write_text(STAND_IN)
    return env() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def test_it_waits_until_healthy_passes_signals_on_and_ends_as_vllm_ends(stand_in: dict[str, str]) -> None:
    argv = limbeck_command("deploy", "--model", "m", "--infer_backend", "vllm", "--port", 0)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=stand_in | {"LIMBECK_API_KEY": "k"}) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("starting ")
        assert " k" not in lines[0].split("--port")[1]  # the key is in the environment alone
        words, key = json.loads(lines[1].removeprefix("GOT "))
        assert (words[words.index("--model") + 1], key) == ("m", "k")
        url = lines[2].split(" on ")[1].split()[0]
        assert lines[2].startswith("serving m on ")
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 3


def test_it_says_so_where_vllm_ends_at_once(stand_in: dict[str, str]) -> None:
    argv = limbeck_command("deploy", "--model", "m", "--infer_backend", "vllm", "--port", 0, "--vllm_args=--fail")
    done = subprocess.run(argv, capture_output=True, text=True, env=stand_in, timeout=60)
    assert done.returncode == 7
    assert "vLLM ended with status 7" in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--vllm_python", sys.executable], "which this interpreter has not"),
        (["--vllm_python", "/no/such/python"], "which this interpreter has not"),
        (["--allow_hidden"], "no hidden states"),
        (["--adapters", "a", "b"], "here are several"),
    ],
)
def test_what_cannot_be(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "--model", "m", "--infer_backend", "vllm", *more]) == 2
    err = capsys.readouterr().err.splitlines()
    assert said in err[0]
    assert [line.split(":")[0].strip() for line in err] == ["error", "where", "fix"]
