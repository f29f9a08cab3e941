"""What tests share: the real IU X-ray sample where it is present, small phantom data, a tiny base model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# `make test` has a worker a core (pytest-xdist), alone pytest has two cores to itself.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

MOST_WORKERS = 8  # each holds torch and a tiny model: 1 to 2 GB

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_xdist_auto_num_workers() -> int:
    """Workers of `-n auto`: the cores that this process may use (pytest-xdist counts a core with two threads once)."""
    from data_prep.__main__ import available_cores

    return min(MOST_WORKERS, available_cores())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real sample data beside a development checkout; absent elsewhere."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data here")
    return folder


@pytest.fixture(scope="session")
def phantom_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with small prepared phantom sets: harbor, prairie and the second reads. Read-only: copy before changing."""
    from data_prep.sources.phantom import prepare

    folder = tmp_path_factory.mktemp("data")
    for institution in ("harbor", "prairie", "prairie_reread", "summit_reread"):
        prepare(
            folder / f"phantom_{institution}", institution, seed=5, studies={"train": 64, "validation": 16, "test": 16}
        )
    return folder


@pytest.fixture(scope="session")
def tiny_base(phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny Qwen3-VL checkpoint. Read-only."""
    from recipes.tiny_model import save_tiny_model, training_texts

    folder = tmp_path_factory.mktemp("model") / "base"
    texts = training_texts(["phantom_harbor", "phantom_prairie"], str(phantom_data))
    save_tiny_model(texts, folder, vocabulary_size=700)
    return folder


@pytest.fixture(scope="session")
def untied_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an output layer of its own, as the 8B model has: vLLM for CPU reloads no tied one."""
    import torch

    from model.loading import load_model_and_processor

    model, processor = load_model_and_processor(str(tiny_base), torch.float32)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    folder = tmp_path_factory.mktemp("untied") / "base"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(untied_base: Path, phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after 150 steps of SFT: it ends its reports, and is sure enough of its words that rounding decides none.
    Takes a minute: for slow tests."""
    out = tmp_path_factory.mktemp("trained") / "sft"
    given = ["--model_name_or_path", untied_base, "--data_dir", phantom_data, "--datasets", "phantom_prairie"]
    given += ["--dataset_weights", 1, "--output_dir", out, "--max_steps", 150, "--save_strategy", "no"]
    command = [sys.executable, "-m", "recipes.sft", "--config", "recipes/demo/sft.yaml", *map(str, given)]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-3000:]
    return out / "final"


@pytest.fixture(scope="session")
def step_1(tiny_base: Path, phantom_data: Path, tmp_path_factory: pytest.TempPathFactory):
    """A short GRPO run of the demo's step 1 (`rl_runs.Run`): four updates, checkpoints 2 and 4. Read-only."""
    from rl_runs import grpo_run

    return grpo_run(tmp_path_factory.mktemp("rl") / "rl_step1", tiny_base, phantom_data)
