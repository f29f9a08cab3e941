"""An institution's own tables, as they are exported: nothing is lost, mixed up or guessed without a word."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import card as cards
from data_prep.__main__ import main
from data_prep.demographics import age_of, race, sex, sexes
from data_prep.sections import parse_report
from data_prep.sources.custom import with_line_ends
from data_prep.splits import frame_of
from data_prep.study import SPLITS
from data_prep.tables import SourceError, as_text, iterate_table
from data_prep.views import view_of

MAPPING = "table: {table}\ncolumns: {{study_id: acc, patient_id: mrn, image: file, findings: text{columns}}}\nshares: [1, 0, 0]\n"


@pytest.fixture(autouse=True)
def no_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the card's plots takes longer than all else here."""
    monkeypatch.setattr(cards, "write_plots", lambda *_: [])


def film(seed: int) -> Image.Image:
    y, x = np.mgrid[0:40, 0:36]
    noise = np.random.default_rng(seed).normal(0, 8, (40, 36))
    return Image.fromarray((60 + 4 * x + y + noise).clip(0, 255).astype(np.uint8))


def source(
    root: Path, rows: list[dict] | bytes | None, columns: str = "", more: str = "", table: str = "t.csv", films: int = 6
) -> Path:
    """A source folder with `films` films i/0.png, … and the table: rows, or the bytes of the file (None: already there)."""
    (root / "i").mkdir(parents=True)
    for number in range(films):
        film(number).save(root / f"i/{number}.png")
    if isinstance(rows, bytes):
        (root / table).write_bytes(rows)
    elif rows is not None:
        with (root / table).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    (root / "m.yaml").write_text(MAPPING.format(table=table, columns=columns) + more, encoding="utf-8")
    return root


def row(number: int, text: str = "Clear lungs.", **more: object) -> dict:
    return {"acc": f"a{number}", "mrn": f"p{number}", "file": f"i/{number}.png", "text": text, **more}


def prepare(root: Path, out: Path, *more: object) -> int:
    arguments = ["custom", "--source", root, "--mapping", root / "m.yaml", "--out", out, "--workers", 1, *more]
    return main([str(argument) for argument in arguments])


def studies(out: Path) -> pd.DataFrame:
    return pd.concat([frame_of(pq.read_table(out / f"{split}.parquet")) for split in SPLITS]).set_index("study_id")


def rejects(out: Path) -> dict[str, dict]:
    return {r["study_id"]: r for r in pq.read_table(out / "rejects.parquet").to_pylist()}


def card(out: Path) -> dict:
    return json.loads((out / "card.json").read_text())


WITHIN_PATIENT = [
    {"acc": "1", "mrn": "A", "file": "i/0.png", "text": "Clear.", "v": "lateral"},
    {"acc": "1", "mrn": "B", "file": "i/1.png", "text": "Effusion.", "v": "PA"},
    {"acc": "2", "mrn": "A", "file": "i/2.png", "text": "Better.", "v": "PA"},
    {"acc": "2", "mrn": "B", "file": "i/3.png", "text": "Worse.", "v": "PA"},
]


def test_a_study_number_of_two_patients_is_refused_and_two_columns_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = source(tmp_path / "s", WITHIN_PATIENT, ", view: v")
    assert prepare(root, tmp_path / "o") == 2
    assert "study 1 has rows of two patients (2 such)" in (said := capsys.readouterr().err)
    assert "study_id: [mrn, acc]" in said
    mapping = (root / "m.yaml").read_text()
    (root / "m.yaml").write_text(mapping.replace("study_id: acc", "study_id: [mrn, acc]"))
    assert prepare(root, tmp_path / "o") == 0
    kept = studies(tmp_path / "o")
    assert dict(kept["findings"]) == {"B_1": "Effusion.", "A_2": "Better.", "B_2": "Worse."}
    assert rejects(tmp_path / "o")["A_1"]["reason"] == "no_frontal"


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b'acc,mrn,file,text\n1,2,i/0.png,"Clear\n2,3,i/1.png,ok\n', 2),
        (b'acc,mrn,file,text\n1,2,i/0.png,ok\n2,3,i/1.png,"Clear\n3,4,i/2.png,"fine"\n4,5,i/3.png,x\n', 3),
        (b'acc,mrn,file,text\n1,2,i/0.png,"Clear\n2,3,i/1.png,ok\n3,4,i/2.png,"\n4,5,i/3.png,x\n', 2),
        (b'text,acc,mrn,file\n"Clear,1,2,i/0.png\nok,2,3,i/1.png\nfine",3,4,i/2.png\n', 2),
        (b"acc,mrn,file,text\n1,2,i/0.png,Secret, words\n", 2),
    ],
)
def test_a_csv_whose_rows_run_into_each_other_is_refused_with_its_line_and_not_its_text(
    tmp_path: Path, capsys: pytest.CaptureFixture, raw: bytes, line: int
) -> None:
    assert prepare(source(tmp_path / "s", raw), tmp_path / "o") == 2
    said = capsys.readouterr().err
    assert f"line {line}" in said
    assert not any(word in said for word in ("Clear", "Secret", "fine"))
    assert not (tmp_path / "o").exists()


