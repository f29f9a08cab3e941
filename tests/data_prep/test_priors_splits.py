"""Who came before whom, who is in which split, and that nobody is in two."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from data_prep.priors import link_priors, without_priors
from data_prep.splits import LeakageError, check_leakage, random_split, set_aside_validation
from data_prep.tables import SourceError


def frame(*rows: tuple) -> pd.DataFrame:
    """Rows (study, patient, split, day or None); the n-th has report n."""
    return pd.DataFrame(
        [
            {
                "study_id": study,
                "patient_id": patient,
                "dataset": "d",
                "split": split,
                "study_datetime": day and datetime(2020, 1, day),
                "text": number,
                "image": f"images/{study}.jpg",
                "order": None,
            }
            for number, (study, patient, split, day) in enumerate(rows, start=1)
        ]
    )


def test_the_prior_is_the_most_recent_earlier_study_whatever_the_order_of_names() -> None:
    linked = link_priors(
        frame(
            ("c", "p", "train", 1),
            ("a", "p", "train", 9),
            ("b", "p", "train", 5),
        )
    ).set_index("study_id")
    assert linked["encounter"].to_dict() == {"c": 1, "b": 2, "a": 3}
    assert linked["prior_study_id"].dropna().to_dict() == {"b": "c", "a": "b"}
    assert linked["prior_text"].to_dict() == {"c": 0, "b": 1, "a": 3}
    assert linked.loc["a", "prior_image"] == "images/b.jpg"


def test_studies_of_one_time_are_not_each_others_prior() -> None:
    linked = link_priors(frame(("a", "p", "train", 1), ("b", "p", "train", 1), ("c", "p", "train", 2))).set_index(
        "study_id"
    )
    assert linked["encounter"].to_dict() == {"a": 1, "b": 1, "c": 2}
    assert linked["prior_study_id"].dropna().to_dict() == {"c": "b"}


def test_no_prior_across_patients_splits_or_unknown_times() -> None:
    linked = link_priors(
        frame(
            ("a", "p", "train", 1),
            ("b", "q", "train", 2),
            ("c", "p", "test", 3),
            ("d", "p", "train", None),
        )
    )
    assert linked["prior_study_id"].isna().all()
    assert (linked["encounter"] == 1).all()


def test_priors_can_follow_an_order_instead_of_a_time() -> None:
    studies = frame(("a", "p", "train", None), ("b", "p", "train", None)).assign(order=[2, 1])
    assert link_priors(studies).set_index("study_id")["prior_study_id"].dropna().to_dict() == {"a": "b"}
    assert without_priors(studies)["prior_study_id"].isna().all()


def many(patients: int = 300, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        (f"s{p}_{n}", f"p{p}", "train" if p % 10 else "test", n + 1)
        for p in range(patients)
        for n in range(rng.integers(1, 6))
    ]
    return frame(*rows)


def test_exactly_so_many_validation_studies_in_whole_patients() -> None:
    studies = many()
    studies["split"] = set_aside_validation(studies, 100, seed=3)
    assert (studies["split"] == "validation").sum() == 100
    assert studies.groupby("patient_id")["split"].nunique().max() == 1
    check_leakage(studies, "here")


def test_the_validation_choice_depends_on_the_seed_and_not_on_the_order() -> None:
    studies = many()
    chosen = [set(studies["study_id"][set_aside_validation(studies, 50, seed) == "validation"]) for seed in (1, 1, 2)]
    shuffled = studies.sample(frac=1, random_state=5)
    assert chosen[0] == chosen[1] != chosen[2]
    assert set(shuffled["study_id"][set_aside_validation(shuffled, 50, 1) == "validation"]) == chosen[0]


def test_too_many_validation_studies_are_refused() -> None:
    with pytest.raises(SourceError, match="validation-studies"):
        set_aside_validation(many(10), 1000, 0)


def test_a_random_split_keeps_patients_whole_and_the_shares() -> None:
    studies = many()
    split = random_split(studies["patient_id"], (0.7, 0.1, 0.2), seed=0)
    by_patient = split.groupby(studies["patient_id"]).agg(["nunique", "first"])
    assert by_patient["nunique"].max() == 1
    assert by_patient["first"].value_counts().to_dict() == {"train": 210, "test": 60, "validation": 30}


def test_a_tested_study_may_have_a_prior_that_is_not_tested_itself() -> None:
    studies = link_priors(frame(("a", "p", "test_rest", 1), ("b", "p", "test", 2), ("c", "q", "train", 1)))
    assert studies.set_index("study_id")["prior_study_id"].dropna().to_dict() == {"b": "a"}
    check_leakage(studies, "here")
    studies.loc[studies["study_id"] == "a", "split"] = "train"
    with pytest.raises(LeakageError, match="patient p is in test and train"):
        check_leakage(studies, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient_id": "p"}, "patient p is in test and train"),
        ({"image": "images/a.jpg"}, "image images/a.jpg is in test and train"),
        ({"prior_study_id": "a", "prior_image": "images/a.jpg"}, "another patient"),
        ({"prior_study_id": "gone"}, "not in the table"),
    ],
)
def test_leaks_are_found(change: dict, message: str) -> None:
    studies = link_priors(frame(("a", "p", "train", 1), ("b", "q", "test", 2)))
    check_leakage(studies, "here")
    for column, value in change.items():
        studies.loc[studies["study_id"] == "b", column] = value
    with pytest.raises(LeakageError, match=message):
        check_leakage(studies, "here")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("study_datetime", datetime(2020, 1, 1), "not earlier"), ("prior_image", "images/b.jpg", "another image")],
)
def test_priors_that_are_none_are_found(column: str, value: object, message: str) -> None:
    studies = link_priors(frame(("a", "p", "train", 1), ("b", "p", "train", 2)))
    studies.loc[studies["study_id"] == "b", column] = value
    with pytest.raises(LeakageError, match=message):
        check_leakage(studies, "here")
