"""Every source, from its on-disk layout with its quirks to the study table: kept, rejected, texts, key images, priors."""

from __future__ import annotations

import json
from pathlib import Path

import material
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.check import check_folder
from data_prep.sources.mimic_cxr import datetimes, views
from data_prep.sources.rexrank import parse_context
from data_prep.splits import frame_of
from data_prep.study import SPLITS, ids_fingerprint, references_fingerprint
from evaluation.predictions import reference_text, studies_of_data


def prepare(dataset: str, source: Path, out: Path, *arguments: object) -> pd.DataFrame:
    """Run the command line; the whole study table."""
    assert main([dataset, "--source", str(source), "--out", str(out), "--workers", "1", *map(str, arguments)]) == 0
    return table_of(out)


def table_of(out: Path) -> pd.DataFrame:
    return pd.concat([frame_of(pq.read_table(out / f"{split}.parquet")) for split in SPLITS]).set_index("study_id")


def rejects_of(out: Path) -> dict[str, str]:
    rejects = pq.read_table(out / "rejects.parquet").to_pydict()
    return dict(zip(rejects["study_id"], rejects["reason"], strict=True))


def check_as_expected(made: material.Material, studies: pd.DataFrame, out: Path) -> None:
    """Every study is kept or rejected as it should be, with its own texts and its own key image."""
    assert set(studies.index) == set(made.kept)
    assert rejects_of(out) == made.rejected
    for study_id, expected in made.kept.items():
        row = studies.loc[study_id]
        for name, value in expected.items():
            found = None if pd.isna(row[name]) else row[name]
            assert found == (" ".join(value.split()) if isinstance(value, str) else value), (study_id, name)
        with Image.open(out / row["image"]) as image:
            assert image.mode == "L"
            drawn = np.asarray(made.images[study_id].resize(image.size), dtype=float)
            # Deeper images are stretched to 0–255: compare what is drawn, not how bright.
            alike = np.corrcoef(drawn.ravel(), np.asarray(image, dtype=float).ravel())[0, 1]
        assert alike > 0.98, f"{study_id}: not its key image ({alike:.2f})"
    card = json.loads((out / "card.json").read_text())
    assert card["found"] == len(made.kept) + len(made.rejected) == card["kept"] + card["rejected"]
    assert "good" in check_folder(out)


def check_priors(studies: pd.DataFrame) -> None:
    """By the plain reading of the rule, study by study."""
    some = 0
    for study_id, row in studies.iterrows():
        same = studies[(studies["patient_id"] == row["patient_id"]) & (studies["split"] == row["split"])]
        earlier = same[same["study_datetime"] < row["study_datetime"]].sort_values("study_datetime")
        assert row["encounter"] == earlier["study_datetime"].nunique() + 1
        if len(earlier):
            some += 1
            last = earlier[earlier["study_datetime"] == earlier["study_datetime"].max()]
            assert row["prior_study_id"] in last.index
            prior = studies.loc[row["prior_study_id"]]
            assert row["prior_image"] == prior["image"]
            for section in ("findings", "impression"):
                assert (prior[section] or "") in row["prior_report"]
        else:
            assert row["prior_study_id"] is None
            assert row["prior_report"] is None
            assert study_id
    assert some > 1, "the material has too few priors to test them"


@pytest.mark.parametrize("zipped", [False, True])
def test_mimic(tmp_path: Path, zipped: bool) -> None:
    made = material.mimic(tmp_path / "mimic", zipped=zipped)
    arguments = ["--reports", made.extra["reports"], "--mimic-iv", made.extra["mimic_iv"], "--validation-studies", "4"]
    studies = prepare("mimic", made.root, tmp_path / "out", *arguments)
    validation = studies[studies["split"] == "validation"]
    assert len(validation) == 4
    train = studies[studies["split"] == "train"]
    assert not set(validation["patient_id"]) & set(train["patient_id"])
    for study_id in validation.index:
        made.kept[study_id]["split"] = "validation"
    check_as_expected(made, studies, tmp_path / "out")
    check_priors(studies)
    assert studies["age"].notna().all()


def test_study_times_that_have_lost_their_leading_zeros() -> None:
    times = datetimes(pd.Series(["21100203"] * 3), pd.Series(["80556.875", "5.0", "235959.1"]))
    assert times.dt.strftime("%Y-%m-%d %H:%M:%S").tolist() == [
        "2110-02-03 08:05:56",
        "2110-02-03 00:00:05",
        "2110-02-03 23:59:59",
    ]


