"""A hub in this process: the routes that a download asks, with the answers of huggingface.co.

GET  /api/whoami-v2                                  who a token belongs to
GET  /api/models/ORG/NAME[/revision/REVISION]        the commit of a branch or a tag
GET  /api/models/ORG/NAME/tree/COMMIT                the files
HEAD, GET /ORG/NAME/resolve/COMMIT/FILE              a file; of a gated repository only this is refused
"""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REPO, COMMIT, TOKEN = "google/gemma-4-tiny", "c" * 40, "hf_tiny"


class Hub(ThreadingHTTPServer):
    """Serves one repository from a directory, to anybody until a test says otherwise.

    Args:
        directory: the files.
        port: the port; 0 for a free one.
    """

    daemon_threads = True

    def __init__(self, directory: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.files = {path.name: path.read_bytes() for path in directory.iterdir()}
        self.private = self.gated = False
        self.accepted: set[str] = set()
        self.fails: set[str] = set()
        self.sent: list[str] = []
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        """Endpoint, for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        """Stop serving; the port refuses connections then."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request of a client."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:  # noqa: ANN401 -- the base class's
        """Write no log."""

    def do_HEAD(self) -> None:
        """Answer with the headers of a GET."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer a request, or refuse it as the hub does."""
        hub, path = self.server, self.path.partition("?")[0]
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path == "/api/whoami-v2":
            access = {"accessToken": {"displayName": "t", "role": "read"}}
            self._send(200, json.dumps({"type": "user", "name": "me", "auth": access}).encode())
        elif f"{REPO}/" not in f"{path}/" or (hub.private and token != TOKEN):
            self._send(404 if token else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif match := re.fullmatch(rf"/{REPO}/resolve/{COMMIT}/(?P<file>.+)", path):
            self._file(match["file"], token)
        elif f"/tree/{COMMIT}" in path:
            files = hub.files.items()
            listed = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha256(b).hexdigest()} for n, b in files
            ]
            self._send(200, json.dumps(listed).encode())
        elif path.endswith((REPO, "/revision/main", "/revision/v1")):
            self._send(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode())
        else:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def _file(self, name: str, token: str) -> None:
        """Send a file, half of it if it is one that fails."""
        hub = self.server
        if hub.gated and token not in hub.accepted:
            self._send(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
            return
        data = hub.files[name]
        if self.command == "GET":
            hub.sent.append(name)
        self._send(
            200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, cut=name in hub.fails
        )

    def _send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True
