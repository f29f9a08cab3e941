"""Studies with their texts as the Parquet tables of a prepared folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import card as cards
from data_prep.folder import (
    STARTED,
)
from data_prep.priors import none
from data_prep.rejects import (
    write_rejects,
)
from data_prep.sections import SECTIONS
from data_prep.splits import check_leakage
from data_prep.study import ALL_SPLITS, STUDY_SCHEMA, TEST_REST, report_text, write_study_batches
from data_prep.texts import BATCH, KEPT, Texts, give_back


def write_tables(
    studies: pd.DataFrame, texts: Texts, rejects: pd.DataFrame, out: Path, whole: Path, made_from: dict, about: dict
) -> None:
    """Check for leakage and write tables and card; the card last: a folder with a card is whole."""
    give_back()
    check_leakage(studies, str(out))
    give_back()
    keys = pa.table({name: pa.array(studies[name]) for name in ("patient_id", "encounter", "study_id")})
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]).to_numpy()
    for split in ALL_SPLITS:
        rows = order[(studies["split"] == split).to_numpy()[order]]
        if split == TEST_REST and not len(rows):
            continue
        parts = (studies.iloc[rows[start : start + BATCH]] for start in range(0, len(rows), BATCH))
        write_study_batches((to_table(part, texts) for part in parts), out / f"{split}.parquet")
    write_rejects(rejects, out / "rejects.parquet")
    del keys, order
    give_back()
    cards.write_card(studies, rejects, out, whole, made_from, about)
    (out / STARTED).unlink(missing_ok=True)


def to_table(studies: pd.DataFrame, texts: Texts) -> pa.Table:
    """Some studies and their reports as a study table."""
    sections = pd.DataFrame(
        texts.get(studies["text"].to_numpy(), KEPT), columns=KEPT, index=studies.index, dtype=object
    )
    priors = (dict(zip(SECTIONS, prior, strict=True)) for prior in texts.get(studies["prior_text"].to_numpy()))
    reports = [report_text(prior["findings"], prior["impression"]) or None for prior in priors]
    studies = studies.join(sections).assign(prior_report=reports)
    give_back()
    columns = []
    for field in STUDY_SCHEMA:
        column = studies[field.name]
        if pa.types.is_timestamp(field.type):
            columns.append(pa.array(pd.to_datetime(column), field.type, from_pandas=True))
        elif pa.types.is_floating(field.type):
            columns.append(pa.array(pd.to_numeric(column).astype("float64"), field.type, from_pandas=True))
        else:
            columns.append(pa.array(none(column), field.type))
    return pa.Table.from_arrays(columns, schema=STUDY_SCHEMA)