@pytest.mark.parametrize(
    ("row", "view"),
    [
        (("AP", "", "CHEST (PA AND LAT)"), "AP"),
        (("LL", "", "CHEST (PORTABLE AP)"), "lateral"),
        (("", "postero-anterior", "CHEST (PA AND LAT)"), "PA"),
        (("", "lateral", "CHEST (PORTABLE AP)"), "lateral"),
        (("", "", "CHEST (PORTABLE AP)"), "AP"),
        (("", "", "CHEST PORT. LINE PLACEMENT"), "AP"),
        (("", "", "CHEST (PA AND LAT)"), None),
        (("", "", "CHEST (SINGLE VIEW)"), None),
        (("", "", ""), None),
    ],
)
def test_views_without_a_view_position(row: tuple, view: str | None) -> None:
    columns = ("ViewPosition", "ViewCodeSequence_CodeMeaning", "PerformedProcedureStepDescription")
    images = pd.DataFrame([[value or None for value in row]], columns=columns, dtype="string")
    found = views(images).iloc[0]
    assert (None if pd.isna(found) else found) == view


@pytest.mark.parametrize(
    ("context", "parts"),
    [
        (
            "Age:50-60.Gender:M.Indication: Cough, fever.Comparison: ___ radiograph.",
            ("50-60", "M", "Cough, fever.", "___ radiograph."),
        ),
        ("Age:72.0.Gender:F.Indication:nanComparison: None.", ("72.0", "F", None, "None.")),
        ("Age:50-60.Gender:M.Comparison: None.", ("50-60", "M", None, "None.")),
        ("Indication: Pain Comparison: PA, dated XXXX.", (None, None, "Pain", "PA, dated XXXX.")),
        ("Indication: Age: unknown", (None, None, "Age: unknown", None)),
        ("", (None, None, None, None)),
    ],
)
def test_rexrank_contexts(context: str, parts: tuple) -> None:
    assert tuple(parse_context(context).values()) == parts
    assert parse_context(f"Something else. {context}") is None


def test_mimic_validates_on_the_official_split_when_asked(tmp_path: Path) -> None:
    made = material.mimic(tmp_path / "mimic")
    studies = prepare("mimic", made.root, tmp_path / "out", "--validation-studies", "0")
    assert (studies["split"] == "validation").sum() == 3
    assert "split_unused" not in rejects_of(tmp_path / "out").values()
    assert studies["sex"].isna().all(), "no MIMIC-IV was given"


def test_mimic_tests_exactly_what_a_rexrank_file_lists(tmp_path: Path) -> None:
    made = material.mimic(tmp_path / "mimic")
    tests = json.loads(made.extra["rexrank"].read_text())
    left_out, reworded, *_ = tests
    del tests[left_out]
    tests[reworded]["section_findings"] = "Words of\nReXrank's own."
    # The file lists the last study of a patient whose others were training's, and one that has no frontal image.
    patients = pd.Series({s: e["patient_id"] for s, e in made.kept.items() if e["split"] == "train"})
    its = sorted(
        patients.index[patients == patients.value_counts().index[0]], key=lambda s: made.kept[s]["study_datetime"]
    )
    assert len(its) > 1
    lateral = next(s for s, reason in made.rejected.items() if reason == "no_frontal")
    for study_id in (its[-1], lateral):
        path = sorted((made.root / "files").glob(f"p*/p*/s{study_id}/*.jpg"))[0]
        image = "/" + path.relative_to(made.root / "files").as_posix()
        tests[study_id] = {
            "image_path": [image],
            "section_findings": f"Listed {study_id}.",
            "section_impression": None,
            "subject_id": int(path.parent.parent.name[1:]),
            "context": "Indication: Pain.",
            "key_image_path": image,
        }
    material.write_json(made.extra["rexrank"], tests)
    out = tmp_path / "out"
    studies = prepare("mimic", made.root, out, "--validation-studies", "2", "--rexrank", made.extra["rexrank"])
    assert set(studies.index[studies["split"] == "test"]) == set(tests)
    assert studies.loc[reworded, "findings"] == "Words of\nReXrank's own."
    assert (studies.loc[lateral, "indication"], studies.loc[lateral, "findings"]) == ("Pain.", f"Listed {lateral}.")
    assert not pd.isna(studies.loc[lateral, "study_datetime"]), "the date is the source's"
    # What else there is of those patients is priors, and in no table that is trained, validated or tested on.
    rest = frame_of(pq.read_table(out / "test_rest.parquet")).set_index("study_id")
    assert set(rest.index) >= {left_out, *its[:-1]}
    assert studies.loc[its[-1], "prior_study_id"] == its[-2]
    assert studies.loc[its[-1], "prior_image"] == rest.loc[its[-2], "image"]
    assert not set(studies.loc[studies["split"] != "test", "patient_id"]) & set(rest["patient_id"])
    card = json.loads((out / "card.json").read_text())
    kept = {name: card["test_file"][name] for name in ("dataset", "studies", "study_ids_sha256")}
    assert kept == {"dataset": "mimic", "studies": len(tests), "study_ids_sha256": ids_fingerprint(tests)}
    # What is scored has the file's references to the byte.
    for sections, expected in card["test_file"]["references_sha256"].items():
        rows = studies_of_data(out, "test")
        scored = {row["study_id"]: reference_text(row, sections) for row in rows if reference_text(row, sections)}
        assert references_fingerprint(scored) == expected
    assert card["splits"]["test_rest"]["studies"] == len(rest)
    assert "good" in check_folder(out)


