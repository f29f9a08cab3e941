"""The RadGraph model (Jain et al. 2021; DyGIE++, Wadden et al. 2019) on the radgraph package's weights, batched.

The same entities and relations as radgraph 0.1.18, which annotates one report at a time and scores every span and every
pair of kept spans with the full network. Here the first layer over [start; end; width] is split into a product for each
word and sums for each span, and relations are scored only between spans that are both kept by the pruner and entities:
the package drops all others afterwards (`get_entity`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rewards.engine import EngineSettings, TextModel
from rewards.radgraph import Entity, Graph
from rewards.weights import WeightsError, encoder_folder, fingerprint, load_pretrained, load_state, radgraph_folder

# Pairs of spans that go through the relation network at once: bounds its memory at about 100 MB.
_PAIRS_AT_ONCE = 8192


@dataclass(frozen=True)
class _Report:
    """A tokenised report: its words, the number of word pieces of each, and the pieces in segments with [CLS], [SEP]."""

    words: list[str]
    pieces: list[int]
    segments: list[list[int]]


class _FeedForward:
    """Linear layers, each followed by ReLU, then one without."""

    def __init__(self, state: dict[str, Tensor], hidden: str, last: str, device: torch.device) -> None:
        def layer(name: str) -> tuple[Tensor, Tensor]:
            return state[f"{name}.weight"].float().to(device), state[f"{name}.bias"].float().to(device)

        count = sum(name.startswith(f"{hidden}.") and name.endswith(".weight") for name in state)
        self.first, *self.middle = [layer(f"{hidden}.{i}") for i in range(count)]
        self.last = layer(last)

    def after_first(self, x: Tensor) -> Tensor:
        """The rest of the network after the first layer's product with its input, bias not yet added."""
        x = torch.relu(x + self.first[1])
        for weight, bias in self.middle:
            x = torch.relu(functional.linear(x, weight, bias))
        return functional.linear(x, *self.last)


