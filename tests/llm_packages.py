"""Metrics of language models without their packages: the parts of these that are used, and an endpoint that gives set answers."""

from __future__ import annotations

import json
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rewards.chexprompt.settings import JudgeSettings
from rewards.llm_metrics import crimson, green
from rewards.llm_metrics.crimson import crimson_prompt
from rewards.llm_metrics.green import green_prompt


def stand_in_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand-ins for GREEN's and CRIMSON's packages: the parts of their interfaces that are used, and the layout of their prompts."""

    def make_prompt(text1: str, text2: str, max_len: int = 300) -> str:
        return f"2. Reference Report:\n    {text1}\n\n    3. Candidate Report:\n    {text2}\n\n    4. Reporting:\n"

    def build_prompt(reference, predicted, patient_context=None, **flags) -> str:
        context = "".join(f"    {name}: {value}\n" for name, value in (patient_context or {}).items())
        return (
            f"{context}\n\nReference Findings (Ground Truth):\n{reference}\n\n"
            f"Predicted Findings (Candidate):\n{predicted}\n\nTask {flags}"
        )

    class CRIMSONScore:
        def _chat_completion(self, prompt: str) -> str:
            messages = [{"role": "system", "content": "You are an evaluator."}, {"role": "user", "content": prompt}]
            return self.client.chat.completions.create(model="", messages=messages).choices[0].message.content

    modules = {
        "CRIMSON": {},
        "CRIMSON.generate_score": {"CRIMSONScore": CRIMSONScore},
        "CRIMSON.prompt_parts": {"build_prompt": build_prompt},
        "CRIMSON.utils": {"parse_json_response": json.loads},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(green, "version", lambda _: "2.2.1")
    monkeypatch.setattr(green, "_one_file", lambda *_: make_prompt)
    monkeypatch.setattr(crimson, "version", lambda _: "0.2.0")
    for prompt in (green_prompt, crimson_prompt):
        prompt.cache_clear()
    yield
    for prompt in (green_prompt, crimson_prompt):
        prompt.cache_clear()


class Endpoint:
    """An OpenAI-compatible endpoint whose answers a subclass makes; keeps what it was asked. Without `formats` it knows no
    response_format."""

    def __init__(self, formats: bool = True) -> None:
        self.asked: list[dict] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": "m"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not formats and "response_format" in body:
                    self.reply(400, {"error": {"message": "response_format"}})
                    return
                endpoint.asked.append(body)
                self.reply(200, endpoint.completion(body))

            def reply(self, status: int, content: dict) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def completion(self, body: dict) -> dict:
        raise NotImplementedError

    def settings(self, **changes) -> JudgeSettings:
        url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        given = {"judge_base_url": url, "judge_model": "m", "judge_cache_dir": None, "judge_backoff": 0.0}
        return JudgeSettings(**given | changes)


class Scripted(Endpoint):
    """An endpoint that gives its answers in turn and keeps what it was asked."""

    def __init__(self, *answers: str, json_object: bool = True) -> None:
        self.left = list(answers)
        super().__init__(json_object)

    def completion(self, body: dict) -> dict:
        content = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        message = {"role": "assistant", "content": content}
        return {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
