"""A real uvicorn in a thread, on a free port, serving tiny models."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from limbeck.config.beside import Serve
from limbeck.models import load_model, load_tokenizer
from limbeck.serve.app import make_app
from limbeck.serve.listen import bind
from limbeck.serve.served import Served, make_served


@dataclass
class Running:
    url: str
    served: Served
    http: httpx.Client

    def post(self, path: str, body: Any = None, **kwargs: Any) -> httpx.Response:
        return self.http.post(path, json=body, **kwargs) if body is not None else self.http.post(path, **kwargs)


@contextmanager
def serving(
    folder: Path, scratch: Path, *, dtype: Any = "float32", adapters: Sequence[str] = (), **limits: Any
) -> Iterator[Running]:
    model = load_model(str(folder), dtype=dtype, adapters=adapters, trainable=False)
    settings = Serve(served_model_name="tiny", **limits)
    served = make_served(model, load_tokenizer(str(folder)), settings, root=str(folder), folder=scratch)
    sock = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(served), log_level="error", timeout_graceful_shutdown=2))
    ready = threading.Event()
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    key = {"Authorization": f"Bearer {limits['api_key']}"} if "api_key" in limits else {}
    with httpx.Client(base_url=url, timeout=60, headers=key, trust_env=False) as http:
        while not server.started:
            ready.wait(0.01)
        try:
            yield Running(url, served, http)
        finally:
            server.should_exit = True
            thread.join()
            sock.close()


def sequences(*lengths: int, seed: int = 0, valid: int = 320) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, valid, (n,), generator=generator).tolist() for n in lengths]
