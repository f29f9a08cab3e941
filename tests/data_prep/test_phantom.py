"""Phantoms: drawn as asked, reported truthfully, the same for the same seed."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.sources import phantom
from data_prep.sources.phantom import (
    INSTITUTIONS,
    KINDS,
    Anatomy,
    Finding,
    PhantomDifficulty,
    PhantomStudy,
    draw,
    prepare,
    studies,
)
from data_prep.study import SPLITS, STUDY_SCHEMA, StudyError, read_studies, report_text
from rewards.conditions import CONDITIONS
from rewards.offline.labeler import label_reports

TERSE = ("harbor", "summit")
COLUMN = {condition: column for column, condition in enumerate(CONDITIONS)}
SLOTS = [(kind, side) for kind, spec in KINDS.items() for side in (("right", "left") if spec.sided else ("",))]
TEMPORAL = re.compile(r"\b(new|unchanged|increased|decreased|resolved|removed|prior|previous)\b", re.IGNORECASE)

# The tests' own reading of a sentence, apart from the code that writes it.
KIND_WORDS = {
    "line": r"central|catheter",
    "pacemaker": r"pacemaker",
    "cardiomegaly": r"cardiomegaly|enlargement",
    "edema": r"edema",
    "consolidation": r"consolidation",
    "opacity": r"opacity",
    "nodule": r"nodule",
    "atelectasis": r"atelectasis",
    "effusion": r"effusion",
    "pneumothorax": r"pneumothorax",
}
DENIALS = re.compile(
    r"^(no\b|there is no\b|heart size is normal|normal heart|the heart is (normal|not)|.*\bclear\b|clear|.*bones)", re.I
)


def text_of(study: PhantomStudy) -> str:
    return report_text(study.record["findings"], study.record["impression"])


def sentences(text: str) -> list[str]:
    return [s.strip() for s in re.sub(r"(Findings|Impression):", "", text).split(".") if s.strip()]


def statements(text: str) -> list[tuple[str, str, str]]:
    """(kind, side, sentence) of each sentence that says a finding is there or has gone."""
    found = []
    for sentence in sentences(text):
        if DENIALS.match(sentence):
            continue
        kinds = [kind for kind, words in KIND_WORDS.items() if re.search(words, sentence, re.IGNORECASE)]
        assert len(kinds) == 1, sentence
        sides = re.findall(r"\b(right|left)\b", sentence.lower())
        assert len(sides) == (1 if KINDS[kinds[0]].sided or kinds[0] in phantom.DEVICES else 0), sentence
        found.append((kinds[0], sides[0] if KINDS[kinds[0]].sided else "", sentence))
    return found


@pytest.fixture(scope="module")
def complete() -> dict[str, list[PhantomStudy]]:
    """300 test studies of each institution."""
    return {name: list(studies(name, seed=11, split="test", number=300, image_size=32)) for name in INSTITUTIONS}


@pytest.fixture(scope="module")
def training() -> dict[str, list[PhantomStudy]]:
    """800 training studies of each institution."""
    return {name: list(studies(name, seed=11, split="train", number=800, image_size=32)) for name in INSTITUTIONS}


def everything(*groups: dict[str, list[PhantomStudy]]) -> list[tuple[PhantomStudy, PhantomStudy | None]]:
    """Each study with its prior."""
    pairs = []
    for group in groups:
        for of_one in group.values():
            by_id = {study.record["study_id"]: study for study in of_one}
            pairs += [(study, by_id.get(study.record["prior_study_id"])) for study in of_one]
    return pairs


# ---- the prepared folder --------------------------------------------------------------------------------------------

FEW = {"train": 24, "validation": 8, "test": 8}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    prepare(tmp_path / "a", "harbor", 3, FEW)
    prepare(tmp_path / "b", "harbor", 3, FEW)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_other_seeds_and_institutions_give_other_patients(tmp_path: Path) -> None:
    images, patients, ids = {}, set(), Counter()
    for name, institution, seed in (("a", "harbor", 3), ("b", "harbor", 4), ("c", "summit", 3)):
        prepare(tmp_path / name, institution, seed, FEW)
        for split in SPLITS:
            table = read_studies(tmp_path / name, split)
            ids.update(table["study_id"].to_pylist())
            now = set(table["patient_id"].to_pylist())
            assert not now & patients, "patients must be apart between splits, seeds and institutions"
            patients |= now
        images[name] = {path.read_bytes() for path in (tmp_path / name / "images").iterdir()}
    assert max(ids.values()) == 1
    assert not images["a"] & images["b"]
    assert not images["a"] & images["c"]


def test_folder_holds_what_the_schema_says(tmp_path: Path) -> None:
    prepare(tmp_path / "phantom_prairie", "prairie", 1, FEW, image_size=64)
    truth = pq.read_table(tmp_path / "phantom_prairie" / "truth.parquet").to_pylist()
    assert len(truth) == sum(FEW.values())
    by_id = {row["study_id"]: row for row in truth}
    for split in SPLITS:
        table = read_studies(tmp_path / "phantom_prairie", split)
        assert table.schema.names == STUDY_SCHEMA.names
        assert table.num_rows == FEW[split]
        for row in table.to_pylist():
            assert row["dataset"] == "phantom_prairie"
            assert row["split"] == split
            with Image.open(tmp_path / "phantom_prairie" / row["image"]) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "L", (64, 64))
            for condition in CONDITIONS:
                assert by_id[row["study_id"]][condition] in (0, 1)
    schema = pq.read_schema(tmp_path / "phantom_prairie" / "truth.parquet")
    assert {str(schema.field(condition).type) for condition in CONDITIONS} == {"int8"}
    rejects = pq.read_table(tmp_path / "phantom_prairie" / "rejects.parquet")
    assert (rejects.num_rows, rejects.schema.names) == (0, ["study_id", "reason"])
    assert "no patient data" in (tmp_path / "phantom_prairie" / "card.md").read_text()


def test_an_institution_may_have_a_test_split_alone(tmp_path: Path) -> None:
    prepare(tmp_path / "coast", "coast", 0, {"test": 5})
    assert read_studies(tmp_path / "coast", "test").num_rows == 5
    with pytest.raises(StudyError, match="holds no study"):
        read_studies(tmp_path / "coast", "train")


def test_a_folder_prepared_earlier_is_replaced_whole(tmp_path: Path) -> None:
    prepare(tmp_path / "out", "harbor", 0, {"test": 6})
    prepare(tmp_path / "out", "summit", 0, {"test": 4})
    assert set(read_studies(tmp_path / "out", "test")["dataset"].to_pylist()) == {"phantom_summit"}
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"institution": "valley"}, "choose one of harbor"),
        ({"studies": {"dev": 3}}, "split 'dev' is unknown"),
        ({"studies": {"train": -1}}, "0 or more"),
        ({"seed": -1}, "0 or more"),
        ({"image_size": 8}, "32 or more"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        prepare(**{"out": tmp_path / "out", "institution": "harbor", "seed": 0, "studies": {"test": 2}} | arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(StudyError, match="holds no phantoms"):
        prepare(tmp_path / "out", "harbor", 0, {"test": 2})
    assert contents(tmp_path) == {"out/thesis.txt": b"mine"}


def test_a_failure_midway_leaves_nothing(tmp_path: Path) -> None:
    broken = replace(INSTITUTIONS["harbor"], races=(1.0,))  # fewer weights than races: drawing raises
    with pytest.raises(ValueError):
        prepare(tmp_path / "out", "harbor", 0, {"test": 2}, style=broken)
    assert not list(tmp_path.iterdir())


# ---- patients and encounters ----------------------------------------------------------------------------------------


def test_encounters_follow_each_other(training: dict, complete: dict) -> None:
    lengths = Counter()
    for study, prior in everything(training, complete):
        record = study.record
        lengths[record["encounter"]] += 1
        if record["encounter"] == 1:
            assert record["prior_study_id"] is None
            assert record["prior_image"] is None
            assert record["prior_report"] is None
            continue
        assert prior is not None
        assert prior.record["patient_id"] == record["patient_id"]
        assert prior.record["split"] == record["split"]
        assert prior.record["encounter"] == record["encounter"] - 1
        assert prior.record["study_datetime"] < record["study_datetime"]
        assert record["prior_image"] == prior.record["image"]
        assert record["prior_report"] == text_of(prior)
        assert record["sex"] == prior.record["sex"]
        assert record["race"] == prior.record["race"]
        assert 0 <= record["age"] - prior.record["age"] <= 1
    assert set(lengths) == {1, 2, 3, 4, 5, 6}


def test_findings_appear_stay_grow_shrink_and_resolve(training: dict) -> None:
    seen = Counter()
    for study, prior in everything(training):
        if prior is None:
            continue
        before = {f.key: f for f in prior.findings}
        now = {f.key: f for f in study.findings}
        seen["resolved"] += len(set(before) - set(now))
        seen["new"] += len(set(now) - set(before))
        for key in set(now) & set(before):
            difference = now[key].size - before[key].size
            assert abs(difference) <= 0.0501 or abs(difference) >= 0.15, "no change may be neither"
            seen["same" if abs(difference) < 0.1 else "larger" if difference > 0 else "smaller"] += 1
            assert (now[key].zone, now[key].place) == (before[key].zone, before[key].place)
    assert all(seen[what] > 50 for what in ("resolved", "new", "same", "larger", "smaller"))


def test_every_condition_of_the_phantom_is_neither_rare_nor_common(training: dict) -> None:
    drawn = {KINDS[kind].condition for kind in PhantomDifficulty().kinds}
    for of_one in training.values():
        for condition in CONDITIONS:
            share = np.mean([study.truth[condition] for study in of_one])
            if condition in drawn or condition == "No Finding":
                assert 0.08 <= share <= 0.45, (condition, share)
            else:
                assert share == 0


def test_truth_follows_from_what_was_drawn(training: dict) -> None:
    for study, _ in everything(training):
        positive = {KINDS[f.kind].condition for f in study.findings}
        assert {c for c in CONDITIONS if study.truth[c]} - {"No Finding"} == positive
        assert study.truth["No Finding"] == (not positive - {"Support Devices"})
        assert len({f.key for f in study.findings}) == len(study.findings)


def test_sizes_are_as_the_difficulty_says() -> None:
    hard = PhantomDifficulty(subtle_share=1.0, encounters=(1.0,))
    plain = PhantomDifficulty(subtle_share=0.0, encounters=(1.0,))
    for difficulty, low, high in ((hard, *hard.subtle_sizes), (plain, *plain.plain_sizes)):
        drawn = [f.size for s in studies("harbor", 0, "train", 60, 32, difficulty) for f in s.findings]
        assert len(drawn) > 50
        assert low <= min(drawn) <= max(drawn) <= high


# ---- reports --------------------------------------------------------------------------------------------------------


def test_complete_reports_recover_the_truth(complete: dict) -> None:
    for name, of_one in complete.items():
        labels = label_reports([text_of(study) for study in of_one])
        truth = np.array([[study.truth[c] for c in CONDITIONS] for study in of_one])
        assert ((labels == 1) == truth.astype(bool)).all(), name
        assert not (labels == 3).any(), name


def test_complete_reports_state_every_finding_and_no_other(complete: dict) -> None:
    for study, prior in everything(complete):
        body = study.record["findings"] or study.record["impression"]
        said = {(kind, side) for kind, side, s in statements(body) if not re.search("resolved|removed", s)}
        gone = {(kind, side) for kind, side, s in statements(body) if re.search("resolved|removed", s)}
        now = {f.key for f in study.findings}
        assert said == now, body
        assert gone == ({f.key for f in prior.findings} - now if prior else set()), body
        assert {f.key for f in study.stated} == now


def test_complete_reports_deny_the_major_findings_that_are_absent(complete: dict) -> None:
    for of_one in complete.values():
        labels = label_reports([study.record["findings"] or study.record["impression"] for study in of_one])
        for condition in ("Cardiomegaly", "Edema", "Pleural Effusion", "Pneumothorax"):
            absent = np.array([not study.truth[condition] for study in of_one])
            assert (labels[absent, COLUMN[condition]] == 2).all(), condition


@pytest.mark.parametrize("group", ["training", "complete"])
def test_no_report_contradicts_the_truth(group: str, request: pytest.FixtureRequest) -> None:
    for name, of_one in request.getfixturevalue(group).items():
        labels = label_reports([text_of(study) for study in of_one])
        truth = np.array([[study.truth[c] for c in CONDITIONS] for study in of_one]).astype(bool)
        other = [column for condition, column in COLUMN.items() if condition != "No Finding"]
        assert not ((labels == 1) & ~truth)[:, other].any(), name
        assert not ((labels == 2) & truth)[:, other].any(), name


def test_nothing_abnormal_is_called_normal(training: dict) -> None:
    for study, _ in everything(training):
        kinds = {f.kind for f in study.findings} - set(phantom.DEVICES)
        for sentence in sentences(text_of(study)):
            if re.match(r"No acute (cardio|abnormality|findings)", sentence):
                assert not kinds, text_of(study)
            if re.search("clear", sentence, re.IGNORECASE):
                assert not kinds & {"consolidation", "opacity", "nodule", "atelectasis", "edema"}, text_of(study)


def test_terse_training_reports_leave_out_at_their_rate(training: dict) -> None:
    for name, of_one in training.items():
        shown = sum(len(study.findings) for study in of_one)
        omitted = 1 - sum(len(study.stated) for study in of_one) / shown
        rate = INSTITUTIONS[name].omission_rate
        assert abs(omitted - rate) <= 4 * np.sqrt(rate * (1 - rate) / shown), name
        labels = label_reports([text_of(study) for study in of_one])
        said = np.array([[phantom.truth_labels(study.stated)[c] for c in CONDITIONS] for study in of_one])
        assert ((labels == 1) == said.astype(bool))[:, :-1].all(), f"{name}: `stated` is what the text states"
    assert all(INSTITUTIONS[name].omission_rate > 0.5 for name in TERSE)
    assert INSTITUTIONS["prairie"].omission_rate == 0


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_omission_rate_can_be_set(rate: float) -> None:
    style = replace(INSTITUTIONS["harbor"], omission_rate=rate)
    of_one = list(studies("harbor", 2, "train", 250, 32, style=style))
    shown = sum(len(study.findings) for study in of_one)
    omitted = 1 - sum(len(study.stated) for study in of_one) / shown
    assert abs(omitted - rate) <= (0.02 if rate in (0.0, 1.0) else 4 * np.sqrt(rate * (1 - rate) / shown))


def test_temporal_words_only_with_a_prior_or_a_film_from_elsewhere(training: dict, complete: dict) -> None:
    with_words = 0
    for study, prior in everything(training, complete):
        if prior is None:
            style = INSTITUTIONS[study.record["dataset"].removeprefix("phantom_")]
            words = {word.lower() for word in TEMPORAL.findall(text_of(study))}
            assert words <= (
                {"unchanged", "prior"} if study.record["split"] == "train" and style.outside_films else set()
            )
            assert study.record["comparison"] in (None, "None.", "No comparison available.")
        else:
            assert re.fullmatch(r"Chest radiograph \d+ days? earlier\.", study.record["comparison"])
            with_words += bool(TEMPORAL.search(text_of(study)))
    assert with_words > 300


def test_first_encounters_are_compared_with_films_from_elsewhere_at_their_rate(training: dict) -> None:
    for name, of_one in training.items():
        firsts = [s for s in of_one if s.record["prior_study_id"] is None and s.stated]
        share = np.mean([bool(TEMPORAL.search(text_of(study))) for study in firsts])
        rate = INSTITUTIONS[name].outside_films
        assert abs(share - rate) <= 4 * np.sqrt(rate * (1 - rate) / len(firsts)), name
    assert {name for name, style in INSTITUTIONS.items() if style.outside_films} == {"harbor", "prairie"}


def test_temporal_words_sides_zones_and_sizes_are_those_drawn(training: dict, complete: dict) -> None:
    checked = Counter()
    for study, prior in everything(training, complete):
        now = {f.key: f for f in study.findings}
        before = {f.key: f for f in prior.findings} if prior else {}
        for kind, side, sentence in statements(text_of(study)):
            key = (kind, side)
            words = set(re.findall(r"[a-z]+", sentence.lower()))
            if words & {"resolved", "removed"}:
                assert key in before, sentence
                assert key not in now, sentence
                checked["gone"] += 1
                continue
            assert key in now, sentence
            if prior:
                difference = now[key].size - before[key].size if key in before else None
                expected = (
                    "new"
                    if difference is None
                    else "unchanged"
                    if abs(difference) < 0.1
                    else "increased"
                    if difference > 0
                    else "decreased"
                )
                assert words & {"new", "unchanged", "increased", "decreased"} == {expected}, sentence
                checked[expected] += 1
            third = int(min(now[key].size, 0.999) * 3)
            sizes = words & {"small", "mild", "moderate", "large", "severe"}
            assert sizes == ({KINDS[kind].sizes[third]} - {""}), sentence
            assert words & {"upper", "lower"} == ({now[key].zone} - {""}), sentence
    assert min(checked[what] for what in ("gone", "new", "unchanged", "increased", "decreased")) > 50


def test_impressions_put_the_urgent_first_and_repeat_no_finding(complete: dict) -> None:
    for study, _ in everything(complete):
        if not (study.record["findings"] and study.record["impression"]):
            continue
        kinds = [(kind, side) for kind, side, _ in statements(study.record["impression"])]
        assert len(kinds) == len(set(kinds)) <= phantom.IMPRESSION_LENGTH
        present = {f.kind for f in study.findings} - set(phantom.DEVICES)
        assert bool(kinds) == bool(present)
        if "pneumothorax" in present:
            assert kinds[0][0] == "pneumothorax"


def test_some_reports_lack_a_section(training: dict, complete: dict) -> None:
    for group in (training, complete):
        for name, style in INSTITUTIONS.items():
            records = [study.record for study in group[name]]
            for share, section in ((style.without_findings, "findings"), (style.without_impression, "impression")):
                lacking = np.mean([record[section] is None for record in records])
                assert abs(lacking - share) <= 4 * np.sqrt(share * (1 - share) / len(records)), (name, section)


def test_words_are_few_and_reports_short(training: dict, complete: dict) -> None:
    texts = [text_of(study) for study, _ in everything(training, complete)]
    assert len({word for text in texts for word in re.findall(r"[A-Za-z]+", text)}) < 200
    for name, of_one in complete.items():
        words = [len(text_of(study).split()) for study in of_one]
        assert 25 <= statistics.mean(words) <= 60, name
        assert np.percentile(words, 95) <= 95, name
    assert statistics.mean(len(text_of(s).split()) for name in TERSE for s in training[name]) < 25


def test_institutions_write_in_their_own_way(complete: dict) -> None:
    """Each prefers other phrasings, uses all, and the zero-shot one prefers what no training institution prefers."""
    favourites = {}
    for name, of_one in complete.items():
        said = Counter(sentence for study in of_one for sentence in sentences(text_of(study)))
        hearts = Counter({normal: said[normal.rstrip(".")] for normal in phantom.NORMAL["heart"]})
        assert min(hearts.values()) > 0, name
        favourites[name] = hearts.most_common(1)[0][0]
        assert hearts[favourites[name]] > 0.5 * hearts.total(), name
    for name in ("summit", "prairie"):
        assert favourites.pop(f"{name}_reread") == favourites[name]  # the same hospital, read again
    assert len(set(favourites.values())) == len(favourites) == 4


def test_only_summits_templates_give_the_institution_away(training: dict) -> None:
    """The same indications and image quality everywhere; summit alone writes its own words for "no comparison"."""
    shares = {}
    for name, of_one in training.items():
        said = Counter(study.record["indication"] for study in of_one)
        shares[name] = said
    for indication in shares["harbor"]:
        rates = [shares[name][indication] / 800 for name in INSTITUTIONS]
        assert max(rates) - min(rates) < 0.08, (indication, rates)
    assert len({(INSTITUTIONS[name].contrast, INSTITUTIONS[name].noise) for name in (*TERSE, "prairie")}) == 1
    words = {
        name: {s.record["comparison"] for s in of_one if s.record["comparison"] and not s.record["prior_study_id"]}
        for name, of_one in training.items()
    }
    assert words["harbor"] == words["prairie"] == words["prairie_reread"] == words["coast"] == {"None."}
    assert words["summit"] == words["summit_reread"] == {"No comparison available."}


def test_second_reads_are_of_other_patients_and_complete(training: dict) -> None:
    """What RL takes its references from: the hospital's templates, nothing left out, nobody whom SFT has seen."""
    for name in ("summit", "prairie"):
        first, again = training[name], training[f"{name}_reread"]
        assert not {s.record["patient_id"] for s in first} & {s.record["patient_id"] for s in again}
        assert all(len(study.stated) == len(study.findings) for study in again)


