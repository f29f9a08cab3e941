"""Stand-in judge for machines without a language model: an OpenAI-compatible server that compares reports by rules.

    python -m rewards.offline.judge_server --port 8000

It answers the judge's own prompt (`rewards/chexprompt/rubric.py`), GREEN's, CRIMSON's and RadMatch's (`llm_answers.py`) over HTTP on loopback, so that everything but the
language model is the real thing. Its model name, `offline-rules-judge`, says what it is in every result.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from foundation.governance import JudgeError
from rewards.chexprompt.judgement import ERROR_TYPES, Judgement
from rewards.chexprompt.parse import MAX_COUNT
from rewards.chexprompt.rubric import FORMATTERS, read_pair_line
from rewards.offline.graph import report_findings
from rewards.offline.llm_answers import llm_metric_answer
from rewards.offline.phrases import ABSENT

MODEL = "offline-rules-judge"
LONGEST_REQUEST = 4_000_000  # bytes
_START_SECONDS = 60.0
_STOP_SECONDS = 5.0

_DEGREE = {"mild": 1, "moderate": 2, "severe": 3}
# Our choice of what does not change a patient's care: a mild degree, a device, an observation outside the 14 conditions.
_ALWAYS_SIGNIFICANT = ("Pneumothorax",)
_NEVER_SIGNIFICANT = ("Support Devices",)


@dataclass
class Mention:
    """What a report says of one condition on one side: stated degrees and changes."""

    degrees: set[int] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)

    def add(self, other: Mention) -> None:
        self.degrees |= other.degrees
        self.changes |= other.changes


@dataclass(frozen=True)
class Statements:
    """What a report says: mentions by condition and side ("" where no side is said), what has resolved, and whether it
    says anything that the rules know."""

    present: dict[str, dict[str, Mention]]
    resolved: frozenset[tuple[str, str]]
    says_anything: bool


@functools.lru_cache(maxsize=16384)
def statements(report: str) -> Statements:
    """The report's statements, by the rules of `graph.py`; an observation outside the 14 conditions goes by its name."""
    present: dict[str, dict[str, Mention]] = {}
    resolved = set()
    findings = report_findings(report)
    for finding in findings:
        if finding.is_statement:
            continue
        sides = finding.sides or {""}
        for name in finding.conditions or (f"other: {finding.name}",):
            if finding.status == ABSENT:
                if finding.change == "resolved":
                    resolved |= {(name, side) for side in sides}
                continue
            mention = Mention(
                {_DEGREE[finding.severity]} if finding.severity else set(),
                {finding.change} if finding.change else set(),
            )
            for side in sides:
                present.setdefault(name, {}).setdefault(side, Mention()).add(mention)
    for by_side in present.values():
        if len(by_side) > 1 and "" in by_side:  # "left effusion … effusion is new": the second speaks of the first
            unsided = by_side.pop("")
            for mention in by_side.values():
                mention.add(unsided)
    return Statements(present, frozenset(resolved), bool(findings))