def test_line_breaks_of_any_kind_and_long_cells_are_read_whole(tmp_path: Path) -> None:
    long = "Clear lungs. " * 100_000
    texts = ["One.\r\nTwo, 3 lines.\r\nThree.", "One.\rTwo.", '12, 13 "ribs"\n14, 15', long]
    root = source(tmp_path / "s", [row(n, t) for n, t in enumerate(texts)])
    assert prepare(root, tmp_path / "o") == 0
    assert [studies(tmp_path / "o").loc[f"a{n}", "findings"] for n in range(4)] == [" ".join(t.split()) for t in texts]
    assert parse_report("FINDINGS: Clear.\rIMPRESSION: Normal.\r")["impression"] == "Normal."
    for text in (r"A:\nB", "A:<br>B", "A:<BR />B", r"A:\.br\B", "A:_x000D_\nB", "A:\x0bB", "A:\u2028B"):
        assert with_line_ends(text) == "A:\nB"
    assert with_line_ends("C:\\new\nline") == "C:\\new\nline", "a backslash and an n are no line end beside a real one"


WORDS = [("1", "0"), ("2", "1"), ("2", "1"), ("9", "0")]


def test_numbers_and_booleans_of_a_mapping_match_text(tmp_path: Path) -> None:
    rows = [row(n, s=sex, f=fold) for n, (sex, fold) in enumerate(WORDS)]
    more = "values: {sex: {1: M, 2: F}, split: {0: train, 1: test}}\n"
    assert prepare(source(tmp_path / "s", rows, ", sex: s, split: f", more), tmp_path / "o") == 0
    kept = studies(tmp_path / "o")
    assert kept["sex"].tolist() == ["M", None, "F", "F"]
    assert kept["split"].tolist() == ["train", "train", "test", "test"]
    assert card(tmp_path / "o")["unknown_words"] == {"sex": {"9": 1}}
    assert "| sex | 9 | 1 |" in (tmp_path / "o" / "card.md").read_text()
    rows = [row(n, f=fold) for n, fold in enumerate(("yes", "True", "true", "no"))]
    more = "values: {split: {yes: train, true: validation, no: test}}\n"
    assert prepare(source(tmp_path / "s2", rows, ", split: f", more), tmp_path / "o2") == 0
    assert studies(tmp_path / "o2")["split"].to_dict() == {
        "a0": "train",
        "a1": "validation",
        "a2": "validation",
        "a3": "test",
    }


def test_whole_words_of_sex_race_and_age() -> None:
    words = {
        "Mujer": "F",
        "Hombre": "M",
        "Varón": "M",
        "female": "F",
        "M.": "M",
        "Missing": None,
        "Mixed": None,
        "X": None,
    }
    assert {word: sex(word) for word in words} == words
    assert pd.isna(sexes(pd.Series(["H", "M"]))).all(), "beside H, M may be mujer"
    races = {
        "Not Hispanic or Latino": None,
        "White, not Hispanic": "White",
        "Non-Hispanic White": "White",
        "Black, Hispanic": "Hispanic",
        "White and Black": "Other",
        "Missing": None,
        "Prefer not to say": None,
        "Whitehall": None,
        "Patient Refused": None,
        "Other": "Other",
        "Asiática": "Asian",
    }
    assert {word: race(word) for word in races} == races
    ages = {
        "90+": 90,
        ">89": 90,
        "45 years": 45,
        "45 años": 45,
        "018M": 1.5,
        "6 months": 0.5,
        "45,5": 45.5,
        "999": None,
        "<1": None,
    }
    assert {text: age_of(text) for text in ages} == ages


