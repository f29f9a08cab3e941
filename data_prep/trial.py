"""A first look at an institution's data: some studies prepared in seconds, and a mapping proposed where there is none."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pandas as pd
import yaml

from data_prep.dicom import is_dicom, may_be_dicom
from data_prep.dicom_headers import files_below
from data_prep.folder import CARD
from data_prep.mapping import REQUIRED
from data_prep.prepare import prepare
from data_prep.source import Options
from data_prep.tables import CSV_SUFFIXES, SourceError, columns_of, csv_form, iterate_table
from data_prep.views import plain
from foundation.files import write_text

LOOKED_AT = 2000  # rows, and files, that a proposal is made from
# Study table's column → names that institutions give it, the likeliest first (as `views.plain` writes them).
NAMES = {
    "study_id": "accession number, accession, accessionnumber, acc, study id, studyid, study uid, studyinstanceuid, exam id, "
    "examid, study, exam, visit, visita, id estudio, estudio, num estudio, auftragsnummer, untersuchungsnummer",
    "patient_id": "patient id, patientid, mrn, patient, subject id, subject, pid, id paciente, paciente, nhc, historia, "
    "patientennummer, patienten id",
    "image": "image path, imagepath, image, file, filename, file name, path, imageid, dicom path, dicom, imagen, fichero, "
    "ruta, archivo, placa, radiografia, cliche, bild, datei, dateiname",
    "report": "report, report text, text, narrative, informe, texto, befundtext, bericht, rapport, compte rendu",
    "indication": "indication, clinical information, clinical history, history, indicacion, klinische angaben, fragestellung",
    "comparison": "comparison, comparacion, vergleich",
    "findings": "findings, hallazgos, befund, resultat",
    "impression": "impression, conclusion, impresion, conclusiones, beurteilung",
    "view": "view position, viewposition, view, projection, proyeccion, projektion, incidence, aufnahme",
    "study_datetime": "study datetime, study date time, datetime, date time, study date, studydate, exam date, acquisition date, "
    "taken, date, fecha, fecha hora, datum, untersuchungsdatum, aufnahmezeit",
    "sex": "sex, gender, patient sex, patientsex, sexo, geschlecht, sexe",
    "age": "age, patient age, patientage, edad, alter",
    "race": "race, ethnicity, raza",
    "split": "split, fold, subset, partition",
}
FORMATS = (
    "ISO8601",
    *(f"{date}{clock}" for date in ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y%m%d", "%Y/%m/%d")
      for clock in (" %H:%M:%S", " %H:%M", "", "%H%M%S", " %H%M%S")),
)  # fmt: skip


def try_source(source: Path, options: Options, studies: int, workers: int, say: Callable[[str], None] = print) -> Path:
    """Prepare about `studies` studies of `source` into a new temporary folder, and say what was found there.

    Returns:
        The folder.

    Raises:
        SourceError: no mapping was given and none can be proposed as a whole; or as `prepare`.
    """
    if not source.is_dir():
        raise SourceError(f"{source}: no such folder")
    place = Path(tempfile.mkdtemp(prefix="data_prep_try_"))  # for its owner alone
    if options.mapping is None:
        proposal, lacking = propose_mapping(source, options.images or source)
        options = replace(options, mapping=place / "mapping.yaml")
        write_text(place / "mapping.yaml", proposal)
        say(f"a mapping proposed from what lies there ({options.mapping}):\n\n{proposal}")
        if lacking:
            raise SourceError(
                f"{options.mapping}: name the column(s) for {', '.join(lacking)} there, and try again with --mapping"
            )
    out = place / "prepared"
    prepare(source, out, replace(options, sample=studies), workers, say=say)
    card = json.loads((out / CARD).read_text(encoding="utf-8"))
    say(f"\n{card['kept']:,} studies kept, {card['rejected']:,} rejected, of a sample")
    for reason, number in card["reject_reasons"].items():
        say(f"  {number:,} {reason}")
    for column, words in card["unknown_words"].items():
        say(f"words for {column} that are not known (say what they mean under `values: {column}:`):")
        for word, number in words.items():
            say(f"  {number:,} × {word}")
    for note in card["notes"]:
        say(f"note: {note}")
    say(f"\nlook at the films: {out / 'plots' / 'sample.png'}\nthe data card: {out / 'card.md'}")
    say(f"the folder holds patients' data; when you have looked: rm -r {place}")
    return out


def propose_mapping(source: Path, images: Path) -> tuple[str, list[str]]:
    """A mapping's YAML for the table below `source` whose columns are best known, and the required columns that it lacks.

    Raises:
        SourceError: there is no table.
    """
    tables = [path for name in islice(files_below(source), 100_000) if _is_table(path := source / name)]
    if not tables:
        raise SourceError(
            f"{source}: no table found (.csv, .tsv, .txt, .jsonl or .parquet); put one there, or give --source"
        )
    guesses = {path: guess_columns(columns_of(path)) for path in sorted(tables)[:100]}
    table = max(guesses, key=lambda path: (len(guesses[path]), path.stat().st_size))
    columns = guesses[table]
    mapping: dict = {"table": table.relative_to(source).as_posix()}
    form = csv_form(table) if table.name.endswith(CSV_SUFFIXES) else None
    rows = pd.concat(islice(iterate_table(table, list(columns.values()), form), 2)).head(LOOKED_AT)
    if "image" not in columns and (folder := _dicom_folder(images)) is not None:
        mapping["dicom"] = folder
    named: dict[str, str | list[str]] = dict(columns)
    if {"study_id", "patient_id"} <= set(columns):
        pairs = rows[[columns["study_id"], columns["patient_id"]]].drop_duplicates()
        if pairs[columns["study_id"]].duplicated().any():  # numbers within a patient
            named["study_id"] = [columns["patient_id"], columns["study_id"]]
    mapping["columns"] = named
    comments = []
    if "study_datetime" in columns:
        formats = _formats(rows[columns["study_datetime"]].dropna())
        if not formats:
            comments.append(
                f"# datetime_format: no form is known that all of {columns['study_datetime']} have; write it here"
            )
        elif formats[0] != "ISO8601":
            mapping["datetime_format"] = formats[0]
            comments += [f"# {other} reads all dates as well: which is it?" for other in formats[1:2]]
    unused = [name for name in columns_of(table, form) if name not in columns.values()]
    if unused:
        comments.append(f"# columns that are not used: {', '.join(unused[:40])}")
    required = ["study_id"] if "dicom" in mapping else list(REQUIRED)
    lacking = [name for name in required if name not in columns]
    if not {"report", "findings", "impression"} & set(columns):
        lacking.append("report (or findings, impression)")
    text = yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    return text + "".join(f"{comment}\n" for comment in comments), lacking


def guess_columns(names: Sequence[str]) -> dict[str, str]:
    """Study table's column → the table's, by what institutions call them."""
    by_word = {plain(name): name for name in reversed(names)}
    return {
        column: by_word[word]
        for column, words in NAMES.items()
        for word in [next((w for w in map(str.strip, words.split(",")) if w in by_word), None)]
        if word is not None
    }


def _is_table(path: Path) -> bool:
    return path.suffix in (".jsonl", ".parquet") or (
        path.name.endswith(CSV_SUFFIXES) and not path.name.lower().startswith(("readme", "license", "licence"))
    )


def _dicom_folder(images: Path) -> str | None:
    """The folder below `images` that holds the first DICOM file; None where the first files are none."""
    for name in islice(files_below(images), LOOKED_AT):
        with (images / name).open("rb") as file:
            start = file.read(1024)
        if is_dicom(start) or may_be_dicom(start):
            return name.split("/")[0] if "/" in name else "."
    return None


def _formats(dates: pd.Series) -> list[str]:
    """The forms of date that all of `dates` have, the likeliest first."""
    found = []
    for form in FORMATS if len(dates) else ():
        try:
            if pd.to_datetime(dates, format=form, errors="coerce", utc=True).notna().all():
                found.append(form)
        except ValueError:
            continue
    return found
