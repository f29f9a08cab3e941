"""The reader study: a blinded page, worked through in a real browser, and its export beside a judge's counts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from evaluation_files import make_data, write_predictions

from data_prep.study import read_studies, report_text
from evaluation.__main__ import main as evaluation
from evaluation.reader_study import write_reader_study
from evaluation.scorers import open_scorers
from evaluation.scoring import score_file
from foundation.errors import EvaluationError
from rewards.__main__ import main as rewards

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
MODELS = ("sft", "rl_step1")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two models on 8 studies, judged by the stand-in; one report is hostile, one is missing."""
    folder = tmp_path_factory.mktemp("readers")
    run = folder / "outputs" / "small"
    data = make_data(folder / "data" / "phantom_seen", train=2, test=4, dataset="phantom_seen")
    studies = read_studies(data, "test").to_pylist()
    right = {s["study_id"]: report_text(s["findings"], s["impression"]) for s in studies}
    for model in MODELS:
        reports = dict(right) if model == "rl_step1" else {key: f"Findings: {HOSTILE}" for key in right}
        if model == "sft":
            reports[studies[3]["study_id"]] = None
        out = run / "eval" / "phantom_seen" / model
        with open_scorers("offline", judge={"judge_base_url": "offline", "judge_cache_dir": None}) as scorers:
            score_file(
                write_predictions(out / "predictions.json", studies, reports), scorers, out, data=data, resamples=20
            )
    return run


@pytest.fixture(scope="module")
def study(outputs: Path) -> Path:
    evaluation(["reader-study", "--outputs", str(outputs), "--models", *MODELS, "--studies", "5", "--seed", "3"])
    return outputs / "reader_study"


def page_data(folder: Path) -> dict:
    html = (folder / "reader_study.html").read_text(encoding="utf-8")
    return json.loads(html.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def test_the_page_names_no_model_and_no_study(study: Path) -> None:
    html = (study / "reader_study.html").read_text(encoding="utf-8")
    key = json.loads((study / "key.json").read_text())
    names = {value for entry in key["reports"].values() for value in entry.values()}
    assert len(names) == 2 + 1 + 5
    assert not [name for name in names if name in html]
    assert HOSTILE not in html  # escaped inside the JSON
    assert "http" not in html.replace("http-equiv", "").replace("HTTP", "")  # nothing is loaded


def test_every_study_shows_each_model_once_in_random_order(study: Path) -> None:
    key = json.loads((study / "key.json").read_text())["reports"]
    orders = [tuple(key[c["id"]]["model"] for c in s["candidates"]) for s in page_data(study)["studies"]]
    assert {frozenset(order) for order in orders} == {frozenset(MODELS)}
    assert len(set(orders)) == 2
    assert len({key[s["candidates"][0]["id"]]["study_id"] for s in page_data(study)["studies"]}) == 5
    pairs = [json.loads(line) for line in (study / "pairs.jsonl").read_text().splitlines()]
    assert {pair["id"] for pair in pairs} == set(key)
    assert all(pair["source"] == "phantom_seen" for pair in pairs)


def test_the_same_seed_makes_the_same_page(outputs: Path, study: Path, tmp_path: Path) -> None:
    write_reader_study(outputs, MODELS, 5, tmp_path, seed=3)
    assert (tmp_path / "reader_study.html").read_bytes() == (study / "reader_study.html").read_bytes()
    write_reader_study(outputs, MODELS, 5, tmp_path, seed=4)
    assert (tmp_path / "reader_study.html").read_bytes() != (study / "reader_study.html").read_bytes()


@pytest.mark.parametrize(
    ("models", "studies", "message"),
    [
        (("sft", "rl_step9"), 5, "rl_step9 has no scores in .*; there are sft, rl_step1"),
        (("sft", "rl_step1"), 8, "7 studies have a report by each of sft, rl_step1"),
        (("sft", "sft"), 5, "names a model twice"),
    ],
)
def test_what_cannot_be_shown_is_one_line(outputs: Path, tmp_path: Path, models, studies: int, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        write_reader_study(outputs, models, studies, tmp_path)


@needs_chromium
def test_a_reader_works_through_it_by_keyboard_and_the_export_meets_the_judge(
    study: Path, tmp_path: Path, capsys
) -> None:
    data = page_data(study)
    shown = [(s, c) for s in data["studies"] for c in s["candidates"]]
    with Browser() as page:
        page.downloads_to(tmp_path)
        page.open(study / "reader_study.html")
        assert page.run("document.title") == "Reader study"
        page.run("document.getElementById('reader').focus()")
        for key in "Dr. A":  # letters of a name count no errors
            page.key(key)
        page.run("document.getElementById('reader').blur()")
        for place, (own, candidate) in enumerate(shown):
            assert page.run("document.getElementById('candidate').textContent") == candidate["text"]
            assert page.run("document.getElementById('reference').textContent") == own["reference"]
            assert page.run("document.querySelectorAll('#films img').length") == 1 + (own["priorImage"] is not None)
            if candidate["text"].startswith("Findings: </script>"):
                for key in ("a", "b", "b", "C", "f", "Backspace"):
                    page.key(key)
            if place == 1:  # a reader who closes the page goes on where he was
                page.open(study / "reader_study.html")
            if place < len(shown) - 1:
                page.key("Enter")
        assert page.run("document.getElementById('progress').textContent") == "9 of 10 reports rated"
        page.key("x")
        (exported,) = wait_for(tmp_path)
        assert page.problems == []
        assert page.run("document.title") == "Reader study"
        assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    rows = json.loads(exported.read_text())
    assert rows["reader"] == "Dr. A"
    assert len(rows["ratings"]) == 9  # the last was not confirmed
    hostile = {c["id"] for _, c in shown if "</script>" in c["text"]}
    for row in rows["ratings"]:
        errors = {name: n for part in ("significant", "insignificant") for name, n in row[part].items() if n}
        assert errors == ({"false_finding": 1, "omitted_finding": 2, "location": 1} if row["id"] in hostile else {})
    agreement = tmp_path / "judge_agreement.json"
    rewards(["judge-agreement", str(exported), str(study / "judge.jsonl"), "--out", str(agreement)])
    result = json.loads(agreement.read_text())
    assert result["n"] == 9
    assert result["measures"]["Kendall's tau-b"]["value"] > 0
    assert "9 reports judged by both" in capsys.readouterr().out


def wait_for(folder: Path, timeout: float = 20) -> list[Path]:
    """The exported files, once the browser has written them."""
    deadline = time.monotonic() + timeout
    while not (found := sorted(folder.glob("*.json"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"ratings": []}', "has no rating yet"),
        ('{"ratings": [{"significant": {}}]}', "each with an id"),
        ('{"ratings": [{"id": "a", "significant": {"x": 1}, "insignificant": {}}]}', "must be an object with counts"),
        ('{"ratings": [{"id": "a", "significant": {"location": -1}, "insignificant": {}}]}', "whole numbers"),
    ],
)
def test_a_damaged_export_is_one_line(study: Path, tmp_path: Path, capsys, content: str, message: str) -> None:
    (tmp_path / "reader.json").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        rewards(["judge-agreement", str(tmp_path / "reader.json"), str(study / "judge.jsonl")])
    assert message in capsys.readouterr().err