# ---- images ---------------------------------------------------------------------------------------------------------

SIZE = 96


def pixels(findings: list[Finding], seed: int = 0, size: int = SIZE, **arguments) -> np.ndarray:
    image = draw(findings, Anatomy(), np.random.default_rng(seed), size, **arguments)
    return np.asarray(image, np.float32)


# Where each finding changes the picture, in fractions of the side (x0, x1, y0, y1); the patient's right is image left.
RIGHT, LEFT = (0.08, 0.50), (0.50, 0.92)
PLACES = {
    ("line", ""): (0.25, 0.52, 0.0, 0.50),
    ("pacemaker", ""): (0.42, 0.90, 0.08, 0.75),
    ("cardiomegaly", ""): (0.15, 0.92, 0.45, 0.90),
    ("edema", ""): (0.10, 0.90, 0.10, 0.85),
    ("consolidation", "right"): (*RIGHT, 0.10, 0.85),
    ("consolidation", "left"): (*LEFT, 0.10, 0.85),
    ("opacity", "right"): (*RIGHT, 0.10, 0.85),
    ("opacity", "left"): (*LEFT, 0.10, 0.85),
    ("nodule", "right"): (*RIGHT, 0.10, 0.85),
    ("nodule", "left"): (*LEFT, 0.10, 0.85),
    ("atelectasis", "right"): (*RIGHT, 0.55, 0.90),
    ("atelectasis", "left"): (*LEFT, 0.55, 0.90),
    ("effusion", "right"): (*RIGHT, 0.40, 0.90),
    ("effusion", "left"): (*LEFT, 0.40, 0.90),
    ("pneumothorax", "right"): (*RIGHT, 0.05, 0.90),
    ("pneumothorax", "left"): (*LEFT, 0.05, 0.90),
}


