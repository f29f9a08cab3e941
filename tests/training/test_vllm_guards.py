"""Guards for vLLM with images: prompts reach it with one token an image, and a sync leaves no stale embeddings."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from trl import GRPOConfig

from foundation.errors import RecipeError
from model.processor import load_processor
from training.vllm_guards import ask_once_a_study, check_vllm, collapse_image_tokens, forbid_image_tokens, mend_vllm

IMAGE = 99


class Engine:
    """Stands for TRL's VLLMGeneration: notes what it is asked for."""

    def __init__(self, mode: str, **attributes) -> None:
        self.mode, self.asked = mode, []
        self.__dict__.update(attributes)

    def generate(self, prompts, images, num_generations, profiler=None):
        self.asked.append(("generate", prompts, images, num_generations))

    def sync_weights(self):
        self.asked.append(("sync",))


def trainer_with(engine: Engine, main: bool = True) -> SimpleNamespace:
    return SimpleNamespace(
        vllm_generation=engine,
        processing_class=SimpleNamespace(image_token_id=IMAGE),
        share_prompts=True,
        accelerator=SimpleNamespace(is_main_process=main),
    )


def colocated() -> Engine:
    engine = Engine("colocate")
    reset = SimpleNamespace(reset_encoder_cache=lambda: engine.asked.append(("reset",)))
    engine.llm = SimpleNamespace(llm_engine=reset, generate=None)
    return engine


def test_each_run_of_image_tokens_becomes_one() -> None:
    assert collapse_image_tokens([1, IMAGE, IMAGE, IMAGE, 2, IMAGE, IMAGE, 3], IMAGE) == [1, IMAGE, 2, IMAGE, 3]
    assert collapse_image_tokens([1, 1, 2], IMAGE) == [1, 1, 2]
    assert collapse_image_tokens([], IMAGE) == []


def test_colocated_vllm_gets_prompts_that_it_can_expand_itself() -> None:
    engine = colocated()
    mend_vllm(trainer_with(engine))
    engine.generate(prompts=[[1, IMAGE, IMAGE, 2]], images=[["picture"]], num_generations=4)
    engine.generate(prompts=[[1, 1, 2]], images=None, num_generations=4)
    assert engine.asked == [("generate", [[1, IMAGE, 2]], [["picture"]], 4), ("generate", [[1, 1, 2]], None, 4)]


@dataclass
class Sampling:
    """As vLLM's SamplingParams."""

    n: int = 1
    seed: int | None = 7

    def clone(self) -> Sampling:
        return replace(self)


def answers(asked: list, prompts: list[dict], sampling_params: Sampling, use_tqdm: bool) -> list[SimpleNamespace]:
    """As vLLM's LLM.generate."""
    asked.append((prompts, sampling_params, use_tqdm))
    return [
        SimpleNamespace(
            prompt_token_ids=prompt["prompt_token_ids"], outputs=[f"{row}.{n}" for n in range(sampling_params.n)]
        )
        for row, prompt in enumerate(prompts)
    ]


def test_a_study_is_one_request_for_all_of_its_rollouts() -> None:
    asked: list = []
    rows = [{"prompt_token_ids": [study], "multi_modal_data": {"image": str(study)}} for study in (3, 3, 3, 4, 4, 4)]
    given = Sampling()
    outputs = ask_once_a_study(partial(answers, asked), 3, rows, sampling_params=given, use_tqdm=False)
    assert asked == [([rows[0], rows[3]], Sampling(n=3), False)]
    assert given.n == 1
    assert [output.prompt_token_ids for output in outputs] == [[3]] * 3 + [[4]] * 3
    assert [output.outputs for output in outputs] == [["0.0"], ["0.1"], ["0.2"], ["1.0"], ["1.1"], ["1.2"]]


def test_rollouts_of_two_studies_are_never_asked_for_as_one() -> None:
    rows = [{"prompt_token_ids": ids} for ids in ([3], [4])]
    with pytest.raises(ValueError, match="prompt 1 is not of the study"):
        ask_once_a_study(partial(answers, []), 2, rows, sampling_params=Sampling(), use_tqdm=False)


def test_every_sync_of_weights_is_followed_by_a_reset_of_the_encoder_cache() -> None:
    engine = colocated()
    mend_vllm(trainer_with(engine))
    engine.sync_weights()
    engine.sync_weights()
    assert engine.asked == [("sync",), ("reset",), ("sync",), ("reset",)]


def test_a_vllm_that_cannot_reset_its_encoder_cache_is_refused() -> None:
    engine = Engine("colocate", llm=SimpleNamespace(llm_engine=object()))
    with pytest.raises(RecipeError, match="cannot reset its encoder cache"):
        mend_vllm(trainer_with(engine))


@pytest.mark.parametrize("status", [200, 404])
def test_a_server_is_told_to_reset_or_the_run_stops(status: int) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    session = requests.Session()
    engine = Engine("server", vllm_client=SimpleNamespace(base_url=url, session=session))
    mend_vllm(trainer_with(engine))
    if status == 200:
        engine.sync_weights()
    else:
        with pytest.raises(RecipeError, match="VLLM_SERVER_DEV_MODE=1"):
            engine.sync_weights()
    server.shutdown()
    server.server_close()
    assert engine.asked == [("sync",)]
    assert asked == ["/reset_encoder_cache"]
    assert (session.max_redirects, session.trust_env) == (0, False)


def config(folder: Path, **settings) -> GRPOConfig:
    return GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, num_generations=8, **settings)


def test_image_tokens_cannot_be_sampled_and_a_users_bias_stays(tiny_base: Path, tmp_path: Path) -> None:
    processor = load_processor(str(tiny_base))
    training = config(tmp_path, use_vllm=True, generation_kwargs={"logit_bias": {7: 1.0}, "stop": ["x"]})
    forbid_image_tokens(training, processor)
    bias = training.generation_kwargs["logit_bias"]
    assert bias[processor.image_token_id] == -100.0
    assert bias[7] == 1.0
    assert training.generation_kwargs["stop"] == ["x"]
    assert processor.tokenizer.eos_token_id not in bias


def test_without_vllm_nothing_is_added(tiny_base: Path, tmp_path: Path) -> None:
    training = config(tmp_path)
    forbid_image_tokens(training, load_processor(str(tiny_base)))
    assert training.generation_kwargs is None
    check_vllm(training)


def test_training_without_comparing_sampler_and_policy_is_refused(tmp_path: Path) -> None:
    training = config(tmp_path, use_vllm=True, vllm_mode="server", vllm_importance_sampling_correction=False)
    with pytest.raises(RecipeError, match="vllm_importance_sampling_correction"):
        check_vllm(training)
