"""A teacher server over HTTP: pooled connections, time limits, and patience with a server that is away for a while.

What may mend itself is asked again: lost connections, timeouts, HTTP 408, 425, 429 and 5xx, answers that cannot be
read. The rest is told at once: `Refused` concerns what was asked, `Denied` everything that could be asked.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

import httpx

from limbeck.errors import ConfigError, TeacherError

KEY_VARIABLE = "LIMBECK_TEACHER_API_KEY"
CONNECT = 10.0  # seconds for a connection to open
FIRST_WAIT, LONGEST_WAIT = 0.25, 5.0  # seconds between two tries: doubled each time, and shortened at random
BROKEN = 6  # times HTTP 500, while other requests are answered, after which a request counts as refused
DENIED = {401, 402, 403, 404, 405, 407, 410, 501}
PASSING = {408, 425, 429}

T = TypeVar("T")
Read = Callable[[bytes], T]
"""What a body means. ValueError: it cannot be read, or cannot be right, and is asked for again."""


class Refused(Exception):
    """The server will not answer this: too long, too many, an id that it does not know."""


class Denied(Exception):
    """The server will not answer anything of the kind: no such place, or not for this key."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Connection:
    """Requests to the server at `url` (see `base_url`), from several threads at a time.

    key: sent as a bearer token; by default what LIMBECK_TEACHER_API_KEY holds. It is in no message and no repr.
    timeout: seconds for one request from its first byte to its last; after a timeout the next try has twice as long.
    patience: seconds from the last success of any thread, or from the beginning of the request, until it is given up.
    Raises TeacherError where that time is over.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        patience: float = 600.0,
        concurrency: int = 8,
        say: Callable[[str], None] = print,
    ) -> None:
        self.url, self.timeout, self.patience, self._say = base_url(url), timeout, patience, say
        key = (key or os.environ.get(KEY_VARIABLE, "")).strip()
        if not key.isascii() or not key.isprintable():
            raise ConfigError("the teacher's key has characters that HTTP cannot carry", fix=f"check {KEY_VARIABLE}")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            # Proxies that the environment names are for the world outside, not for this machine.
            trust_env=not _is_loopback(self.url),
            verify=self.url.startswith("https:"),  # no certificates to load where there are none to verify
        )
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._last_success = -float("inf")
        self._away_since: float | None = None
        self._counts: dict[str, float] = {}

    def get(self, path: str, read: Read[T]) -> T:
        return self._request("GET", path, read, {})

    def post(self, path: str, body: bytes, read: Read[T], *, media_type: str = "application/json") -> T:
        return self._request("POST", path, read, {"content": body, "headers": {"Content-Type": media_type}})

    def _request(self, method: str, path: str, read: Read[T], rest: dict[str, Any]) -> T:
        began, limit, tries, broken, stop = time.monotonic(), self.timeout, 0, 0, self._stop
        while not stop.is_set():
            left = self.patience - (time.monotonic() - max(began, self._last_success))
            wait = min(FIRST_WAIT * 2**tries, LONGEST_WAIT) * random.uniform(0.5, 1)
            try:
                value = read(self._exchange(method, path, min(limit, max(left, 1.0)), rest))
                self._succeeded()
                return value
            except (Refused, Denied):
                self._succeeded()  # it is there
                raise
            except _Passing as error:
                reason, wait = str(error), max(wait, error.wait)
                broken += error.status == 500
                if broken >= BROKEN and self._last_success > began:
                    raise Refused(reason) from error  # other requests are answered: it is this one
            except httpx.TimeoutException as error:
                opening = isinstance(error, httpx.ConnectTimeout)
                reason = f"no connection within {CONNECT:g} s" if opening else f"no whole answer within {limit:g} s"
                limit *= 1 if opening else 2
            except (httpx.HTTPError, ValueError) as error:
                reason = str(error) or type(error).__name__
            tries += 1
            self._failed(tries, reason)
            away = time.monotonic() - max(began, self._last_success)
            if away >= self.patience:
                raise self._gave_up(reason, away)
            stop.wait(min(wait, self.patience - away))
        raise TeacherError("the teacher server was left before it answered", where=self.url)

    def _exchange(self, method: str, path: str, limit: float, rest: dict[str, Any]) -> bytes:
        """One try. The limit is kept over the whole body: a byte now and then does not extend it."""
        end = time.monotonic() + limit
        self._count(requests=1, bytes_sent=len(rest.get("content", b"")))
        timeout = httpx.Timeout(limit, connect=min(CONNECT, limit), pool=None)
        with self._client.stream(method, self.url + path, timeout=timeout, **rest) as response:
            body = bytearray()
            try:
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > end:
                        raise httpx.ReadTimeout("")
            finally:
                self._count(bytes_received=response.num_bytes_downloaded)
        if response.is_success:
            return bytes(body)
        raise _failure(response, bytes(body))

    def _succeeded(self) -> None:
        with self._lock:
            self._last_success = time.monotonic()
            since, self._away_since = self._away_since, None
        if since is not None:
            self._say(f"the teacher server {self.url} answers again, after {time.monotonic() - since:.0f} s")

    def _failed(self, tries: int, reason: str) -> None:
        self._count(retries=1)
        with self._lock:
            first = tries == 2 and self._away_since is None  # one lost connection is not worth a line
            if first:
                self._away_since = time.monotonic()
        if first:
            self._say(
                f"the teacher server {self.url} does not answer ({reason}); it is asked again "
                f"for up to {self.patience:g} s"
            )

    def _gave_up(self, reason: str, away: float) -> TeacherError:
        return TeacherError(
            f"the teacher server did not answer for {away:.0f} s",
            where=f"{self.url}, the last time: {reason}",
            fix="start the server and run the command again, or wait longer with --teacher_patience "
            "(and --teacher_timeout, where one request takes long)",
        )

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                self._counts[name] = self._counts.get(name, 0.0) + value

    def counts(self) -> dict[str, float]:
        """Requests, retries, bytes_sent and bytes_received (bodies, as they travelled) since the last call."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return {name: counts.get(name, 0.0) for name in ("requests", "retries", "bytes_sent", "bytes_received")}

    def interrupt(self) -> None:
        """Requests under way give up at their next try; later ones are made as ever."""
        self._stop.set()
        self._stop = threading.Event()

    def close(self) -> None:
        self._stop.set()
        self._client.close()


