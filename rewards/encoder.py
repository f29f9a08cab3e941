"""Encoder forward passes for scoring: token ids of a batch of texts in, hidden states out, no padding among them.

On a CPU, `PackedEncoder`: the texts stand one after another in one matrix [tokens, hidden], so no arithmetic is spent
on padding; attention alone works text by text. On a GPU, where few large kernels win, and for a model that is no BERT
or RoBERTa, `PaddedEncoder`: transformers' own forward pass. Both give the same numbers up to float rounding (a test
holds them to 1e-5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

# Not cuDNN's attention, torch's first choice for bfloat16 on Hopper: it plans each new shape, and every batch of texts is one.
# With torch's choice an H100 took 2.4 times as long in bfloat16 as in float32; that this was the cause is not measured yet.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class PackedEncoder:
    """The first `layers` layers of a BERT or RoBERTa model.

    One thread at a time: calls share scratch memory.

    Attributes:
        hidden_size: width of a token's vector.
        max_length: most tokens a text may have, special ones included.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        layers: int | None = None,
    ) -> None:
        """Take the weights of `model`, a transformers BertModel or RobertaModel; `layers` None takes all.

        Raises:
            ValueError: another architecture, or fewer layers than asked for.
        """
        config: Any = model.config
        if config.model_type not in ("bert", "roberta"):
            raise ValueError(f"packed encoder: {config.model_type} is not bert or roberta")
        if config.hidden_act != "gelu" or getattr(config, "is_decoder", False):
            raise ValueError(f"packed encoder: activation {config.hidden_act} or a decoder is not supported")
        if layers is not None and layers > config.num_hidden_layers:
            raise ValueError(f"the model has {config.num_hidden_layers} layers, {layers} are needed")
        # Products and attention are in `dtype`; embeddings, residuals and norms stay float32, as under autocast.
        self.device, self.dtype = torch.device(device), dtype
        self.hidden_size, self.heads = config.hidden_size, config.num_attention_heads
        self.eps = config.layer_norm_eps
        self._scratch: dict[str, Tensor] = {}
        # RoBERTa counts positions from after its padding token's.
        self.first_position = config.pad_token_id + 1 if config.model_type == "roberta" else 0
        self.max_length = config.max_position_embeddings - self.first_position

        def take(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            return tensor.detach().to(self.device, dtype)

        def linear(*parts: Any) -> tuple[Tensor, Tensor]:
            return take(torch.cat([p.weight for p in parts]), dtype), take(torch.cat([p.bias for p in parts]), dtype)

        embeddings: Any = model.embeddings
        self.words = take(embeddings.word_embeddings.weight)
        # Every text is of token type 0, so its vector joins the position's.
        self.positions = take(embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0])
        self.norm = (take(embeddings.LayerNorm.weight), take(embeddings.LayerNorm.bias))
        self.layers = []
        for layer in list(model.encoder.layer)[:layers]:
            attention = layer.attention.self
            self.layers.append(
                {
                    "qkv": linear(attention.query, attention.key, attention.value),
                    "out": linear(layer.attention.output.dense),
                    "norm1": (
                        take(layer.attention.output.LayerNorm.weight),
                        take(layer.attention.output.LayerNorm.bias),
                    ),
                    "up": linear(layer.intermediate.dense),
                    "down": linear(layer.output.dense),
                    "norm2": (take(layer.output.LayerNorm.weight), take(layer.output.LayerNorm.bias)),
                }
            )

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]], first_only: bool = False) -> Tensor:
        """Last hidden states of the texts, float32 [tokens, hidden], one text after another.

        Args:
            ids: token ids of each text, special ones included; none empty, none longer than `max_length`. Texts of
                equal length next to each other share an attention call.
            first_only: only the first token's vector of each text, [texts, hidden]; the last layer then works on those
                positions alone.
        """
        lengths = [len(text) for text in ids]
        flat = torch.tensor([token for text in ids for token in text], device=self.device)
        places = torch.cat([torch.arange(n) for n in lengths]).to(self.device) + self.first_position
        x = functional.embedding(flat, self.words) + functional.embedding(places, self.positions)
        x = self._norm(x, self.norm)
        runs = _runs(lengths)
        for number, layer in enumerate(self.layers):
            last = first_only and number == len(self.layers) - 1
            x = self._layer(x, layer, runs, first_only=last)
        return x

    def _norm(self, x: Tensor, parameters: tuple[Tensor, Tensor]) -> Tensor:
        return functional.layer_norm(x, (self.hidden_size,), *parameters, self.eps)

    def _layer(self, x: Tensor, layer: dict, runs: list[tuple[int, int, int]], first_only: bool) -> Tensor:
        """One transformer layer; in place and in memory that is kept, as beside the matrix products, passes over memory
        and fresh pages of it are what costs most: residuals are accumulated by the products themselves."""
        weight, bias = layer["qkv"]
        width = self.hidden_size
        if first_only:
            starts = torch.tensor([start + i * n for start, count, n in runs for i in range(count)], device=self.device)
            x, source = x[starts], x
            query = self._product("query", x, weight[:width], bias[:width])
            key_value = self._product("qkv", source, weight[width:], bias[width:])
        else:
            projected = self._product("qkv", x, weight, bias)
            query, key_value = projected[:, :width], projected[:, width:]
        attended = self._kept("attended", len(x), width)
        row = 0
        for start, count, n in runs:
            rows = count if first_only else count * n
            shape = (count, -1, self.heads, width // self.heads)
            q = query[row : row + rows].view(shape).transpose(1, 2)
            block = key_value[start : start + count * n]
            k, v = (part.view(shape).transpose(1, 2) for part in (block[:, :width], block[:, width:]))
            output = functional.scaled_dot_product_attention(q, k, v)
            attended[row : row + rows].view(shape).copy_(output.transpose(1, 2))
            row += rows
        x = self._norm(_add_product(x, attended, *layer["out"]), layer["norm1"])
        hidden = torch.ops.aten.gelu_(self._product("up", x, *layer["up"]))
        return self._norm(_add_product(x, hidden, *layer["down"]), layer["norm2"])

    def _product(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x · weightᵀ + bias in the memory kept under `name`: valid until that name is asked for again."""
        x = x.to(self.dtype)
        return torch.mm(x, weight.T, out=self._kept(name, len(x), len(weight))).add_(bias)

    def _kept(self, name: str, rows: int, width: int) -> Tensor:
        """Uninitialised memory [rows, width], the same again while a batch needs no more."""
        held = self._scratch.get(name)
        if held is None or held.numel() < rows * width:
            held = self._scratch[name] = torch.empty(rows * width, device=self.device, dtype=self.dtype)
        return held[: rows * width].view(rows, width)


def _add_product(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x + y · weightᵀ + bias, in place of x."""
    x.add_(bias)
    return x.addmm_(y, weight.T) if y.dtype == x.dtype else x.add_(y @ weight.T)


class PaddedEncoder:
    """transformers' forward pass over a padded batch; attributes and call as `PackedEncoder`."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        layers: int | None = None,
        compile_model: bool = False,
    ) -> None:
        """`layers` can only be given for a BERT or RoBERTa; `compile_model` goes through torch.compile."""
        config: Any = model.config
        if layers is not None:
            if layers > config.num_hidden_layers:
                raise ValueError(f"the model has {config.num_hidden_layers} layers, {layers} are needed")
            encoder: Any = model.encoder
            encoder.layer = encoder.layer[:layers]
        self.device = torch.device(device)
        self.hidden_size, self.padding = config.hidden_size, config.pad_token_id or 0
        first = self.padding + 1 if config.model_type == "roberta" else 0
        self.max_length = config.max_position_embeddings - first
        self.dtype = dtype
        model = model.eval().to(self.device)
        self.model = torch.compile(model, dynamic=True) if compile_model else model

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]], first_only: bool = False) -> Tensor:
        lengths = torch.tensor([len(text) for text in ids])
        padded = torch.full((len(ids), int(lengths.max())), self.padding)
        mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
        padded[mask] = torch.tensor([token for text in ids for token in text])
        mask = mask.to(self.device)
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with autocast, sdpa_kernel(ATTENTION):
            hidden = self.model(input_ids=padded.to(self.device), attention_mask=mask.long()).last_hidden_state
        return (hidden[:, 0] if first_only else hidden[mask]).float()


Encoder = PackedEncoder | PaddedEncoder


def _runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first token, number of texts, tokens a text) of each run of equally long texts."""
    runs: list[tuple[int, int, int]] = []
    start = 0
    for n in lengths:
        if runs and runs[-1][2] == n:
            first, count, _ = runs[-1]
            runs[-1] = (first, count + 1, n)
        else:
            runs.append((start, 1, n))
        start += n
    return runs