def test_shards_of_a_rexrank_test_set_are_merged_to_the_same_tables(tmp_path: Path) -> None:
    made = material.mimic(tmp_path / "mimic")
    entries = json.loads(made.extra["rexrank"].read_text())
    material.write_json(made.extra["rexrank"], dict(list(entries.items())[::2]))
    arguments = ["--validation-studies", "2", "--rexrank", made.extra["rexrank"]]
    prepare("mimic", made.root, tmp_path / "whole", *arguments)
    for part in ("1/2", "2/2"):
        command = ["mimic", "--source", made.root, "--out", tmp_path / "parts", "--workers", "1", *arguments]
        assert main([*map(str, command), "--shard", part]) == 0
    assert main(["merge", str(tmp_path / "parts")]) == 0
    for name in ("test", "test_rest"):
        tables = [pq.read_table(tmp_path / folder / f"{name}.parquet") for folder in ("whole", "parts")]
        assert len(tables[0])
        assert tables[0].equals(tables[1])


def test_without_a_rexrank_file_the_card_says_that_it_is_not_rexranks_test(tmp_path: Path) -> None:
    made = material.mimic(tmp_path / "mimic")
    prepare("mimic", made.root, tmp_path / "out", "--validation-studies", "2")
    assert "Not ReXrank's test" in (tmp_path / "out" / "card.md").read_text()
    assert json.loads((tmp_path / "out" / "card.json").read_text())["test_file"] is None
    assert not (tmp_path / "out" / "test_rest.parquet").exists()


@pytest.mark.parametrize("nested", [False, True])
def test_chexpert_plus(tmp_path: Path, nested: bool) -> None:
    made = material.chexpert_plus(tmp_path / "chexpert", nested=nested)
    out = tmp_path / "out"
    studies = prepare("chexpert_plus", made.root, out)
    check_as_expected(made, studies, out)
    assert studies["prior_study_id"].isna().all(), "disputed order: no priors unless asked for"
    assert "disputed" in (out / "card.md").read_text()


def test_chexpert_plus_links_priors_by_report_order_when_asked(tmp_path: Path) -> None:
    made = material.chexpert_plus(tmp_path / "chexpert")
    studies = prepare("chexpert_plus", made.root, tmp_path / "out", "--validation-studies", "0", "--priors")
    linked = studies[studies["prior_study_id"].notna()]
    assert len(linked) > 3
    for study_id, row in linked.iterrows():
        patient, number = study_id.split("_study")
        earlier = [
            int(s.split("_study")[1])
            for s in studies.index
            if s.startswith(f"{patient}_study") and int(s.split("_study")[1]) < int(number)
        ]
        assert row["prior_study_id"] == f"{patient}_study{max(earlier)}"
    assert "disputed" in (tmp_path / "out" / "card.md").read_text()


def test_rexgradient(tmp_path: Path) -> None:
    made = material.rexgradient(tmp_path / "rexgradient")
    studies = prepare("rexgradient", made.root, tmp_path / "out")
    check_as_expected(made, studies, tmp_path / "out")
    check_priors(studies)
    assert studies["age"].min() == pytest.approx(2 / 365.25, abs=1e-3), "002D is two days"


@pytest.mark.parametrize(
    ("layout", "archive"), [("openi", False), ("openi", True), ("kaggle", False), ("r2gen", False)]
)
def test_iu_xray(tmp_path: Path, layout: str, archive: bool) -> None:
    made = material.iu_xray(tmp_path / "iu", layout, archive=archive)
    studies = prepare("iu_xray", made.root, tmp_path / "out", "--rexrank", made.extra["test"])
    for expected in made.kept.values():  # R2Gen's validation studies are trained on (paper, IU-Xray)
        expected["split"] = {"validation": "train"}.get(expected["split"], expected["split"])
    for study_id, entry in json.loads(made.extra["test"].read_text()).items():
        context = parse_context(entry["context"])
        texts = {name: entry[f"section_{name}"] for name in ("findings", "impression")}
        made.kept[study_id] |= {**texts, "indication": context["indication"], "comparison": context["comparison"]}
    check_as_expected(made, studies, tmp_path / "out")
    assert set(studies.index[studies["split"] == "test"]) == set(json.loads(made.extra["test"].read_text()))
    assert (studies["encounter"] == 1).all()


