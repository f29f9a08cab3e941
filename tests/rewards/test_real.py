"""The real backends against the packages themselves, on weights with random numbers in the published formats."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_writers import write_values
from random_weights import write_weights
from safetensors.torch import load_file, save_file
from synthetic_reports import grpo_batch, reports

from launch.verifying.packages import PUBMEDBERT, MendedCheXbert, bertscore_oracle, radgraph_oracle
from rewards.bertscore import BertScore, RobertaVectors
from rewards.chexbert import CheXbert
from rewards.conditions import CONDITIONS, TOP_FIVE, binary_labels
from rewards.encoder import PackedEncoder, PaddedEncoder
from rewards.engine import DiskCache, EngineSettings, MemoryCache, token_batches
from rewards.label_f1 import label_f1
from rewards.metric import MetricError
from rewards.radgraph import Entity, radgraph_f1
from rewards.radgraph_model import RadGraphModel
from rewards.registry import load_labeler, load_metrics
from rewards.weights import WeightsError, encoder_folder, load_state, radgraph_folder

REAL = [
    "bleu2",
    "bertscore",
    "sembscore",
    "sembscore_labels",
    "radgraph",
    "radgraph_simple",
    "radgraph_partial",
    "radgraph_complete",
    "radcliq_v1",
    "radcliq_v0",
]
PLAIN = reports(1, seed=42)[0]
ODD = [
    "",
    " ",
    "None",
    "effusion",
    "a",
    "wört – ünïcode ⟨≥⟩ 5µm 心臓",
    "no headings here\nand a new line",
    "  leading   spaces",
    ". , / ( )",
]
# Largest change of a score that benchmarks/README.md states for bfloat16 encoders.
BFLOAT16_TOLERANCE = {"bertscore": 0.05, "sembscore": 0.02, "radgraph": 0.2}
LONG = ("Small left effusion (unchanged), edema. " * 300)[:10_000]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("metrics") / "weights", radgraph=("radgraph", "radgraph-xl"))


@pytest.fixture(scope="module")
def radgraph(weights: Path) -> RadGraphModel:
    return RadGraphModel(weights)


@pytest.fixture(scope="module")
def chexbert(weights: Path) -> CheXbert:
    return CheXbert(weights)


@pytest.fixture(scope="module")
def roberta(weights: Path) -> RobertaVectors:
    return RobertaVectors(weights)


def _package_graphs(weights: Path, name: str, texts: list[str], tmp_path: Path) -> list[dict]:
    shutil.copytree(radgraph_folder(weights, name), tmp_path / name)
    package = radgraph_oracle(tmp_path, name, weights / PUBMEDBERT.split("/")[1])
    found = package(texts)
    return [found[str(i)] for i in range(len(texts))]


def _as_graph(annotation: dict) -> tuple[Entity, ...]:
    """The package's annotation in our form."""
    return tuple(
        Entity(e["tokens"], e["label"], e["start_ix"], e["end_ix"], tuple((k, int(o) - 1) for k, o in e["relations"]))
        for e in annotation["entities"].values()
    )


# --- parity with the packages -------------------------------------------------------------------------------------------


def test_radgraph_graphs_equal_the_packages(weights: Path, radgraph: RadGraphModel, tmp_path: Path) -> None:
    texts = reports(220, seed=3) + [text for text in ODD if text.strip()] + [" ".join(reports(6, seed=4))]
    expected = [_as_graph(annotation) for annotation in _package_graphs(weights, "radgraph", texts, tmp_path)]
    found = radgraph.annotate(texts)
    words = sum(len(text.split()) for text in texts)
    assert sum(map(len, expected)) > 0.3 * words  # the set is rich, or this test would say little
    assert sum(len(entity.relations) for graph in expected for entity in graph) > 0.1 * words
    assert {entity.label for graph in expected for entity in graph} == {"ANAT-DP", "OBS-DP", "OBS-DA", "OBS-U"}
    different = [text for text, one, two in zip(texts, found, expected, strict=True) if one != two]
    assert not different, f"{len(different)} of {len(texts)} graphs differ, e.g. of {different[0][:80]!r}"


