"""The composite in verl itself: its own loader, its reward loop's manager and its batch manager, where verl is installed.

verl 0.9 wants other versions of transformers than the recipes: an environment beside .venv, and
`python -m pytest -m slow tests/rewards/test_in_verl.py` there.
"""

from __future__ import annotations

import asyncio
import threading
import warnings

import numpy as np
import pytest

from rewards.easyr1 import compute_score

pytestmark = pytest.mark.slow
warnings.simplefilter("ignore")
verl = pytest.importorskip("verl", reason="verl is not installed")

REFERENCE = "Moderate left pleural effusion. The heart is normal in size."
CANDIDATES = [REFERENCE, "Moderate right pleural effusion.", "No pleural effusion.", "The heart is normal in size."]
SETTINGS = {"weights": {"bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}, "backend": "offline"}


class Words:
    """A tokenizer of one token a candidate."""

    def decode(self, ids, skip_special_tokens: bool = True) -> str:
        return CANDIDATES[int(ids[0])]


def batch():
    import torch
    from verl import DataProto

    n = len(CANDIDATES)
    rows = {"data_source": "iu_xray", "reward_model": {"ground_truth": REFERENCE}, "extra_info": {}}
    return DataProto.from_dict(
        tensors={
            "prompts": torch.zeros(n, 2, dtype=torch.long),
            "responses": torch.arange(n)[:, None],
            "attention_mask": torch.ones(n, 3, dtype=torch.long),
        },
        non_tensors={
            name: np.array([value if name == "data_source" else dict(value) for _ in range(n)], dtype=object)
            for name, value in rows.items()
        },
    )


def custom_reward(name: str):
    """What verl makes of its configuration's keys, by its own loader."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn

    function = {"path": "pkg://rewards.verl", "name": name, "reward_kwargs": SETTINGS}
    return get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))


def expected() -> list[float]:
    return [
        row["overall"]
        for row in compute_score([{"response": c, "ground_truth": REFERENCE} for c in CANDIDATES], **SETTINGS)
    ]


def test_the_reward_loop_of_verl_scores_rollout_by_rollout() -> None:
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def score() -> list[dict]:
        manager = NaiveRewardManager(config=None, tokenizer=Words(), compute_score=custom_reward("compute_score"))
        data = batch()
        return await asyncio.gather(*(manager.run_single(data[i : i + 1]) for i in range(len(CANDIDATES))))

    results = asyncio.run_coroutine_threadsafe(score(), loop).result(60)
    np.testing.assert_allclose([result["reward_score"] for result in results], expected(), atol=1e-6)
    assert "radgraph[offline-rules]" in results[0]["reward_extra_info"]


def test_the_batch_reward_manager_of_verl_scores_a_batch() -> None:
    from verl.workers.reward_manager.batch import BatchRewardManager

    manager = BatchRewardManager(Words(), num_examine=0, compute_score=custom_reward("compute_score_batch"))
    result = manager(batch(), return_dict=True)
    np.testing.assert_allclose(result["reward_tensor"].sum(1).tolist(), expected(), atol=1e-6)
    assert len(result["reward_extra_info"]["radgraph[offline-rules]"]) == len(CANDIDATES)