class _Passing(Exception):
    """wait: seconds that the server asks for."""

    def __init__(self, status: int, reason: str, wait: float) -> None:
        super().__init__(reason)
        self.status, self.wait = status, wait


def _failure(response: httpx.Response, body: bytes) -> Exception:
    status, reason = response.status_code, reason_of(body)
    known = status in HTTPStatus._value2member_map_
    said = f"HTTP {status}{' ' + HTTPStatus(status).phrase if known else ''}" + (f": {reason}" if reason else "")
    if status in PASSING or (status >= 500 and status not in DENIED):
        return _Passing(status, said, _retry_after(response.headers.get("Retry-After", "")))
    if response.is_redirect:
        return Denied(status, f"it sends on to {response.headers.get('Location', 'another place')}")
    return Denied(status, said) if status in DENIED else Refused(reason or said)


def reason_of(body: bytes) -> str:
    """The message in an error's JSON, as OpenAI-like servers and FastAPI write it, or the beginning of the text."""
    try:
        found = json.loads(body)
        for key in ("error", "message", "detail"):
            found = found.get(key, found) if isinstance(found, dict) else found
        text = found if isinstance(found, str) else json.dumps(found)
    except ValueError:
        text = body.decode("utf-8", "replace")
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."


def _retry_after(value: str) -> float:
    """Seconds, from a number or a date; 0 for neither."""
    try:
        return (
            max(float(value), 0.0)
            if value.strip().isdigit()
            else parsedate_to_datetime(value).timestamp() - time.time()
        )
    except (ValueError, TypeError):
        return 0.0


def base_url(url: str) -> str:
    """The address without /v1 and without a slash at the end; http:// where no scheme is given.

    Raises ConfigError for what is no such address, or holds a password (which would stand in every log).
    """
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parsed = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(
            f"this is no address: {error}", where=f"--teacher_model_server {url}", fix=_EXAMPLE
        ) from error
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ConfigError(
            "the teacher's address has more than a host, a port and a path",
            where=f"--teacher_model_server {parsed.scheme}://{parsed.host}",
            fix=f"{_EXAMPLE}; a key belongs into {KEY_VARIABLE}",
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError("this is no address of a server", where=f"--teacher_model_server {url}", fix=_EXAMPLE)
    return str(parsed).rstrip("/").removesuffix("/v1").rstrip("/")


_EXAMPLE = "write it like http://localhost:8000"


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