@pytest.mark.parametrize("key", SLOTS, ids="-".join)
@pytest.mark.parametrize("zone", ["upper", "lower"])
def test_a_finding_changes_the_image_where_it_should_and_only_there(key: tuple[str, str], zone: str) -> None:
    kind, side = key
    x0, x1, y0, y1 = (round(edge * SIZE) for edge in PLACES[key])
    for seed in range(4):
        plain = pixels([], seed)
        total = []
        for size in (0.1, 0.5, 0.95):
            finding = Finding(kind, size, side, zone if KINDS[kind].zoned else "")
            difference = np.abs(pixels([finding], seed) - plain)
            inside = difference[y0:y1, x0:x1].sum()
            assert inside >= 0.98 * difference.sum(), "changes outside its place"
            total.append(inside)
        assert total[0] > 100, "too faint to be there at all"
        assert total[0] < total[1] < total[2], "a larger one changes more"


@pytest.mark.parametrize("kind", ["consolidation", "opacity", "nodule"])
def test_zones_are_upper_and_lower(kind: str) -> None:
    for side in ("right", "left"):
        rows = {}
        for zone in ("upper", "lower"):
            difference = np.abs(pixels([Finding(kind, 0.5, side, zone)]) - pixels([]))
            rows[zone] = (difference.sum(axis=1) * np.arange(SIZE)).sum() / difference.sum()
        assert rows["lower"] - rows["upper"] > 0.2 * SIZE


