"""Who is in which split, and the check that nobody is in two."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.priors import none, sides
from data_prep.tables import SourceError


class LeakageError(ValueError):
    """A patient, a study, an image or a prior is in more than one split."""


def set_aside_validation(studies: pd.DataFrame, count: int, seed: int) -> pd.Series:
    """The `split` column with exactly `count` training studies moved to validation, whole patients at a time.

    Patients are taken in a random order; one whose studies would overshoot is passed over.

    Raises:
        SourceError: training has too few studies, or no set of passed patients gives exactly `count`.
    """
    split = studies["split"].copy()
    train = studies[split == "train"]
    sizes = train.groupby("patient_id").size().sort_index()
    order = np.random.default_rng(seed).permutation(len(sizes))
    chosen, left = [], count
    for patient, size in zip(sizes.index[order], sizes.to_numpy()[order], strict=True):
        if size <= left:
            chosen.append(patient)
            left -= size
        if not left:
            break
    if left or len(train) <= count:
        raise SourceError(
            f"cannot set {count} of {len(train)} training studies aside for validation by patient; "
            "choose another --validation-studies"
        )
    split[(split == "train") & studies["patient_id"].isin(chosen)] = "validation"
    return split


def random_split(patients: pd.Series, shares: tuple[float, float, float], seed: int) -> pd.Series:
    """train, validation or test for each row of `patients`, whole patients at a time, by `shares` of the patients."""
    names = np.sort(patients.unique().astype(str))
    order = np.random.default_rng(seed).permutation(len(names))
    edges = np.rint(np.cumsum(shares) / sum(shares) * len(names)).astype(int)
    split = np.repeat(["train", "validation", "test"], np.diff([0, *edges]))
    return patients.map(dict(zip(names[order], split, strict=True))).astype(object)


def check_leakage(studies: pd.DataFrame, where: str) -> None:
    """Raise `LeakageError` where a patient, a study, an image or a prior crosses from one split into another.

    Args:
        studies: all splits together; columns dataset, patient_id, study_id, split, and, where present, image,
            prior_study_id, prior_image, study_datetime.
    """
    for column, what in (("patient_id", "patient"), ("study_id", "study"), ("image", "image")):
        if column not in studies:
            continue
        by = sides(studies["split"]) if column == "patient_id" else studies["split"]
        pairs = studies[["dataset", column]].assign(split=by).drop_duplicates()
        twice = pairs[pairs.duplicated(["dataset", column], keep=False)]
        if len(twice):
            first = twice[column].iloc[0]
            splits = sorted(twice.loc[twice[column] == first, "split"])
            raise LeakageError(
                f"{where}: {what} {first} is in {' and '.join(splits)} ({twice[column].nunique()} such); "
                "a patient may be in one split only: mend the source's split"
            )
    if "prior_study_id" not in studies:
        return
    with_prior = studies[studies["prior_study_id"].notna()]
    keys = pa.array(studies["dataset"] + "\0" + studies["study_id"], pa.large_string())
    wanted = pa.array(with_prior["dataset"] + "\0" + with_prior["prior_study_id"], pa.large_string())
    rows = pc.fill_null(pc.index_in(wanted, value_set=keys), -1).to_numpy(zero_copy_only=False)
    checked = ["patient_id", "split", "image", "study_datetime"]
    prior = studies[checked].reset_index(drop=True).reindex(rows).reset_index(drop=True)
    current = with_prior.reset_index(drop=True)
    for broken, what in (
        (prior["split"].isna(), "is not in the table"),
        (prior["patient_id"] != current["patient_id"], "is another patient's"),
        (sides(prior["split"]) != sides(current["split"]), "is in another split"),
        (prior["image"] != current["prior_image"], "has another image"),
        (prior["study_datetime"] >= current["study_datetime"], "is not earlier"),
    ):
        if broken.any():
            row = current[broken].iloc[0]
            raise LeakageError(
                f"{where}: study {row.study_id}: its prior {row.prior_study_id} {what} ({int(broken.sum())} such); "
                "prepare the data again with --force"
            )


def frame_of(table: pa.Table) -> pd.DataFrame:
    """A study table as a frame with None for null."""
    frame = table.to_pandas()
    return frame.assign(
        **{name: pd.Series(none(frame[name]), dtype=object) for name in frame if frame[name].dtype != "int32"}
    )
