"""RaTEScore against its own package, on random weights in its models' formats; every row guarded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from random_weights import write_ratescore
from safetensors.torch import load_file, save_file
from synthetic_reports import reports

from rewards.engine import EngineSettings
from rewards.ratescore import RateScore
from rewards.registry import load_metrics
from rewards.weights import WeightsError

pytest.importorskip("medspacy", reason="pip install --no-deps -r requirements-ratescore.txt")

PLAIN = reports(1, seed=42)[0]
LONG = ("Small left effusion (unchanged), edema. " * 300)[:10_000]
WITHOUT_SENTENCE = ["", " ", "\n\n", "a", "no"]
ODD = [
    "None",
    "effusion",
    "wört – ünïcode ⟨≥⟩ 5µm 心臓",
    "no headings here\nand a new line",
    ". , / ( )",
    "the " * 700,
    LONG,
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ratescore(tmp_path_factory.mktemp("metrics") / "weights")


@pytest.fixture(scope="module")
def metric(weights: Path) -> RateScore:
    return load_metrics(["ratescore"], "real", weights)["ratescore"]


@pytest.fixture(scope="module")
def package(metric: RateScore, weights: Path):
    """The package as its authors show it, on the same folders."""
    from RaTEScore import RaTEScore

    folders = [str(weights / name) for name in ("RaTE-NER-Deberta", "BioLORD-2023-C")]
    return RaTEScore(bert_model=folders[0], eval_model=folders[1], use_gpu=False)


def _is_ambiguous(entities: list[tuple[str, str]] | None) -> bool:
    """Whether a name stands there with two types. Its two vectors are equal, and which of them the package's search for
    the nearest one finds hangs on the last bit of a product."""
    return len({name for name, _ in entities or ()}) < len(set(entities or ()))


def test_scores_equal_the_packages(metric: RateScore, package) -> None:
    short, others = ([text.split("Impression: ")[1] for text in reports(60, seed=seed)] for seed in (1, 2))
    candidates = [*short, *reports(15, seed=3), PLAIN, *ODD]
    references = [*others, *reports(15, seed=4), PLAIN, *[PLAIN] * len(ODD)]
    expected = np.array([package.compute_score([c], [r])[0] for c, r in zip(candidates, references, strict=True)])
    found = metric(candidates, references)
    entities = metric._report_entities([*candidates, *references])
    clear = [
        not (_is_ambiguous(entities[c]) or _is_ambiguous(entities[r]))
        for c, r in zip(candidates, references, strict=True)
    ]
    assert sum(clear) > 30
    np.testing.assert_allclose(found[clear], expected[clear], atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert np.isclose(found, expected, atol=1e-5).mean() > 0.8
    assert np.std(found[:60]) > 0.01
    assert found[75] > 0.99


def test_entities_equal_the_packages(metric: RateScore, package) -> None:
    from RaTEScore.score import run_ner

    texts = [*reports(40, seed=3), *ODD]
    expected = run_ner(texts, package.idx2label, package.tokenizer, package.model, package.device, 1)
    assert list(metric._report_entities(texts).values()) == expected
    assert {kind for entities in expected for _, kind in entities} == {kind for kind, _ in metric.affinities} - {"NEG"}
    assert sum(map(len, expected)) > 200


def test_odd_texts_score_finitely_and_in_their_rows(metric: RateScore) -> None:
    candidates = [*WITHOUT_SENTENCE, *ODD, PLAIN]
    scores = metric(candidates, [PLAIN] * len(candidates))
    np.testing.assert_array_equal(scores[: len(WITHOUT_SENTENCE)], 0)
    alone = [metric([text], [PLAIN])[0] for text in candidates]
    np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert scores[-1] > 0.99
    backwards = metric([PLAIN] * len(candidates), candidates)
    assert ((backwards >= 0) & (backwards <= 1)).all()
    np.testing.assert_array_equal(metric(WITHOUT_SENTENCE, WITHOUT_SENTENCE), 0)
    with pytest.raises(ValueError, match="1 candidates but 2 references"):
        metric([PLAIN], [PLAIN, PLAIN])


def test_a_report_without_entities_scores_one_half_as_in_the_package(metric: RateScore, package) -> None:
    words = [word for word in " ".join(reports(20, seed=8)).split() if len(word) >= 3]
    without = next(word for word in words if metric._report_entities([word]) == {word: []})
    assert metric([without], [PLAIN])[0] == package.compute_score([without], [PLAIN])[0] == 0.5


def test_a_sentence_and_an_entity_are_encoded_once(weights: Path) -> None:
    metric = RateScore(weights)
    shared, other = "There is a small left pleural effusion.", "The heart size is normal."
    metric([f"{shared} {other}", f"{other} {shared}", shared], [shared, other, f"{other} {shared}"])
    assert metric.entities.texts_encoded == 2
    names = {name for entities in metric._report_entities([shared, other]).values() for name, _ in entities}
    assert metric.vectors.texts_encoded == len(names)


def test_disk_cache_spares_the_forward_pass_and_keeps_the_numbers(weights: Path, tmp_path: Path) -> None:
    settings = EngineSettings(cache_dir=tmp_path / "cache")
    candidates, references = reports(6, seed=1), reports(6, seed=2)
    first = RateScore(weights, settings)(candidates, references)
    again = RateScore(weights, settings)
    np.testing.assert_array_equal(again(candidates, references), first)
    assert again.entities.texts_encoded == again.vectors.texts_encoded == 0


def test_the_sentence_splitter_does_not_log_reports(metric: RateScore, capfd: pytest.CaptureFixture) -> None:
    metric(["A fresh report on Mr Confidential."], [PLAIN])
    assert "Confidential" not in "".join(capfd.readouterr())


def test_what_is_missing_or_does_not_fit_is_named_with_its_mend(weights: Path, tmp_path: Path) -> None:
    for name in ("RaTE-NER-Deberta", "BioLORD-2023-C", "RaTE-NER-Deberta/model.safetensors"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(weights, copy)
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
        with pytest.raises(WeightsError, match=rf"{name} is missing; fetch it with: make weights WEIGHTS_DIR={copy}"):
            load_metrics(["ratescore"], "real", copy)
    copy = tmp_path / "other"
    shutil.copytree(weights, copy)
    config = copy / "RaTE-NER-Deberta" / "config.json"
    config.write_text(config.read_text().replace("B-ANATOMY", "B-PERSON"))
    with pytest.raises(WeightsError, match=r"labels B-PERSON, which RaTEScore does not know"):
        load_metrics(["ratescore"], "real", copy)
    other = tmp_path / "tensors"
    shutil.copytree(weights, other)
    for name in ("RaTE-NER-Deberta", "BioLORD-2023-C"):
        file = other / name / "model.safetensors"
        tensors = load_file(file)
        gone = next(key for key in tensors if "encoder.layer.0." in key)
        save_file({key: value for key, value in tensors.items() if key != gone}, file, {"format": "pt"})
        with pytest.raises(WeightsError, match=rf"{name} lacks 1 tensors of its model"):
            load_metrics(["ratescore"], "real", other)
        save_file(tensors, file, {"format": "pt"})
    (copy / "BioLORD-2023-C" / "model.safetensors").write_bytes(b"broken")
    config.write_text(json.dumps(json.loads(config.read_text().replace("B-PERSON", "B-ANATOMY"))))
    with pytest.raises(WeightsError, match=r"BioLORD-2023-C cannot be loaded .*fetch it again: make weights"):
        load_metrics(["ratescore"], "real", copy)