class _Count:
    """Twelve counters, filled by error type and significance."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, bool]] = Counter()

    def add(self, error_type: str, significant: bool) -> None:
        self.counts[error_type, significant] += 1

    def judgement(self) -> Judgement:
        return Judgement(
            *(tuple(min(MAX_COUNT, self.counts[name, part]) for name in ERROR_TYPES) for part in (True, False))
        )


def count_errors(reference: str, candidate: str) -> Judgement:
    """Errors of `candidate` against `reference` by rules.

    Findings are compared by condition and side. One that only the candidate states is false, one that only the
    reference states is omitted, one that changed its side is mislocated (a side that is left out is an insignificant
    location error). Of findings that both state, changes since a prior are compared, and where these agree degrees;
    what the candidate adds to a silent reference is an error only for changes. A finding is one error at most: else one
    that is found but misdescribed would cost more than one that is not mentioned, and saying little would pay. Lobes and device tips are not compared. A candidate in
    which the rules know no word omits one significant finding, also where the reference is normal.
    """
    errors = _Count()
    ours, theirs = statements(reference), statements(candidate)
    for name in sorted(ours.present.keys() | theirs.present.keys()):
        _compare_condition(name, ours.present.get(name, {}), theirs.present.get(name, {}), errors)
    for name, _ in sorted(ours.resolved - theirs.resolved):
        if name not in theirs.present and name not in ours.present:
            errors.add("omitted_comparison", False)
    for name, _ in sorted(theirs.resolved - ours.resolved):
        if name not in theirs.present and name not in ours.present:
            errors.add("false_comparison", False)
    if not theirs.says_anything and ours.says_anything and not ours.present:
        errors.add("omitted_finding", True)
    return errors.judgement()


def _compare_condition(name: str, ours: dict[str, Mention], theirs: dict[str, Mention], errors: _Count) -> None:
    """Errors in one condition; `ours` are the reference's mentions by side, `theirs` the candidate's."""
    if ours and theirs and ("" in ours or "" in theirs):  # a report without a side can only be compared as a whole
        if "" not in ours:
            errors.add("location", False)
        else:
            _compare_mention(_merged(ours.values()), _merged(theirs.values()), errors)
        return
    missing, extra = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    for side in sorted(ours.keys() & theirs.keys()):
        _compare_mention(ours[side], theirs[side], errors)
    while missing and extra:
        errors.add("location", _significant(name, ours[missing.pop()]))
        extra.pop()
    for side in missing:
        errors.add("omitted_finding", _significant(name, ours[side]))
    for side in extra:
        errors.add("false_finding", _significant(name, theirs[side]))


def _merged(mentions: Iterable[Mention]) -> Mention:
    merged = Mention()
    for mention in mentions:
        merged.add(mention)
    return merged


def _significant(name: str, mention: Mention) -> bool:
    if name in _ALWAYS_SIGNIFICANT:
        return True
    return name not in _NEVER_SIGNIFICANT and not name.startswith("other:") and mention.degrees != {1}


def _compare_mention(ours: Mention, theirs: Mention, errors: _Count) -> None:
    """Change, or else degree, of a finding that both reports state: one error a finding at most."""
    if ours.changes != theirs.changes:
        if not theirs.changes or theirs.changes < ours.changes:
            errors.add("omitted_comparison", not theirs.changes and ours.changes != {"unchanged"})
        else:
            overlap = bool(ours.changes & theirs.changes)
            errors.add("false_comparison", not overlap and not (not ours.changes and theirs.changes == {"unchanged"}))
    elif ours.degrees and ours.degrees != theirs.degrees:
        errors.add("severity", bool(theirs.degrees) and abs(max(ours.degrees) - max(theirs.degrees)) > 1)


@functools.lru_cache(maxsize=1)
def rules_version() -> str:
    """Hash of the rules behind the answers: changes whenever an answer may."""
    folder = Path(__file__).parent
    sources = [folder / name for name in ("judge_server.py", "llm_answers.py", "graph.py", "phrases.py", "lexicon.py")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def answer(body: Any) -> dict[str, Any]:
    """The chat completion for a request body.

    Raises:
        ValueError: the request does not hold the judge's prompt.
    """
    try:
        message = [m for m in body["messages"] if m["role"] == "user"][-1]["content"]
        text = llm_metric_answer(message, count_errors)
        if text is None:
            reference, candidate = read_pair_line(message)
            as_json = (body.get("response_format") or {}).get("type") == "json_schema"
            answer_format = "digits" if body.get("structured_outputs") else "json" if as_json else "list"
            text = FORMATTERS[answer_format](count_errors(reference, candidate))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError("no user message with a pair of reports") from error
    prompt_tokens = sum(len(m["content"]) for m in body["messages"]) // 4
    return {
        "id": f"chatcmpl-{hashlib.sha256(message.encode()).hexdigest()[:24]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "system_fingerprint": rules_version(),
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, "refusal": None}}
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(text) // 4,
            "total_tokens": prompt_tokens + len(text) // 4,
        },
    }


class Handler(BaseHTTPRequestHandler):
    """GET /v1/models, POST /v1/chat/completions; keep-alive; logs nothing, since requests hold reports."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for head and body
    timeout = 600

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v1/models":
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "rules"}
            self._send(200, {"object": "list", "data": [model]})
        else:
            self._refuse(404, "no such path; this server has /v1/models and /v1/chat/completions")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LONGEST_REQUEST:
            self.close_connection = True
            self._refuse(413, f"a request needs a Content-Length of at most {LONGEST_REQUEST}")
            return
        content = self.rfile.read(int(length))
        if self.path.rstrip("/") != "/v1/chat/completions":
            self._refuse(404, "no such path; ask /v1/chat/completions")
            return
        try:
            body = json.loads(content)
            if isinstance(body, dict) and body.get("model") != MODEL:
                self._refuse(404, f"no such model; this server has {MODEL}")
                return
            self._send(200, answer(body))
        except (ValueError, RecursionError):
            self._refuse(400, "not a request with the judge's prompt: one line of JSON with reference and candidate")

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """On loopback only."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextlib.contextmanager
def offline_judge_server() -> Iterator[str]:
    """Run the server in a process of its own on a free loopback port; yields its base URL, stops it at exit.

    A process, so that it does not share the interpreter lock with training. It also ends by itself when its parent
    dies: its standard input is a pipe from the parent, and it leaves when that pipe closes.
    """
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    process = subprocess.Popen(
        [sys.executable, "-m", "rewards.offline.judge_server", "--port", "0", "--with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # a Ctrl-C is for its parent, which has calls in flight
    )
    try:
        # A server that does not come up is killed, which closes its output and so ends the wait below.
        timer = threading.Timer(_START_SECONDS, process.kill)
        timer.start()
        base_url = process.stdout.readline().strip()
        timer.cancel()
        if not base_url:
            raise JudgeError(
                f"the stand-in judge did not start (exit status {process.wait()}); its error is above. Try: "
                "python -m rewards.offline.judge_server --port 0"
            )
        yield base_url
    finally:
        process.stdin.close()
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _leave_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--port", type=int, default=8000, help="loopback port; 0 for a free one (default 8000)")
    parser.add_argument("--with-parent", action="store_true", help="leave when standard input closes")
    arguments = parser.parse_args()
    try:
        server = Server(arguments.port)
    except (OSError, OverflowError) as error:
        parser.exit(
            2, f"port {arguments.port} cannot be used ({error}); give another with --port, or 0 for a free one\n"
        )
    if arguments.with_parent:
        threading.Thread(target=_leave_with_parent, daemon=True).start()
    print(server.base_url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
