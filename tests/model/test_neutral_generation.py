"""Greedy reports and rollouts are the model's own: nothing of a checkpoint's generation_config.json bends them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rl_runs import grpo_run

from evaluation.predictions import studies_of_data
from model.engines import GenerationSettings, make_writer
from model.loading import load_model_and_processor
from model.processor import end_tokens, load_processor

PENALTIES = {
    "do_sample": True,
    "temperature": 0.3,
    "top_k": 2,
    "repetition_penalty": 1.8,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[300], [301]],
    "min_new_tokens": 20,
    "num_beams": 2,
    "forced_bos_token_id": 310,
    "eos_token_id": 305,
}


@pytest.fixture(scope="module")
def penalised(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a generation_config.json that changes every report."""
    folder = tmp_path_factory.mktemp("model") / "penalised"
    shutil.copytree(tiny_base, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **PENALTIES}))
    return folder


def test_greedy_reports_do_not_depend_on_generation_config(tiny_base, penalised, phantom_data):
    studies = studies_of_data(phantom_data / "phantom_prairie", "test")[:3]
    settings = GenerationSettings(max_new_tokens=16, engine="transformers")
    plain, other = (make_writer(str(folder), settings)(studies) for folder in (tiny_base, penalised))
    assert plain == other
    model, processor = load_model_and_processor(str(penalised))
    assert model.generation_config.eos_token_id == end_tokens(processor)


def test_rollouts_do_not_depend_on_generation_config(tiny_base, penalised, phantom_data, tmp_path):
    runs = [
        grpo_run(tmp_path / folder.name, folder, phantom_data, max_steps=1, save_strategy="no", end_bias=0.0)
        for folder in (tiny_base, penalised)
    ]
    assert runs[0].generated == runs[1].generated
    assert runs[0].trainer.eos_token_ids == runs[1].trainer.eos_token_ids
    saved = runs[1].trainer.model.generation_config  # what final/ will say
    assert saved.repetition_penalty is None
    assert not saved.do_sample


def test_vllm_reads_no_generation_config_and_stops_where_transformers_does(penalised, monkeypatch):
    made = {}
    engine = SimpleNamespace(
        LLM=lambda **settings: made.setdefault("engine", settings) and SimpleNamespace(generate=lambda *_, **__: []),
        SamplingParams=lambda **settings: made.setdefault("sampling", settings),
    )
    monkeypatch.setitem(sys.modules, "vllm", engine)
    assert make_writer(str(penalised), GenerationSettings(engine="vllm"))([]) == []
    assert made["engine"]["generation_config"] == "vllm"
    assert made["sampling"]["stop_token_ids"] == end_tokens(load_processor(str(penalised)))
    assert made["sampling"]["temperature"] == 0
