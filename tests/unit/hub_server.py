"""A hub on loopback: as much of the hub's HTTP API as `huggingface_hub` uses to fetch a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from threading import Thread
from urllib.parse import unquote, urlsplit

MODEL, COMMIT = "some-org/tiny-llava", "c0" * 20
PRIVATE, GATED = "some-org/private", "some-org/gated"


@dataclass
class Hub:
    """One model with the files of a folder. `cut` breaks a file's body off behind so many bytes, as often as its number says. `asked` are requests as
    (method, path, range)."""

    folder: Path
    url: str = ""
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    down: bool = False
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def files(self) -> dict[str, Path]:
        """Every file by its path in the model."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path for path in found}

    def fetched(self) -> list[str]:
        """The files whose bodies were asked for, in any order, each once."""
        found = {path.partition("/resolve/")[2].partition("/")[2] for method, path, _ in self.asked if method == "GET"}
        return sorted(found - {""})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        """Metadata of a file."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """A model, its tree, or a file."""
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        for name, code in ((PRIVATE, "RepoNotFound"), (GATED, "GatedRepo")):
            if path.startswith((f"/api/models/{name}", f"/{name}/")):
                return self._send(403 if code == "GatedRepo" else 401, b"{}", {"X-Error-Code": code})
        if hub.down:
            return self._send(503, b"{}", {})
        if re.fullmatch(rf"/api/models/{MODEL}(/revision/\w+)?", path):
            siblings = [{"rfilename": name} for name in hub.files()]
            return self._json({"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": siblings, "tags": []})
        if re.fullmatch(rf"/api/models/{MODEL}/tree/\w+", path):
            files = hub.files().items()
            entries = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": _etag(p)} for n, p in files]
            return self._json(entries)
        found = re.fullmatch(rf"/{MODEL}/resolve/{COMMIT}/(.+)", path)
        if found and found[1] in hub.files():
            return self._file(found[1], hub.files()[found[1]], body=body)
        code = "EntryNotFound" if found else "RepoNotFound"
        return self._send(404, b"{}", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def _json(self, data: object) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, path: Path, *, body: bool) -> None:
        data = path.read_bytes()
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int((re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        after, times = self.hub.cut.get(name, (0, 0))
        if body and times:
            self.hub.cut[name] = (after, times - 1)
            self._send(206 if start else 200, data[start:], headers, only=max(0, after - start))
            self.connection.shutdown(SHUT_RDWR)
            return
        self._send(206 if start else 200, data[start:], headers, only=None if body else 0)

    def _send(self, status: int, data: bytes, headers: dict[str, str], only: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if only is None else data[:only])
            self.wfile.flush()


def _etag(path: Path) -> str:
    state = path.stat()
    return _hash(path, state.st_size, state.st_mtime_ns)


@cache
def _hash(path: Path, _size: int, _changed: int) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub with the files of a folder as `MODEL`."""
    hub = Hub(folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
