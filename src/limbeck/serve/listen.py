"""A socket taken before the model is loaded, and uvicorn on it until a signal comes."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
import sys
from typing import Any

import uvicorn

from limbeck.errors import ConfigError

FINISH = 10  # seconds that running requests get after the first signal


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: clients are refused until the model is there. Raises ConfigError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named: 40 ms a request
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        reason = error.strerror or str(error)
        fix, where = "stop what listens there, or give another --port (0 takes a free one)", f"--port {port}"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            fix, where = "give an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them", f"--host {host}"
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}", where=where, fix=fix) from error
    return sock


def address(sock: socket.socket, host: str) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"


def is_local(host: str) -> bool:
    """Only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server(uvicorn.Server):
    """Says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, greeting: str) -> None:
        super().__init__(config)
        self.greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.greeting, flush=True)


def listen(app: Any, sock: socket.socket, greeting: str) -> int:
    """Serves until SIGTERM or SIGINT: no new requests, FINISH seconds for those that run. The exit status."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=FINISH, lifespan="on")
    # uvicorn raises the signal again when all is done; an orderly end is no failure
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    server = Server(config, greeting)
    try:
        server.run(sockets=[sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not server.started:
        return 1
    print("stopped", file=sys.stderr)
    return 0
