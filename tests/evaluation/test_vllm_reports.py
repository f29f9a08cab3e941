"""Reports by vLLM, for real: a rival behind its server, and a film's report by its engine, are those of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_cpu import ENVIRONMENT, NotInstallable, environment, on_gpu, serve, training_environment

from data_prep.sources.phantom import prepare
from evaluation.__main__ import main
from evaluation.generate import Task, generate
from foundation.errors import EvaluationError
from model.engines import GenerationSettings

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = GenerationSettings(sections="findings_impression", max_new_tokens=128, engine="transformers")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "phantom_prairie"
    prepare(folder, "prairie", seed=5, studies={"train": 4, "validation": 4, "test": 8})
    return folder


@pytest.fixture(scope="module")
def by_transformers(trained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each study's report as `generate` writes it, by study."""
    out = tmp_path_factory.mktemp("generated")
    generate(Task(str(trained), data, "test", out, SETTINGS))
    return reports(out / "predictions.json")


def reports(path: Path) -> dict[str, str]:
    return {key: entry["model_prediction"] for key, entry in json.loads(path.read_text()).items()}


@pytest.fixture(scope="module")
def url(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    options = ["--max-model-len", "1024", "--generation-config", "vllm", "--limit-mm-per-prompt", '{"image": 2}']
    try:
        environment()
    except NotInstallable as error:
        pytest.skip(f"vLLM for CPU cannot be installed here: {error}")
    with serve(trained, "tiny", folder / "vllm.log", options) as served:
        yield served


def test_a_rival_behind_vllm_writes_the_reports_of_the_same_model_here(
    url: str, data: Path, by_transformers: dict[str, str], tmp_path: Path
) -> None:
    """Films and priors reach it as they reach a model here: same images, same order, same prompt."""
    words = ["generate", "--engine", "server", "--base-url", url, "--model", "tiny", "--data", str(data)]
    words += ["--out", str(tmp_path / "tiny"), "--sections", "findings_impression", "--max_new_tokens", "128"]
    main(words)
    made = reports(tmp_path / "tiny" / "predictions.json")
    assert made == by_transformers
    assert len(set(made.values())) > 1  # the films are looked at


def test_a_rival_that_vllm_does_not_serve_is_one_line(url: str, data: Path, tmp_path: Path) -> None:
    words = ["generate", "--engine", "server", "--base-url", url, "--model", "gpt-5", "--data", str(data)]
    with pytest.raises(EvaluationError, match=r"does not serve the model 'gpt-5'.*It serves: tiny"):
        main([*words, "--out", str(tmp_path / "out")])


WRITE = """
import json, sys
from pathlib import Path
from data_prep.study import read_studies
from model.engines import GenerationSettings
from model.report_writer import ReportWriter
model, data = map(Path, sys.argv[1:])
writer = ReportWriter(model, GenerationSettings(sections="findings_impression", max_new_tokens=128, engine="vllm"))
made = {}
for study in read_studies(data, "test").to_pylist():
    prior = (data / study["prior_image"], study["prior_report"]) if study["prior_image"] else None
    result = writer.write(data / study["image"], study["indication"], study["comparison"], prior)
    made[study["study_id"]] = result.report
print(json.dumps(made))
"""


def test_a_films_report_by_vllms_engine_is_that_of_transformers(
    trained: Path, data: Path, by_transformers: dict[str, str]
) -> None:
    try:
        python = training_environment()
    except NotInstallable as error:
        pytest.skip(f"vLLM for CPU cannot be installed here: {error}")
    environ = os.environ | ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)}
    command = [str(python if not on_gpu() else sys.executable), "-c", WRITE, str(trained), str(data)]
    run = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-3000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line) == by_transformers
