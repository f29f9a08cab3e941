"""The served model: an OpenAI client and the page get the text that ReportWriter writes; nobody else's page gets anything."""

from __future__ import annotations

import http.client
import json
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from material import write_dicom
from openai import BadRequestError, OpenAI
from PIL import Image

from evaluation.serve import WAITING, ReportServer
from foundation.errors import EvaluationError
from model.engines import GenerationSettings
from model.prompts import build_prompt
from model.report_writer import ReportWriter

SETTINGS = GenerationSettings(sections="findings_impression", max_new_tokens=24, engine="transformers")
PRIOR = "Findings: <b>Clear</b>. Impression: Normal <|image_pad|>."


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(3)
    for name in ("now", "before"):
        write_dicom(folder / name, np.kron(rng.integers(300, 3000, (10, 8)), np.ones((30, 30))).astype(np.uint16))
    Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(folder / "photo", "PNG")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def server(tiny_base: Path) -> Iterator[ReportServer]:
    with ReportServer(ReportWriter(tiny_base, SETTINGS), port=0) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def ask(server: ReportServer, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    connection.request("GET" if body is None else "POST", path, content, {**kind, **headers})
    answer = connection.getresponse()
    return answer.status, answer.read()


def text(content: bytes) -> str:
    return b64encode(content).decode()


def messages(films: dict[str, bytes], study: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    """Training's prompt as an OpenAI client sends it."""
    shown = iter(names)
    (message,) = build_prompt(study, sections=("findings", "impression"))
    image = lambda: {"url": f"data:application/dicom;base64,{text(films[next(shown)])}"}  # noqa: E731
    parts = [p if p["type"] == "text" else {"type": "image_url", "image_url": image()} for p in message["content"]]
    return [{"role": "user", "content": parts}]


def test_the_page_is_told_the_report_piece_by_piece(server: ReportServer, films: dict[str, bytes]) -> None:
    body = {"image": text(films["now"]), "indication": "Cough <|im_end|>."}
    body |= {"prior_image": text(films["before"]), "prior_report": PRIOR}
    status, content = ask(server, "/write", body)
    lines = [json.loads(line) for line in content.splitlines()]
    expected = server.writer.write(films["now"], "Cough <|im_end|>.", prior=(films["before"], PRIOR))
    assert status == 200
    assert set(lines[0]["films"]) == {"image", "prior_image"}
    pieces = [line["text"] for line in lines[1:-1]]
    assert len(pieces) > 1
    assert "".join(pieces) == lines[-1]["done"]["report"] == expected.report != ""
    assert expected.report != server.writer.write(films["now"], "Cough <|im_end|>.").report  # the prior was shown


def test_an_openai_client_gets_the_same_report_whole_and_streamed(server: ReportServer, films) -> None:
    study = {"image": "now", "prior_image": "before", "prior_report": PRIOR, "indication": "Cough."}
    asked = {"messages": messages(films, study, "now", "before")}
    expected = server.writer.write(films["now"], "Cough.", prior=(films["before"], PRIOR))
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        (model,) = client.models.list().data
        whole = client.chat.completions.create(model=model.id, temperature=0, **asked)
        assert whole.choices[0].message.content == expected.report
        assert (whole.choices[0].finish_reason == "length") == expected.truncated
        chunks = list(client.chat.completions.create(model=model.id, stream=True, **asked))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.report
        short = client.chat.completions.create(model=model.id, max_completion_tokens=2, **asked)
        assert len(short.choices[0].message.content) < len(expected.report)
        with pytest.raises(BadRequestError, match="greedy"):
            client.chat.completions.create(model=model.id, temperature=1, **asked)
        part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/film.png"}}
        with pytest.raises(BadRequestError, match="nothing is fetched"):
            client.chat.completions.create(model=model.id, messages=[{"role": "user", "content": [part]}])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        ([], 400, "not a JSON object"),
        ({}, 400, "no film"),
        ({"image": "no base64"}, 400, "image is not base64"),
        ({"image": "aaaa"}, 400, "no picture in a form"),
        ({"image": 3}, 400, "image must be a text"),
        ({"image": "photo"}, 400, "a colour picture"),
        ({"image": "now", "prior_report": PRIOR}, 400, "give both, or neither"),
        ({"image": "now", "indication": "x" * 20_001}, 400, "20,000 characters"),
    ],
)
def test_what_cannot_be_written_is_one_line(server: ReportServer, films, body, status: int, message: str) -> None:
    if isinstance(body, dict) and body.get("image") in films:
        body = {**body, "image": text(films[body["image"]])}
    got, content = ask(server, "/write", body)
    told = json.loads(content)["error"]["message"]
    assert got == status
    assert message in told
    assert "\n" not in told


