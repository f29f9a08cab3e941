"""Prior studies: what a radiologist would have had at hand, and nothing of what came later."""

from __future__ import annotations

import numpy as np
import pandas as pd

from data_prep.study import TEST_REST

GROUP = ["dataset", "patient_id"]


def sides(split: pd.Series) -> pd.Series:
    """`split` with what is left of the test patients counted to `test`: patients and priors may not cross sides."""
    return split.where(split != TEST_REST, "test")


def link_priors(studies: pd.DataFrame) -> pd.DataFrame:
    """`studies` with the columns encounter, prior_study_id, prior_image and prior_text (0: none) set.

    The prior is the same patient's most recent *strictly earlier* study on the same side that is itself in the table,
    so it has a frontal image and a report (Methods: "the most recent prior frontal radiograph and its associated
    report"). Studies at the same time share an encounter number and are never each other's prior; of several at the
    prior's time the one with the last study_id is taken. A study of unknown time is encounter 1 without a prior.

    Args:
        studies: columns study_id, patient_id, dataset, split, image, study_datetime, text (where the report lies, from 1)
            and, optionally, order, which sorts in time where it is set, before study_datetime.
    """
    studies = studies.reset_index(drop=True)
    time = pd.to_datetime(studies["study_datetime"]).astype("datetime64[us]")
    order = time.astype("int64").astype("float64").where(time.notna())  # µs since 1970, exact in a double until 2255
    if "order" in studies:
        order = pd.to_numeric(studies["order"]).astype("float64").fillna(order)
    group = studies.groupby([*(studies[name] for name in GROUP), sides(studies["split"])], sort=False).ngroup()
    visits = pd.DataFrame({"group": group, "order": order, "study_id": studies["study_id"]}).dropna(subset=["order"])
    visits = visits.sort_values(["group", "order", "study_id"], kind="stable")
    last = visits.drop_duplicates(["group", "order"], keep="last")  # one row per encounter
    previous = pd.Series(last.index, index=last.index).groupby(last["group"]).shift()
    encounter = last.groupby("group").cumcount() + 1
    by_visit = last[["group", "order"]].assign(previous=previous, encounter=encounter)
    linked = visits[["group", "order"]].reset_index(names="row").merge(by_visit, on=["group", "order"], how="left")
    linked = linked.set_index("row").reindex(studies.index)

    studies["encounter"] = linked["encounter"].fillna(1).astype("int32")
    rows = linked["previous"].fillna(-1).astype("int64").to_numpy()
    studies["prior_study_id"] = studies["study_id"].astype("str").array.take(rows, allow_fill=True)
    studies["prior_image"] = studies["image"].astype("str").array.take(rows, allow_fill=True)
    studies["prior_text"] = np.where(rows < 0, 0, studies["text"].to_numpy()[rows])
    return studies


def without_priors(studies: pd.DataFrame) -> pd.DataFrame:
    """`studies` as if each were its patient's first: encounter 1, no prior."""
    nothing = pd.array([None] * len(studies), dtype="str")
    return studies.assign(encounter=1, prior_study_id=nothing, prior_image=nothing, prior_text=0)


def none(column: pd.Series) -> list:
    """The column's values with every kind of missing value as None."""
    return column.astype(object).where(column.notna(), None).tolist()