def test_cells_that_say_nothing_are_blank(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("nan", "None", "N/A", "NULL", "Clear lungs.", "-", "None.", r"\N", "(null)", "n/a.")
    assert prepare(source(tmp_path / "s", [row(n, t) for n, t in enumerate(words)]), tmp_path / "o") == 0
    assert studies(tmp_path / "o")["findings"].to_dict() == {"a4": "Clear lungs."}
    assert {r["reason"] for r in rejects(tmp_path / "o").values()} == {"no_report"}
    rows = [row(0), {**row(1), "mrn": "NaN"}]
    assert prepare(source(tmp_path / "s2", rows), tmp_path / "o2") == 2
    assert "column mrn (patient_id) is empty in row 2" in capsys.readouterr().err


def test_what_the_key_images_row_lacks_is_taken_from_the_studys_other_rows(tmp_path: Path) -> None:
    rows = [
        {**row(0, v="lateral", s="F"), "acc": "a", "mrn": "p"},
        {**row(1, "", v="PA", s=""), "acc": "a", "mrn": "p"},
        {**row(2, "Other words.", v="lateral", s="M"), "acc": "b", "mrn": "q"},
        {**row(3, "Effusion.", v="AP", s="M"), "acc": "b", "mrn": "q"},
    ]
    assert prepare(source(tmp_path / "s", rows, ", view: v, sex: s"), tmp_path / "o") == 0
    kept = studies(tmp_path / "o")
    assert (kept.loc["a", "findings"], kept.loc["a", "view"], kept.loc["a", "sex"]) == ("Clear lungs.", "PA", "F")
    assert kept.loc["b", "findings"] == "Effusion."
    notes = " ".join(card(tmp_path / "o")["notes"])
    assert "1 studies have their report in another row" in notes
    assert "1 studies have rows with different reports" in notes


LINE = b'{"acc":"1","mrn":"2","file":"i/0.png","text":"Caf\\u00e9 \\ud83d."}\n'


@pytest.mark.parametrize(
    ("table", "raw"),
    [
        ("t.csv", "acc;mrn;file;text\n1;2;i/0.png;Café ?.\n".encode()),
        ("t.tsv", "acc\tmrn\tfile\ttext\n1\t2\ti/0.png\tCafé ?.\n".encode("cp1252")),
        ("t.csv", "acc,mrn,file,text\n1,2,i/0.png,Café ?.\n".encode("utf-16")),
        ("t.csv", "acc,mrn,file,text\r\n1,2,i/0.png,Café ?.\r\n".encode("utf-16-le")),
        ("t.csv", '\ufeffacc, mrn, file, text\n1, 2, i/0.png, "Café ?."\n\n'.encode()),
        ("t.csv", "sep=;\r\nacc;mrn;file;text\r\n1;2;i/0.png;Café ?.\r\n".encode()),
        ("t.jsonl", b"\xef\xbb\xbf" + LINE),
        ("t.jsonl", b"\n" + LINE + b"\n\n"),
    ],
)
def test_tables_as_they_are_exported(tmp_path: Path, table: str, raw: bytes) -> None:
    assert prepare(source(tmp_path / "s", raw, table=table), tmp_path / "o") == 0
    kept = studies(tmp_path / "o")
    assert kept.loc["1", "patient_id"] == "2"
    assert kept.loc["1", "findings"].replace("\ufffd", "?") == "Café ?."
    if not table.endswith(".jsonl"):
        assert "encoding" in " ".join(card(tmp_path / "o")["notes"])


def test_a_given_delimiter_and_encoding_go_before_what_the_file_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    raw = "acc|mrn|file|text\n1|2|i/0.png|Ødem.\n".encode("cp865")
    root = source(tmp_path / "s", raw, more='delimiter: "|"\nencoding: cp865\n')
    assert prepare(root, tmp_path / "o") == 0
    assert studies(tmp_path / "o").loc["1", "findings"] == "Ødem."
    (root / "m.yaml").write_text((root / "m.yaml").read_text().replace("cp865", "no-such"))
    assert prepare(root, tmp_path / "o2") == 2
    assert "encoding" in capsys.readouterr().err


def test_absolute_paths_below_the_image_root(tmp_path: Path) -> None:
    root = tmp_path / "s"
    rows = [{**row(0), "file": str(root / "i/0.png")}, {**row(1), "file": "/etc/passwd"}, row(2)]
    assert prepare(source(root, rows), tmp_path / "o") == 0
    assert set(studies(tmp_path / "o").index) == {"a0", "a2"}
    assert rejects(tmp_path / "o")["a1"]["reason"] in ("path_outside", "image_missing")


def test_ids_are_the_same_text_in_every_kind_of_table(tmp_path: Path) -> None:
    ids = [1, 7.0, "7", "01", None]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"id": i}) + "\n" for i in ids))
    pq.write_table(pa.table({"id": pa.array([1, 7, None])}), tmp_path / "whole.parquet")
    pq.write_table(pa.table({"id": pa.array([1.0, 7.0, None])}), tmp_path / "float.parquet")
    (tmp_path / "t.csv").write_text("id,x\n1,\n7.0,\n7,\n01,\n,\n")

    def read(name: str) -> list:
        return [
            None if value is None else value
            for table in iterate_table(tmp_path / name, ["id"])
            for value in table["id"]
        ]

    assert read("t.jsonl") == ["1", "7", "7", "01", None]
    assert read("whole.parquet") == read("float.parquet") == ["1", "7", None]
    assert read("t.csv") == ["1", "7", "7", "01", None]
    assert as_text("1.2.840.0") == "1.2.840.0"
    pq.write_table(pa.table({"id": pa.array([1e18])}), tmp_path / "lost.parquet")
    with pytest.raises(SourceError, match="last digits"):
        read("lost.parquet")


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        (["2020-01-01T10:00:00Z", "2020-01-03T10:30:00Z"], ["2020-01-01 10:00", "2020-01-03 10:30"]),
        (["2020-03-28T10:00:00+01:00", "2020-03-30T10:00:00+02:00"], ["2020-03-28 09:00", "2020-03-30 08:00"]),
        (["2020-01-01T10:00:00Z", "2020-01-02T10:00:00"], ["2020-01-01 10:00", "2020-01-02 10:00"]),
        (["2300-01-01", "2300-01-02 23:59"], ["2300-01-01", "2300-01-02 23:59"]),
    ],
)
def test_times_with_a_zone_are_taken_in_utc(tmp_path: Path, dates: list[str], expected: list[str]) -> None:
    rows = [{**row(n), "mrn": "p", "d": date} for n, date in enumerate(dates)]
    assert prepare(source(tmp_path / "s", rows, ", study_datetime: d"), tmp_path / "o") == 0
    kept = studies(tmp_path / "o")
    assert kept["study_datetime"].tolist() == [pd.Timestamp(time) for time in expected]
    assert kept.loc["a1", "prior_study_id"] == "a0"
    zoned = any("zone" in note for note in card(tmp_path / "o")["notes"])
    assert zoned == any("T" in date for date in dates)


