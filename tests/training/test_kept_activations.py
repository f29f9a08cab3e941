"""Forward passes of few tokens keep their activations; what is computed does not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.modeling_layers import GradientCheckpointingLayer

from training.kept_activations import kept_activations

TOKENS = 12


@pytest.fixture
def model(tiny_base):
    model = AutoModelForImageTextToText.from_pretrained(tiny_base)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def one_pass(model: nn.Module, most: int | None) -> tuple[bool, int, dict[str, torch.Tensor]]:
    """Whether activations were kept, how often a decoder layer was computed, and the gradients."""
    calls = []
    hook = model.model.language_model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    ids = torch.arange(TOKENS)[None] + 20
    model.zero_grad()
    with kept_activations(model, ids.numel(), most) as kept:
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    hook.remove()
    return kept, len(calls), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("most", "kept"), [(TOKENS, True), (TOKENS - 1, False), (None, False)])
def test_a_layer_is_computed_twice_only_where_the_pass_is_long(model, most, kept):
    plain = one_pass(model, None)[2]
    told, computed, gradients = one_pass(model, most)
    assert (told, computed) == (kept, 1 if kept else 2)
    assert gradients.keys() == plain.keys()
    assert all(torch.equal(gradients[name], plain[name]) for name in plain)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers
    assert all(layer.gradient_checkpointing for layer in layers), "the next pass decides anew"


def test_it_is_set_back_when_a_pass_fails(model):
    with pytest.raises(RuntimeError, match="out of memory"), kept_activations(model, 1, 10):
        raise RuntimeError("out of memory")
    assert model.model.language_model.layers[0].gradient_checkpointing
