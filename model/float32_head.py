"""`cast_lm_head_to_fp32`: logits in float32 from a policy in 16 bits, with embeddings tied or not.

TRL 1.16 looks for the embeddings where a Qwen3-VL does not have them, and fails.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from trl.trainer.utils import add_fused_lm_head


def float32_head(model: nn.Module, temperature: float, outputs: tuple[str, ...]) -> None:
    """Have `model` compute its logits in float32: where it generates, and where TRL takes log-probabilities of tokens.

    A head that is tied to the embeddings stays tied: both are float32 then, and embedded tokens go on in 16 bits.

    Args:
        temperature: as TRL's fused head has it.
        outputs: what TRL's fused head returns of each token.
    """
    base = model.get_base_model() if is_peft_model(model) else model
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    dtype = embeddings.weight.dtype
    head.float()
    head.forward = lambda hidden: _without_autocast(head, hidden)
    if embeddings.weight.dtype != dtype:  # tied
        embeddings.register_forward_hook(lambda module, inputs, output: output.to(dtype))
    add_fused_lm_head(base, temperature, cast_lm_head_to_fp32=True, outputs=outputs)


def _without_autocast(head: nn.Linear, hidden: torch.Tensor) -> Any:
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden.float(), head.weight, head.bias)
