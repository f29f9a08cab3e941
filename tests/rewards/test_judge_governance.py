"""Credentialed reports stay on this machine and on trusted hosts."""

import asyncio
import http.server
import threading

import pytest

from foundation.governance import JudgeError, check_sources, host_of, is_loopback
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.settings import JudgeSettings

REMOTE = "https://api.openai.com/v1"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:8000/v1", "http://127.9.9.9/v1", "http://LOCALHOST:1/"]
)  # fmt: skip
def test_this_machine_may_read_everything(url):
    check_sources(["mimic_cxr", "chexpert_plus", "rexgradient", "my_hospital", None], url)


@pytest.mark.parametrize(
    "url",
    [
        REMOTE,
        "http://10.0.0.5:8000/v1",
        "http://192.168.1.7/v1",
        "http://0.0.0.0:8000/v1",
        "http://127.0.0.1.evil.org/v1",
        "http://localhost.evil.org/v1",
        "http://2130706433/v1",
        "http://[::ffff:10.0.0.5]/v1",
        "http://judge.hospital.org.evil.org/v1",
        "http://notjudge.hospital.org/v1",
    ],
)
@pytest.mark.parametrize("source", ["mimic_cxr", "chexpert_plus", "rexgradient", "my_hospital", "", None, "IU_XRAY"])
def test_other_hosts_may_not_read_credentialed_reports(url, source):
    with pytest.raises(JudgeError, match=r"judge_trusted_hosts.*judge_allow_remote: true") as caught:
        check_sources(["iu_xray", source], url, ["judge.hospital.org"])
    assert host_of(url) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_open_sources_trusted_hosts_and_an_explicit_yes_pass():
    check_sources(["iu_xray", "phantom_harbor", "phantom_coast"], REMOTE)
    check_sources(["mimic_cxr"], "http://Judge.Hospital.org:8000/v1", ["judge.hospital.ORG"])
    check_sources(["mimic_cxr"], REMOTE, allow_remote=True)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://localhost/v1", "http://", "http://[::1/v1", "http://h:port/v1"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(JudgeError, match="judge_base_url"):
        host_of(url)


def test_a_key_in_the_address_is_refused_without_repeating_it():
    with pytest.raises(JudgeError) as caught:
        host_of("https://user:sk-secret@127.0.0.1/v1")
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(JudgeError):  # and such an address is not taken for this machine
        host_of("http://127.0.0.1@evil.org/v1")
    assert not is_loopback("evil.org")


class _Recorder(http.server.BaseHTTPRequestHandler):
    """Redirects every request to `elsewhere`, and remembers what it was asked."""

    elsewhere = ""
    seen: list[str]

    def do_POST(self):
        type(self).seen.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(307)
        self.send_header("Location", self.elsewhere)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def recorder():
    def start():
        handler = type("Recorder", (_Recorder,), {"seen": []})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return handler, f"http://127.0.0.1:{server.server_address[1]}/v1"

    servers = []
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def judge_one(url: str, source: str, **values):
    judge = Judge.from_settings(
        JudgeSettings(judge_base_url=url, judge_model="m", judge_cache_dir=None, judge_max_retries=0, **values)
    )

    async def run():
        results = await judge.judge(["candidate"], ["reference"], [source])
        await judge.aclose()
        return results

    return asyncio.run(run())[0]


def test_a_refused_batch_sends_nothing(recorder, monkeypatch):
    handler, url = recorder()
    monkeypatch.setenv("JUDGE_API_KEY", "key")
    # 127.0.0.1 under a name that is not loopback's.
    with pytest.raises(JudgeError, match="mimic_cxr"):
        judge_one(url.replace("127.0.0.1", "judge.example"), "mimic_cxr")
    assert handler.seen == []


def test_neither_redirects_nor_proxies_carry_reports_away(recorder, monkeypatch):
    handler, url = recorder()
    other, other_url = recorder()
    handler.elsewhere = other_url + "/chat/completions"
    monkeypatch.setenv("HTTP_PROXY", other_url)
    monkeypatch.setenv("ALL_PROXY", other_url)
    monkeypatch.setenv("http_proxy", other_url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    result = judge_one(url, "mimic_cxr")
    assert result.failure is not None
    assert handler.seen == ["/v1/chat/completions"]
    assert other.seen == []


def test_a_remote_judge_without_a_key_is_one_clear_line(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(JudgeError, match=r"api\.openai\.com needs a key: set the environment variable MY_KEY"):
        Judge.from_settings(
            JudgeSettings(judge_base_url=REMOTE, judge_model="m", judge_cache_dir=None, judge_api_key_env="MY_KEY")
        )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"judge_concurrency": 0}, "judge_concurrency"),
        ({"judge_concurrency": "many"}, "judge_concurrency"),
        ({"judge_concurrency": True}, "judge_concurrency"),
        ({"judge_timeout": -1.0}, "judge_timeout"),
        ({"judge_timeout": float("nan")}, "judge_timeout"),
        ({"judge_batch_timeout": 0}, "judge_batch_timeout"),
        ({"judge_max_failure_rate": 2}, "judge_max_failure_rate"),
        ({"judge_answer_format": "xml"}, "judge_answer_format"),
        ({"judge_budget_dollars": 5.0}, "judge_price_input"),
        ({"judge_trusted_hosts": "judge.hospital.org"}, "judge_trusted_hosts"),
        ({"judge_allow_remote": "yes"}, "judge_allow_remote"),
        ({"judge_model": 4}, "judge_model"),
        ({"judge_modell": "m"}, "judge_modell"),
    ],
)
def test_a_wrong_setting_is_named(values, named):
    with pytest.raises(JudgeError, match=named):
        JudgeSettings.from_mapping(values)


@pytest.mark.parametrize("extra", ["{", "[1]", '{"messages": []}', '{"model": "x"}'])
def test_extra_fields_must_be_an_object_that_leaves_ours_alone(extra):
    with pytest.raises(JudgeError, match="judge_extra_body"):
        Judge.from_settings(JudgeSettings(judge_model="m", judge_cache_dir=None, judge_extra_body=extra))


def test_a_model_must_be_named():
    with pytest.raises(JudgeError, match="judge_model is not set"):
        Judge.from_settings(JudgeSettings(judge_cache_dir=None))
