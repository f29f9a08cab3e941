"""Rivals over an API: every study ends with a report or a named failure, and none is scored as an empty report."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from evaluation_files import make_data, write_predictions
from judge_fault_server import KEY, MODEL, fault_server, right_report
from PIL import Image

from data_prep.study import read_studies, report_text
from evaluation.__main__ import main
from evaluation.baselines import write_baseline
from evaluation.material import collect
from evaluation.rival import Rival, generate_by_server
from evaluation.run_folder import read_run
from evaluation.scorers import open_scorers
from evaluation.scores import Scores
from evaluation.scoring import score_file
from evaluation.sections import encounters, error_counts, metrics
from evaluation.strata_parts import temporal
from evaluation.summary import summarise_run
from foundation.errors import EvaluationError, RecipeError
from model.engines import GenerationSettings
from model.report_server import PromptFile, messages, read_prompt
from recipes.rivals import read_rivals

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = GenerationSettings()
BAD = ["429", "500", "drop", "truncated json", "no choices", "html", "empty", "null", "length", "content filter"]
QUICK = {"backoff": 0.01, "timeout": 20.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "phantom_small", train=2, test=20)


@pytest.fixture(scope="module")
def running_server():
    with fault_server() as server:
        yield server


@pytest.fixture
def server(running_server, monkeypatch):
    monkeypatch.setenv("SERVER_API_KEY", KEY)
    running_server.configure()
    return running_server


def studies_of(data: Path) -> dict[str, dict]:
    return {s["study_id"]: {**s, "folder": str(data)} for s in read_studies(data, "test").to_pylist()}


def ask(server, data: Path, out: Path, **options) -> dict:
    rival = Rival(server.base_url, MODEL, options=QUICK | options)
    return generate_by_server(rival, data, "test", out, SETTINGS)


def right(study: dict) -> str:
    return right_report(messages(study, SETTINGS)[-1]["content"])


def test_with_30_percent_faulty_answers_every_study_is_accounted_for_and_none_is_empty(server, data, tmp_path) -> None:
    server.configure(fault_rate=0.3, faults=BAD, seed=4)
    made = ask(server, data, tmp_path / "rival", max_retries=0)
    studies = studies_of(data)
    entries = json.loads((tmp_path / "rival" / "predictions.json").read_text())
    failed = {study for ids in made["failed"].values() for study in ids}
    assert 4 <= len(failed) <= 24
    assert made["failed_studies"] == len(failed)
    assert failed | set(entries) == set(studies)
    assert not failed & set(entries)
    assert {key: entry["model_prediction"] for key, entry in entries.items()} == {k: right(studies[k]) for k in entries}
    assert len(made["failed"]) > 3  # by cause

    with open_scorers("offline") as scorers:
        result = score_file(
            tmp_path / "rival" / "predictions.json", scorers, tmp_path / "rival", data=data, resamples=50
        )
    scores = Scores.read(tmp_path / "rival" / "scores.jsonl")
    assert set(scores.study_id) == set(entries)
    assert result["counts"]["failed"] == len(failed)
    assert result["counts"]["missing"] == result["counts"]["empty"] == 0
    assert set(scores.fields["status"]) == {"ok"}

    # The same command asks for what failed, and for nothing else.
    server.configure()
    made = ask(server, data, tmp_path / "rival", max_retries=0)
    assert server.stats()["requests"] == len(failed)
    assert made["failed_studies"] == 0
    entries = json.loads((tmp_path / "rival" / "predictions.json").read_text())
    assert set(entries) == set(studies)
    ask(server, data, tmp_path / "rival", max_retries=0)
    assert server.stats()["requests"] == len(failed)  # done is done


def test_retries_leave_no_study_out(server, data, tmp_path) -> None:
    server.configure(fault_rate=0.3, faults=[f for f in BAD if f != "content filter"], seed=1)
    made = ask(server, data, tmp_path, max_retries=12)
    assert made["failed_studies"] == 0
    assert sum(made["retries"].values()) > 5


def test_a_budget_ends_it_and_what_is_paid_for_stays(server, data, tmp_path) -> None:
    with pytest.raises(EvaluationError, match=r"budget is reached .*10 calls.*10 reports are kept"):
        ask(server, data, tmp_path, budget_calls=10, concurrency=1)
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 10
    ask(server, data, tmp_path, concurrency=1)
    assert server.stats()["requests"] == 40


def test_films_of_credentialed_data_go_to_listed_hosts_only(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SERVER_API_KEY", KEY)
    closed = make_data(tmp_path / "mimic", train=1, test=2, dataset="mimic")
    rival = Rival("https://api.example.org/v1", "some-model")
    with pytest.raises(
        EvaluationError, match=r"films and texts of mimic are not sent to api.example.org: .*trusted_hosts"
    ):
        generate_by_server(rival, closed, "test", tmp_path / "out", SETTINGS)


def test_the_papers_prompt_with_its_films_in_order_as_png(server, data) -> None:
    study = next(s for s in studies_of(data).values() if s["prior_image"])
    (message,) = messages(study, SETTINGS)
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    films = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    for film, name in zip(films, (study["image"], study["prior_image"]), strict=True):
        head, _, content = film.partition(",")
        assert head == "data:image/png;base64"
        with Image.open(BytesIO(base64.b64decode(content))) as sent, Image.open(data / name) as there:
            assert list(sent.getdata()) == list(there.convert("L").getdata())
    (message,) = messages(study, GenerationSettings(longitudinal=False, context=False))
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "text"]


def test_a_prompt_of_the_models_own(data, tmp_path) -> None:
    prompt = read_prompt(REPOSITORY / "recipes/rivals/medgemma.yaml")
    study = next(s for s in studies_of(data).values() if s["prior_image"])
    study |= {"indication": "Cough {prior} {image}.", "comparison": None}  # what a study says is text, braces and all
    system, message = messages(study, SETTINGS, prompt)
    assert system == {"role": "system", "content": "You are an expert radiologist."}
    shown = [part["text"] if part["type"] == "text" else "FILM" for part in message["content"]]
    assert shown[0] == shown[2] == "FILM"
    assert "Describe this X-ray. Indication: Cough {prior} {image}." in shown[1]
    assert f"Prior report: {study['prior_report']}" in shown[3]
    without = messages({**study, "prior_image": None}, SETTINGS, prompt)[-1]["content"]
    assert len(without) == 2
    assert "prior" not in without[1]["text"].replace("{prior}", "")
    for text, reason in (
        ("text: no film", "image.* once"),
        ("text: '{prior} {image}'\nprior: '{prior_image} {prior_report}'", "comes before"),
        ("text: '{image}'\ntone: kind", "unknown keys tone"),
        ("- a list", "must be a mapping"),
    ):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(EvaluationError, match=reason):
            read_prompt(tmp_path / "p.yaml")
    assert PromptFile("{image}").system == ""


def test_the_command_line(server, data, tmp_path, capsys) -> None:
    command = ["generate", "--engine", "server", "--model", MODEL, "--data", str(data), "--out", str(tmp_path)]
    with pytest.raises(EvaluationError, match="needs --base-url"):
        main(command)
    main([*command, "--base-url", server.base_url, "--max_studies", "3", "--server_backoff", "0.01"])
    assert "3 reports, 0 studies without one" in capsys.readouterr().out
    with pytest.raises(EvaluationError, match="does not serve the model 'other'"):
        main([*command[:4], "other", *command[5:-1], str(tmp_path / "b"), "--base-url", server.base_url])
    monkey = {"base_url": server.base_url, "name": "a b", "model": MODEL}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"rivals": [monkey]}))
    with pytest.raises(RecipeError, match="no name for a rival"):
        read_rivals(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"rivals": [{**monkey, "name": "sft-2", "speed": 3}]}))
    with pytest.raises(RecipeError, match="unknown keys speed"):
        read_rivals(tmp_path / "r.yaml")
    assert set(read_rivals(REPOSITORY / "recipes/rivals/rivals.yaml")) == {"medgemma", "qwen3-vl"}


def test_figures_2f_and_3a_to_c_show_two_rivals_beside_ours_and_copy_prior(server, data, tmp_path) -> None:
    root, judge = tmp_path / "demo", {"judge_base_url": "offline"}
    studies = studies_of(data)
    (root / "rl_step2").mkdir(parents=True)
    (root / "rl_step2" / "result.json").write_text('{"settings": {"datasets": ["phantom_small"]}}')
    with open_scorers("offline", judge=judge) as scorers:
        out = root / "eval" / "phantom_small"
        good = {k: report_text(s["findings"], s["impression"]) for k, s in studies.items()}
        write_predictions(out / "rl_step2" / "predictions.json", list(studies.values()), good)
        write_baseline("copy_prior", data, "test", [data], out / "copy_prior")
        server.configure(fault_rate=0.3, faults=BAD, seed=7)
        ask(server, data, out / "rival-a", max_retries=0)
        server.configure()
        ask(server, data, out / "rival-b", max_tokens=77)
        for name in ("rl_step2", "copy_prior", "rival-a", "rival-b"):
            score_file(out / name / "predictions.json", scorers, out / name, data=data, resamples=50)
    run = read_run(root)
    m = collect(run, summarise_run(root, resamples=50), 50, 0)
    assert {"rl_step2", "copy_prior", "rival-a", "rival-b"} <= set(m.models)
    studies_of_all = m.pooled.studies
    assert studies_of_all == len(Scores.read(out / "rival-a" / "scores.jsonl").study_id) < 40
    for part in (metrics(m), error_counts(m), encounters(m), temporal(m)):
        assert part.figure is not None, part.id
        text = json.dumps([[table.header, table.rows] for table in part.tables])
        assert "rival-a" in text, part.id
        assert "rival-b" in text, part.id
    pairs = {frozenset((p["first"], p["second"])) for p in m.comparison["pairs"]}
    assert frozenset(("rl_step2", "rival-a")) in pairs
    assert frozenset(("rival-b", "copy_prior")) in pairs