def test_iu_xray_keeps_its_own_validation_when_asked(tmp_path: Path) -> None:
    made = material.iu_xray(tmp_path / "iu")
    own = set(json.loads((made.root / "splits.json").read_text())["valid"])
    for arguments, split in (((), "train"), (("--own-validation",), "validation")):
        studies = prepare("iu_xray", made.root, tmp_path / split, *arguments)
        assert {*studies.loc[[s for s in studies.index if s in own], "split"]} == {split}


def test_iu_xray_without_a_test_split_says_where_to_evaluate(tmp_path: Path) -> None:
    made = material.iu_xray(tmp_path / "iu")
    splits = json.loads((made.root / "splits.json").read_text())
    test = set(splits.pop("test"))
    material.write_json(made.root / "splits.json", splits)
    studies = prepare("iu_xray", made.root, tmp_path / "out")
    assert not test & set(studies.index)
    assert {rejects_of(tmp_path / "out")[s] for s in test} == {"not_in_split"}
    assert json.loads((tmp_path / "out" / "card.json").read_text())["evaluation_split"] == "validation"


def test_iu_xray_without_a_split_makes_one_and_says_so(tmp_path: Path) -> None:
    made = material.iu_xray(tmp_path / "iu")
    (made.root / "splits.json").unlink()
    studies = prepare("iu_xray", made.root, tmp_path / "out", "--seed", "4")
    assert set(studies["split"]) == set(SPLITS)
    assert "do not compare with ReXrank" in (tmp_path / "out" / "card.md").read_text()


@pytest.mark.parametrize("name", ["mimic", "chexpert_plus", "iu_xray"])
def test_rexrank_file(tmp_path: Path, name: str) -> None:
    if name == "iu_xray":
        made = material.iu_xray(tmp_path / "source", "r2gen")
        file, images = made.root / "ReXRank_IUXray_test.json", made.root / "images"
    else:
        made = getattr(material, name)(tmp_path / "source")
        file, images = made.extra["rexrank"], made.root / ("files" if name == "mimic" else "PNG/PNG")
    studies = prepare("rexrank", file, tmp_path / "out", "--images", images)
    entries = json.loads(file.read_text())
    assert set(studies.index) == set(entries)
    assert set(studies["split"]) == {"test"}
    assert set(studies["dataset"]) == {name}
    for study_id, entry in entries.items():
        row, expected = studies.loc[study_id], made.kept[study_id]
        assert row["patient_id"] == expected["patient_id"]
        assert row["view"] == expected["view"]
        for section in ("findings", "impression"):
            text = entry[f"section_{section}"]
            assert row[section] == (text.strip() if isinstance(text, str) else None)
        if name != "iu_xray":
            assert row["indication"] == expected["indication"]
            assert row["sex"] == expected["sex"]
        with Image.open(tmp_path / "out" / row["image"]) as image:
            drawn = np.asarray(made.images[study_id].resize(image.size), dtype=float)
            assert np.corrcoef(drawn.ravel(), np.asarray(image, dtype=float).ravel())[0, 1] > 0.98


def test_custom(tmp_path: Path) -> None:
    made = material.custom(tmp_path / "hospital")
    studies = prepare(
        "custom", made.root, tmp_path / "out", "--mapping", made.extra["mapping"], "--name", "our_hospital"
    )
    check_as_expected(made, studies, tmp_path / "out")
    check_priors(studies)
    assert set(studies["dataset"]) == {"our_hospital"}
    assert json.loads((tmp_path / "out" / "card.json").read_text())["credentialed"] is True


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_custom_from_other_tables_without_a_split(tmp_path: Path, suffix: str) -> None:
    made = material.custom(tmp_path / "hospital")
    table = pd.read_csv(made.root / "studies.csv", dtype=str)
    if suffix == "jsonl":
        table.to_json(made.root / "studies.jsonl", orient="records", lines=True)
    else:
        table.to_parquet(made.root / "studies.parquet")
    mapping = made.extra["mapping"].read_text().replace("studies.csv", f"studies.{suffix}")
    mapping = mapping.replace("  split: fold\n", "").replace("  split: {dev: validation}\n", "")
    made.extra["mapping"].write_text(mapping + "shares: [0.6, 0.2, 0.2]\n")
    studies = prepare("custom", made.root, tmp_path / "out", "--mapping", made.extra["mapping"])
    assert set(studies.index) == set(made.kept)
    assert set(studies["split"]) == set(SPLITS)
    assert studies.groupby("patient_id")["split"].nunique().max() == 1