def test_radgraph_xl_graphs_equal_the_packages(weights: Path, tmp_path: Path) -> None:
    texts = reports(20, seed=6) + [text for text in ODD if text.strip()]
    expected = [_as_graph(annotation) for annotation in _package_graphs(weights, "radgraph-xl", texts, tmp_path)]
    assert RadGraphModel(weights, "radgraph-xl").annotate(texts) == expected


def test_radgraph_levels_equal_the_packages_rewards(weights: Path, radgraph: RadGraphModel, tmp_path: Path) -> None:
    from radgraph.rewards import compute_reward

    candidates, references = reports(25, seed=7), reports(25, seed=8)
    annotations = _package_graphs(weights, "radgraph", candidates + references, tmp_path)
    for level in ("simple", "partial", "complete"):
        expected = [compute_reward(annotations[i], annotations[25 + i], level) for i in range(25)]
        metric = load_metrics([f"radgraph_{level}"], "real", weights)[f"radgraph_{level}"]
        np.testing.assert_allclose(metric(candidates, references), expected, atol=1e-6)
        assert max(expected) > 0


def test_combined_is_the_mean_of_entity_and_relation_f1() -> None:
    def effusion(*others: Entity, relation: bool = True) -> tuple[Entity, ...]:
        related = (("located_at", 1),) if relation else ()
        return (Entity("effusion", "OBS-DP", 1, 1, related), Entity("pleural", "ANAT-DP", 0, 0), *others)

    small = Entity("small", "OBS-DP", 2, 2, (("modify", 0),))
    large = Entity("large", "OBS-DP", 2, 2, (("modify", 0),))
    reference = effusion(small, Entity("pneumothorax", "OBS-DA", 4, 4))
    candidate = effusion(large, Entity("Pneumothorax", "OBS-DA", 4, 4))  # case counts
    assert radgraph_f1(candidate, reference) == pytest.approx(0.5)
    assert radgraph_f1(effusion(relation=False), effusion(relation=False)) == 0.5
    assert radgraph_f1((), ()) == 0
    assert radgraph_f1(reference, reference) == 1


def test_chexbert_vectors_and_labels_equal_the_packages(weights: Path, chexbert: CheXbert) -> None:
    texts = [*reports(60, seed=3), *ODD, "the " * 600]
    package = MendedCheXbert(weights)
    expected = np.stack([package.vector(text).numpy() for text in texts])
    np.testing.assert_allclose(chexbert.vectors(texts), expected, atol=1e-5)
    labels = chexbert.label_reports(texts)
    assert labels.shape == (len(texts), 14)
    assert set(np.unique(labels[:, :13])) == {0, 1, 2, 3}
    np.testing.assert_array_equal(binary_labels(labels), [package.labels(text) for text in texts])


def test_bertscore_equals_the_packages(weights: Path, roberta: RobertaVectors) -> None:
    candidates = [*reports(40, seed=1), "None", "effusion", "wört – ünïcode ⟨≥⟩", "a new\nline", "the " * 600, PLAIN]
    references = [*reports(40, seed=2), PLAIN, PLAIN, PLAIN, PLAIN, PLAIN, PLAIN]
    expected = bertscore_oracle(weights, candidates, references)
    found = BertScore(roberta)(candidates, references)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[-1] == pytest.approx(1, abs=1e-6)
    assert np.std(found[:40]) > 0.01


def test_bertscore_collapses_spaces_and_asks_for_the_prefix_space(roberta: RobertaVectors) -> None:
    ids = roberta.prepare(["small   effusion", " small effusion", "a small effusion"])[0]
    assert ids[0] == ids[1]
    # "small" is the same token at the start as after another word.
    assert ids[0][1] == ids[2][2]


def test_empty_text_has_raw_bertscore_zero(roberta: RobertaVectors) -> None:
    metric = BertScore(roberta)
    lowest = (0 - 0.8473319) / (1 - 0.8473319)
    np.testing.assert_allclose(metric(["", PLAIN, "", PLAIN], [PLAIN, "", "", PLAIN]), [lowest] * 3 + [1], atol=1e-5)


