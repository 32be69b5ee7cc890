"""A model hub over a real socket: the part of the Hub's HTTP API that a push and a download need, files on disk.

Written from what huggingface_hub and datasets send. There is one branch, `main`; a commit's id is a hash of the files,
and only the newest is served. Large files go by git-lfs (batch, basic upload) to a storage under another host name, and
come back through a redirect to it; it knows no tokens and refuses them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse

from limbeck.serve.listen import bind
from tests.support import command, env

WRITER, READER = "hf_writer", "hf_reader"  # tokens of the user `me`
LARGE = 10_000_000  # bytes; weights are large whatever their size
NOTHING = {"HF_TOKEN": "", "HF_HUB_OFFLINE": "", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass
class Fault:
    """What happens to requests whose `METHOD /path` matches: a delay, an error status, or both; `times` of them."""

    pattern: str
    status: int = 0
    delay: float = 0.0
    times: int = 1_000


@dataclass
class Hub:
    root: Path
    url: str = ""
    storage: str = ""  # where large files are
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)  # their messages

    def repo(self, kind: str, name: str) -> Path:
        """kind: models or datasets."""
        return self.root / kind / name

    def env(self, home: Path, token: str = "") -> dict[str, str]:
        """The environment of somebody whose only hub this is. home: an empty folder for the caches."""
        paths = {"HF_HOME": str(home), "HF_ENDPOINT": self.url, "HF_TOKEN": token}
        kept = {k: v for k, v in env().items() if k not in NOTHING and not k.startswith(("HF_", "HUGGING"))}
        return kept | {k: v for k, v in (NOTHING | paths).items() if v}

    def limbeck(self, *argv: Any, home: Path, token: str = WRITER) -> subprocess.CompletedProcess[str]:
        return self.run(*command(*argv), home=home, token=token)

    def run(self, *argv: Any, home: Path, token: str = WRITER) -> subprocess.CompletedProcess[str]:
        words = list(map(str, argv))
        return subprocess.run(words, capture_output=True, text=True, env=self.env(home, token), timeout=300)


def sha(repo: Path) -> str:
    """The commit's id."""
    digest = hashlib.sha1()
    for path in _files(repo):
        digest.update(path.relative_to(repo).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _files(repo: Path) -> list[Path]:
    return sorted(path for path in repo.rglob("*") if path.is_file())


def _is_large(path: str, size: int) -> bool:
    return path.endswith((".safetensors", ".gguf", ".parquet")) or size > LARGE


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _entry(repo: Path, path: Path) -> dict[str, Any]:
    """A file or a folder as /tree and /paths-info list it."""
    name = path.relative_to(repo).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": _blob_id(name.encode())}
    data = path.read_bytes()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _blob_id(data)}
    if _is_large(name, len(data)):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _refusal(status: int, code: str = "", message: str = "no") -> JSONResponse:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, headers)


def make_app(hub: Hub) -> FastAPI:
    app = FastAPI()
    _account(app, hub)
    _writing(app, hub)
    _reading(app, hub)

    @app.middleware("http")
    async def faulty(request: Request, call_next: Any) -> Response:
        asked = f"{request.method} {request.url.path}"
        hub.asked.append(asked)
        for fault in hub.faults:
            if fault.times and re.search(fault.pattern, asked):
                fault.times -= 1
                await asyncio.sleep(fault.delay)
                if fault.status:
                    return _refusal(fault.status, message=f"a fault of {fault.status}")
        return await call_next(request)

    return app


def _token(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")


def _account(app: FastAPI, hub: Hub) -> None:
    @app.get("/api/whoami-v2")
    def whoami(request: Request) -> Response:
        role = {WRITER: "write", READER: "read"}.get(_token(request))
        if role is None:
            return _refusal(401, message="Invalid credentials in Authorization header")
        token = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}}
        return JSONResponse({"type": "user", "name": "me", "orgs": [{"type": "org", "name": "us"}], "auth": token})

    @app.post("/api/validate-yaml")
    async def validate(request: Request) -> Response:
        body = await request.json()
        front = re.match(r"^---\n(.*?)\n---\n", body["content"], re.S)
        return JSONResponse(
            {"errors": [], "warnings": [] if front else [{"message": "empty or missing yaml metadata"}]}
        )

    @app.post("/api/repos/create")
    async def create(request: Request) -> Response:
        body = await request.json()
        owner = body.get("organization") or "me"
        name, kind = f"{owner}/{body['name']}", f"{body.get('type') or 'model'}s"
        if _token(request) != WRITER or owner not in ("me", "us"):
            return _refusal(403, message=f"You don't have the rights to create a {body.get('type')} under {owner}")
        repo = hub.repo(kind, name)
        taken = repo.exists()
        repo.mkdir(parents=True, exist_ok=True)
        if not taken and (body.get("private") or body.get("visibility") == "private"):
            hub.private.add(name)
        url = f"{hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        return JSONResponse({"url": url, "error": "You already created this repo"}, 409 if taken else 200)


