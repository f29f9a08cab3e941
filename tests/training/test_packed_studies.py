"""One row for several studies: no padding, restarted positions, nothing seen of a neighbour."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from data_prep.prepared import load_studies
from model.processor import load_processor
from training.data import completion_dataset
from training.packed_studies import LENGTHS, pack_batch
from training.shared_attention import Blocks, use_shared_attention


@pytest.fixture(scope="module")
def padded(tiny_base, phantom_data):
    """A model, and a batch of six studies as TRL pads it, with and without a prior film."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    model = AutoModelForImageTextToText.from_pretrained(tiny_base, attn_implementation="sdpa").eval()
    use_shared_attention(model)
    studies = load_studies(["phantom_harbor"], phantom_data, "train")[:6]
    rows = completion_dataset(studies, longitudinal=True, context=True)
    collate = DataCollatorForVisionLanguageModeling(load_processor(str(tiny_base)), completion_only_loss=True)
    return model, collate([rows[i] for i in range(len(rows))])


def run(model, batch):
    inputs = {name: value for name, value in batch.items() if name not in (LENGTHS, "labels")}
    if LENGTHS in batch:
        inputs.pop("attention_mask")
        inputs["shared_rows"] = [Blocks(batch[LENGTHS].tolist())]
    with torch.no_grad():
        return model(**inputs).logits


def test_each_token_has_the_logits_that_it_has_in_a_row_of_its_own(padded):
    model, batch = padded
    seen = batch["attention_mask"].bool()
    packed = pack_batch(dict(batch), model.model.get_rope_index)
    assert packed["input_ids"].shape == (1, seen.sum())
    assert len(set(packed[LENGTHS].tolist())) > 1, "studies of one length would show nothing"
    torch.testing.assert_close(run(model, packed)[0], run(model, batch)[seen], rtol=1e-4, atol=1e-5)


def test_nothing_is_computed_for_padding_and_all_that_is_scored_stays(padded):
    model, batch = padded
    packed = pack_batch(dict(batch), model.model.get_rope_index)
    real, computed = int(batch["attention_mask"].sum()), packed["input_ids"].numel()
    assert batch["input_ids"].numel() / real > 1.02 >= computed / real
    assert (packed["labels"] != -100).sum() == (batch["labels"][:, 1:] != -100).sum()


def test_a_neighbour_changes_nothing(padded):
    model, batch = padded
    packed = pack_batch(dict(batch), model.model.get_rope_index)
    first = int(packed[LENGTHS][0])
    before = run(model, packed)[0]
    text = (packed["mm_token_type_ids"][0, :first] == 0).nonzero()[1:4, 0]
    changed = packed | {"input_ids": packed["input_ids"].clone()}
    changed["input_ids"][0, text] = 30
    after = run(model, changed)[0]
    assert not torch.equal(after[:first], before[:first])
    assert torch.equal(after[first:], before[first:])


def test_the_first_token_of_a_study_is_no_label_of_its_neighbours(padded):
    model, batch = padded
    packed = pack_batch(batch | {"labels": batch["input_ids"].clone()}, model.model.get_rope_index)
    starts = packed[LENGTHS].cumsum(0) - packed[LENGTHS]
    assert (packed["labels"][0, starts] == -100).all()
    assert (packed["labels"] == -100).sum() == len(starts)
