"""A table or figure of several models is over the studies that all of them have, and says which and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation import figures, sections
from evaluation.baselines import SUBSTITUTED, SUBSTITUTED_IDS
from evaluation.material import collect
from evaluation.part import Part
from evaluation.run_folder import read_run
from evaluation.strata_parts import strata_table
from evaluation.summary import summarise_run

SCORERS = {
    "backend": "offline",
    "metrics": {"bleu2": {"backend": "exact", "fingerprint": "x"}},
    "labels": {"backend": "offline-rules", "fingerprint": "x"},
    "judge": {"name": "judge", "model": "rules", "fingerprint": "x"},
    "composite": {"name": None, "weights": {}},
    "skipped": [],
    "temporal": {"backend": "offline-rules", "fingerprint": "1"},
}
LEVELS = {"easy": 0.6, "hard": 0.2, "ours": 0.9, "far": 0.4}  # BLEU-2 of a data set


def add(
    root: Path, dataset: str, model: str, studies: int = 20, split: str = "test", failed: int = 0, gain=0.0
) -> Path:
    """Scores of a model on a data set: BLEU-2 at the data set's level, two studies a patient, `failed` not judged."""
    out = root / "eval" / dataset / model
    out.mkdir(parents=True)
    with (out / "scores.jsonl").open("w") as file:
        for i in range(studies):
            counts = [i % 4, 0, 0, 0, 0, 0]
            line = {
                "study_id": f"{dataset}{i}",
                "patient_id": f"p{i // 2}",
                "dataset": dataset,
                "split": split,
                "encounter": 1 + i % 2,
                "sex": "FM"[i // 2 % 2],
                "age": 50.0,
                "findings": "x",
                "reference": "x",
                "candidate": "x",
                "status": "ok",
                "temporal": "no change",
                "metrics": {"bleu2": LEVELS[dataset] + 0.001 * i + gain},
                "labels": {"reference": [1] * 14, "candidate": [1] * 14},
                "judge": None if i < failed else {"significant": counts, "insignificant": [0] * 6},
                "judge_failure": "timeout" if i < failed else None,
            }
            file.write(json.dumps(line) + "\n")
    result = {"made_by": {"scorers": SCORERS, "sections": "available", "predictions_sha256": "0" * 64}, "metrics": {}}
    result |= {"studies": studies, "counts": {}, "listed": {}, "judge_failures": {"timeout": failed} if failed else {}}
    (out / "scores.json").write_text(json.dumps({**result, "data": None}))
    return out


def parts_of(root: Path, *names: str) -> dict[str, Part]:
    """Sections of the report, by the names of their functions."""
    material = collect(read_run(root), summarise_run(root, 50), 50, 0)
    return {name: getattr(sections, name)(material) for name in names}


def words(part: Part) -> str:
    tables = [text for t in part.tables for text in (t.caption, t.folded, *t.header)]
    return " ".join([part.title, part.text, part.note, part.absent, *part.points, *tables])


def test_models_on_different_data_sets_are_compared_on_the_common_one(tmp_path):
    add(tmp_path, "easy", "rl_step1")
    add(tmp_path, "hard", "rl_step1")
    add(tmp_path, "easy", "rl_step2")
    parts = parts_of(tmp_path, "metrics", "summary")
    row = next(row for row in parts["metrics"].tables[0].rows if row[0] == "BLEU-2")
    assert row[1] == row[2]
    assert "20 test studies of 10 patients (easy) that all models have" in parts["metrics"].text
    assert "20 of RL step 1" in parts["metrics"].text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stages"]["rl_step1"]["n"] == summary["stages"]["rl_step2"]["n"] == 20
    assert summary["studies"]["left_out"] == {"rl_step1": 20}
    assert summary["own_studies"]["rl_step1"]["n"] == 40
    assert set(summary["own_studies"]) == {"rl_step1"}
    assert list(summary["by_dataset"]["hard"]) == ["rl_step1"]
    assert any("40 of 10" in row[1] or "40 of 20" in row[1] for t in parts["summary"].tables for row in t.rows)


def test_a_model_that_shares_no_study_with_the_last_stage_is_named_and_left_out(tmp_path):
    add(tmp_path, "hard", "sft")
    add(tmp_path, "easy", "rl_step1")
    parts = parts_of(tmp_path, "metrics")
    assert parts["metrics"].tables[0].header == ["", "RL step 1"]
    assert "Without any of these studies: SFT" in parts["metrics"].text
    assert json.loads((tmp_path / "summary.json").read_text())["own_studies"]["sft"]["n"] == 20


def test_errors_are_over_the_studies_that_the_judge_read_for_all_models(tmp_path):
    add(tmp_path, "easy", "sft", failed=6)
    add(tmp_path, "easy", "rl_step1")
    parts = parts_of(tmp_path, "encounters", "error_counts")
    shares, types = parts["error_counts"].tables
    assert shares.rows[0][1:] == shares.rows[1][1:]
    assert {tuple(row[1:]) for row in types.rows[:6]} == {tuple(row[1:]) for row in types.rows[6:]}
    assert "it failed for 6 of SFT" in parts["error_counts"].text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stages"]["sft"]["judge_errors"] == summary["stages"]["rl_step1"]["judge_errors"]
    assert summary["stages"]["rl_step1"]["judged"] == 14
    assert summary["paired"]["rl_step1 - sft"]["judge_errors"]["difference"] == 0
    for row in parts["encounters"].tables[0].rows:
        assert row[1] == "1" or row[1] == "2"
    by_stratum = {(row[1], row[2]): row[-2:] for row in parts["encounters"].tables[0].rows}
    assert by_stratum["1", "SFT"] == by_stratum["1", "RL step 1"]


def test_a_validation_split_stands_by_itself(tmp_path):
    for model in ("sft", "rl_step1"):
        add(tmp_path, "easy", model)
        add(tmp_path, "ours", model, split="validation")
    parts = parts_of(
        tmp_path, "summary", "metrics", "institutions", "subgroups", "encounters", "temporal", "conditions"
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["apart"] == {"ours": "validation"}
    assert summary["stages"]["sft"]["n"] == 20
    assert summary["by_dataset"]["ours"]["sft"]["n"] == 20
    bleu2 = next(row for row in parts["metrics"].tables[0].rows if row[0] == "BLEU-2")
    assert bleu2[1].startswith("0.6")
    for name in ("summary", "metrics", "institutions", "subgroups", "encounters", "temporal", "conditions"):
        assert "validation" in words(parts[name]), name
    assert {row[0] for row in parts["institutions"].tables[0].rows} == {"easy", "ours (validation)"}


def test_where_there_are_only_validation_studies_they_are_named(tmp_path):
    for model in ("sft", "rl_step1"):
        add(tmp_path, "ours", model, split="validation")
    parts = parts_of(tmp_path, "metrics")
    assert "20 validation studies of 10 patients (ours (validation))" in parts["metrics"].text
    assert json.loads((tmp_path / "summary.json").read_text())["stages"]["sft"]["n"] == 20


def test_the_same_difference_has_one_sign_and_one_value_in_all_of_a_report(tmp_path):
    for dataset in ("easy", "far"):
        add(tmp_path, dataset, "sft")
        add(tmp_path, dataset, "rl_step1", gain=0.05)
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "result.json").write_text('{"settings": {"datasets": ["easy"]}}')
    parts = parts_of(tmp_path, "error_counts", "institutions", "rewards")
    pairs = parts["rewards"].tables[-1].rows
    assert {row[0] for row in pairs} == {"RL step 1 − SFT"}
    assert next(row for row in pairs if row[1] == "BLEU-2")[3].startswith("+0.050")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["paired"]) == ["rl_step1 - sft"]
    # The zero-shot data set is in no number but its own.
    shares = parts["error_counts"].tables[0].rows
    assert "20 test studies of 10 patients (easy)" in parts["error_counts"].text
    assert [row[0] for row in shares] == ["SFT", "RL step 1"]
    strata = {(row[0], row[1]): row[2] for row in parts["institutions"].tables[1].rows}
    assert strata == {(kind, m): "20" for kind in ("seen in training", "zero-shot") for m in ("SFT", "RL step 1")}


