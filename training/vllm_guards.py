"""Guards for GRPO with vLLM and images: three faults of TRL 1.16 that raise nothing, each mended or made to raise; and one
request a study.

1. Colocated vLLM gets prompts whose image tokens are expanded already, and expands them again: the sampler sees other
   prompts than the trainer. Mended: each run of image tokens becomes one before vLLM sees it.
2. A weight sync resets vLLM's prefix cache but not its encoder cache: where the vision tower trains, image embeddings of
   an older policy are used. Mended: the encoder cache is reset at each sync.
3. vLLM may sample an image token into a report. Mended: `logit_bias` forbids it.

Colocated vLLM gets a request for each rollout, and reads, hashes and processes the same films for each. Here it gets one for
each study that asks for all of its rollouts, as TRL itself does with a server.

What these do not catch shows as `sampling/sampling_logp_difference/mean`; `monitor_max_logp_difference` stops the run.
"""

from __future__ import annotations

import copy
import functools
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from transformers import Qwen3VLProcessor
from trl import GRPOConfig

from foundation.errors import RecipeError
from foundation.governance import check_sources, keep_off_proxies, may_use_proxy
from training.shared_prompts import SharedPrompts

FORBIDDEN = -100.0  # logit bias, OpenAI's "never"


def check_vllm(training: GRPOConfig) -> None:
    """Raise `RecipeError` where `use_vllm` cannot work, before a model is loaded.

    Without the correction for importance sampling TRL does not compare the sampler with the trainer at all.
    """
    if not training.use_vllm:
        return
    if find_spec("vllm") is None and training.vllm_mode == "colocate":
        raise RecipeError(
            "use_vllm: true with vllm_mode: colocate needs vLLM in this environment (.venv/bin/pip install -r requirements-gpu.txt); "
            "set use_vllm: false to generate with transformers"
        )
    if not training.vllm_importance_sampling_correction:
        raise RecipeError(
            "vllm_importance_sampling_correction: false would train on vLLM's rollouts without comparing them with the "
            "policy; leave it true"
        )


def check_server_host(training: GRPOConfig, sources: Iterable[str], trusted_hosts: Sequence[str]) -> None:
    """Raise `JudgeError` unless the vLLM server of `vllm_mode: server` may have prompts and films of these data sets."""
    if not training.use_vllm or training.vllm_mode != "server":
        return
    url = training.vllm_server_base_url or f"http://{training.vllm_server_host}:{training.vllm_server_port}"
    url = url.replace("//0.0.0.0", "//127.0.0.1")  # where TRL's default is reached
    check_sources(
        sources,
        url,
        trusted_hosts,
        what="prompts and films",
        setting="vllm_server_base_url",
        trusted="vllm_trusted_hosts",
    )
    keep_off_proxies(url)


def forbid_image_tokens(training: GRPOConfig, processor: Qwen3VLProcessor) -> None:
    """Add a logit bias to `generation_kwargs` that keeps vLLM from sampling image and video tokens.

    TRL does this itself where transformers generates.
    """
    if not training.use_vllm:
        return
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = [token_id for token_id in processor.tokenizer.convert_tokens_to_ids(list(tokens)) if token_id is not None]
    kwargs = dict(training.generation_kwargs or {})
    kwargs["logit_bias"] = {**{token_id: FORBIDDEN for token_id in ids}, **kwargs.get("logit_bias", {})}
    training.generation_kwargs = kwargs


def collapse_image_tokens(prompt_ids: Sequence[int], image_token_id: int) -> list[int]:
    """The prompt with each run of image tokens as one token, which vLLM expands itself."""
    collapsed: list[int] = []
    for token_id in prompt_ids:
        if not (token_id == image_token_id and collapsed and collapsed[-1] == image_token_id):
            collapsed.append(token_id)
    return collapsed


def ask_once_a_study(
    generate: Callable[..., list[Any]],
    rollouts: int,
    prompts: Sequence[dict[str, Any]],
    sampling_params: Any,
    **kwargs: Any,
) -> list[Any]:
    """`LLM.generate` for prompts of which each `rollouts` neighbours are one study's: one request a study; one output a
    prompt, as if each had been asked for alone.

    Raises:
        ValueError: neighbours that are not one study's.
    """
    studies = prompts[::rollouts]
    for row, prompt in enumerate(prompts):
        if prompt["prompt_token_ids"] != studies[row // rollouts]["prompt_token_ids"]:
            raise ValueError(f"prompt {row} is not of the study whose {rollouts} rollouts it stands among")
    several = sampling_params.clone()
    several.n = rollouts
    outputs = []
    for answered in generate(studies, sampling_params=several, **kwargs):
        for rollout in answered.outputs:
            outputs.append(copy.copy(answered))
            outputs[-1].outputs = [rollout]
    return outputs


def mend_vllm(trainer: SharedPrompts) -> None:
    """Mend faults 1 and 2 on a trainer's `vllm_generation`, and ask it once a study.

    Raises:
        RecipeError: this vLLM has no way to reset its encoder cache.
    """
    generation = trainer.vllm_generation
    if generation.mode == "colocate":
        image_token_id = trainer.processing_class.image_token_id
        generate, engine = generation.generate, generation.llm

        @functools.wraps(generate)
        def generate_mended(
            prompts: list[list[int]], images: Any, num_generations: int, *args: Any, **kwargs: Any
        ) -> Any:
            if images is not None:
                prompts = [collapse_image_tokens(ids, image_token_id) for ids in prompts]
            ask = engine.generate
            if trainer.share_prompts:
                engine.generate = functools.partial(ask_once_a_study, ask, num_generations)
            try:
                return generate(prompts, images, num_generations, *args, **kwargs)
            finally:
                engine.generate = ask

        generation.generate = generate_mended
    if generation.mode == "server":
        if not trainer.accelerator.is_main_process:
            return
        # A redirect would carry prompts and films on to a host that nobody listed.
        generation.vllm_client.session.max_redirects = 0
        generation.vllm_client.session.trust_env = may_use_proxy(generation.vllm_client.base_url)
    reset = _encoder_cache_reset(generation)
    sync = generation.sync_weights

    @functools.wraps(sync)
    def sync_and_reset() -> None:
        sync()
        reset()

    generation.sync_weights = sync_and_reset


def _encoder_cache_reset(generation: Any) -> Callable[[], None]:
    if generation.mode == "colocate":
        reset = getattr(generation.llm.llm_engine, "reset_encoder_cache", None)
        if reset is None:
            raise RecipeError(
                "this vLLM cannot reset its encoder cache, so image embeddings would be of an older policy; "
                "install the one of requirements-gpu.txt, or set use_vllm: false"
            )
        return reset
    url = f"{generation.vllm_client.base_url.rstrip('/')}/reset_encoder_cache"

    def reset_server() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=60).close()
        except urllib.error.URLError as error:
            raise RecipeError(
                f"{url}: {error}; without it vLLM's image embeddings are of an older policy. "
                "Start the server with VLLM_SERVER_DEV_MODE=1"
            ) from error

    return reset_server
