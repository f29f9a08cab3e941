"""A model behind an OpenAI-compatible endpoint, and a page on which a film is dropped and its report appears.

    python -m evaluation serve --model outputs/demo/rl_step2/final

The standard library's HTTP server: it adds nothing to the environment, and one model writes one report at a time. It listens on
this machine alone unless told. Films and texts are held in memory while their report is written, and stored or logged nowhere.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2

from evaluation.serve_requests import BadRequest, asked_study, chat
from foundation.errors import EvaluationError
from foundation.governance import is_loopback
from model.report_writer import NOTICE, ReportWriter, written

LARGEST_REQUEST = 192 << 20  # bytes: two films of 64 MiB in base64, and their texts
WAITING = 4  # requests that are held in memory at once; more are told to come back
_PAGE = Path(__file__).with_name("page")
_FILES = {"/serve.css": "text/css", "/serve.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class ReportServer(ThreadingHTTPServer):
    """Serves one model.

    Args:
        host: this machine's own address, unless others are to reach it.
        port: 0 for a free one.

    Raises:
        EvaluationError: the address cannot be used.
    """

    daemon_threads = True
    largest_request = LARGEST_REQUEST

    def __init__(self, writer: ReportWriter, host: str = "127.0.0.1", port: int = 8010) -> None:
        self.writer, self.host = writer, host
        self.name = str(writer.made_by["model"])
        self.turn = threading.Lock()  # one report at a time
        self.room = threading.BoundedSemaphore(WAITING)
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, trim_blocks=True)
        page = environment.get_template("serve.html.jinja").render(
            model=self.name, notice=NOTICE, largest=LARGEST_REQUEST // 3
        )
        self.files = {"/": ("text/html", page.encode())}
        self.files |= {name: (kind, (_PAGE / name[1:]).read_bytes()) for name, kind in _FILES.items()}
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise EvaluationError(f"{host}:{port} cannot be used ({error}); give another PORT or HOST") from error

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor who went away is no error; of anything else its kind alone, since messages may hold patients' text."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"a request failed: {type(error).__name__}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """The page, `/write` for it, and `/v1/models` and `/v1/chat/completions` for OpenAI's clients."""

    server: ReportServer
    timeout = 120
    server_version, sys_version = "report-server", ""

    def do_GET(self) -> None:
        if not self._may_ask():
            return
        path = urlsplit(self.path).path
        if path in self.server.files:
            self._send(200, *self.server.files[path])
        elif path.rstrip("/") == "/v1/models":
            model = {"id": self.server.name, "object": "model", "created": 0, "owned_by": "local"}
            self._send_json(200, {"object": "list", "data": [model]})
        else:
            self._refuse(404, "no such path; there are /, /v1/models and /v1/chat/completions")

    def do_POST(self) -> None:
        answers = {"/write": self._write, "/v1/chat/completions": self._chat}
        answer = answers.get(urlsplit(self.path).path.rstrip("/"))
        if not self._may_ask():
            return
        if answer is None:
            self._refuse(404, "no such path; ask /v1/chat/completions")
        elif self.headers.get_content_type() != "application/json":  # what a foreign page's form cannot send
            self._refuse(415, "a request is JSON: Content-Type: application/json")
        elif not self.server.room.acquire(blocking=False):
            self._refuse(503, f"{WAITING} requests are waiting already; try again soon")
        else:
            try:
                self._answer(answer)
            finally:
                self.server.room.release()

    def _answer(self, answer: Callable[[dict[str, Any]], None]) -> None:
        """Read the request and answer it; before the first piece of text a failure is a status, after it a line."""
        self.begun = False
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self._refuse(411, "a request needs a Content-Length")
            return
        if int(length) > self.server.largest_request:
            self._drain(int(length))
            self._refuse(413, f"larger than {self.server.largest_request >> 20} MiB")
            return
        try:
            try:
                body = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError) as error:
                raise BadRequest("not JSON") from error
            if not isinstance(body, dict):
                raise BadRequest("not a JSON object")
            answer(body)
        except EvaluationError as error:
            self._refuse(400, str(error))
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # whatever a model or a film's decoder raises ends this request, not the server
            print(f"a request failed: {type(error).__name__}", file=sys.stderr)
            self._refuse(500, f"the report could not be written ({type(error).__name__})")

    def _write(self, body: dict[str, Any]) -> None:
        """For the page: lines of JSON. The films as the model sees them, the text piece by piece, then all of it."""
        started, writer = time.monotonic(), self.server.writer
        study, overridden = asked_study(writer, body)
        films = {name: _data_uri(study[name]) for name in ("image", "prior_image") if name in study}
        with self.server.turn:
            self._begin("application/x-ndjson")
            self._line({"films": films})
            report, cut = writer.stream(study, lambda text: self._line({"text": text}))
        done = written(report, cut, time.monotonic() - started, overridden)
        self._line({"done": {**asdict(done), "model_sha256": writer.made_by["model_sha256"]}})

    def _chat(self, body: dict[str, Any]) -> None:
        """OpenAI's chat completions, greedy, whole or as a stream of events."""
        study, limit, streamed = chat(self.server.writer, self.server.name, body)
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.server.name}

        def event(delta: dict[str, str], finish: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            self._event(json.dumps({**about, "object": "chat.completion.chunk", "choices": [choice]}))

        with self.server.turn:
            if streamed:
                self._begin("text/event-stream")
                event({"role": "assistant", "content": ""})
            send = (lambda text: event({"content": text})) if streamed else (lambda text: None)
            report, cut = self.server.writer.stream(study, send, limit)
        finish = "length" if cut else "stop"
        if streamed:
            event({}, finish)
            self._event("[DONE]")
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": report}, "finish_reason": finish}
        self._send_json(200, {**about, "object": "chat.completion", "choices": [choice]})

    # ---- HTTP ----

    def _may_ask(self) -> bool:
        """Refuse pages of other sites: by their name for this machine (DNS rebinding), or by their origin."""
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}")
            origin = urlsplit(self.headers.get("Origin") or f"http://{host.netloc}").netloc
            may = origin == host.netloc and (is_loopback(host.hostname or "") or not is_loopback(self.server.host))
        except ValueError:  # no host at all
            may = False
        if not may:
            self._refuse(403, "asked by another site")
        return may

    def _begin(self, kind: str) -> None:
        self.begun = True
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self._end_head()

    def _end_head(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()

    def _line(self, content: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(content).encode() + b"\n")

    def _event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())

    def _refuse(self, status: int, message: str) -> None:
        error = {"error": {"message": message, "type": "invalid_request_error", "code": status}}
        if not getattr(self, "begun", False):
            self._send_json(status, error)
        elif urlsplit(self.path).path.startswith("/v1"):
            self._event(json.dumps(error))
        else:
            self._line(error)

    def _send_json(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self._end_head()
        self.wfile.write(content)

    def _drain(self, length: int) -> None:
        """Read what is refused, within reason: a browser that is cut off while it sends shows no answer."""
        left = min(length, 2 * self.server.largest_request)
        while left > 0 and (piece := self.rfile.read(min(left, 1 << 20))):
            left -= len(piece)

    def log_message(self, *_: Any) -> None:
        """Say nothing: requests hold patients' films and texts."""


def _data_uri(film: bytes) -> str:
    kind = "png" if film.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{b64encode(film).decode()}"


def serve(writer: ReportWriter, host: str, port: int) -> None:
    """Serve until a signal comes.

    Raises:
        EvaluationError: the address cannot be used.
    """
    with ReportServer(writer, host, port) as server:
        print(f"{server.url}/ is the page, {server.url}/v1 the endpoint of {server.name}; Ctrl-C ends it", flush=True)
        print(NOTICE, file=sys.stderr)
        if not is_loopback(host):
            told = "films and texts travel unencrypted, and whoever reaches it may use it"
            print(f"{host} may be reached from other machines: {told}", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # a signal is how it is ended
            server.serve_forever()
