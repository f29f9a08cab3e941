"""What the headers of a folder of DICOM files say of each film. Headers are read, never written on."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

from data_prep.dicom import DEFLATED, is_dicom, may_be_dicom, parse
from data_prep.images import ImageError, read_image_file
from data_prep.source import hidden
from data_prep.tables import is_nothing, one_line
from data_prep.views import view_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TAGS = [
    "SOPInstanceUID",
    "AccessionNumber",
    "StudyInstanceUID",
    "PatientID",
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "StudyTime",
    "TimezoneOffsetFromUTC",
    "Modality",
    "ViewPosition",
    "ViewCodeSequence",
    "SeriesDescription",
    "ProtocolName",
    "PhotometricInterpretation",
    "BurnedInAnnotation",
    "Rows",
]
COLUMNS = ("image", "accession", "study_uid", "patient_id", "study_datetime", "view", "sex", "age", "problem")
FILMS = ("CR", "DX", "DR", "RG", "SC", "OT", "")  # modalities; CT, MR and the like are no films
# Study table's column → where it is from, as the data card says it.
SAID = {
    "study_id": "AccessionNumber (StudyInstanceUID where that is blank, or where the table has it)",
    "patient_id": "PatientID",
    "study_datetime": "StudyDate and StudyTime (in UTC where TimezoneOffsetFromUTC is given)",
    "view": "ViewPosition, else ViewCodeSequence, SeriesDescription or ProtocolName where a word of theirs is known",
    "sex": "PatientSex",
    "age": "PatientAge, else PatientBirthDate and StudyDate",
}


def read_headers(folder: Path, sample: int | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Each film below `folder`, by path (COLUMNS; `problem`: why its header cannot be read), and sentences for the card.

    Args:
        sample: stop after so many films.
    """
    rows: list[dict[str, Any]] = []
    others, photometric, burnt = Counter(), Counter(), 0
    for relative in tqdm(files_below(folder), desc="DICOM headers", unit="file", smoothing=0.05):
        try:
            if (header := _header(folder / relative)) is None:
                others["no DICOM file"] += 1
                continue
            if "Rows" not in header:
                others["without an image"] += 1
                continue
            if (modality := str(header.get("Modality") or "")) not in FILMS:
                others[modality] += 1
                continue
            rows.append({"image": relative, **_values(header)})
            photometric[str(header.get("PhotometricInterpretation") or "none")] += 1
            burnt += str(header.get("BurnedInAnnotation") or "").upper() == "YES"
        except Exception as error:  # a damaged header is that film's reject, whatever pydicom made of it
            rows.append({"image": relative, "problem": one_line(error)[:300] or type(error).__name__})
        if sample is not None and len(rows) >= sample:
            break
    notes = [
        f"{len(rows):,} films by their DICOM headers: " + "; ".join(f"{k} from {v}" for k, v in SAID.items()) + "."
    ]
    notes.append("Photometric interpretation: " + _listed(photometric) + "; MONOCHROME1 (low is white) is inverted.")
    notes.append(
        f"{burnt:,} films are marked as having burnt-in annotation (BurnedInAnnotation), which may name a patient."
    )
    if others:
        notes.append("Left out, as they are no films: " + _listed(others) + ".")
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object), notes


def files_below(folder: Path) -> Iterator[str]:
    """Paths below `folder` of all files but hidden ones and those whose name is no text, by name."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in sorted(names):
            relative = Path(place, name).relative_to(folder).as_posix()
            if not hidden(name) and name != "DICOMDIR" and relative.isprintable():
                yield relative


def _header(path: Path) -> Dataset | None:
    """The header's TAGS; None where the file is none of DICOM."""
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # else a warning for each odd value
    with path.open("rb") as file:
        start = file.read(1024)
        if not (is_dicom(start) or may_be_dicom(start)):
            return None
        if DEFLATED.encode() not in start:
            file.seek(0)
            return pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=TAGS)
    try:
        return parse(read_image_file(path), pixels=False)
    except ImageError as error:
        raise ValueError(str(error)) from error


def _values(header: Dataset) -> dict[str, Any]:
    study = _text(header, "StudyInstanceUID")
    return {
        "accession": _text(header, "AccessionNumber") or study,
        "study_uid": study,
        "patient_id": _text(header, "PatientID"),
        "study_datetime": _time(header),
        "view": view_word(header),
        "sex": _text(header, "PatientSex"),
        "age": _text(header, "PatientAge") or _age(header),
    }


def _text(header: Dataset, name: str) -> str | None:
    text = str(header.get(name) or "").strip()
    return None if is_nothing(text) else text


def _time(header: Dataset) -> pd.Timestamp | None:
    date, clock = _text(header, "StudyDate") or "", re.sub(r"\D.*", "", _text(header, "StudyTime") or "")
    zone = _text(header, "TimezoneOffsetFromUTC") or ""
    if not re.fullmatch(r"\d{8}", date):
        return None
    clock = clock if re.fullmatch(r"(\d\d){1,3}", clock) else ""
    zone = zone if clock and re.fullmatch(r"[+-]\d{4}", zone) else ""
    time = pd.to_datetime(f"{date}{clock:0<6}{zone or '+0000'}", format="%Y%m%d%H%M%S%z", errors="coerce")
    return None if pd.isna(time) else time.tz_convert(None)


def _age(header: Dataset) -> str | None:
    born, taken = (_text(header, name) or "" for name in ("PatientBirthDate", "StudyDate"))
    if not all(re.fullmatch(r"\d{8}", date) for date in (born, taken)):
        return None
    years = int(taken[:4]) - int(born[:4]) - (taken[4:] < born[4:])
    return str(years) if years >= 0 else None


def view_word(header: Dataset) -> str | None:
    """The first word for a view that is known; else the first there is, for the list of those that are not."""
    codes = header.get("ViewCodeSequence") or []
    words = [
        _text(header, "ViewPosition"),
        *(_text(code, "CodeMeaning") for code in codes),
        _text(header, "SeriesDescription"),
        _text(header, "ProtocolName"),
    ]
    words = [word for word in words if word]
    return next((word for word in words if view_of(word)), words[0] if words else None)


def _listed(counts: Counter) -> str:
    return ", ".join(
        f"{number:,} {name}" for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
