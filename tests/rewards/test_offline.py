"""The offline rules: labels, graphs and the stand-in metrics over them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic_reports import reports

from rewards.conditions import CONDITIONS, binary_labels
from rewards.metric import MetricError
from rewards.offline.embedding import embed
from rewards.offline.graph import report_findings, report_graph, sentences
from rewards.offline.labeler import label_reports
from rewards.radgraph import radgraph_f1
from rewards.registry import EXACT, METRICS, load_labeler, load_metrics

SIGNS = {"blank": 0, "+": 1, "-": 2, "?": 3}

CASES = [
    ("The heart is enlarged.", {"Cardiomegaly": "+"}),
    ("Cardiac silhouette is normal in size.", {"Cardiomegaly": "-"}),
    ("The heart is not enlarged.", {"Cardiomegaly": "-"}),
    ("Moderately enlarged heart.", {"Cardiomegaly": "+"}),
    ("Borderline cardiomegaly.", {"Cardiomegaly": "?"}),
    ("The heart is large.", {"Cardiomegaly": "+"}),
    ("The heart and mediastinum are normal.", {"Cardiomegaly": "-", "Enlarged Cardiomediastinum": "-"}),
    ("There is mediastinal widening.", {"Enlarged Cardiomediastinum": "+"}),
    (
        "No focal consolidation, effusion, or pneumothorax.",
        {"Consolidation": "-", "Pleural Effusion": "-", "Pneumothorax": "-"},
    ),
    ("No pneumothorax, small left effusion.", {"Pneumothorax": "-", "Pleural Effusion": "+"}),
    # A denial reaches over its whole list, to what is called new in it too, and no further.
    (
        "No effusion, pneumothorax, or new focal opacity is seen.",
        {"Pleural Effusion": "-", "Pneumothorax": "-", "Lung Opacity": "-"},
    ),
    (
        "No evidence of edema, new or worsening consolidation, or effusion.",
        {"Edema": "-", "Consolidation": "-", "Pleural Effusion": "-"},
    ),
    ("No pneumothorax, and no new effusion.", {"Pneumothorax": "-", "Pleural Effusion": "-"}),
    ("No effusion and new opacity in the left base.", {"Pleural Effusion": "-", "Lung Opacity": "+"}),
    (
        "No effusion or edema is seen, new opacity is present.",
        {"Pleural Effusion": "-", "Edema": "-", "Lung Opacity": "+"},
    ),
    ("No effusion, but the heart is mildly enlarged.", {"Pleural Effusion": "-", "Cardiomegaly": "+"}),
    ("The left costophrenic angle is blunted.", {"Pleural Effusion": "+"}),
    ("Both costophrenic angles are sharp.", {"Pleural Effusion": "-"}),
    ("Right pleural effusion has resolved.", {"Pleural Effusion": "-"}),
    ("Resolved left pneumothorax.", {"Pneumothorax": "-"}),
    ("No change in the small right effusion.", {"Pleural Effusion": "+"}),
    ("Pneumothorax is not seen.", {"Pneumothorax": "-"}),
    ("Pneumonia cannot be excluded.", {"Pneumonia": "?"}),
    ("Right lower lobe opacity is concerning for pneumonia.", {"Lung Opacity": "+", "Pneumonia": "?"}),
    ("Bibasilar infiltrates versus atelectasis.", {"Lung Opacity": "?", "Atelectasis": "?"}),
    ("The pulmonary vasculature is congested.", {"Edema": "+"}),
    ("Mild vascular congestion with interstitial edema.", {"Edema": "+"}),
    ("Left upper lobe nodule.", {"Lung Lesion": "+"}),
    ("No nodule or mass.", {"Lung Lesion": "-"}),
    ("Pleural thickening at the left apex.", {"Pleural Other": "+"}),
    ("No displaced rib fracture is seen.", {"Fracture": "-"}),
    ("No acute bony abnormality.", {"Fracture": "-"}),
    ("Endotracheal tube ends above the carina.", {"Support Devices": "+"}),
    ("A central line is in place.", {"Support Devices": "+"}),
    ("No lines or tubes.", {"Support Devices": "-"}),
    ("The endotracheal tube has been removed.", {"Support Devices": "-"}),
    ("The lungs are clear.", {"Lung Opacity": "-"}),
    ("Clear lungs without edema.", {"Lung Opacity": "-", "Edema": "-"}),
]


@pytest.mark.parametrize(("sentence", "expected"), CASES, ids=[sentence for sentence, _ in CASES])
def test_labels_of_a_sentence(sentence: str, expected: dict[str, str]) -> None:
    found = dict(zip(CONDITIONS, label_reports([sentence])[0].tolist(), strict=True))
    del found["No Finding"]
    assert {name: value for name, value in found.items() if value} == {name: SIGNS[s] for name, s in expected.items()}


@pytest.mark.parametrize(
    ("report", "no_finding"),
    [
        ("Findings: The lungs are clear. Impression: No acute cardiopulmonary process.", 1),
        ("No acute disease. A pacemaker is in place.", 1),
        ("The lungs are clear. Small left effusion.", 0),
        ("Possible pneumonia.", 0),
        ("Hiatal hernia.", 0),
        ("", 0),
        ("None", 0),
        ("words without any meaning here", 0),
    ],
)
def test_no_finding_needs_something_said_and_nothing_found(report: str, no_finding: int) -> None:
    assert label_reports([report])[0, CONDITIONS.index("No Finding")] == no_finding


def test_positive_wins_over_uncertain_over_negative() -> None:
    column = CONDITIONS.index("Pleural Effusion")
    labels = label_reports(
        [
            "No right effusion. Possible left effusion.",
            "No right effusion. Small left effusion. Possible loculated effusion.",
            "No effusion. No pleural effusion.",
        ]
    )
    assert labels[:, column].tolist() == [3, 1, 2]


def test_binary_maps() -> None:
    labels = np.array([[0, 1, 2, 3]])
    assert binary_labels(labels).tolist() == [[0, 1, 0, 1]]
    assert binary_labels(labels, uncertain_is_positive=False).tolist() == [[0, 1, 0, 0]]


def test_labels_agree_with_the_phantoms_truth(phantom_data: Path) -> None:
    import pyarrow.parquet as parquet

    from data_prep.study import read_studies, report_text

    folder = phantom_data / "phantom_prairie"  # an institution that reports everything it sees
    studies = read_studies(folder, "train").to_pylist()
    truth = {row["study_id"]: row for row in parquet.read_table(folder / "truth.parquet").to_pylist()}
    have = binary_labels(label_reports([report_text(s["findings"], s["impression"]) for s in studies]))
    want = np.array([[truth[s["study_id"]][condition] for condition in CONDITIONS] for s in studies])
    both = int((have & want).sum())
    assert 2 * both / (have.sum() + want.sum()) > 0.97


def test_findings_carry_side_site_severity_and_change() -> None:
    effusion, atelectasis = report_findings("Moderate left pleural effusion has increased. Right basilar atelectasis.")
    assert (effusion.name, effusion.status, effusion.severity, effusion.change) == (
        "effusion",
        "present",
        "moderate",
        "worse",
    )
    assert effusion.sides == {"left"}
    assert atelectasis.sides == {"right"}
    assert atelectasis.sites == {"base"}


def test_a_side_belongs_to_its_own_finding() -> None:
    found = {f.name: set(f.sides) for f in report_findings("Small left effusion and right lower lobe opacity.")}
    assert found == {"effusion": {"left"}, "opacity": {"right"}}


def test_graph_has_radgraphs_labels_and_relations() -> None:
    graph = report_graph("Findings: No large effusion. Opacity in the left base, suggesting pneumonia.")
    entities = {(e.tokens, e.label) for e in graph}
    assert {("large", "OBS-DA"), ("effusion", "OBS-DA"), ("base", "ANAT-DP"), ("pneumonia", "OBS-U")} <= entities
    relations = {(e.tokens, kind, graph[other].tokens) for e in graph for kind, other in e.relations}
    assert {("large", "modify", "effusion"), ("opacity", "located_at", "base"), ("left", "modify", "base")} <= relations
    assert ("opacity", "suggestive_of", "pneumonia") in relations


def test_sentences_keep_decimals_and_drop_headings() -> None:
    assert sentences("FINDINGS: A 1.2 cm nodule; no mass.\nImpression: Stable.") == [
        "a 1.2 cm nodule",
        "no mass",
        "stable",
    ]


def test_graph_scores_follow_what_differs() -> None:
    reference = "Small left pleural effusion. The heart is enlarged. No pneumothorax."
    worse = [
        reference,
        reference.replace("left", "right"),
        "Small left pleural effusion. The heart is normal. No pneumothorax.",
        "No acute process.",
        "",
    ]
    for level in ("combined", "simple", "partial", "complete"):
        scores = [radgraph_f1(report_graph(text), report_graph(reference), level) for text in worse]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == 1
        assert scores[-1] == 0
        assert scores[1] < 1


def test_embedding_is_the_same_in_every_process() -> None:
    code = "from rewards.offline.embedding import embed; print(embed('Small effusion.').tobytes().hex())"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONHASHSEED": "123"},
    ).stdout
    assert printed.strip() == embed("Small effusion.").tobytes().hex()


OFFLINE = [name for name in METRICS if name != "ratescore"]


def test_stand_ins_say_so_in_their_names() -> None:
    metrics = load_metrics(OFFLINE, "offline")
    for name, metric in metrics.items():
        assert metric.name == name if name in EXACT else "[offline" in metric.name
        assert (metric.backend == "exact") == (name in EXACT)
        assert len(metric.fingerprint) >= 64
    assert "[offline" in load_labeler("offline").name


ODD = [
    "",
    " ",
    "None",
    "effusion",
    "ünïcode ⟨≥⟩ 心臓は正常",
    "no headings here",
    "Opacity. " * 1112,
    ".",
    "\n\n",
    "1. 2.",
]


@pytest.mark.parametrize("name", OFFLINE)
def test_odd_texts_score_finitely_and_in_their_rows(name: str) -> None:
    metric = load_metrics([name], "offline")[name]
    plain = "Findings: The heart is enlarged. Small left effusion. Impression: Cardiomegaly."
    candidates = [*ODD, plain]
    scores = metric(candidates, [plain] * len(candidates))
    best = metric([plain], [plain])[0]
    assert np.isfinite(scores).all()
    assert scores[-1] == best
    alone = np.array([metric([text], [plain])[0] for text in candidates])
    np.testing.assert_array_equal(scores, alone)
    sign = 1 if metric.higher_is_better else -1
    assert (sign * scores[: len(ODD)] < sign * best).all()
    assert np.isfinite(metric([plain] * len(ODD), ODD)).all()


@pytest.mark.parametrize("name", OFFLINE)
def test_scores_stay_in_their_range_and_equal_texts_are_best(name: str) -> None:
    metric = load_metrics([name], "offline")[name]
    candidates, references = reports(60, seed=1), reports(60, seed=2)
    scores = metric(candidates, references)
    assert scores.dtype == np.float32
    low, high = metric.range
    assert (scores >= low - 1e-6).all()
    assert (scores <= high + 1e-6).all()
    same = metric(references, references)
    assert (same >= scores).all() if metric.higher_is_better else (same <= scores).all()


def test_a_contradicted_finding_costs_more_than_an_omitted_one() -> None:
    metric = load_metrics(["sembscore"], "offline")["sembscore"]
    reference = "Small left pleural effusion. Cardiomegaly."
    contradicted, omitted, same = metric(
        ["No pleural effusion. Cardiomegaly.", "Cardiomegaly.", "Cardiomegaly and effusion."], [reference] * 3
    )
    assert contradicted < omitted < same


def test_labelling_takes_time_by_the_number_of_reports_and_none_for_those_seen_before() -> None:
    def seconds(texts: list[str]) -> float:  # of this process: other work on the machine does not count
        start = time.process_time()
        label_reports(texts)
        return time.process_time() - start

    few, many = seconds(reports(500, seed=78)), seconds(texts := reports(2000, seed=77))
    assert many < 15 * few  # four times the reports; 16 were the square of it
    assert seconds(texts) < many / 4


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(MetricError, match=r"unknown metric.*bleu4.*known:.*bleu2"):
        load_metrics(["bleu4"], "offline")
    with pytest.raises(MetricError, match="backend 'rael' is unknown; one of real, offline"):
        load_metrics(["bleu2"], "rael")
    with pytest.raises(MetricError, match="no offline stand-in"):
        load_metrics(["ratescore"], "offline")
