"""What leaves this machine goes to listed hosts, straight or by https through a proxy. The proxy here counts bytes."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from trl import GRPOConfig

from foundation.governance import JudgeError, claimed_source, keep_off_proxies, may_use_proxy, printable
from foundation.machine import served_models
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.ratings import read_pairs
from rewards.chexprompt.settings import JudgeSettings
from training.vllm_guards import check_server_host


@dataclass
class Proxy:
    """Accepts connections, reads what is sent, answers nothing."""

    url: str = ""
    received: list[bytes] = field(default_factory=list)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that every variable of the environment names."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = Proxy(f"http://127.0.0.1:{server.getsockname()[1]}")

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.settimeout(2)
                with connection:
                    found.received.append(connection.recv(1 << 20))

        threading.Thread(target=listen, daemon=True).start()
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, found.url)
            monkeypatch.setenv(name.upper(), found.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("JUDGE_API_KEY", "sk-key-of-the-hospital")
        yield found
        server.close()


def ask(url: str, **settings) -> None:
    given = {"judge_cache_dir": None, "judge_max_retries": 0, "judge_timeout": 3.0, "judge_model": "m", **settings}
    judge = Judge.from_settings(JudgeSettings(judge_base_url=url, **given))
    asyncio.run(judge.judge(["a candidate of a patient"], ["the reference of a patient"], ["mimic"]))


def test_a_listed_host_over_http_is_asked_straight_and_never_through_a_proxy(proxy: Proxy) -> None:
    ask("http://judge0.invalid:8001/v1", judge_trusted_hosts=["judge0.invalid"])
    assert proxy.received == []


def test_over_https_a_proxy_sees_the_hosts_name_and_no_text(proxy: Proxy) -> None:
    ask("https://judge0.invalid/v1", judge_trusted_hosts=["judge0.invalid"])
    assert proxy.received
    assert all(b"CONNECT judge0.invalid" in part for part in proxy.received)
    assert not any(b"patient" in part or b"sk-key" in part for part in proxy.received)


class Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"data": [{"id": "m\\u001b[31m"}, {"id": 7}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def test_a_server_on_this_machine_is_found_without_the_proxy_and_its_names_are_escaped(proxy: Proxy) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Models) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert served_models(f"http://127.0.0.1:{server.server_address[1]}/v1") == ["m\\x1b[31m"]
        server.shutdown()
    assert proxy.received == []


def test_other_clients_are_kept_off_proxies_by_the_environment(proxy: Proxy) -> None:
    keep_off_proxies("http://node7:8000", "https://far.example/v1")
    for name in ("no_proxy", "NO_PROXY"):
        assert os.environ[name] == "localhost,127.0.0.1,::1,node7"
    assert [may_use_proxy(url) for url in ("http://far/v1", "https://far/v1", "https://127.0.0.1/v1")] == [
        False,
        True,
        False,
    ]


def test_films_and_prompts_go_to_a_listed_vllm_server_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    given = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "use_vllm": True, "vllm_mode": "server"}
    remote = GRPOConfig(vllm_server_base_url="http://node7:8000", **given)
    with pytest.raises(JudgeError, match=r"prompts and films of mimic are not sent to node7.*vllm_trusted_hosts"):
        check_server_host(remote, {"mimic", "iu_xray"}, [])
    check_server_host(remote, {"mimic"}, ["node7"])
    check_server_host(remote, {"iu_xray"}, [])
    check_server_host(GRPOConfig(**given), {"mimic"}, [])  # TRL's default is this machine


def test_a_files_claim_closes_and_never_opens(tmp_path: Path) -> None:
    closed = "a file that calls itself iu_xray"
    assert claimed_source("iu_xray") == closed
    assert claimed_source("iu_xray", "iu_xray") == "iu_xray"
    assert claimed_source("iu_xray", "mimic") == "mimic"
    assert claimed_source("mimic", "iu_xray") == "mimic"
    assert claimed_source(None, "iu_xray") == "iu_xray"
    assert claimed_source(None) is None
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"reference": "r", "candidate": "c", "source": "iu_xray"}\n')
    assert [pair.source for pair in read_pairs(pairs)] == [closed]
    assert [pair.source for pair in read_pairs(pairs, "iu_xray")] == ["iu_xray"]


def test_text_of_a_server_is_printable_and_short() -> None:
    assert printable("a\x1b[2J\nb\u202e") == "a\\x1b[2J\\nb\\u202e"
    assert len(printable("x" * 10_000)) < 300