def test_air_is_dark_and_fluid_bright() -> None:
    plain = pixels([])
    air = pixels([Finding("pneumothorax", 0.8, "right")]) - plain
    fluid = pixels([Finding("effusion", 0.8, "right")]) - plain
    assert air.sum() < 0 < fluid.sum()
    assert np.abs(air[:, SIZE // 2 :]).sum() == np.abs(fluid[:, SIZE // 2 + 2 :]).sum() == 0


def test_other_findings_do_not_hide_one() -> None:
    """A dense effusion and edema leave a consolidation on the same side visible."""
    others = [Finding("effusion", 0.9, "right"), Finding("edema", 0.9), Finding("cardiomegaly", 0.9)]
    difference = np.abs(pixels([*others, Finding("consolidation", 0.5, "right", "lower")]) - pixels(others))
    assert difference.sum() > 2000


def test_the_same_generator_draws_the_same_and_another_does_not() -> None:
    assert (pixels([], 1) == pixels([], 1)).all()
    assert np.abs(pixels([], 1) - pixels([], 2)).mean() > 2


def test_patients_and_sexes_look_different_but_stay_the_same_person() -> None:
    rng = np.random.default_rng(0)
    one, other = Anatomy.random(rng, "F", 40), Anatomy.random(rng, "F", 40)
    quiet = PhantomDifficulty(variation=0, noise=0)

    def of(anatomy: Anatomy, seed: int) -> np.ndarray:
        return np.asarray(draw([], anatomy, np.random.default_rng(seed), SIZE, quiet), np.float32)

    between = np.abs(of(one, 1) - of(other, 1)).mean()
    within = np.abs(of(one, 1) - of(one, 2)).mean()
    assert between > 2 * within
    assert Anatomy.random(rng, "M", 40).breast == 0 < one.breast


@pytest.mark.parametrize("size", [32, 96, 512, 700])
def test_any_size_shows_the_same_chest(size: int) -> None:
    quiet = PhantomDifficulty(noise=0, variation=0)
    findings = [Finding("effusion", 0.6, "left"), Finding("line", 0.8), Finding("cardiomegaly", 0.5)]
    image = draw(findings, Anatomy(), np.random.default_rng(0), size, quiet)
    assert (image.mode, image.size) == ("L", (size, size))
    small = np.asarray(image.resize((32, 32), Image.Resampling.BOX), np.float32)
    reference = draw(findings, Anatomy(), np.random.default_rng(0), 1024, quiet)
    whole = np.asarray(reference.resize((32, 32), Image.Resampling.BOX), np.float32)
    assert np.abs(small - whole).mean() < 3


def test_difficulty_changes_contrast_and_noise() -> None:
    nodule = [Finding("nodule", 0.5, "right", "upper")]

    def change(contrast: float) -> float:
        difficulty = PhantomDifficulty(contrast=contrast)
        return float(np.abs(pixels(nodule, difficulty=difficulty) - pixels([], difficulty=difficulty)).sum())

    assert change(0.5) < change(1.0) < change(1.5)
    rough = np.std(np.diff(pixels([], difficulty=PhantomDifficulty(noise=12.0))[:8, :8]))
    smooth = np.std(np.diff(pixels([], difficulty=PhantomDifficulty(noise=1.0))[:8, :8]))
    assert rough > 3 * smooth


def test_findings_cost_little_beside_the_film_that_they_are_drawn_on() -> None:
    crowded = [
        Finding("edema", 0.5),
        Finding("effusion", 0.5, "right"),
        Finding("pneumothorax", 0.5, "left"),
        Finding("consolidation", 0.5, "right", "upper"),
        Finding("line", 0.5),
    ]

    def seconds(findings: list[Finding]) -> float:
        """Of this process, the quickest of five: the machine may be busy with other things."""
        rng, batches = np.random.default_rng(0), []
        for _ in range(5):
            start = time.process_time()
            for _ in range(20):
                draw(findings, Anatomy(breast=0.05), rng)
            batches.append(time.process_time() - start)
        return min(batches)

    draw(crowded, Anatomy(), np.random.default_rng(0))
    assert seconds(crowded) < 4 * seconds([])
