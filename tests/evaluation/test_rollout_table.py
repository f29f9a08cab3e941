"""Sampled rollouts in the report: read as training writes them, bounded, untrusted text and paths harmless."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluation_files import make_data, write_predictions
from PIL import Image

from data_prep.study import read_studies
from evaluation.report import write_report
from evaluation.rollout_table import LOGS, ROLLOUTS_A_LOG, rollout_section
from evaluation.scorers import open_scorers
from evaluation.scoring import score_file
from foundation.errors import EvaluationError
from rewards.chexprompt.judgement import Judgement
from rewards.composite import CompositeScores
from rewards.grpo_reward import Rollouts
from training.rollouts import write_rollouts

HOSTILE = "</td></table><script>document.title='owned'</script><img src=x onerror=alert(1)>"


class Cells(HTMLParser):
    """Texts of the table's cells, and the tags and image addresses there are."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(str(html))
        self.rows = [[cell.strip() for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def rollouts(data_dir: Path, step: int, n: int = 2, candidate: str = "Findings: Clear.") -> Rollouts:
    """`n` rollouts of a longitudinal study; the last one's judge failed."""
    judgements = [Judgement((1, 2, 0, 0, 0, 0), (0, 0, 0, 1, 0, 0))] * (n - 1) + [None]
    parts = {
        "bertscore[offline-hash]": np.full(n, 0.5, np.float32),
        "chexprompt[words]": np.full(n, np.nan, np.float32),
    }
    images = [str(data_dir / "phantom_x" / "images" / name) for name in ("now.png", "before.png")]
    return Rollouts(
        step=step,
        study_ids=["s1"] * n,
        sources=["phantom_x"] * n,
        references=["Findings: Large effusion."] * n,
        prior_reports=["Findings: No effusion."] * n,
        image_paths=[images] * n,
        candidates=[candidate] * n,
        lengths=[4] * n,
        scores=CompositeScores([0.75] * (n - 1) + [None], parts, judgements, {"timeout": 1}),
    )


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "phantom_x" / "images"
    folder.mkdir(parents=True)
    for name, grey in (("now.png", 200), ("before.png", 100)):
        Image.new("L", (400, 300), grey).save(folder / name)
    Image.new("L", (8, 8)).save(tmp_path / "outside.png")
    return tmp_path / "data"


def stage(outputs: Path, data_dir: Path, name: str = "rl_step2") -> Path:
    folder = outputs / name
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"data_dir": str(data_dir)}))
    return folder


def write(folder: Path, seen: Rollouts, name: str = "") -> None:
    write_rollouts(folder / "rollouts" / (name or f"step-{seen.step:06d}.parquet"), seen, range(len(seen)))


def test_a_rollout_is_shown_with_images_texts_parts_and_judge_counts(data_dir: Path, tmp_path: Path) -> None:
    write(stage(tmp_path / "run", data_dir), rollouts(data_dir, 8))
    html = rollout_section(tmp_path / "run")
    page = Cells(html)
    _, judged, failed = page.rows
    assert judged[0] == "8"
    assert judged[2:5] == ["Findings: Large effusion.", "Findings: No effusion.", "Findings: Clear."]
    assert judged[5] == "0.750BERTScore [offline-hash] 0.50"
    assert judged[6] == "3 significant: 1 false finding, 2 omitted finding1 insignificant: 1 severity"
    assert failed[5].startswith("none: the judge failed")
    assert failed[6] == "–"
    assert len(page.images) == 4
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in page.images)
    assert page.images[0] != page.images[1]
    assert "RL step 2: 2 of 2 kept rollouts" in html


def test_the_table_is_bounded_and_spans_the_run(data_dir: Path, tmp_path: Path) -> None:
    folder = stage(tmp_path / "run", data_dir)
    for step in range(10, 500, 10):
        write(folder, rollouts(data_dir, step, n=6))
    html = rollout_section(tmp_path / "run")
    steps = [int(row[0]) for row in Cells(html).rows[1:]]
    assert len(steps) == LOGS * ROLLOUTS_A_LOG
    assert (steps[0], steps[-1]) == (10, 490)
    assert f"{LOGS * ROLLOUTS_A_LOG} of 294 kept rollouts" in html


def test_report_text_stays_text(data_dir: Path, tmp_path: Path) -> None:
    write(stage(tmp_path / "run", data_dir), rollouts(data_dir, 1, candidate=HOSTILE))
    page = Cells(rollout_section(tmp_path / "run"))
    assert "script" not in page.tags
    assert page.rows[1][4] == HOSTILE
    assert all(uri.startswith("data:image/jpeg") for uri in page.images)


def test_images_outside_of_the_data_folder_are_not_read_and_counted(data_dir: Path, tmp_path: Path) -> None:
    seen = rollouts(data_dir, 1)
    seen.image_paths[:] = [[str(data_dir / ".." / "outside.png")], [str(tmp_path / "outside.png")]]
    write(stage(tmp_path / "run", data_dir), seen)
    html = rollout_section(tmp_path / "run")
    assert Cells(html).images == []
    assert "2 images could not be shown" in html


def test_data_that_has_moved_is_found_by_data_dir(data_dir: Path, tmp_path: Path) -> None:
    write(stage(tmp_path / "run", data_dir), rollouts(data_dir, 1))
    data_dir.rename(tmp_path / "moved")
    assert Cells(rollout_section(tmp_path / "run")).images == []
    assert len(Cells(rollout_section(tmp_path / "run", tmp_path / "moved")).images) == 4


def test_rollouts_that_stopped_a_run_are_shown_as_such(data_dir: Path, tmp_path: Path) -> None:
    write(stage(tmp_path / "run", data_dir), rollouts(data_dir, 9), "tripped-length_drift-000009.parquet")
    assert "RL step 2, stopped by a monitor: 2 of 2" in rollout_section(tmp_path / "run")


def test_a_run_without_rollouts_has_no_such_section_and_a_broken_file_is_named(data_dir: Path, tmp_path: Path) -> None:
    folder = stage(tmp_path / "run", data_dir)
    assert rollout_section(tmp_path / "run") == ""
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / "step-000001.parquet").write_bytes(b"not Parquet")
    with pytest.raises(EvaluationError, match=r"step-000001\.parquet is not a readable file of rollouts"):
        rollout_section(tmp_path / "run")


def test_the_report_has_the_section(data_dir: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "run"
    data = make_data(data_dir / "phantom_y", train=2, test=4, dataset="phantom_y")
    studies = read_studies(data, "test").to_pylist()
    out = outputs / "eval" / "phantom_y" / "rl_step2"
    path = write_predictions(out / "predictions.json", studies, {s["study_id"]: "Findings: Clear." for s in studies})
    with open_scorers("offline") as scorers:
        score_file(path, scorers, out, data=data, resamples=50)
    write(stage(outputs, data_dir), rollouts(data_dir, 3, candidate=HOSTILE))
    html = write_report(outputs, resamples=50).read_text(encoding="utf-8")
    assert '<section id="rollouts">' in html
    assert 'href="#rollouts"' in html
    assert "<script>document.title" not in html