class RadGraphModel(TextModel[Graph]):
    """A RadGraph archive of StanfordAIMI/RRG_scorers. Values: the graph of each text, empty for a text without words.

    A text of more than 510 word pieces goes through the encoder in segments of 510, as in the package.
    """

    def __init__(self, weights_dir: Path, model: str = "radgraph", settings: EngineSettings | None = None) -> None:
        """Load `model` (radgraph, radgraph-xl or modern-radgraph-xl) from `weights_dir` (see rewards/weights.py).

        Raises:
            WeightsError: weights missing, damaged, or with parts that the package's RadGraph does not have.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        settings = settings or EngineSettings()
        folder = radgraph_folder(weights_dir, model)
        self.model = model
        ner, relation = f"{model}__ner_labels", f"{model}__relation_labels"
        vocabulary = folder / "vocabulary"
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            shape = config["model"]
            name = shape["embedder"]["token_embedders"]["bert"]["model_name"]
            self.width = int(config["dataset_reader"]["max_span_width"])
            self.segment = int(shape["embedder"]["token_embedders"]["bert"]["max_length"])
            self.spans_per_word = float(shape["modules"]["relation"]["spans_per_word"])
            unsupported = shape["modules"]["coref"].get("coref_prop", 0) or shape["loss_weights"].get("coref", 0)
            self.entity_labels = (vocabulary / f"{ner}.txt").read_text(encoding="utf-8").split("\n")
            self.relation_labels = (vocabulary / f"{relation}.txt").read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise WeightsError(
                f"{folder} is no RadGraph model ({error!r}); remove it and fetch it again: make weights"
            ) from error
        if unsupported:
            raise WeightsError(f"{folder}: coreference propagation is on, which no published RadGraph has")

        encoder = encoder_folder(weights_dir, name)
        files = [
            folder / "config.json",
            folder / "weights.th",
            *sorted(vocabulary.glob("*.txt")),
            encoder / "config.json",
        ]
        files += [encoder / name for name in ("tokenizer.json", "vocab.txt") if (encoder / name).exists()]
        super().__init__(fingerprint(files), settings)
        device = settings.torch_device
        self.tokenizer = load_pretrained(AutoTokenizer, encoder)
        self._pieces: dict[str, list[int]] = {}

        state: dict[str, Any] = load_state(folder / "weights.th")
        prefix = "_embedder.token_embedder_bert._matched_embedder.transformer_model."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        bert = AutoModel.from_config(load_pretrained(AutoConfig, encoder))
        expected = bert.state_dict().keys()
        try:
            missing = [key for key in expected if key not in own and not key.startswith("pooler.")]
            if missing:
                raise KeyError(missing[0])
            bert.load_state_dict({key: value for key, value in own.items() if key in expected}, strict=False)
            self.width_vectors = state["_endpoint_span_extractor._span_width_embedding.weight"].float().to(device)
            self.entity_net = _FeedForward(
                state, f"_ner._ner_scorers.{ner}.0._module._linear_layers", f"_ner._ner_scorers.{ner}.1._module", device
            )
            pruner = f"_relation._mention_pruners.{relation}._scorer"
            self.mention_net = _FeedForward(state, f"{pruner}.0._module._linear_layers", f"{pruner}.1._module", device)
            self.relation_net = _FeedForward(
                state,
                f"_relation._relation_feedforwards.{relation}._linear_layers",
                f"_relation._relation_scorers.{relation}",
                device,
            )
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{folder / 'weights.th'} does not fit its config.json ({reason})") from error
        self.encoder = settings.encoder(bert)

    # --- texts to word pieces ---------------------------------------------------------------------------------------

    def prepare(self, texts: list[str]) -> tuple[list[_Report], list[int]]:
        from radgraph.utils import preprocess_reports

        # The package annotates the word None for an empty report; such rows score 0 anyway (`RadGraphF1`).
        words = [report["sentences"][0] for report in preprocess_reports(texts, self.model)]
        self._tokenise({word for report in words for word in report})
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        room = self.segment - 2
        reports, lengths = [], []
        for report in words:
            ids = [self._pieces[word] for word in report]
            flat = [piece for word in ids for piece in word]
            segments = [[start, *flat[i : i + room], end] for i in range(0, len(flat), room)]
            reports.append(_Report(report, [len(word) for word in ids], segments))
            lengths.append(sum(map(len, segments)))
        if len(self._pieces) > 200_000:  # rare words of long runs; the vocabulary of reports is far smaller
            self._pieces.clear()
        return reports, lengths

    def _tokenise(self, words: set[str]) -> None:
        new = [self._word(word) for word in words if word not in self._pieces]
        if new:
            ids = self.tokenizer(new, add_special_tokens=False)["input_ids"]
            names = [word for word in words if word not in self._pieces]
            self._pieces.update(zip(names, ids, strict=True))

    @staticmethod
    def _word(word: str) -> str:
        # DyGIEReader._normalize_word
        return word[1:] if word in ("/.", "/?") else word

    # --- word pieces to graphs --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, prepared: list[_Report]) -> list[Graph]:
        full = [report for report in prepared if report.segments]
        if not full:
            return [() for _ in prepared]
        words = self._word_vectors(full)
        graphs = iter(self._decode(words, full))
        return [next(graphs) if report.segments else () for report in prepared]

    def _word_vectors(self, reports: list[_Report]) -> Tensor:
        """Mean of each word's pieces, float32 [words, hidden], zeros for a word without pieces; reports in order."""
        segments = [segment for report in reports for segment in report.segments]
        order = sorted(range(len(segments)), key=lambda i: len(segments[i]))  # equal lengths share an attention call
        hidden = self.encode(self.encoder, [segments[i] for i in order])
        parts: list[Tensor] = [hidden] * len(segments)
        for i, part in zip(order, hidden.split([len(segments[i]) for i in order]), strict=True):
            parts[i] = part[1:-1]
        pieces = torch.cat(parts)
        counts = torch.tensor([count for report in reports for count in report.pieces], device=hidden.device)
        owner = torch.repeat_interleave(torch.arange(len(counts), device=hidden.device), counts)
        total = torch.zeros(len(counts), hidden.shape[1], device=hidden.device).index_add_(0, owner, pieces)
        return total / counts.clamp_min(1)[:, None]

    def _decode(self, words: Tensor, reports: list[_Report]) -> list[Graph]:
        device = words.device
        lengths = np.array([len(report.words) for report in reports])
        starts, ends, counts = _spans(lengths, self.width)
        start, end = torch.from_numpy(starts).to(device), torch.from_numpy(ends).to(device)
        entity = self._score_spans(self.entity_net, words, start, end)
        mention = self._score_spans(self.mention_net, words, start, end)[:, 0]
        best, label = entity.max(dim=1)
        is_entity = best > 0  # the null label's score is 0
        kept = self._kept(mention, counts, lengths) & is_entity

        entities = is_entity.nonzero()[:, 0].cpu().numpy()
        labels = label[is_entity].cpu().numpy()
        related = self._relations(words, start, end, mention, kept, counts)
        first_span = np.concatenate([[0], np.cumsum(counts)])
        first_word = np.concatenate([[0], np.cumsum(lengths)])
        bounds = np.searchsorted(entities, first_span)
        graphs: list[Graph] = []
        for i, report in enumerate(reports):
            chosen = range(bounds[i], bounds[i + 1])
            number = {int(entities[k]): k - bounds[i] for k in chosen}
            graph = []
            for k in chosen:
                span = int(entities[k])
                a, b = int(starts[span] - first_word[i]), int(ends[span] - first_word[i])
                relations = tuple(
                    (self.relation_labels[kind], int(number[other])) for other, kind in related.get(span, ())
                )
                # Label 0 is the null label, which has no score.
                graph.append(
                    Entity(" ".join(report.words[a : b + 1]), self.entity_labels[labels[k] + 1], a, b, relations)
                )
            graphs.append(tuple(graph))
        return graphs

    def _score_spans(self, net: _FeedForward, words: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The network's scores of each span [spans, labels]; its first layer is factorised over the span's parts."""
        weight, width = net.first[0], words.shape[1]
        at_start = words @ weight[:, :width].T
        at_end = words @ weight[:, width : 2 * width].T
        of_width = self.width_vectors @ weight[:, 2 * width :].T
        return net.after_first(at_start[start] + at_end[end] + of_width[end - start])

    def _kept(self, mention: Tensor, counts: np.ndarray, lengths: np.ndarray) -> Tensor:
        """The pruner: each report's best spans by mention score, ceil(words · spans_per_word) of them."""
        kept = torch.zeros_like(mention, dtype=torch.bool)
        first = 0
        for spans, words in zip(counts.tolist(), lengths.tolist(), strict=True):
            # In float32, as the package computes it.
            wanted = int(np.ceil(np.float32(words) * np.float32(self.spans_per_word)))
            top = mention[first : first + spans].topk(min(max(wanted, 1), spans)).indices
            kept[first + top] = True
            first += spans
        return kept

    def _relations(
        self, words: Tensor, start: Tensor, end: Tensor, mention: Tensor, kept: Tensor, counts: np.ndarray
    ) -> dict[int, list[tuple[int, int]]]:
        """For each span its relations (other span, label), others in order; within a report, itself included."""
        spans = kept.nonzero()[:, 0]
        vectors = torch.cat([words[start[spans]], words[end[spans]], self.width_vectors[(end - start)[spans]]], dim=1)
        owner = np.searchsorted(np.cumsum(counts), spans.cpu().numpy(), side="right")
        sizes = np.bincount(owner, minlength=len(counts))
        one, two = _pairs(sizes)
        net, width = self.relation_net, vectors.shape[1]
        weight = net.first[0]
        as_first, as_second = vectors @ weight[:, :width].T, vectors @ weight[:, width : 2 * width].T
        product = weight[:, 2 * width :].T
        found: dict[int, list[tuple[int, int]]] = {}
        names = spans.tolist()
        for first in range(0, len(one), _PAIRS_AT_ONCE):
            i = torch.from_numpy(one[first : first + _PAIRS_AT_ONCE]).to(words.device)
            j = torch.from_numpy(two[first : first + _PAIRS_AT_ONCE]).to(words.device)
            scores = net.after_first(as_first[i] + as_second[j] + (vectors[i] * vectors[j]) @ product)
            scores = scores + (mention[spans[i]] + mention[spans[j]])[:, None]
            best, label = scores.max(dim=1)
            positive = best > 0
            triples = zip(i[positive].tolist(), j[positive].tolist(), label[positive].tolist(), strict=True)
            for a, b, kind in triples:
                found.setdefault(names[a], []).append((names[b], kind))
        return found

    # --- caches -----------------------------------------------------------------------------------------------------

    def size(self, value: Graph) -> int:
        return 400 * len(value) + 100 * sum(len(entity.relations) for entity in value)

    def pack(self, value: Graph) -> bytes:
        rows = [[e.tokens, e.label, e.start, e.end, [list(r) for r in e.relations]] for e in value]
        return json.dumps(rows).encode()

    def unpack(self, data: bytes) -> Graph:
        return tuple(Entity(*row[:4], tuple((kind, other) for kind, other in row[4])) for row in json.loads(data))

    def annotate(self, texts: Sequence[str]) -> list[Graph]:
        """The graph of each text."""
        return self.values(texts)


def _spans(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All spans of up to `width` words of reports with `lengths` words that stand one after another.

    Returns:
        First and last word of each span, int64 [spans], in the package's order; and the number of spans a report.
    """
    total = int(lengths.sum())
    last = np.repeat(np.cumsum(lengths), lengths)
    starts = np.repeat(np.arange(total), width)
    ends = starts + np.tile(np.arange(width), total)
    inside = ends < np.repeat(last, width)
    owner = np.repeat(np.repeat(np.arange(len(lengths)), lengths), width)[inside]
    return starts[inside], ends[inside], np.bincount(owner, minlength=len(lengths))


def _pairs(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of indices within groups of `sizes` that stand one after another, row by row."""
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    one = [np.repeat(np.arange(start, start + n), n) for start, n in zip(first, sizes, strict=True)]
    two = [np.tile(np.arange(start, start + n), n) for start, n in zip(first, sizes, strict=True)]
    return np.concatenate(one), np.concatenate(two)