def test_parquet_times_with_a_zone(tmp_path: Path) -> None:
    root = source(tmp_path / "s", None, ", study_datetime: d", table="t.parquet")
    times = pd.to_datetime(["2020-01-01 10:00", "2020-02-01 10:00"]).tz_localize("Europe/Madrid")
    frame = pd.DataFrame([row(0), row(1)]).assign(mrn="p", d=times)
    frame.to_parquet(root / "t.parquet")
    assert prepare(root, tmp_path / "o") == 0
    assert studies(tmp_path / "o")["study_datetime"].tolist() == [
        pd.Timestamp("2020-01-01 09:00"),
        pd.Timestamp("2020-02-01 09:00"),
    ]


def test_a_few_dates_that_cannot_be_read_are_unknown_times(tmp_path: Path) -> None:
    rows = [{**row(n), "file": "i/0.png", "d": "2020-02-30" if n == 7 else f"20{n % 90:02d}-01-01"} for n in range(150)]
    assert prepare(source(tmp_path / "s", rows, ", study_datetime: d"), tmp_path / "o") == 0
    assert pd.isna(studies(tmp_path / "o").loc["a7", "study_datetime"])
    assert "1 rows have a date-time that cannot be read" in " ".join(card(tmp_path / "o")["notes"])


def test_view_words_in_any_case_and_the_unknown_ones_listed(tmp_path: Path) -> None:
    words = ["Frontal", "pa", "POSTERO_ANTERIOR", "antero-posterior", "AP_horizontal", "Thorax liegend"]
    rows = [row(n, v=word) for n, word in enumerate(words)]
    assert prepare(source(tmp_path / "s", rows, ", view: v"), tmp_path / "o") == 0
    kept = studies(tmp_path / "o")["view"].to_dict()
    assert kept == {"a0": "frontal", "a1": "PA", "a2": "PA", "a3": "AP", "a4": "AP"}
    assert rejects(tmp_path / "o")["a5"]["detail"] == "not known: Thorax liegend"
    assert card(tmp_path / "o")["unknown_words"] == {"view": {"Thorax liegend": 1}}
    known = {
        "L": "lateral",
        "LL": "lateral",
        "p.a.": "PA",
        "Frontal PA": "PA",
        "AP, frontal": "AP",
        "Perfil": "lateral",
        "COSTAL": "lateral",
        "UNK": None,
        "EXCLUDE": None,
    }
    assert {word: view_of(word) for word in known} == known


