"""The stand-in judge: sensible counts by rules, through the real client over real HTTP."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from foundation.governance import JudgeError
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.chexprompt.settings import JudgeSettings
from rewards.offline.judge_server import MODEL, count_errors, offline_judge_server

REFERENCE = (
    "Findings: The heart is normal in size. There is a moderate left pleural effusion, increased. No pneumothorax. "
    "Impression: Increased moderate left pleural effusion."
)
NORMAL = "Findings: The heart is normal in size. Both lungs are clear. Impression: No acute process."


def errors(reference: str, candidate: str) -> dict[str, int]:
    """Counts above 0, named `type` or `type (insignificant)`."""
    judgement = count_errors(reference, candidate)
    named = {name: n for name, n in zip(ERROR_TYPES, judgement.significant, strict=True) if n}
    small = {f"{name} (insignificant)": n for name, n in zip(ERROR_TYPES, judgement.insignificant, strict=True) if n}
    return named | small


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (REFERENCE, {}),
        (REFERENCE.lower(), {}),
        (NORMAL, {"omitted_finding": 1}),
        ("", {"omitted_finding": 1}),
        (REFERENCE + " Severe cardiomegaly.", {"false_finding": 1}),
        (REFERENCE + " Mild cardiomegaly.", {"false_finding (insignificant)": 1}),
        (REFERENCE + " Small right pleural effusion.", {"false_finding (insignificant)": 1}),
        (REFERENCE + " Tiny right pneumothorax.", {"false_finding": 1}),
        (REFERENCE.replace("left", "right"), {"location": 1}),
        (REFERENCE.replace(" left", ""), {"location (insignificant)": 1}),
        (REFERENCE.replace("moderate", "small"), {"severity (insignificant)": 1}),
        (REFERENCE.replace("moderate ", ""), {"severity (insignificant)": 1}),
        (REFERENCE.replace("ncreased", "mproved").replace("Im", "im"), {"false_comparison": 1}),
        (REFERENCE.replace(", increased", "").replace("Increased ", ""), {"omitted_comparison": 1}),
    ],
)
def test_counts_what_a_reader_would_count(candidate, expected):
    assert errors(REFERENCE, candidate) == expected


def test_severity_two_degrees_apart_is_significant():
    assert errors("Severe edema.", "Mild edema.") == {"severity": 1}


def test_each_missed_side_is_an_omission():
    assert errors("Bilateral pleural effusions.", "Right pleural effusion.") == {"omitted_finding": 1}
    assert errors("Bilateral pleural effusions.", "No effusion.") == {"omitted_finding": 2}


def test_saying_nothing_is_no_way_to_a_perfect_score():
    for empty in ("", "   ", "the the the", "%%%"):
        assert count_errors(NORMAL, empty).errors == 1


def test_resolved_findings_are_comparisons():
    assert errors("Left effusion has resolved.", "No effusion.") == {"omitted_comparison (insignificant)": 1}
    assert errors("No effusion.", "Left effusion has resolved.") == {"false_comparison (insignificant)": 1}


@pytest.fixture(scope="module")
def base_url():
    with offline_judge_server() as url:
        yield url


@pytest.mark.parametrize("answer_format", ["json", "list"])
def test_answers_the_real_client(base_url, answer_format):
    settings = JudgeSettings(
        judge_base_url=base_url, judge_model=MODEL, judge_cache_dir=None, judge_answer_format=answer_format
    )
    candidates = [REFERENCE, NORMAL, REFERENCE.replace("left", "right"), "", 'Quotes ", {braces} and\nlines']

    async def run():
        judge = Judge.from_settings(settings)
        await judge.check()
        results = await judge.judge(candidates, [REFERENCE] * 5, ["mimic_cxr"] * 5)
        await judge.aclose()
        return results

    results = asyncio.run(run())
    assert [r.judgement for r in results] == [count_errors(REFERENCE, c) for c in candidates]


def test_offline_in_the_settings_starts_and_stops_a_server():
    async def run():
        with Judge.from_settings(JudgeSettings(judge_base_url="offline", judge_cache_dir=None)) as judge:
            (result,) = await judge.judge([NORMAL], [REFERENCE], ["phantom_harbor"])
            return judge, result

    judge, result = asyncio.run(run())
    assert judge.name == "chexprompt[offline-rules-judge]"
    assert result.judgement.errors == 1
    port = int(judge.base_url.split(":")[2].split("/")[0])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_refuses_what_is_not_the_judges_prompt(base_url):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    for content in (json.dumps(body).encode(), b"{", b"[]"):
        request = urllib.request.Request(f"{base_url}/chat/completions", content)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert caught.value.code == 400


def test_leaves_when_its_parent_is_killed():
    code = (
        "import time\nfrom rewards.offline.judge_server import offline_judge_server\n"
        "with offline_judge_server() as url:\n    print(url, flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    url = parent.stdout.readline().strip()
    urllib.request.urlopen(f"{url}/models", timeout=10).close()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        try:
            urllib.request.urlopen(f"{url}/models", timeout=1).close()
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the server outlived its parent")


def test_a_taken_port_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "rewards.offline.judge_server", "--port", port]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert port in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_judge_that_cannot_be_made_leaves_no_server_behind(tmp_path):
    before = set(_servers())
    settings = JudgeSettings(judge_base_url="offline", judge_cache_dir=None, judge_prompt_file=str(tmp_path / "none"))
    with pytest.raises(JudgeError, match="judge_prompt_file"):
        Judge.from_settings(settings)
    assert set(_servers()) <= before


def _servers() -> list[int]:
    """Process numbers of stand-in servers that this process started."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rsplit(")", 1)[1].split()[1]
            line = (path.parent / "cmdline").read_text()
        except OSError:  # ended meanwhile
            continue
        if parent == str(os.getpid()) and "rewards.offline.judge_server" in line:
            pids.append(int(path.parent.name))
    return pids
