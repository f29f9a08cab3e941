"""The test set that a ReXrank file lists, in place of the source's own: its studies, key images and texts."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from data_prep.parts import Counted, Note
from data_prep.rejects import NO_IMAGE, reject_frame
from data_prep.source import Found, Options, found_frame
from data_prep.sources.rexrank import notes_on, read_test_files, recorded, sections_of
from data_prep.study import TEST_REST

# ReXrank has a test file for each of these; without it `test` is the source's own, which no board is of.
WITH_TEST_FILE = ("mimic", "chexpert_plus", "iu_xray")


def use_test_files(found: Found, options: Options) -> Found:
    """`found` with exactly the studies that the ReXrank files list as `test`, word for word, and dates from the source.

    What else the source has of those patients, or in its own test split, is `test_rest`: a study's prior may be there,
    and nothing is trained on it.

    Raises:
        SourceError: a file is of another data set, or holds validation studies.
    """
    listed = read_test_files(options.rexrank, options.dataset)
    ids = [row["study_id"] for row in listed]
    record = recorded(options.dataset, sections_of(listed))
    if options.sample:
        listed = listed[:: max(1, len(listed) // options.sample)]
    rows = [row for row in listed if row["image_source"]]
    test = found_frame(rows, options.dataset, found.texts, options.mine)
    if found.test_image is not None:
        paths = [found.test_image(path) or path for path in test["image_source"]]
        test["image_source"] = pd.array(paths, dtype="str")
    test = _with_what_the_source_knows(test, found)

    others = found.studies[~found.studies["study_id"].isin(ids)]
    of_test = (others["split"] == "test") | others["patient_id"].isin({row["patient_id"] for row in listed})
    others = others.assign(split=others["split"].mask(of_test, TEST_REST))
    rejects = [found.rejects[~found.rejects["study_id"].isin(ids)]]
    if without_image := [row for row in listed if not row["image_source"]]:
        rejects.append(reject_frame(pd.DataFrame(without_image), NO_IMAGE))
    notes: list[Note] = [
        Counted(
            f"`test` is what the ReXrank file lists, {len(ids):,} studies with its key images and texts; {{0:,}} "
            f"other studies of its patients and of the source's own test split are `{TEST_REST}`: priors, and used for "
            "nothing else.",
            (int(of_test.sum()),),
            always=True,
        ),
        *notes_on(rows),
    ]
    studies = pd.concat([others, options.own(test)], ignore_index=True)
    index = found.index if found.index is None else pd.concat([found.index, test[found.index.columns]])
    return replace(
        found,
        studies=studies,
        index=index,
        rejects=pd.concat(rejects, ignore_index=True),
        notes=[*found.notes, *notes],
        test_file=record,
    )


def without_test_file(dataset: str) -> str:
    """The note of a folder whose test set is the source's own."""
    if dataset in WITH_TEST_FILE:
        return (
            "Not ReXrank's test: no ReXrank test file was given (--rexrank), so `test` is the source's own, which no "
            "published number is of, and ReXrank's studies were not looked for in training."
        )
    if dataset == "rexgradient":
        return (
            "Not ReXrank's test: ReXrank's ReXGradient board, and the paper's, is of 10,000 private studies; the public "
            "test split is another."
        )
    return ""


def _with_what_the_source_knows(test: pd.DataFrame, found: Found) -> pd.DataFrame:
    """`test` with the source's dates, and its sex, age and race where it has them."""
    ids = test["study_id"]
    if found.dated is not None:
        for name in ("study_datetime", "order"):
            test[name] = ids.map(found.dated[name]).to_numpy()
    known = found.studies.set_index("study_id")
    for name in ("sex", "age", "race"):
        own = pd.Series(ids.map(known[name]).to_numpy(), index=test.index, dtype=object)
        test[name] = own.where(own.notna(), test[name].astype(object))
    return test