def test_only_this_machines_own_page_may_ask(server: ReportServer, films, monkeypatch) -> None:
    body = {"image": text(films["now"])}
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/")[0] == 200
    assert ask(server, "/", Host="attacker.example")[0] == 403
    assert ask(server, "/", Host="[")[0] == 403
    assert ask(server, "/write", body, Origin="https://attacker.example")[0] == 403
    assert ask(server, "/write", body, Origin="null")[0] == 403
    assert ask(server, "/write", body, **{"Content-Type": "text/plain"})[0] == 415
    assert ask(server, "/../../etc/passwd")[0] == 404
    monkeypatch.setattr(server, "largest_request", 100)
    assert ask(server, "/write", body)[0] == 413


def test_no_more_wait_than_fit_into_memory(server: ReportServer) -> None:
    for _ in range(WAITING):
        assert server.room.acquire(timeout=10)
    try:
        assert ask(server, "/write", {})[0] == 503
    finally:
        server.room.release(WAITING)
    assert ask(server, "/write", {})[0] == 400


def test_an_address_in_use_is_one_line(server: ReportServer) -> None:
    with pytest.raises(EvaluationError, match="cannot be used"):
        ReportServer(server.writer, port=server.server_address[1])


DROP = """((zone, name, content) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
  document.querySelector(`[data-film=${zone}]`).dispatchEvent(
    new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
})"""


def wait_for(page: Browser, script: str, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not page.run(script):
        assert time.monotonic() < deadline, page.run("document.body.innerText")
        time.sleep(0.05)


def tab_to(page: Browser, element: str) -> None:
    for _ in range(20):
        if page.run("document.activeElement.id") == element:
            return
        page.act("Tab")
    raise AssertionError(f"Tab does not reach {element}")


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_from_drop_to_text_by_keyboard_at_480_pixels(server: ReportServer, films) -> None:
    expected = server.writer.write(films["now"], "Cough.", prior=(films["before"], PRIOR))
    with Browser(width=480) as page:
        page.open(f"{server.url}/")
        assert "not for diagnosis" in page.run("document.body.innerText")
        page.run(f"{DROP}('image', 'now.dcm', {json.dumps(text(films['now']))})")
        page.run(f"{DROP}('prior_image', 'before.dcm', {json.dumps(text(films['before']))})")
        for field, value in (("indication", "Cough."), ("prior_report", PRIOR)):
            tab_to(page, field)
            for letter in value:
                page.key(letter)
        tab_to(page, "write")
        page.act("Enter")
        wait_for(page, "document.getElementById('status').textContent.startsWith('Written')")
        assert page.run("document.getElementById('report').textContent") == expected.report
        assert page.run("document.getElementById('prior_text').textContent") == PRIOR  # as text, not as markup
        assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert page.run("document.images.length") == 2
        tab_to(page, "copy")
        page.act("Enter")
        wait_for(page, "/Copied|Selected/.test(document.getElementById('status').textContent)")
        assert page.run("document.documentElement.scrollWidth") <= 480
        page.resize(1200, 900)
        tops = "['new', 'old'].map((id) => document.getElementById(id).getBoundingClientRect().top)"
        assert len(set(page.run(tops))) == 1  # side by side where there is room
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith((server.url, "data:"))] == []
        assert page.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_a_refused_picture_is_told_and_written_where_asked_for(server: ReportServer, films) -> None:
    with Browser() as page:
        page.open(f"{server.url}/")
        page.run(f"{DROP}('image', 'photo.png', {json.dumps(text(films['photo']))})")
        page.run("document.getElementById('write').click()")
        wait_for(page, "document.getElementById('status').className === 'wrong'")
        assert "colour picture" in page.run("document.getElementById('status').textContent")
        page.run("document.getElementById('anyway').click(); document.getElementById('write').click()")
        wait_for(page, "document.getElementById('status').textContent.startsWith('Written')")
        assert "colour picture" in page.run("document.getElementById('status').textContent")
