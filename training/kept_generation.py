"""A generation kept with a checkpoint that lies inside it: rollouts, old log-probabilities and scores, without films.

With several updates a generation, a run that resumes from between them would otherwise make, judge and pay for the rollouts
again, by a newer policy. Films are read again from the studies' rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROWS = "rows"  # of a batch: the training set's row of each rollout
FILMS = "pixel_values"
NAME = "generation_{process}_of_{processes}.rollouts"  # safetensors, by another ending: no weights of a model


def keep_generation(path: Path, batches: Sequence[dict[str, Any]]) -> None:
    """Write the micro-batches of a generation, films left out.

    Args:
        batches: each with tensors of r rollouts [r, …], grids of films [images, 3], numbers and lists of r.
    """
    tensors, others = {}, {}
    for name, value in batches[0].items():
        values = [batch[name] for batch in batches]
        if name == FILMS:
            continue
        if isinstance(value, torch.Tensor):
            kept = torch.cat(values) if value.ndim else value
            tensors[name] = kept.detach().cpu().contiguous()
        elif isinstance(value, list):
            others[name] = [entry for part in values for entry in part]
        else:
            others[name] = value
    save_file(tensors, path, metadata={"others": json.dumps(others)})


def kept_generation(path: Path) -> dict[str, Any]:
    """What `keep_generation` wrote, all micro-batches as one."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        return tensors | json.loads(file.metadata()["others"])
