"""An OpenAI-compatible HTTP server that misbehaves on request, in a process of its own; it counts what it is asked.

The right answer to a pair follows from a hash of the pair, so an answer given to the wrong pair cannot go unnoticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rewards.chexprompt.judgement import Judgement
from rewards.chexprompt.rubric import ANSWER_FORMATS, FORMATTERS, read_pair_line

KEY, MODEL = "right-key", "test-model"
# Each fault: what the server does instead of answering well.
FAULTS = (
    "429",
    "429 retry-after",
    "429 retry-after date",
    "500",
    "503",
    "hang",
    "drop",
    "drop in body",
    "truncated json",
    "malformed json",
    "not an object",
    "no choices",
    "html",
    "eleven counts",
    "negative count",
    "huge count",
    "fractional count",
    "text count",
    "repeated key",
    "extra text",
    "two answers",
    "half answer",
    "empty",
    "null",
    "length",
    "content filter",
)


def right_answer(reference: str, candidate: str) -> Judgement:
    """Twelve counts from 0 to 3 that only this pair has (4^12 possibilities)."""
    digest = hashlib.sha256(f"{reference}\0{candidate}".encode()).digest()
    counts = [byte % 4 for byte in digest[:12]]
    return Judgement(tuple(counts[:6]), tuple(counts[6:]))


def right_report(content: list[dict[str, Any]]) -> str:
    """A report that only this request's films and texts have."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"Findings: The lungs are clear. No pleural effusion. Code {digest[:12]}. Impression: Normal."


