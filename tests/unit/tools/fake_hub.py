"""A Hub of one process: the five calls of an upload, and nothing kept but what they sent."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT_OID = "0" * 40


@dataclass
class FakeHub:
    """What the Hub accepts and what it got."""

    token: str
    address: str = ""
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """{path: (HTTP status, message)} of calls that fail."""
    calls: list[str] = field(default_factory=list)
    repository: dict[str, Any] = field(default_factory=dict)
    """What the call that makes it said."""
    message: str = ""
    """Of the commit."""
    files: dict[str, bytes] = field(default_factory=dict)
    """{path: content} of the commit."""

    def answer(self, path: str, token: str | None, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and content of a call."""
        self.calls.append(path)
        if path in self.refusals:
            status, message = self.refusals[path]
            return status, {"error": message}
        if token != f"Bearer {self.token}":
            return 401, {"error": f"Invalid credentials in Authorization header: {token}"}
        if path == "/api/whoami-v2":
            return 200, {"name": "someone", "type": "user", "orgs": [], "auth": {}}
        if path == "/api/repos/create":
            self.repository = json.loads(body)
            owner = self.repository.get("organization") or "someone"
            address = f"{self.address}/{owner}/{self.repository['name']}"
            return 200, {"url": address, "name": f"{owner}/{self.repository['name']}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            paths = [entry["path"] for entry in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            return 200, {"files": modes}
        if "/commit/" in path:
            self._commit(body)
            repo_id = path.removeprefix("/api/models/").partition("/commit/")[0]
            address = f"{self.address}/{repo_id}/commit/{COMMIT_OID}"
            return 200, {"commitOid": COMMIT_OID, "commitUrl": address}
        return 404, {"error": f"no such call: {path}"}

    def _commit(self, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.message = value["summary"]
            else:
                assert (entry["key"], value["encoding"]) == ("file", "base64")
                self.files[value["path"]] = base64.b64decode(value["content"])


@contextlib.contextmanager
def running_hub(token: str, **refusals: tuple[int, str]) -> Iterator[FakeHub]:
    """Serves a `FakeHub` on this machine until the block ends."""
    hub = FakeHub(token)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_call(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            status, content = hub.answer(path, self.headers.get("Authorization"), body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = handle_call

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
