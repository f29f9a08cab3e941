"""The judge and servers as they exist: other names for a finished answer, refused fields, empty accounts, wrapped answers."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from foundation.governance import JudgeError
from rewards.__main__ import main
from rewards.chexprompt.judge import Judge, JudgeResult
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.chexprompt.parse import AnswerError, WrappedAnswerError, parse_answer
from rewards.chexprompt.settings import JudgeSettings

GOOD = json.dumps({part: dict.fromkeys(ERROR_TYPES, 0) for part in ("significant", "insignificant")})
Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


class Server:
    """A chat endpoint on loopback that answers as it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = lambda body: reply(GOOD)
        self.asked: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def send(self, status: int, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.send(200, {"data": [{"id": "m"}]})

            def do_POST(self) -> None:
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send(*outer.answer(outer.asked[-1]))

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def reply(text: str, reason: str | None = "stop") -> tuple[int, dict[str, Any]]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return 200, {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage}


def ask(server: Server, pairs: int = 1, **settings: Any) -> tuple[list[JudgeResult], Judge]:
    async def judged() -> tuple[list[JudgeResult], Judge]:
        keys = {"judge_backoff": 0.001, "judge_max_retries": 2, "judge_cache_dir": None, **settings}
        judge = Judge.from_settings(JudgeSettings(judge_base_url=server.url, judge_model="m", **keys))
        try:
            sources = ["iu_xray"] * pairs
            return await judge.judge([f"cand{i}" for i in range(pairs)], ["ref"] * pairs, sources), judge
        finally:
            await judge.aclose()

    return asyncio.run(judged())


def test_a_count_of_thousands_of_digits_is_a_malformed_answer_and_hurts_no_other(server):
    runaway = GOOD.replace(": 0", ": " + "1" * 5000, 1)
    server.answer = lambda body: reply(runaway if "cand1" in body["messages"][1]["content"] else GOOD)
    results, _ = ask(server, pairs=4)
    assert [result.failure for result in results] == [None, "malformed answer", None, None]


@pytest.mark.parametrize("reason", ["stop", "eos", "eos_token", "end_turn", "stop_sequence", "STOP"])
def test_every_name_of_a_finished_answer_is_taken(server, reason):
    server.answer = lambda body: reply(GOOD, reason)
    assert ask(server)[0][0].failure is None
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("reason", "failure", "calls"),
    [("max_tokens", "truncated answer", 3), ("safety", "answer refused", 3), ("brand_new", "unknown finish_reason", 1)],
)
def test_other_reasons_are_told_by_what_they_mean(server, caplog, reason, failure, calls):
    server.answer = lambda body: reply(GOOD, reason)
    results, _ = ask(server)
    assert (results[0].failure, len(server.asked)) == (failure, calls)
    assert ("brand_new" in caplog.text) == (reason == "brand_new")


def test_a_request_longer_than_the_models_context_says_so(server):
    """vLLM's words; "this model's" names no field."""
    told = {
        "error": {
            "message": "This model's maximum context length is 1024 tokens. However, you requested 1024 output tokens and your "
            "prompt contains at least 1 input tokens. Please reduce the length of the input prompt.",
            "type": "BadRequestError",
            "param": "input_tokens",
            "code": 400,
        }
    }
    server.answer = lambda body: (400, told)
    _, judge = ask(server)
    (reason,) = judge.reasons
    assert reason == (
        "request refused: status 400, code badrequesterror; prompt and judge_max_tokens together are longer than the model's context"
    )


def test_a_refused_field_is_named_with_the_status_and_no_text_of_the_report(server, caplog):
    told = {"detail": [{"loc": ["body", "max_completion_tokens"], "msg": "Extra inputs: cand0 is not permitted"}]}
    server.answer = lambda body: (422, told) if "max_completion_tokens" in body else reply(GOOD)
    with caplog.at_level(logging.WARNING):
        results, judge = ask(server)
    assert results[0].failure == "request refused"
    assert list(judge.reasons) == ["request refused: status 422; the server names max_completion_tokens"]
    assert "cand0" not in caplog.text
    # The remedy: null leaves the field out, and the server's own name for it is sent.
    extra = '{"max_completion_tokens": null, "max_tokens": 256}'
    results, _ = ask(server, judge_extra_body=extra, judge_budget_tokens=100_000)
    assert results[0].failure is None
    assert server.asked[-1]["max_tokens"] == 256


def test_a_limit_that_is_no_number_is_one_line_at_the_start(server):
    with pytest.raises(JudgeError, match="max_tokens is '256'; it must be a whole number"):
        ask(server, judge_extra_body='{"max_tokens": "256"}')
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, {"code": "insufficient_quota"}), (402, {"message": "x"}), (429, {"type": "insufficient_quota"})],
)
def test_an_empty_account_stops_the_judge_at_once(server, status, error):
    server.answer = lambda body: (status, {"error": error})
    results, judge = ask(server, pairs=3, judge_concurrency=1, judge_max_retries=5)
    assert {result.failure for result in results} == {"quota used up"}
    assert len(server.asked) == 1
    assert "no quota or credit left" in judge.stopped


def test_a_rate_limit_is_still_asked_again(server):
    server.answer = lambda body: (
        (429, {"error": {"code": "rate_limit_exceeded"}}) if len(server.asked) < 3 else reply(GOOD)
    )
    assert ask(server)[0][0].failure is None


@pytest.mark.parametrize(
    "wrapped", [f"```json\n{GOOD}\n```", f"<think>Hm.</think>\n{GOOD}", f"so…</think>```\n{GOOD}\n```"]
)
def test_a_wrapped_answer_is_taken_only_where_asked_for_and_the_cause_names_the_remedy(server, wrapped):
    server.answer = lambda body: reply(wrapped)
    results, _ = ask(server, judge_max_retries=0)
    assert "judge_answer_wrappers: true" in results[0].failure
    assert ask(server, judge_answer_wrappers=True)[0][0].failure is None


def test_what_is_wrong_within_a_wrapper_stays_wrong():
    for text in ("```json\n{}\n```", f"Here you are:\n```\n{GOOD}\n```", f"{GOOD} so there"):
        for wrappers in (False, True):
            with pytest.raises(AnswerError) as error:
                parse_answer(text, wrappers)
            assert not isinstance(error.value, WrappedAnswerError)


def test_a_pairs_file_with_a_byte_order_mark_is_read(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    row = {"id": "a", "candidate": "Heart normal.", "reference": "Heart normal.", "source": "iu_xray"}
    path.write_text(json.dumps(row), encoding="utf-8-sig")
    command = ["judge", "--pairs", str(path), "--judge-base-url", "offline", "--judge-cache-dir", str(tmp_path / "c")]
    main([*command, "--out", str(tmp_path / "o.jsonl")])
    assert json.loads((tmp_path / "o.jsonl").read_text())["failure"] is None


def test_the_command_tells_a_refusal_and_does_not_advise_to_repeat_it(server, tmp_path, capsys):
    server.answer = lambda body: (422, {"error": {"message": "max_completion_tokens"}})
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"id": "a", "candidate": "x", "reference": "y", "source": "iu_xray"}))
    command = ["judge", "--pairs", str(path), "--judge-base-url", server.url, "--judge-model", "m"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--judge-cache-dir", str(tmp_path / "c"), "--out", str(tmp_path / "o.jsonl")])
    err = capsys.readouterr().err
    assert end.value.code == 1
    assert "status 422; the server names max_completion_tokens" in err
    assert "same command" not in err
