"""Generation on a tiny Qwen3-VL: greedy, in ReXrank's form, resumable study by study; inference.py and a submission."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from evaluation_files import make_data, make_studies, write_predictions
from PIL import Image

import inference
from data_prep.study import read_studies
from evaluation.generate import Task, generate, write_reports
from evaluation.predictions import studies_of_data
from evaluation.report_lines import partial_path
from evaluation.submission import DESCRIPTION, missing_files, pack
from foundation.errors import EvaluationError
from model.engines import GenerationSettings, make_writer, open_images
from model.loading import load_model_and_processor
from model.prompts import build_prompt, prompt_images

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = GenerationSettings(max_new_tokens=12, engine="transformers")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "phantom_small", train=2, test=5)


def run(
    model: Path,
    data: Path,
    out: Path,
    settings: GenerationSettings = SETTINGS,
    max_studies: int | None = None,
    force: bool = False,
) -> dict:
    return generate(Task(str(model), data, "test", out, settings, 4, max_studies), force)


def test_reports_are_the_models_greedy_ones_in_rexranks_form(tiny_base, data, tmp_path):
    result = run(tiny_base, data, tmp_path)
    entries = json.loads((tmp_path / "predictions.json").read_text())
    studies = read_studies(data, "test").to_pylist()
    assert list(entries) == [s["study_id"] for s in studies]
    assert result["truncated"] == sum(1 for _ in entries)  # an untrained model does not stop by itself
    model, processor = load_model_and_processor(str(tiny_base))
    for study in (studies[0], studies[1]):  # without and with a prior
        text = processor.apply_chat_template(build_prompt(study), tokenize=False, add_generation_prompt=True)
        images = [Image.open(data / name).convert("RGB") for name in prompt_images(study, True)]
        inputs = processor(text=[text], images=images, return_tensors="pt")
        ids = inputs["input_ids"]
        for _ in range(12):  # greedy by hand: the likeliest token each time
            logits = model(
                **{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), **_types(inputs, ids)}
            ).logits
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        expected = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert entries[study["study_id"]]["model_prediction"] == expected.strip()


def _types(inputs, ids) -> dict:
    """Qwen3-VL tells image tokens from text by these; new tokens are text."""
    if "mm_token_type_ids" not in inputs:
        return {}
    new = torch.zeros((1, ids.shape[1] - inputs["mm_token_type_ids"].shape[1]), dtype=torch.long)
    return {"mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], new], dim=1)}


def test_a_killed_run_goes_on_study_by_study(tiny_base, data, tmp_path):
    studies = studies_of_data(data, "test")
    path = partial_path(tmp_path)
    written: list[str] = []

    class Killed(Exception):
        pass

    def writer(limit):
        def write(batch):
            if len(written) + len(batch) > limit:
                raise Killed
            written.extend(study["study_id"] for study in batch)
            return [(f"report of {study['study_id']}", False) for study in batch]

        return write

    with pytest.raises(Killed):
        write_reports(studies, path, lambda: writer(limit=6), batch_size=2)
    with path.open("a") as file:
        file.write('{"study_id": "test00')  # killed while writing a line
    write_reports(studies, path, lambda: writer(limit=100), batch_size=2)
    assert sorted(written) == sorted(study["study_id"] for study in studies)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line["model_prediction"] == f"report of {line['study_id']}" for line in lines)
    # Done is done: not even the model is loaded again.
    write_reports(studies, path, lambda: pytest.fail("loaded a model for nothing"), batch_size=2)


def test_finished_predictions_are_kept_unless_forced(tiny_base, data, tmp_path, capsys):
    run(tiny_base, data, tmp_path, max_studies=2)
    first = (tmp_path / "predictions.json").read_bytes()
    run(tiny_base, data, tmp_path, max_studies=2)
    assert "finished already" in capsys.readouterr().out
    run(tiny_base, data, tmp_path, max_studies=2, force=True)
    assert (tmp_path / "predictions.json").read_bytes() == first  # greedy: the same again
    with pytest.raises(EvaluationError, match="another max_new_tokens"):
        run(tiny_base, data, tmp_path, GenerationSettings(max_new_tokens=5, engine="transformers"), max_studies=2)


def test_settings_change_what_the_model_reads(tiny_base, data):
    write = make_writer(str(tiny_base), SETTINGS)
    study = next(s for s in studies_of_data(data, "test") if s["prior_image"])
    texts = {
        write_with(tiny_base, study, **changed)
        for changed in ({}, {"longitudinal": False}, {"context": False}, {"sections": "findings"})
    }
    assert len(texts) > 1
    assert write([study]) == write([study])
    assert len(open_images(study, SETTINGS)) == 2
    assert len(open_images(study, GenerationSettings(longitudinal=False))) == 1


def write_with(model: Path, study: dict, **changed) -> str:
    settings = GenerationSettings(max_new_tokens=12, engine="transformers", **changed)
    return make_writer(str(model), settings)([study])[0][0]


def test_a_missing_image_is_named_before_anything_is_generated(tiny_base, tmp_path):
    data = make_data(tmp_path / "phantom_small", train=2, test=2)
    (data / "images" / "test001_1.png").unlink()
    with pytest.raises(EvaluationError, match=r"study test001_1: image .*test001_1.png is missing"):
        run(tiny_base, data, tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_an_unreadable_image_is_named(tiny_base, tmp_path):
    data = make_data(tmp_path / "phantom_small", train=2, test=2)
    (data / "images" / "test001_1.png").write_bytes(b"no image")
    with pytest.raises(EvaluationError, match="study test001_1: cannot read image"):
        run(tiny_base, data, tmp_path / "out")


def test_inference_answers_a_rexrank_file(tiny_base, tmp_path, monkeypatch):
    studies = make_studies(3, encounters=1)
    test_file = write_predictions(tmp_path / "test.json", studies)
    entries = json.loads(test_file.read_text())
    for i, entry in enumerate(entries.values()):
        del entry["model_prediction"]
        entry["key_image_path"] = f"/p10/s{i}/x.png"  # MIMIC's leading slash
        entry["section_impression"] = float("nan")
        (tmp_path / f"images/p10/s{i}").mkdir(parents=True)
        Image.new("L", (900, 700), 60 * i).save(tmp_path / f"images/p10/s{i}/x.png")
    test_file.write_text(json.dumps(entries))
    out = tmp_path / "answer.json"
    result = infer(tiny_base, test_file, out, tmp_path / "images")
    assert result.returncode == 0, result.stderr
    answer = json.loads(out.read_text(), parse_constant=lambda token: pytest.fail(f"{token} in the answer"))
    assert list(answer) == list(entries)
    for key, entry in answer.items():
        assert isinstance(entry["model_prediction"], str)
        assert entry["report"] == entries[key]["report"]
        assert entry["section_impression"] is None
    assert list(tmp_path.glob("*partial*")) == []
    next(iter(entries.values()))["key_image_path"] = "/../../etc/passwd"
    test_file.write_text(json.dumps(entries))
    monkeypatch.setenv("MODEL_DIR", str(tiny_base))
    with pytest.raises(EvaluationError, match="leaves"):
        inference.infer(test_file, tmp_path / "other.json", tmp_path / "images")
    assert not (tmp_path / "other.json").exists()


def test_a_packed_submission_answers_a_test_file_from_any_folder(tiny_base, tmp_path):
    """As ReXrank runs it: unpacked elsewhere, called from another folder, with nothing but the packages installed."""
    studies = make_studies(3, encounters=1)
    test_file = write_predictions(tmp_path / "test.json", studies)
    description = tmp_path / "description.yaml"
    description.write_text(yaml.safe_dump(dict.fromkeys(DESCRIPTION, "x")))
    packed = pack(tiny_base, description, test_file, test_file, tmp_path / "submission")
    archive = shutil.make_archive(str(tmp_path / "submission"), "gztar", packed)
    shutil.rmtree(packed)
    folder, elsewhere = tmp_path / "unpacked", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    entries = json.loads(test_file.read_text())
    for i, entry in enumerate(entries.values()):
        del entry["model_prediction"]
        entry["key_image_path"] = f"files/s{i}.png"
        (elsewhere / "files").mkdir(exist_ok=True)
        Image.new("L", (300, 200), 60 * i).save(elsewhere / entry["key_image_path"])
    (elsewhere / "input.json").write_text(json.dumps(entries))
    bare = {key: value for key, value in os.environ.items() if key not in ("MODEL_DIR", "SECTIONS", "PYTHONPATH")}

    def infer(*arguments: str) -> subprocess.CompletedProcess:
        line = [sys.executable, str(folder / "inference.py"), *arguments]
        return subprocess.run(line, capture_output=True, text=True, cwd=elsewhere, env=bare, check=False)

    refused = infer("input.json")
    assert (refused.returncode, "three arguments" in refused.stderr) == (2, True)
    result = infer("input.json", "output.json", ".")
    assert result.returncode == 0, result.stderr
    answer = json.loads((elsewhere / "output.json").read_text())
    assert list(answer) == list(entries)
    assert all(isinstance(entry["model_prediction"], str) for entry in answer.values())
    assert sorted(path.name for path in elsewhere.iterdir()) == ["files", "input.json", "output.json"]


def infer(model: Path, *arguments: Path) -> subprocess.CompletedProcess:
    line = [sys.executable, str(REPOSITORY / "inference.py"), *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, "MODEL_DIR": str(model)}, check=False
    )


def test_inference_takes_the_guidelines_flags_and_the_first_rounds_three_positions():
    expected = (Path("in.json"), Path("out.json"), Path("images"))
    flags = ["--save_json_file", "out.json", "--input_json_file", "in.json", "--img_root_dir", "images"]
    assert inference.read_arguments(flags) == inference.read_arguments(["in.json", "out.json", "images"]) == expected
    for wrong in ([], flags[:4], [*flags, "more"], ["in.json", "out.json"], ["--input_json", "in.json"], ["-x", "1"]):
        with pytest.raises(EvaluationError, match="--input_json_file IN --save_json_file OUT --img_root_dir FOLDER"):
            inference.read_arguments(wrong)


def test_a_submission_has_the_result_on_mimic_where_there_is_one(tiny_base, tmp_path):
    studies = make_studies(2)
    test_file = write_predictions(tmp_path / "test.json", studies)
    answer = write_predictions(tmp_path / "answer.json", studies)
    description = tmp_path / "description.yaml"
    description.write_text(yaml.safe_dump(dict.fromkeys(DESCRIPTION, "x")))
    model = tmp_path / "run" / "rl_step2" / "final"
    shutil.copytree(tiny_base, model)
    assert "MIMIC" not in (pack(model, description, test_file, answer, tmp_path / "without") / "README.md").read_text()
    scored = tmp_path / "run" / "eval" / "mimic" / "rl_step2"
    scored.mkdir(parents=True)
    numbers = {
        "studies": 2347,
        "patients": 293,
        "metrics": {"bleu2": {"mean": 0.2}},
        "made_by": {"sections": "findings"},
    }
    (scored / "scores.json").write_text(json.dumps({**numbers, "listed": {"null": ["s1"]}, "data": "/data/mimic"}))
    folder = pack(model, description, test_file, answer, tmp_path / "with")
    assert json.loads((folder / "mimic_result.json").read_text()) == numbers
    assert "2,347 studies of MIMIC-CXR" in (folder / "README.md").read_text()


def test_a_submission_is_complete_or_refused(tiny_base, tmp_path):
    studies = make_studies(3)
    test_file = write_predictions(tmp_path / "test.json", studies)
    answer = write_predictions(tmp_path / "answer.json", studies)
    description = tmp_path / "description.yaml"
    told = dict.fromkeys(DESCRIPTION, "x") | {"name": "Tiny model", "year": 2026}
    description.write_text(yaml.safe_dump({k: v for k, v in told.items() if k != "paper"}))
    arguments = (tiny_base, description, test_file, answer, tmp_path / "submission")
    with pytest.raises(EvaluationError, match=r"lacks paper \(link to the paper\)"):
        pack(*arguments)
    description.write_text(yaml.safe_dump(told))
    entries = json.loads(answer.read_text())
    first, second = list(entries)[:2]
    entries[first]["model_prediction"] = None
    del entries[second]
    answer.write_text(json.dumps(entries))
    with pytest.raises(EvaluationError, match=f"1 missing .first: {second}.; 1 null .first: {first}."):
        pack(*arguments)
    assert not (tmp_path / "submission").exists()
    write_predictions(answer, studies)
    folder = pack(*arguments)
    assert missing_files(folder) == []
    environment = yaml.safe_load((folder / "environment.yaml").read_text())
    assert environment["name"] == "tiny-model"
    with pytest.raises(EvaluationError, match="--force replaces it"):
        pack(*arguments)