def _writing(app: FastAPI, hub: Hub) -> None:
    @app.post("/api/{kind}/{owner}/{name}/preupload/{revision}")
    async def preupload(kind: str, owner: str, name: str, request: Request) -> Response:
        if _token(request) != WRITER:
            return _refusal(403, message="write token needed")
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_large(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
            }
            for file in (await request.json())["files"]
        ]
        return JSONResponse({"files": modes})

    async def batch(owner: str, name: str, request: Request) -> Response:
        body = await request.json()
        objects = []
        for thing in body["objects"]:
            there = (hub.root / "lfs" / thing["oid"]).exists()
            upload = {"upload": {"href": f"{hub.storage}/lfs/{thing['oid']}"}}
            objects.append(thing | ({} if there else {"actions": upload}))
        return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")

    app.post("/{owner}/{name}.git/info/lfs/objects/batch")(batch)
    app.post("/datasets/{owner}/{name}.git/info/lfs/objects/batch")(batch)

    @app.put("/lfs/{oid}")
    async def put(oid: str, request: Request) -> Response:
        data = await request.body()
        if _token(request):
            return _refusal(400, message="a token went to the storage")
        if hashlib.sha256(data).hexdigest() != oid:
            return _refusal(400, message="other bytes than were announced")
        (hub.root / "lfs").mkdir(exist_ok=True)
        (hub.root / "lfs" / oid).write_bytes(data)
        return Response()

    @app.post("/api/{kind}/{owner}/{name}/commit/{revision}")
    async def commit(kind: str, owner: str, name: str, request: Request) -> Response:
        repo = hub.repo(kind, f"{owner}/{name}")
        if _token(request) != WRITER or not repo.exists():
            return _refusal(404, "RepoNotFound", "Repository not found")
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                hub.commits.append(value["summary"])
                continue
            target = repo / value["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                target.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                target.write_bytes((hub.root / "lfs" / value["oid"]).read_bytes())
            else:
                return _refusal(400, message=f"{line['key']} is not known here")
        oid = sha(repo)
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{owner}/{name}/commit/{oid}"})


def _reading(app: FastAPI, hub: Hub) -> None:
    def find(kind: str, owner: str, name: str, revision: str, request: Request) -> Path | Response:
        repo = hub.repo(kind, f"{owner}/{name}")
        hidden = f"{owner}/{name}" in hub.private and _token(request) not in (WRITER, READER)
        if not repo.is_dir() or hidden:
            return _refusal(404 if _token(request) else 401, "RepoNotFound", "Repository not found")
        if revision not in ("main", sha(repo)):
            return _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo

    @app.get("/api/{kind}/{owner}/{name}/tree/{revision}")
    @app.get("/api/{kind}/{owner}/{name}/tree/{revision}/{path:path}")
    def tree(
        kind: str, owner: str, name: str, revision: str, request: Request, path: str = "", recursive: str = "false"
    ) -> Response:
        repo = find(kind, owner, name, revision, request)
        if isinstance(repo, Response):
            return repo
        folder = repo / path
        if not folder.is_dir():
            return _refusal(404, "EntryNotFound", f"{path} does not exist")
        found = folder.rglob("*") if recursive.lower() == "true" else folder.iterdir()
        return JSONResponse([_entry(repo, each) for each in sorted(found)])

    @app.post("/api/{kind}/{owner}/{name}/paths-info/{revision}")
    async def paths_info(kind: str, owner: str, name: str, revision: str, request: Request) -> Response:
        repo = find(kind, owner, name, revision, request)
        if isinstance(repo, Response):
            return repo
        asked = (await request.form()).getlist("paths")
        return JSONResponse([_entry(repo, repo / str(path)) for path in asked if (repo / str(path)).exists()])

    @app.get("/api/{kind}/{owner}/{name}")
    @app.get("/api/{kind}/{owner}/{name}/revision/{revision}")
    def info(kind: str, owner: str, name: str, request: Request, revision: str = "main") -> Response:
        repo = find(kind, owner, name, revision, request)
        if isinstance(repo, Response):
            return repo
        files = [{"rfilename": path.relative_to(repo).as_posix()} for path in _files(repo)]
        whole = {"id": f"{owner}/{name}", "sha": sha(repo), "private": f"{owner}/{name}" in hub.private}
        return JSONResponse(whole | {"siblings": files, "tags": [], "downloads": 0, "likes": 0})

    @app.api_route("/lfs/{oid}", methods=["GET", "HEAD"])
    def large(oid: str, request: Request) -> Response:
        if _token(request):
            return _refusal(400, message="a token went to the storage")
        return FileResponse(hub.root / "lfs" / oid, headers={"ETag": f'"{oid}"'})

    def resolve(kind: str, owner: str, name: str, revision: str, path: str, request: Request) -> Response:
        repo = find(kind, owner, name, revision, request)
        if isinstance(repo, Response):
            return repo
        commit, target = {"X-Repo-Commit": sha(repo)}, repo / path
        if not target.is_file():
            refused = _refusal(404, "EntryNotFound", "Entry not found")
            refused.headers.update(commit)
            return refused
        entry = _entry(repo, target)
        if "lfs" not in entry:
            return FileResponse(target, headers=commit | {"ETag": f'"{entry["oid"]}"'})
        oid = entry["lfs"]["oid"]
        (hub.root / "lfs").mkdir(exist_ok=True)
        if not (hub.root / "lfs" / oid).exists():
            os.link(target, hub.root / "lfs" / oid)
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(entry["size"])}
        return RedirectResponse(f"{hub.storage}/lfs/{oid}", 302, headers=commit | linked)

    @app.api_route("/datasets/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def resolve_rows(owner: str, name: str, revision: str, path: str, request: Request) -> Response:
        return resolve("datasets", owner, name, revision, path, request)

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def resolve_model(owner: str, name: str, revision: str, path: str, request: Request) -> Response:
        return resolve("models", owner, name, revision, path, request)


@contextmanager
def running_hub(root: Path) -> Iterator[Hub]:
    """A hub of its own on a free port, with its files under `root`."""
    hub, sock = Hub(root), bind("127.0.0.1", 0)
    hub.url, hub.storage = (f"http://{host}:{sock.getsockname()[1]}" for host in ("127.0.0.1", "localhost"))
    server = uvicorn.Server(uvicorn.Config(make_app(hub), log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]), daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield hub
    finally:
        server.should_exit = True
        thread.join()
        sock.close()
