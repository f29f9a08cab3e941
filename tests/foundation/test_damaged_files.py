"""Files that are cut, doubled, of another run or another kind: never used as they are, named in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from evaluation_files import make_data, write_predictions

from data_prep.study import read_studies
from evaluation import figure_style
from evaluation.generate import load_finished
from evaluation.report_lines import read_lines
from evaluation.score_rows import keep_lines
from evaluation.scorers import open_scorers
from evaluation.scoring import score_file
from foundation.errors import EvaluationError, RecipeError, read_json
from foundation.locks import LockError
from launch.stage import record
from recipes.evaluate import resolve_models
from recipes.select_checkpoint import link
from tests.foundation.test_locks import HOLD


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "phantom_small", train=2, test=4)


def score(data: Path, out: Path) -> dict:
    path = write_predictions(out.parent / "predictions.json", read_studies(data, "test").to_pylist())
    with open_scorers("offline", metrics=["bleu2"]) as scorers:
        return score_file(path, scorers, out, data=data, resamples=5)


def test_lines_are_kept_by_the_studies_of_the_run_once(tmp_path: Path, capsys) -> None:
    partial = tmp_path / "scores.partial.jsonl"
    lines = [
        '{"study_id": "a", "n": 1}',
        '{"study_id": "b"}',
        '{"study_id": "a", "n": 2}',
        '{"study_id": "other"}',
        "{x",
        "[]",
    ]
    partial.write_text("\n".join(lines) + '\n{"study_id": "c"')
    assert keep_lines(partial, {"a", "b", "c"}) == {"a", "b"}
    assert partial.read_text() == '{"study_id": "a", "n": 1}\n{"study_id": "b"}\n'
    assert "4 line(s) left out" in capsys.readouterr().out


def test_scores_are_finished_only_where_their_file_is_as_it_was_written(data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "scores"
    before = score(data, out)
    whole = (out / "scores.jsonl").read_text()
    assert score(data, out) == before
    assert "finished already" in capsys.readouterr().out
    for damaged in (whole + whole.splitlines()[0] + "\n", whole[:-30], ""):
        (out / "scores.jsonl").write_text(damaged)
        assert score(data, out)["metrics"] == before["metrics"]
        assert "scores.jsonl is not as it was written" in capsys.readouterr().out
        assert sorted((out / "scores.jsonl").read_text().splitlines()) == sorted(whole.splitlines())
    (out / "scores.json").write_text("[")
    assert score(data, out)["metrics"] == before["metrics"]


def test_a_second_scorer_in_one_folder_is_refused(data: Path, tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "scores")], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(LockError, match=f"process {owner.pid} "):
            score(data, tmp_path / "scores")
    finally:
        owner.kill()
        owner.wait()


def test_predictions_are_finished_only_where_their_file_is_as_it_was_written(tmp_path: Path) -> None:
    made_by = {"model": "m", "model_sha256": "x"}
    record = {"finished": True, "made_by": made_by, "predictions_sha256": "0" * 64}
    (tmp_path / "generation.json").write_text(json.dumps(record))
    (tmp_path / "predictions.json").write_text("{}")
    assert load_finished(tmp_path, made_by, force=False) is None
    (tmp_path / "generation.json").write_text('{"finished": true}')
    with pytest.raises(EvaluationError, match=r"generation\.json lacks made_by"):
        load_finished(tmp_path, made_by, force=False)


def test_a_damaged_line_of_reports_is_left_out_and_said(tmp_path: Path, capsys) -> None:
    path = tmp_path / "predictions.partial.jsonl"
    path.write_text('{"study_id": "a"}\n{"study\n[1]\n{"study_id": "b"}\n{"study_id": "cu')
    assert [row["study_id"] for row in read_lines(path)] == ["a", "b"]
    assert "2 damaged line(s)" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[", "[]", "null", "{}", "1" * 5000, "\udcff"])
def test_a_stages_file_that_is_no_such_file_is_one_line_that_does_not_say_delete_it(
    content: str, tmp_path: Path
) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecipeError) as caught:
        read_json(path, "model_name_or_path")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "delete" not in str(caught.value)


def test_a_damaged_file_of_timings_is_kept_aside_and_costs_no_stage(tmp_path: Path, capsys) -> None:
    (tmp_path / "timings.json").write_text("{")
    record(tmp_path, "sft", 12.0, 100)
    assert json.loads((tmp_path / "timings.json").read_text()) == {"sft": 12.0}
    assert (tmp_path / "damaged-timings.json").read_text() == "{"
    assert "was damaged" in capsys.readouterr().err


def test_best_as_a_real_folder_is_one_line_and_stays(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.safetensors").write_text("x")
    with pytest.raises(RecipeError, match="is not the link that selection makes"):
        link(tmp_path / "best", "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", ".", "a/b", "a\nb"])
def test_a_models_name_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"a model's name is a name"):
        resolve_models(tmp_path, [f"{name}={tmp_path}"])


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path) -> None:
    with figure_style.drawn_figure(3, 2) as (figure, (axes,)):
        axes.set_title("model$_{a")
        svg = figure_style.save(figure, tmp_path, "named")
        plt.close(figure)
    assert "model$_{a" in svg


def test_a_full_disk_is_one_line_that_says_to_make_room() -> None:
    for named in ('OSError(28, "No space left on device", "out/x.json")', 'OSError(27, "File too large")'):
        code = f"from foundation.errors import run_command\ndef main():\n    raise {named}\nrun_command(main)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "make room on its disk" in done.stderr
