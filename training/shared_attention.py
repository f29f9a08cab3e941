"""Attention for rows in which several reports follow one prompt, or several studies each other: what a token may not see
is not computed.

The prompt attends to itself; then all reports of a row attend at once, each to the prompt's keys and its own. Work and memory
are those of attention over each report alone, not over the whole row, and no mask of the row's pairs is made. Studies side by
side attend one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.qwen3_vl.modeling_qwen3_vl import repeat_kv

NAME = "shared_prompt"


class Row(NamedTuple):
    """Where a row's tokens are.

    Attributes:
        prompt: tokens of the prompt, the first of the row.
        tokens: int64 [reports, longest], the place of each report's tokens in the row; beyond a report's end, any.
        back: int64 [tokens of all reports], where in the flattened `tokens` the row's tokens after the prompt are.
        visible: bool [longest, prompt + longest], which keys a report's token sees: the prompt's, and its own up to itself.
    """

    prompt: int
    tokens: torch.Tensor
    back: torch.Tensor
    visible: torch.Tensor


class Blocks(NamedTuple):
    """A row of studies side by side, none of which sees another: the tokens of each, which are all of the row's."""

    lengths: Sequence[int]


def row_of(prompt: int, reports: Sequence[int], device: torch.device) -> Row:
    """The row of a prompt of so many tokens, and reports of so many tokens each behind it."""
    lengths = torch.tensor(reports, dtype=torch.long)
    longest = max(reports, default=0)
    column = torch.arange(longest)
    starts = prompt + lengths.cumsum(0) - lengths
    within = column < lengths[:, None]
    tokens = starts[:, None] + torch.where(within, column, 0)
    visible = torch.cat(
        [torch.ones(longest, prompt, dtype=torch.bool), torch.ones(longest, longest).tril().bool()], dim=1
    )
    return Row(prompt, tokens.to(device), within.flatten().nonzero()[:, 0].to(device), visible.to(device))


def use_shared_attention(model: PreTrainedModel) -> None:
    """Let a Qwen3-VL's language model attend by this module. Where no rows are passed it attends by sdpa, as before."""
    if model.config.get_text_config()._attn_implementation != NAME:
        model.set_attn_implementation({"text_config": NAME})


def shared_prompt_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    shared_rows: Sequence[Row | Blocks] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [n, heads, L, d], key and value [n, key heads, L, d] → [n, L, heads, d].

    Args:
        shared_rows: of each of the n rows; None: plain causal rows.
    """
    if shared_rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    key, value = (repeat_kv(states, module.num_key_value_groups) for states in (key, value))
    attend = partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    rows = [_attend(attend, *states) for states in zip(query, key, value, shared_rows, strict=True)]
    return torch.stack(rows), None


def _attend(
    attend: partial[torch.Tensor], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row | Blocks
) -> torch.Tensor:
    """One row: [heads, L, d] each → [L, heads, d]."""
    if isinstance(row, Blocks):
        studies = zip(*(states[None].split(row.lengths, dim=2) for states in (query, key, value)), strict=True)
        return torch.cat([attend(*study, is_causal=True)[0].transpose(0, 1) for study in studies])
    heads, length, width = query.shape
    # Copies: views would hold all of the row's queries, keys and values for the backward pass.
    prompt = [states[None, :, : row.prompt].clone() for states in (query, key, value)]
    attended = [attend(*prompt, is_causal=True)[0].transpose(0, 1)]
    if len(row.back):
        own = [states[:, row.tokens].transpose(0, 1) for states in (query, key, value)]
        seen = [
            torch.cat([shown.expand(len(row.tokens), -1, -1, -1), states], dim=2)
            for shown, states in zip(prompt[1:], own[1:], strict=True)
        ]
        reports = attend(own[0], *seen, attn_mask=row.visible)
        attended.append(reports.transpose(1, 2).reshape(-1, heads, width)[row.back])
    used = row.prompt + len(row.back)
    return pad(torch.cat(attended), (0, 0, 0, 0, 0, length - used))


AttentionInterface.register(NAME, shared_prompt_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