def test_radcliq_of_an_empty_report_is_finite_and_far_from_all_others(metrics: dict) -> None:
    semantic = metrics["sembscore"](["", PLAIN], [PLAIN, ""]).astype(float)
    scores = metrics["radcliq_v1"](["", PLAIN], [PLAIN, ""])
    np.testing.assert_allclose(scores, 11.612 - 0.99477 * semantic, atol=1e-3)
    others = metrics["radcliq_v1"](reports(10, seed=1), reports(10, seed=2))
    assert scores.min() > others.max()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_packed_forward_equals_transformers(kind: str) -> None:
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    if kind == "bert":
        model = BertModel(BertConfig(vocab_size=100, **shape))
    else:
        model = RobertaModel(RobertaConfig(vocab_size=100, pad_token_id=1, max_position_embeddings=130, **shape))
    model.eval()
    ids = [torch.randint(5, 100, (n,)).tolist() for n in (7, 7, 3, 90, 2)]
    packed, padded = PackedEncoder(model), PaddedEncoder(model)
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([one])).last_hidden_state[0] for one in ids])
    first = [0, 7, 14, 17, 107]
    for encoder in (packed, padded):
        torch.testing.assert_close(encoder(ids), alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(encoder(ids, first_only=True), alone[first], atol=1e-5, rtol=0)
    with torch.no_grad():
        second = torch.cat([model(torch.tensor([one]), output_hidden_states=True).hidden_states[2][0] for one in ids])
    torch.testing.assert_close(PackedEncoder(model, layers=2)(ids), second, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="3 layers, 4 are needed"):
        PackedEncoder(model, layers=4)


# --- every metric, every row --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metrics(weights: Path) -> dict:
    return load_metrics(REAL, "real", weights)


@pytest.mark.parametrize("name", REAL)
def test_odd_texts_score_finitely_and_in_their_rows(metrics: dict, name: str) -> None:
    metric = metrics[name]
    candidates = [*ODD, LONG, PLAIN]
    scores = metric(candidates, [PLAIN] * len(candidates))
    assert np.isfinite(scores).all()
    alone = [metric([text], [PLAIN])[0] for text in candidates]
    np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert scores[-1] == pytest.approx(metric([PLAIN], [PLAIN])[0], abs=1e-6)
    assert np.isfinite(metric([PLAIN] * len(ODD), ODD)).all()
    with pytest.raises(ValueError, match="1 candidates but 2 references"):
        metric([PLAIN], [PLAIN, PLAIN])


def test_real_metrics_carry_their_bare_names_and_fingerprints(metrics: dict, weights: Path) -> None:
    assert all(metric.name == name for name, metric in metrics.items())
    assert metrics["radcliq_v1"].backend == "real"
    assert len(metrics["radgraph"].fingerprint) == 64
    assert metrics["sembscore"].fingerprint == load_labeler("real", weights).fingerprint
    assert metrics["sembscore"].fingerprint != metrics["radgraph"].fingerprint


def test_radcliq_is_made_of_the_four_parts(metrics: dict) -> None:
    from rewards.radcliq import radcliq_v1

    candidates, references = reports(5, seed=1), reports(5, seed=2)
    parts = [metrics[name](candidates, references) for name in ("radgraph", "bertscore", "sembscore", "bleu2")]
    np.testing.assert_allclose(metrics["radcliq_v1"](candidates, references), radcliq_v1(*parts), atol=1e-5)


def test_label_f1_equals_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    have, want = rng.integers(0, 4, (2, 80, 14))
    have[:, 3] = want[:, 3] = 0  # a condition that nobody has
    found = label_f1(have, want)
    a, b = binary_labels(have), binary_labels(want)
    each = f1_score(b, a, average=None, zero_division=0)
    np.testing.assert_allclose(list(found["conditions"].values()), each)
    assert found["micro_14"] == pytest.approx(f1_score(b, a, average="micro", zero_division=0))
    assert found["macro_14"] == pytest.approx(f1_score(b, a, average="macro", zero_division=0))
    five = [CONDITIONS.index(name) for name in TOP_FIVE]
    assert found["micro_5"] == pytest.approx(f1_score(b[:, five], a[:, five], average="micro", zero_division=0))
    with pytest.raises(ValueError, match=r"\(80, 14\) and \(79, 14\)"):
        label_f1(have, want[:-1])


# --- the engine ---------------------------------------------------------------------------------------------------------


def test_identical_texts_are_encoded_once_and_references_stay_cached(weights: Path) -> None:
    loaded = load_metrics(
        ["sembscore", "sembscore_labels", "radgraph", "radgraph_simple", "radcliq_v1"], "real", weights
    )
    radgraph, chexbert = loaded["radgraph"].annotate.__self__, loaded["sembscore"].vectors.__self__
    candidates, references = grpo_batch(prompts=2, rollouts=16)
    unique = len({*candidates, *references})
    assert unique < 0.75 * len(candidates)
    for metric in loaded.values():
        metric(candidates, references)
    assert radgraph.texts_encoded == chexbert.texts_encoded == unique
    loaded["radgraph"](["A new rollout."], references[:1])
    assert radgraph.texts_encoded == unique + 1


def test_token_batches_keep_the_budget_and_every_text() -> None:
    lengths = [3, 50, 7, 7, 120, 1, 33, 7]
    batches = list(token_batches(lengths, 100))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 100
    assert list(token_batches([], 100)) == []


def test_scores_do_not_depend_on_the_batching(weights: Path) -> None:
    texts = reports(30, seed=5)
    one = RadGraphModel(weights, settings=EngineSettings(tokens_per_batch=1))
    all_at_once = RadGraphModel(weights, settings=EngineSettings(tokens_per_batch=10**6))
    assert one.annotate(texts) == all_at_once.annotate(texts)


def test_memory_cache_is_bounded_and_drops_the_least_recently_used() -> None:
    cache: MemoryCache[int] = MemoryCache(100)
    for i in range(10):
        cache.put(str(i), i, 30)
        cache.get("7")
    assert len(cache) == 3
    assert cache.bytes <= 100
    assert cache.get("7") == 7
    assert cache.get("0") is None
    cache.put("huge", 1, 1000)
    assert cache.get("huge") is None


def test_memory_stays_flat_over_many_pairs(weights: Path) -> None:
    import psutil

    process = psutil.Process()
    loaded = load_metrics(["bleu2", *BFLOAT16_TOLERANCE], "real", weights, EngineSettings(cache_megabytes=1))
    resident = {}
    for start in range(0, 8000, 250):
        candidates = [f"Small left effusion number {i}." for i in range(start, start + 250)]
        for metric in loaded.values():
            metric(candidates, [text.replace("effusion", "opacity") for text in candidates])
        resident[start + 250] = process.memory_info().rss / 2**20
    model = loaded["sembscore"].vectors.__self__
    assert model.texts_encoded == 16_000
    assert model._memory.bytes <= 2**20
    assert resident[8000] - resident[2000] < 30  # MB: 5 kB a pair would be found


def test_disk_cache_spares_the_forward_pass_and_keeps_the_numbers(weights: Path, tmp_path: Path) -> None:
    settings = EngineSettings(cache_dir=tmp_path / "cache")
    candidates, references = reports(12, seed=1), reports(12, seed=2)
    first = {n: m(candidates, references) for n, m in load_metrics(REAL, "real", weights, settings).items()}
    again = load_metrics(REAL, "real", weights, settings)
    for name, metric in again.items():
        np.testing.assert_array_equal(metric(candidates, references), first[name])
    models = (again["radgraph"].annotate.__self__, again["sembscore"].vectors.__self__, again["bertscore"].model)
    assert [model.texts_encoded for model in models] == [0, 0, 0]


def test_disk_cache_is_safe_for_several_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_values, args=(tmp_path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    cache = DiskCache(tmp_path)
    assert cache.get([cache.key("shared", str(i)) for i in range(100)]) == [str(i).encode() for i in range(100)]
    assert cache.get([cache.key(str(n), "99") for n in range(4)]) == [b"own"] * 3 + [None]


def test_disk_cache_keeps_its_bound_and_drops_the_oldest(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=500_000)
    sizes = []
    for step in range(60):
        cache.put([(cache.key(str(step), str(i)), bytes(1000)) for i in range(50)])  # 3 MB in all
        assert cache.bytes_used() <= 500_000
        sizes.append(cache.path.stat().st_size)
    assert max(sizes) < 700_000
    assert cache.get([cache.key("59", str(i)) for i in range(50)]) == [bytes(1000)] * 50
    assert cache.get([cache.key("0", "0"), cache.key("20", "0")]) == [None, None]
    cache.put([(cache.key("huge"), bytes(2_000_000))])
    assert cache.bytes_used() <= 500_000


def test_a_models_disk_cache_has_the_settings_bound(weights: Path, tmp_path: Path) -> None:
    settings = EngineSettings(cache_dir=tmp_path / "cache", cache_disk_megabytes=1)
    metric = load_metrics(["radgraph"], "real", weights, settings)["radgraph"]
    texts = reports(600, seed=31)
    values = [metric(texts[i : i + 100], texts[i : i + 100]) for i in range(0, 600, 100)]
    file = tmp_path / "cache" / DiskCache.FILE_NAME
    assert file.stat().st_size <= 1.5 * 2**20
    again = load_metrics(["radgraph"], "real", weights, settings)["radgraph"]
    np.testing.assert_array_equal(again(texts[500:], texts[500:]), values[-1])
    assert again.annotate.__self__.texts_encoded == 0
    again(texts[:100], texts[:100])  # long dropped
    assert again.annotate.__self__.texts_encoded == 100


def test_cache_bounds_are_at_least_one_megabyte() -> None:
    with pytest.raises(ValueError, match="cache_disk_megabytes is 0; at least 1"):
        EngineSettings(device="cpu", cache_disk_megabytes=0)


def test_fingerprint_changes_with_the_weights(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "weights"
    shutil.copytree(weights, copy)
    before = CheXbert(copy).fingerprint
    assert before == CheXbert(weights).fingerprint
    checkpoint = load_state(copy / "chexbert.pth")
    checkpoint["model_state_dict"]["module.linear_heads.0.bias"] += 1
    torch.save(checkpoint, copy / "chexbert.pth")
    assert CheXbert(copy).fingerprint != before


def test_bfloat16_changes_scores_within_its_stated_tolerance_and_says_so(metrics: dict, weights: Path) -> None:
    settings = EngineSettings(device="cpu", dtype="bfloat16")
    candidates, references = grpo_batch(prompts=2, rollouts=16)
    names = list(BFLOAT16_TOLERANCE)
    for name, metric in load_metrics(names, "real", weights, settings).items():
        change = np.abs(metric(candidates, references) - metrics[name](candidates, references))
        assert 0 < change.max() < BFLOAT16_TOLERANCE[name], (name, change.max())
        assert "@bfloat16" in metric.fingerprint
        assert "@bfloat16" not in metrics[name].fingerprint


def test_half_precision_that_a_cpu_lacks_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="float16 is for a GPU"):
        EngineSettings(device="cpu", dtype="float16")
    with pytest.raises(ValueError, match="dtype 'fp8' is unknown"):
        EngineSettings(dtype="fp8")


# --- weights: what is missing, damaged or hostile -------------------------------------------------------------------------


def test_missing_weights_are_named_with_the_command_that_fetches_them(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"make weights WEIGHTS_DIR=.*nowhere"):
        load_metrics(["radgraph"], "real", tmp_path / "nowhere")
    for name, metric in (("chexbert.pth", "sembscore"), ("distilroberta-base", "bertscore"), ("radgraph", "radgraph")):
        copy = tmp_path / name.split(".")[0]
        shutil.copytree(weights, copy)
        for path in copy.glob(f"{name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(WeightsError, match=rf"{name}.* is missing; fetch it with: make weights"):
            load_metrics([metric], "real", copy)


def test_a_pickle_that_runs_code_is_refused(weights: Path, tmp_path: Path) -> None:
    import pickle

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    shutil.copytree(weights / "bert-base-uncased", tmp_path / "bert-base-uncased")
    for content in (pickle.dumps(Hostile()), b"not a checkpoint", b""):
        (tmp_path / "chexbert.pth").write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be loaded"):
            CheXbert(tmp_path)
    torch.save({"model_state_dict": Hostile()}, tmp_path / "chexbert.pth")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        CheXbert(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("member", ["../escaped", "/escaped", "vocabulary/../../escaped", "link"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path, member: str) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    with tarfile.open(folder / "radgraph.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo(member)
        if member == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        else:
            info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(WeightsError, match="unsafe member"):
        radgraph_folder(folder, "radgraph")
    assert not list(tmp_path.rglob("escaped"))
    assert [path.name for path in folder.iterdir()] == ["radgraph.tar.gz"]  # nothing half-extracted


def test_a_broken_or_partial_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "radgraph.tar.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(WeightsError, match="not a readable archive"):
        radgraph_folder(tmp_path, "radgraph")
    with tarfile.open(tmp_path / "radgraph.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("config.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    with pytest.raises(WeightsError, match=r"lacks vocabulary, weights\.th"):
        radgraph_folder(tmp_path, "radgraph")


def test_a_checkpoint_cannot_name_an_encoder_outside_the_weights_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "secret").mkdir()
    with pytest.raises(WeightsError, match=r"weights/secret is missing"):
        encoder_folder(tmp_path / "weights", "../secret")
    with pytest.raises(WeightsError, match="no model name"):
        encoder_folder(tmp_path / "weights", "..")


def test_a_damaged_encoder_folder_is_named_with_its_mend(weights: Path, tmp_path: Path) -> None:
    damage = {
        "distilroberta-base/model.safetensors": "bertscore",
        "distilroberta-base/tokenizer.json": "bertscore",
        "bert-base-uncased/config.json": "sembscore",
        f"{PUBMEDBERT.split('/')[1]}/tokenizer_config.json": "radgraph",
    }
    for number, (name, metric) in enumerate(damage.items()):
        copy = tmp_path / str(number)
        shutil.copytree(weights, copy)
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: min(len(content) // 2, 300)])  # a transfer that broke off
        with pytest.raises(WeightsError, match=rf"{name.split('/')[0]} cannot be loaded .*make weights"):
            load_metrics([metric], "real", copy)


def test_a_bertscore_model_without_some_tensors_is_refused_and_one_without_a_pooler_taken(
    weights: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "weights"
    shutil.copytree(weights, copy)
    file = copy / "distilroberta-base" / "model.safetensors"
    tensors = load_file(file)
    for gone in ("encoder.layer.2.", "embeddings.LayerNorm.bias"):
        save_file({name: value for name, value in tensors.items() if gone not in name}, file, {"format": "pt"})
        with pytest.raises(WeightsError, match=r"distilroberta-base lacks \d+ tensors of its model \(.*make weights"):
            load_metrics(["bertscore"], "real", copy)
    save_file({name: value for name, value in tensors.items() if "pooler." not in name}, file, {"format": "pt"})
    assert load_metrics(["bertscore"], "real", copy)["bertscore"]([PLAIN], [PLAIN])[0] == pytest.approx(1, abs=1e-5)


def test_scores_that_are_no_numbers_are_one_line_that_names_the_weights(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "weights"
    shutil.copytree(weights, copy)
    file = copy / "distilroberta-base" / "model.safetensors"
    tensors = load_file(file)
    next(value for name, value in tensors.items() if "layer.0." in name).fill_(float("nan"))
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(MetricError, match=r"bertscore: backend real gave 0 finite scores for 1 pairs; .*make weights"):
        load_metrics(["bertscore"], "real", copy)["bertscore"]([PLAIN], ["Another text."])


def test_radgraph_config_without_its_parts_is_refused(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "weights"
    shutil.copytree(weights, copy)
    folder = radgraph_folder(copy, "radgraph")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["modules"]["coref"]["coref_prop"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="coreference"):
        RadGraphModel(copy)
    (folder / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="no RadGraph model"):
        RadGraphModel(copy)
