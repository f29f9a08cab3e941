"""`recipes.grpo` with sampling that does not depend on how many processes share the rollouts.

Each rollout's noise is a function of its place in the whole generation batch and of the token's position, so one process
and two sample the same reports. Everything else is as it is.
"""

from __future__ import annotations

import os

import torch
from transformers import GenerationMixin

RANK = int(os.environ.get("RANK", "0"))
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
state = {"generation": 0, "position": 0}
generate = GenerationMixin.generate


def generate_and_count(self, *arguments, **options):
    state["generation"] += 1
    state["position"] = 0
    return generate(self, *arguments, **options)


def multinomial(probabilities, num_samples, *arguments, **options):
    """Gumbel-max: the same distribution as torch.multinomial's."""
    rows, vocabulary = probabilities.shape
    generator = torch.Generator().manual_seed(1000 * state["generation"] + state["position"])
    state["position"] += 1
    noise = torch.rand(rows * WORLD, vocabulary, generator=generator)[RANK * rows : (RANK + 1) * rows]
    scores = probabilities.log() - (-noise.clamp_min(1e-9).log()).log()
    return scores.argmax(-1, keepdim=True)


if __name__ == "__main__":
    from recipes.grpo import main

    GenerationMixin.generate = generate_and_count
    torch.multinomial = multinomial
    main()