class Endpoint:
    """The server; `config` keys: latency, fault_rate, faults, first, structured, retry_after, echo_key, cached_tokens, seed."""

    def __init__(self) -> None:
        self.configure({})

    def configure(self, config: dict[str, Any]) -> None:
        """Behave as `config` says from now on, and count from zero."""
        self.latency = config.get("latency", 0.0)
        self.fault_rate = config.get("fault_rate", 0.0)
        self.faults = config.get("faults", FAULTS)
        self.first = config.get("first")  # only this many first requests are at fault
        self.structured = config.get("structured", True)
        self.retry_after = config.get("retry_after", 0)
        self.echo_key = config.get("echo_key", False)
        self.cached_tokens = config.get("cached_tokens")  # of each prompt, as the usage reports it
        self.random = random.Random(config.get("seed", 0))
        self.stats: dict[str, Any] = {
            "requests": 0,
            "in_flight": 0,
            "max_in_flight": 0,
            "outcomes": Counter(),
            "good_answers": Counter(),
            "times": [],
            "references": [],
            "response_formats": Counter(),
            "last_body": None,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                if path == "/stats":
                    await self.send(writer, 200, json.dumps(self.stats))
                elif path == "/configure":
                    self.configure(json.loads(content))
                    await self.send(writer, 200, "{}")
                elif headers.get("authorization") != f"Bearer {KEY}":
                    text = f"Incorrect API key: {headers.get('authorization')}" if self.echo_key else "wrong key"
                    await self.send(writer, 401, json.dumps({"error": {"message": text}}))
                elif path == "/v1/models":
                    await self.send(writer, 200, json.dumps({"data": [{"id": MODEL}]}))
                elif method == "POST" and path == "/v1/chat/completions":
                    stats = self.stats
                    stats["in_flight"] += 1
                    stats["max_in_flight"] = max(stats["max_in_flight"], stats["in_flight"])
                    try:
                        await self.chat(writer, json.loads(content))
                    finally:
                        stats["in_flight"] -= 1
                else:
                    await self.send(writer, 404, "{}")
        writer.close()

    async def send(self, writer, status: int, text: str, headers: dict[str, str] | None = None, cut: int = 0) -> None:
        content = text.encode()
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content[: len(content) - cut])
        await writer.drain()
        if cut:
            raise ConnectionError

    async def chat(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        self.stats["requests"] += 1
        self.stats["times"].append(time.time())
        self.stats["last_body"] = body
        if isinstance(body["messages"][-1]["content"], list):
            return await self.report(writer, body)
        structured = "response_format" in body or "structured_outputs" in body
        (asked,) = (name for name, words in ANSWER_FORMATS.items() if words in body["messages"][0]["content"])
        assert asked == "digits" or structured == (asked == "json")
        assert body.get("structured_outputs") in (None, {"regex": "[0-9]{12}"})
        self.stats["response_formats"][asked if asked != "digits" or structured else "digits in words"] += 1
        if body["model"] != MODEL:
            return await self.send(writer, 404, "{}")
        if structured and not self.structured:
            return await self.send(writer, 400, json.dumps({"error": {"message": "unknown field"}}))
        reference, candidate = read_pair_line(body["messages"][-1]["content"])
        self.stats["references"].append(hashlib.sha256(reference.encode()).hexdigest())
        faulty = self.random.random() < self.fault_rate
        if self.first is not None:
            faulty = self.stats["requests"] <= self.first
        fault = self.random.choice(self.faults) if faulty else None
        self.stats["outcomes"][fault or "good"] += 1
        await asyncio.sleep(self.latency)
        judgement = right_answer(reference, candidate)
        answer = FORMATTERS[asked](judgement)
        if fault is None:
            self.stats["good_answers"][hashlib.sha256(f"{reference}\0{candidate}".encode()).hexdigest()] += 1
            return await self.send(writer, 200, self.completion(answer))
        return await self.misbehave(writer, fault, answer, asked)

    async def report(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """Answer a request with films: the report follows from the first film and the texts."""
        if body["model"] != MODEL:
            return await self.send(writer, 404, "{}")
        fault = self.random.choice(self.faults) if self.random.random() < self.fault_rate else None
        self.stats["outcomes"][fault or "good"] += 1
        await asyncio.sleep(self.latency)
        answer = right_report(body["messages"][-1]["content"])
        if fault is None:
            return await self.send(writer, 200, self.completion(answer))
        return await self.misbehave(writer, fault, answer, "list")

    def completion(self, text: str | None, reason: str = "stop") -> str:
        usage: dict[str, Any] = {"prompt_tokens": 1000, "completion_tokens": 100}
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
        return json.dumps({"choices": [choice], "usage": usage})

    async def misbehave(self, writer, fault: str, answer: str, asked: str) -> None:
        if fault.startswith("429"):
            seconds = self.retry_after
            headers = {"429": {}, "429 retry-after": {"Retry-After": str(seconds)}}.get(
                fault, {"Retry-After": formatdate(time.time() + seconds, usegmt=True)}
            )
            return await self.send(writer, 429, "{}", headers)
        if fault in ("500", "503"):
            return await self.send(writer, int(fault), "<html>" + answer)
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "drop":
            raise ConnectionError
        if fault == "drop in body":
            return await self.send(writer, 200, self.completion(answer), cut=40)
        whole = {
            "truncated json": self.completion(answer)[:-30],
            "malformed json": self.completion(answer).replace(":", ";", 1),
            "not an object": "[1]",
            "no choices": '{"choices": []}',
            "html": "<html>busy</html>",
        }
        if fault in whole:
            return await self.send(writer, 200, whole[fault])
        lines = answer.split("\n")
        quote = '"' if asked == "json" else ""

        def with_first(count: str) -> str:
            return count + answer[1:] if asked == "digits" else re.sub(r": \d", f": {count}", answer, count=1)

        wrong = {
            "eleven counts": {
                "json": re.sub(r', "severity": \d', "", answer, count=1),
                "list": "\n".join(lines[:-1]),
                "digits": answer[:-1],
            }[asked],
            "negative count": with_first("-1"),
            "huge count": with_first("99"),
            "fractional count": with_first("1.5"),
            "text count": with_first(f"{quote}two{quote}"),
            "repeated key": {
                "json": answer[:-2] + ', "severity": 0}}',
                "list": answer + "\n" + lines[-1],
                "digits": answer + answer[-1],
            }[asked],
            "extra text": f"Here are the counts you asked for:\n{answer}\nLet me know if I can help!",
            "two answers": f"{answer}\n{answer}",
            "half answer": answer[: len(answer) // 2],
            "empty": "",
            "null": None,
        }
        if fault in wrong:
            return await self.send(writer, 200, self.completion(wrong[fault]))
        reason = {"length": "length", "content filter": "content_filter"}[fault]
        return await self.send(writer, 200, self.completion(answer, reason))


class FaultServer:
    """Handle of a running server."""

    def __init__(self, port: int):
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._port = port

    def stats(self) -> dict[str, Any]:
        """What has been asked since it was configured."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/stats", timeout=30) as response:
            return json.load(response)

    def configure(self, **config: Any) -> None:
        """See `Endpoint.configure`."""
        content = json.dumps(config).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{self._port}/configure", content, timeout=30).close()


@contextlib.contextmanager
def fault_server() -> Iterator[FaultServer]:
    """Run the server in a process of its own on a free port."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    try:
        yield FaultServer(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def main() -> None:
    server = await asyncio.start_server(Endpoint().serve, "127.0.0.1", 0, limit=2**20, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
