"""What any model has to beat: reports written without looking at an image.

    python -m evaluation baseline --name copy_prior --data data/mimic --train data/mimic --out DIR

The paper compares with "copy prior report" (figure 3); the most frequent report and retrieval by indication are ours.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_prep.study import report_text
from evaluation.predictions import candidate_text, rexrank_entry, studies_of_data
from foundation.errors import EvaluationError, read_record
from foundation.files import write_json
from foundation.locks import folder_lock
from model.prompts import study_sections
from settings.evaluations import BASELINES, SECTIONS

# Keys of generation.json: how many studies got the most frequent report for want of another, and which.
SUBSTITUTED = "studies_given_the_most_frequent_report"
SUBSTITUTED_IDS = "given_the_most_frequent_report"


def write_baseline(
    name: str,
    data: Path,
    split: str,
    train: Sequence[Path],
    out: Path,
    sections: str = "available",
    force: bool = False,
) -> dict[str, Any] | None:
    """Write a baseline's `predictions.json` (ReXrank's form) and `generation.json` in `out`; returns the latter.

    It writes the sections that models are asked for (`sections`, of `settings.evaluations.SECTIONS`), and no others. None, said
    aloud, where no folder of `train` has a training study to learn from (a folder of test studies alone).

    Raises:
        EvaluationError: no such baseline; `out` holds one that learned from other data sets (force replaces it).
        StudyError: no such data.
    """
    if name not in BASELINES:
        raise EvaluationError(f"no baseline {name!r}; choose one of {', '.join(BASELINES)}")
    if sections not in SECTIONS:
        raise EvaluationError(f"sections is {sections!r}; choose one of {', '.join(SECTIONS)}")
    train = [folder for folder in train if not _is_empty(folder / "train.parquet")]
    if not train:
        print(f"{out.name}: no training study to learn from; this baseline is left out")
        return None
    learned_from = [folder.name for folder in train]
    if (out / "generation.json").is_file() and not force:
        before = read_record(out / "generation.json", "made_by")["made_by"].get("train")
        if before not in (None, learned_from):
            raise EvaluationError(
                f"{out} holds this baseline as learned from {', '.join(before)}, not from {', '.join(learned_from)}; "
                "evaluate in another run (RUN=…), or replace it with FORCE=1"
            )
    with folder_lock(out):
        return _write_baseline(name, data, split, train, out, sections)


def _write_baseline(
    name: str, data: Path, split: str, train: Sequence[Path], out: Path, sections: str
) -> dict[str, Any]:
    studies = studies_of_data(data, split)
    training = [study for folder in train for study in studies_of_data(folder, "train")]
    frequent = most_frequent(training)
    substituted: list[str] = []
    if name == "most_frequent":
        reports = [frequent_for(study, frequent, sections) for study in studies]
    else:
        found = (copy_prior if name == "copy_prior" else retrieve)(studies, training)
        substituted = [s["study_id"] for s, report in zip(studies, found, strict=True) if report is None]
        reports = [
            frequent_for(study, frequent, sections) if report is None else asked_of(study, report, sections)
            for study, report in zip(studies, found, strict=True)
        ]
    write_json(
        out / "predictions.json",
        {s["study_id"]: rexrank_entry(s, report) for s, report in zip(studies, reports, strict=True)},
    )
    digest = hashlib.sha256()
    for file in [data / f"{split}.parquet", *(folder / "train.parquet" for folder in train)]:
        digest.update(file.read_bytes())
    result = {
        "finished": True,
        "made_by": {
            "baseline": name,
            "data": data.name,
            "split": split,
            "train": [folder.name for folder in train],
            "sections": sections,
        },
        "data_sha256": digest.hexdigest(),
        # No prior to copy, or no indication to search by: these studies got the most frequent training report.
        SUBSTITUTED: len(substituted),
        SUBSTITUTED_IDS: substituted,
    }
    write_json(out / "generation.json", result)
    return result


def _is_empty(table: Path) -> bool:
    return table.is_file() and pq.read_metadata(table).num_rows == 0


def most_frequent(training: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The training study whose report is the most frequent, compared without regard to case and white space.

    Among equally frequent ones, that whose findings and impression are most frequent by themselves, then the first.
    """
    normal = [tuple(" ".join((s[name] or "").lower().split()) for name in ("findings", "impression")) for s in training]
    whole = Counter(normal)
    parts = [Counter(report[i] for report in normal) for i in range(2)]

    def rank(i: int) -> tuple[int, int, int]:
        return whole[normal[i]], sum(parts[k][normal[i][k]] for k in range(2)), -i

    return training[max(range(len(training)), key=rank)]


def frequent_for(study: Mapping[str, Any], frequent: Mapping[str, Any], sections: str = "available") -> str:
    """The most frequent report, in the sections that are asked for (all it has where it lacks them)."""
    wanted = _asked_sections(study, sections)
    asked = report_text(*(frequent[name] if name in wanted else None for name in ("findings", "impression")))
    return asked or report_text(frequent["findings"], frequent["impression"])


def asked_of(study: Mapping[str, Any], report: str, sections: str) -> str:
    """The sections of a report that are asked for; the whole report where it has none of them."""
    wanted = _asked_sections(study, sections)
    return report if len(wanted) > 1 else candidate_text(report, "available", wanted) or report


def _asked_sections(study: Mapping[str, Any], sections: str) -> Sequence[str]:
    """What a model would be asked for (`engines`): the sections of its reference, or the same ones for every study."""
    return {"findings": ("findings",), "findings_impression": ("findings", "impression")}.get(
        sections, study_sections(study)
    )


def copy_prior(studies: Sequence[Mapping[str, Any]], training: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """The prior report of each study; None where there is none."""
    return [study["prior_report"] or None for study in studies]


def retrieve(studies: Sequence[Mapping[str, Any]], training: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """The report of the training study with the nearest indication (cosine of TF-IDF); None without an indication."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = [study for study in training if study["indication"]]
    if not known:
        return [None] * len(studies)
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    index = vectorizer.fit_transform(study["indication"] for study in known).T.tocsc()
    reports: list[str | None] = []
    for start in range(0, len(studies), 500):
        chunk = studies[start : start + 500]
        similarity = vectorizer.transform([study["indication"] or "" for study in chunk]) @ index
        nearest = np.asarray(similarity.argmax(axis=1)).ravel()
        for study, i in zip(chunk, nearest, strict=True):
            hit = known[int(i)]
            reports.append(report_text(hit["findings"], hit["impression"]) if study["indication"] else None)
    return reports