def test_rows_without_a_split_are_rejects(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [row(0, f="Train"), row(1, f=""), row(2, f="val")]
    assert prepare(source(tmp_path / "s", rows, ", split: f"), tmp_path / "o") == 0
    assert studies(tmp_path / "o")["split"].to_dict() == {"a0": "train", "a2": "validation"}
    assert rejects(tmp_path / "o")["a1"]["reason"] == "not_in_split"
    rows = [{**row(0, f="train"), "acc": "a", "mrn": "p"}, {**row(1, f="test"), "acc": "a", "mrn": "p"}]
    assert prepare(source(tmp_path / "s2", rows, ", split: f"), tmp_path / "o2") == 2
    assert "study a is in two splits" in capsys.readouterr().err


BASE = "table: t.csv\ncolumns: {{study_id: acc, patient_id: mrn, image: file, findings: text{}}}\n{}\n"


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ("table: t.csv\ncolumns: {study_id: 1, patient_id: mrn, image: file, findings: text}\n", "column(s) 1"),
        ("table: t.csv\ncolumns: {study_id: [], patient_id: mrn, image: file, findings: text}\n", "study_id must name"),
        ("table: t.csv\ncolumns: {study_id: acc, patient_id: mrn, image: [file], findings: text}\n", "image must name"),
        (
            "table: t.csv\ncolumns: {study_id: acc, patient_id: {a: b}, image: file, findings: text}\n",
            "patient_id must",
        ),
        (BASE.format(", sex: ", ""), "sex must name a column"),
        (BASE.format(", view: v", "values: {view: [PA, AP]}"), "view must be a mapping"),
        (BASE.format(", view: v", "values: {view: }"), "view must be a mapping"),
        (BASE.format(", view: v", "values: {view: {Schräg: schräg}}"), "expected AP, PA, frontal or lateral"),
        (BASE.format(", study_datetime: d", "datetime_format: 5"), "datetime_format must be a text"),
        (BASE.format(", study_datetime: d", 'datetime_format: "%q"'), "datetime_format '%q'"),
        (BASE.format("", "shares: [.inf, 1, 1]"), "shares must be three numbers"),
        (BASE.format("", "shares: [true, 1, 1]"), "shares must be three numbers"),
        (BASE.format("", "delimiter: ab"), "delimiter must be one character"),
        (BASE.format("", "encoding: 8"), "encoding must be a text"),
        (BASE.format("", "credentialed: maybe"), "credentialed must be true or false"),
        (BASE.format("", "title: 2020-01-01"), "title must be a text"),
    ],
)
def test_wrong_values_in_a_mapping_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, mapping: str, expected: str
) -> None:
    root = source(tmp_path / "s", [row(0, d="2020-01-01", v="PA", sex="F")])
    (root / "m.yaml").write_text(mapping)
    assert prepare(root, tmp_path / "o") == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o").exists()
