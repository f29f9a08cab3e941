"""Generation by several processes, and by vLLM: the same reports as one process of transformers, resumable after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_files import make_data
from vllm_cpu import NotInstallable, environment

from evaluation import generate as generate_module
from evaluation.__main__ import main
from evaluation.generate import Task, generate, generate_shard, write_reports
from evaluation.report_lines import partial_path, partials, read_lines
from foundation.errors import EvaluationError
from model.engines import GenerationSettings, checkpoint_dtype, model_length

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = GenerationSettings(max_new_tokens=12, engine="transformers")
VLLM = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """40 studies of 20 patients, half of them with a prior image and report."""
    return make_data(tmp_path_factory.mktemp("data") / "phantom_small", train=2, test=20)


@pytest.fixture(scope="module")
def alone(tiny_base, data, tmp_path_factory) -> dict[str, dict]:
    """The predictions of one process with transformers."""
    out = tmp_path_factory.mktemp("alone")
    generate(Task(str(tiny_base), data, "test", out, SETTINGS, batch_size=4))
    return predictions(out)


def predictions(out: Path) -> dict[str, dict]:
    return json.loads((out / "predictions.json").read_text())


def test_parts_made_one_by_one_are_put_together(tiny_base, data, alone, tmp_path, monkeypatch):
    for part in (2, 0, 1):
        generate_shard(Task(str(tiny_base), data, "test", tmp_path, SETTINGS, 4), part, 3)
    assert [len(read_lines(partial_path(tmp_path, part))) for part in range(3)] == [14, 13, 13]
    monkeypatch.setattr(generate_module, "load_engine", lambda *_: pytest.fail("loaded a model for nothing"))
    result = generate(Task(str(tiny_base), data, "test", tmp_path, SETTINGS, batch_size=4))
    assert predictions(tmp_path) == alone
    assert list(predictions(tmp_path)) == list(alone)
    assert result["finished"]
    assert partials(tmp_path) == []


def test_a_part_of_other_settings_or_another_model_is_refused(tiny_base, data, tmp_path):
    task = Task(str(tiny_base), data, "test", tmp_path, SETTINGS, batch_size=4, max_studies=4)
    generate_shard(task, 0, 2)
    with pytest.raises(EvaluationError, match="another max_new_tokens"):
        generate_shard(replace(task, settings=GenerationSettings(max_new_tokens=5, engine="transformers")), 1, 2)
    state = json.loads((tmp_path / "generation.json").read_text())
    state["made_by"]["model_sha256"] = "of other weights"
    (tmp_path / "generation.json").write_text(json.dumps(state))
    with pytest.raises(EvaluationError, match="another model_sha256"):
        generate_shard(task, 1, 2)
    assert len(read_lines(partial_path(tmp_path, 0))) == 2  # and nothing of the other part is lost


def test_a_model_that_was_merely_moved_is_the_same(tiny_base, data, tmp_path, capsys):
    generate(Task(str(tiny_base), data, "test", tmp_path / "out", SETTINGS, max_studies=2))
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_base)
    generate(Task(str(moved), data, "test", tmp_path / "out", SETTINGS, max_studies=2))
    assert "finished already" in capsys.readouterr().out


def test_two_processes_never_write_to_one_file(tmp_path):
    studies = [{"study_id": str(i)} for i in range(4)]
    path = partial_path(tmp_path)

    def writer():
        def write(batch):
            with pytest.raises(EvaluationError, match="another process is writing"):
                write_reports(studies, path, lambda: pytest.fail("loaded"), batch_size=1)
            return [("a report", False) for _ in batch]

        return write

    write_reports(studies, path, writer, batch_size=2)
    assert len(read_lines(path)) == 4


def test_vllm_gets_the_checkpoints_own_dtype_and_a_length_that_fits_a_small_gpu(tiny_base, tmp_path):
    assert checkpoint_dtype(str(tiny_base)) == "float32"
    assert model_length(str(tiny_base)) == 2048
    (tmp_path / "config.json").write_text(
        '{"text_config": {"dtype": "bfloat16", "max_position_embeddings": 262144}, "model_type": "qwen3_vl"}'
    )
    assert checkpoint_dtype(str(tmp_path)) == "bfloat16"
    assert model_length(str(tmp_path)) == 16_384


@pytest.mark.parametrize("arguments", [["--processes", "0"], ["--shard", "0/2", "--processes", "2"]])
def test_impossible_parts_are_one_clear_error(tiny_base, data, tmp_path, arguments):
    with pytest.raises(EvaluationError, match=arguments[0]):
        main(command(sys.executable, tiny_base, data, tmp_path / "out", *arguments)[3:])
    assert not (tmp_path / "out").exists()


def test_a_part_beyond_the_last_is_one_clear_line(tiny_base, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command(sys.executable, tiny_base, data, tmp_path / "out", "--shard", "2/2")[3:])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def alone_trained(trained, data, tmp_path_factory) -> dict[str, dict]:
    """One process's predictions by a model for which the other studies of a batch decide no word."""
    out = tmp_path_factory.mktemp("alone")
    generate(Task(str(trained), data, "test", out, SETTINGS, batch_size=4))
    return predictions(out)


