"""Temporal categories: by rules, and by a language model over HTTP whose answers are checked."""

from __future__ import annotations

import asyncio
import datetime
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from evaluation.score_rows import _has_prior
from evaluation.scorers import open_scorers
from evaluation.scoring import with_known_encounters
from evaluation.temporal import CATEGORIES, UNLABELLED, label_by_judge, label_by_rules, parse_label
from foundation.errors import EvaluationError
from foundation.governance import JudgeError
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.settings import JudgeSettings


@pytest.mark.parametrize(
    ("report", "category"),
    [
        ("Interval development of a left effusion.", "new development"),
        ("New right basilar opacity. The effusion has improved.", "new development"),
        ("The edema has worsened.", "progression"),
        ("Increased size of the effusion.", "progression"),
        ("Effusion is smaller. Pneumothorax has resolved.", "regression"),
        ("The consolidation is no longer seen.", "regression"),
        ("No new opacity. Unchanged cardiomegaly.", "no change"),
        ("No significant worsening; the lungs are clear.", "no change"),
        ("Stable appearance.", "no change"),
        ("No pleural effusion, pneumothorax, or new consolidation.", "no change"),
        ("There is no focal opacity, effusion or new nodule; the heart is normal.", "no change"),
        ("No definite evidence of a new or enlarging nodule.", "no change"),
        ("Without effusion, pneumothorax, nor worsening edema.", "no change"),
        ("No pneumothorax after new chest tube placement.", "new development"),
        ("No pneumothorax, but a new effusion.", "new development"),
        ("No effusion; new opacity at the base.", "new development"),
        ("There is no pneumothorax and a new effusion.", "new development"),
        ("The opacity is no longer seen, or smaller.", "regression"),
        ("The heart is enlarged.", "no change"),
    ],
)
def test_rules(report, category):
    assert CATEGORIES[label_by_rules([report], [True])[0]] == category


def test_without_a_prior_it_is_a_first_study_whatever_it_says():
    assert CATEGORIES[label_by_rules(["New opacity."], [False])[0]] == "first study"


@pytest.mark.parametrize(
    ("report", "category"),
    [
        ("As compared to the previous radiograph, the right effusion has increased.", "progression"),
        ("Unchanged cardiomegaly.", "no change"),
        ("New right basilar opacity.", "new development"),
        ("No prior studies for comparison. The lungs are clear.", "first study"),
        ("No effusion, as on the prior study.", "no change"),
        ("The lungs are clear.", "unknown"),
    ],
)
def test_where_nothing_says_whether_there_was_a_prior_the_text_does_or_nothing(report, category):
    assert CATEGORIES[label_by_rules([report], [None])[0]] == category


def test_a_study_of_a_file_without_dates_is_no_first_study():
    """ReXrank's files have neither dates nor encounters; prepared data without dates call each study a first one."""
    undated = [{"dataset": "a", "encounter": 1}, {"dataset": "a", "encounter": None}]
    ordered = [{"dataset": "b", "encounter": 1}, {"dataset": "b", "encounter": 2}]
    date = datetime.datetime(2020, 1, 1)
    timed = [{"dataset": "c", "encounter": 1, "study_datetime": date}, {"dataset": "c", "encounter": 1}]
    rows = with_known_encounters([*undated, *ordered, *timed])
    assert [row["encounter"] for row in rows] == [None, None, 1, 2, 1, None]
    assert [_has_prior(row) for row in rows] == [None, None, False, True, False, None]
    assert _has_prior({"encounter": None, "comparison": "Radiograph of the day before."}) is True
    assert _has_prior({"encounter": None, "comparison": "None available."}) is False


def test_an_answer_is_a_label_or_nothing():
    assert parse_label(' "No change". ') == "no change"
    assert parse_label("PROGRESSION") == "progression"
    assert parse_label("progression or regression") is None
    assert parse_label("first study") is None
    assert parse_label("unknown") is None
    assert parse_label("") is None


class Server:
    """An OpenAI-compatible server that labels by a word in the report, and answers nonsense for some."""

    def __enter__(self):
        outer = self
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                report = json.loads(body["messages"][-1]["content"])
                outer.asked.append(report)
                label = "nonsense" if "odd" in report else "progression" if "worse" in report else "no change"
                message = {"role": "assistant", "content": label}
                usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                answer = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [choice],
                    "usage": usage,
                }
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_labels_by_a_language_model_are_cached_and_failures_shown(tmp_path):
    reports = ["Edema is worse.", "Stable.", "An odd report.", "First film.", "Edema is worse."]
    priors = [True, True, True, False, True]
    with Server() as server:
        settings = JudgeSettings(
            judge_base_url=server.url,
            judge_model="m",
            judge_cache_dir=str(tmp_path),
            judge_max_retries=1,
            judge_backoff=0.01,
        )
        with Judge.from_settings(settings) as judge:
            labels = asyncio.run(label_by_judge(reports, priors, ["phantom_x"] * 5, judge))
            assert labels == ["progression", "no change", UNLABELLED, "first study", "progression"]
            assert sorted(server.asked) == ["An odd report."] * 2 + ["Edema is worse.", "Stable."]
            again = asyncio.run(label_by_judge(reports[:2], priors[:2], ["phantom_x"] * 2, judge))
        assert again == labels[:2]
        assert len(server.asked) == 4


def test_credentialed_reports_are_not_sent_away(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "key")
    settings = JudgeSettings(judge_base_url="https://api.example.com/v1", judge_model="m", judge_cache_dir=None)
    with Judge.from_settings(settings) as judge, pytest.raises(JudgeError, match="mimic"):
        asyncio.run(label_by_judge(["Stable."], [True], ["mimic"], judge))


def test_the_stand_in_judge_cannot_label_change():
    with (
        pytest.raises(EvaluationError, match="language model"),
        open_scorers("offline", judge={"judge_base_url": "offline"}, temporal_by_judge=True),
    ):
        pass