def test_breakdowns_are_of_one_data_set_each(tmp_path):
    for dataset in ("easy", "hard"):
        add(tmp_path, dataset, "sft")
    run = read_run(tmp_path)
    material = collect(run, summarise_run(tmp_path, 50), 50, 0)
    table = strata_table(material, "encounter")
    assert table.header[:4] == ["data set", "encounter", "model", "n"]
    assert {(row[0], row[1], row[3]) for row in table.rows} == {
        (dataset, encounter, "10") for dataset in ("easy", "hard") for encounter in ("1", "2")
    }


def test_how_many_reports_of_copy_prior_are_the_most_frequent_one(tmp_path):
    add(tmp_path, "easy", "sft")
    out = add(tmp_path, "easy", "copy_prior")
    made_by = {"baseline": "copy_prior", "data": "easy", "split": "test", "train": ["easy"]}
    ids = [f"easy{i}" for i in range(0, 20, 2)]
    made = {"finished": True, "made_by": made_by, SUBSTITUTED: len(ids), SUBSTITUTED_IDS: ids}
    (out / "generation.json").write_text(json.dumps(made))
    parts = parts_of(tmp_path, "encounters", "summary")
    assert any("10 of 20 reports are the most frequent report" in point for point in parts["summary"].points)
    notes = {(row[1], row[2]): row[3] for row in parts["encounters"].tables[0].rows}
    assert notes["1", "baseline: copy the prior report"] == "10 (10 are the most frequent report)"
    assert notes["2", "baseline: copy the prior report"] == notes["2", "SFT"] == "10"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["baselines"]["copy_prior"]["most_frequent_reports"] == {"easy": 10}


def test_subgroups_have_the_second_best_models_line(tmp_path):
    for model, gain in (("base", 0.0), ("sft", 0.1), ("rl_step1", 0.2)):
        add(tmp_path, "easy", model, gain=gain)
    material = collect(read_run(tmp_path), summarise_run(tmp_path, 50), 50, 0)
    figure = figures.subgroups(material.breakdowns, "bleu2", material.institutions)
    (dashed,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert dashed.get_label() == "second best: SFT"
    assert dashed.get_xdata()[0] == pytest.approx(0.6 + 0.001 * 9.5 + 0.1)