@pytest.mark.slow
def test_two_processes_split_the_studies_and_go_on_after_a_kill(trained, data, alone_trained, tmp_path):
    line = command(sys.executable, trained, data, tmp_path, "--processes", "2", "--batch_size", "2")
    kill_after(line, {}, tmp_path, lines=6)
    assert 6 <= sum(len(read_lines(file)) for file in partials(tmp_path)) < 40
    subprocess.run(line, cwd=REPOSITORY, check=True)
    assert predictions(tmp_path) == alone_trained


@pytest.mark.slow
def test_stopping_the_run_stops_its_processes(tiny_base, data, tmp_path):
    line = command(sys.executable, tiny_base, data, tmp_path, "--processes", "2", "--batch_size", "1")
    process = subprocess.Popen(line, cwd=REPOSITORY, start_new_session=True)
    wait_for(tmp_path, 1, process)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 30
    while (
        time.monotonic() < deadline and subprocess.run(["pgrep", "-g", str(process.pid)], check=False).returncode == 0
    ):
        time.sleep(0.2)
    assert subprocess.run(["pgrep", "-g", str(process.pid)], check=False).returncode == 1


@pytest.fixture(scope="module")
def vllm_python(tmp_path_factory) -> tuple[str, dict[str, str]]:
    """The Python that has vLLM for CPU, and the variables with which it also finds what only this environment has."""
    try:
        python = environment()
    except NotInstallable as error:
        pytest.skip(f"vLLM for CPU cannot be installed here: {error}")
    folder = tmp_path_factory.mktemp("site")
    packages = sysconfig.get_paths()["purelib"]
    # At the end of the path: vLLM's own versions go first.
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.path.append({packages!r})\n")
    return str(python), {**VLLM, "PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_vllm_writes_what_transformers_writes_and_goes_on_after_a_kill(
    trained, data, alone_trained, tmp_path, vllm_python
):
    python, variables = vllm_python
    line = command(python, trained, data, tmp_path, "--engine", "vllm", "--batch_size", "1")
    kill_after(line, variables, tmp_path, lines=1)
    finished = read_lines(partial_path(tmp_path))
    assert 0 < len(finished) < 40
    subprocess.run(line, cwd=REPOSITORY, env={**os.environ, **variables}, check=True)
    made = predictions(tmp_path)
    assert list(made) == list(alone_trained)
    assert all(made[row["study_id"]]["model_prediction"] == row["model_prediction"] for row in finished)
    same = sum(made[key] == alone_trained[key] for key in alone_trained)
    print(f"{same} of {len(alone_trained)} reports of vLLM are transformers' word for word")
    # Other kernels add in another order, and these films are not those that it was trained on.
    assert same >= 0.9 * len(alone_trained)


def command(python: str, model: Path, data: Path, out: Path, *more: str) -> list[str]:
    line = [python, "-m", "evaluation", "generate", "--model", str(model), "--data", str(data), "--out", str(out)]
    return [*line, "--max_new_tokens", "12", *([] if "--engine" in more else ["--engine", "transformers"]), *more]


def kill_after(line: list[str], variables: dict[str, str], out: Path, lines: int) -> None:
    """Run `line` and kill it with all that it started as soon as so many reports are written."""
    process = subprocess.Popen(line, cwd=REPOSITORY, env={**os.environ, **variables}, start_new_session=True)
    try:
        wait_for(out, lines, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(out: Path, lines: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 1200
    while sum(len(read_lines(file)) for file in partials(out)) < lines:
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)
