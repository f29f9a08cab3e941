"""A Hugging Face hub on loopback: model listings, file metadata, ranges, and the ways in which a transfer goes wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """What the server holds and how it misbehaves.

    Attributes:
        repositories: name → file → content.
        faults: file → one of slow, cut (once, in the middle), hang (in the middle, until the client leaves), stall (never a
            byte), wrong (other bytes of the same size).
        denied: repository → HTTP status for everything in it.
        requests: (method, path, Range header, Authorization header) of all requests so far.
    """

    repositories: dict[str, dict[str, bytes]]
    faults: dict[str, str] = field(default_factory=dict)
    denied: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    url: str = ""

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    def downloads(self, file: str) -> list[str | None]:
        """The Range header of each GET of `file`."""
        return [r for method, path, r, _ in self.requests if method == "GET" and path.endswith(f"/{file}")]


LARGE = (".pth", ".gz", ".safetensors")  # in git LFS on the hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        parts = self.path.split("?")[0].strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if listing else parts[:2])
        if status := hub.denied.get(repository):
            return self._send(status, b"", {"X-Error-Code": "GatedRepo"} if status in (401, 403) else {})
        if repository not in hub.repositories:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if listing:
            return self._send(200, json.dumps(self._listing(repository)).encode(), {"Content-Type": "application/json"})
        file = parts[-1]
        content = hub.repositories[repository].get(file)
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {
            "X-Repo-Commit": hub.commit(repository),
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        self._send_file(file, content, headers, body)

    def _listing(self, repository: str) -> dict:
        siblings = []
        for name, content in self.hub.repositories[repository].items():
            sibling: dict = {"rfilename": name, "size": len(content)}
            sibling["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if name.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": repository, "modelId": repository, "sha": self.hub.commit(repository), "siblings": siblings}

    def _send_file(self, file: str, content: bytes, headers: dict[str, str], body: bool) -> None:
        fault = self.hub.faults.get(file) if body else None
        if fault == "wrong":
            content = bytes(255 - byte for byte in content)
        start, status = 0, 200
        if range_header := self.headers.get("Range"):
            start, status = int(range_header.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        part = content[start:]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        if fault == "slow":
            for index in range(0, len(part), max(1, len(part) // 8)):
                self.wfile.write(part[index : index + max(1, len(part) // 8)])
                self.wfile.flush()
                time.sleep(0.05)
        elif fault == "hang":
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.connection.recv(1)  # returns when the client has gone
            self.close_connection = True
        elif fault in ("cut", "stall"):
            if fault == "cut":
                self.wfile.write(part[: len(part) // 2])
                self.wfile.flush()
                del self.hub.faults[file]
            self.close_connection = True  # long before Content-Length is reached
        else:
            self.wfile.write(part)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on a free loopback port; its address is `hub.url`."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a connection that we cut on purpose
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
