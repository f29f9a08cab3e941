"""The judge against a real LLM server: vLLM on the CPU with a tiny random model, which writes nonsense in valid form."""

import asyncio
import itertools
import time
import urllib.request
from importlib.resources import files

import pytest
from vllm_cpu import NotInstallable, environment, on_gpu, serve

from foundation.governance import JudgeError
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.parse import MAX_COUNT
from rewards.chexprompt.rubric import ANSWER_FORMATS, built_in_prompt
from rewards.chexprompt.settings import JudgeSettings

pytestmark = pytest.mark.slow
NAME = "tiny-judge"
FINDING = "There is a small left pleural effusion with adjacent atelectasis, unchanged since the prior study. "


@pytest.fixture(scope="module")
def base_url(tmp_path_factory):
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    from recipes.tiny_model import build_tokenizer

    try:
        environment()
    except NotInstallable as error:
        pytest.skip(f"vLLM for CPU cannot be installed here: {error}")
    folder = tmp_path_factory.mktemp("judge")
    texts = [built_in_prompt().system(name) for name in ANSWER_FORMATS]
    tokenizer = build_tokenizer([*texts, FINDING] * 20, 2000)
    tokenizer.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=(len(tokenizer) + 63) // 64 * 64,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # A random model would spend its answer on the white space that JSON allows anywhere.
    compact = '{"backend": "xgrammar", "disable_any_whitespace": true}'
    options = ["--max-model-len", "8192", "--structured-outputs-config", compact, "--enable-prompt-tokens-details"]
    options += [] if on_gpu() else ["--block-size", "32"]  # a GPU's blocks have 16 tokens, a CPU's 128 by default
    with serve(folder, NAME, folder / "vllm.log", options) as url:
        yield url


def judge_pairs(base_url: str, n: int, name: str, check: bool = True, **settings):
    """Judge n pairs, after a check of the endpoint; the judge, the results, the seconds."""
    references = [f"Findings: {name} {i // 8}. The heart is normal." for i in range(n)]
    candidates = [f"Findings: {name} {i}. Small left effusion." for i in range(n)]
    values = {"judge_model": NAME, "judge_cache_dir": None, "judge_timeout": 120.0} | settings
    judge = Judge.from_settings(JudgeSettings(judge_base_url=base_url, **values))

    async def run():
        if check:
            await judge.check()
        results = await judge.judge(candidates, references, ["mimic_cxr"] * n)
        await judge.aclose()
        return results

    start = time.monotonic()
    return judge, asyncio.run(run()), time.monotonic() - start


def metric(base_url: str, name: str) -> float:
    """Sum of a Prometheus metric of the server."""
    with urllib.request.urlopen(base_url.replace("/v1", "/metrics"), timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " ")))


def test_structured_output_makes_every_answer_readable(base_url):
    judge, results, seconds = judge_pairs(base_url, 128, "structured", judge_concurrency=32)
    assert judge.failures == {}
    assert judge.retries == {}
    for result in results:
        counts = (*result.judgement.significant, *result.judgement.insignificant)
        assert all(0 <= count <= MAX_COUNT for count in counts)
    assert judge.spending.prompt_tokens > 128 * 500
    print(f"{128 / seconds:.0f} judgements a second")


def test_the_shared_part_is_served_from_the_prefix_cache(base_url):
    before = [metric(base_url, f"vllm:prefix_cache_{kind}_total") for kind in ("hits", "queries")]
    judge_pairs(base_url, 64, "prefix")
    after = [metric(base_url, f"vllm:prefix_cache_{kind}_total") for kind in ("hits", "queries")]
    hits, queries = (b - a for a, b in zip(before, after, strict=True))
    assert hits / queries > 0.8


def test_twelve_digits_are_all_that_is_generated_and_the_rest_comes_from_the_prefix_cache(base_url):
    references = [f"Findings: Study {study}. {FINDING * 2}Impression: Effusion." for study in range(12)]
    n = 16 * len(references)  # rollouts, dealt out as several processes might
    rows = [(f"Findings: Rollout {i}. {FINDING}Impression: None.", references[i % 12]) for i in range(n)]
    values = {"judge_model": NAME, "judge_cache_dir": None, "judge_timeout": 300.0, "judge_answer_format": "digits"}
    judge = Judge.from_settings(JudgeSettings(judge_base_url=base_url, judge_concurrency=32, **values))
    results = asyncio.run(judge.judge([c for c, _ in rows], [r for _, r in rows], ["mimic_cxr"] * n))
    assert (judge.failures, judge.retries) == ({}, {})
    assert all(result.judgement is not None for result in results)
    assert judge.constrained
    each = judge.spending.completion_tokens / n
    print(f"{each:.1f} tokens an answer, {judge.spending.cached_share:.3f} of the input cached")
    assert each <= 26
    assert judge.spending.cached_share > 0.9


def test_calls_run_at_once(base_url):
    judge_pairs(base_url, 8, "warm")
    _, _, one_by_one = judge_pairs(base_url, 16, "one by one", judge_concurrency=1)
    _, _, together = judge_pairs(base_url, 16, "together", judge_concurrency=16)
    assert together < 0.7 * one_by_one


def test_free_text_from_a_random_model_is_never_a_judgement(base_url):
    judge, results, _ = judge_pairs(
        base_url, 8, "list", judge_answer_format="list", judge_max_retries=1, judge_backoff=0.01, judge_max_tokens=64
    )
    assert all(result.judgement is None for result in results)
    assert set(judge.failures) <= {"malformed answer", "truncated answer"}


def test_a_deadline_that_is_too_short_fails_and_leaves_the_server_well(base_url):
    late = {"judge_timeout": 0.05, "judge_max_retries": 1, "judge_backoff": 0.01}
    _, results, _ = judge_pairs(base_url, 8, "late", check=False, **late)
    assert {result.failure for result in results} == {"timeout"}
    assert judge_pairs(base_url, 8, "after")[0].failures == {}


def test_a_report_beyond_the_context_fails_alone(base_url):
    judge = Judge.from_settings(JudgeSettings(judge_base_url=base_url, judge_model=NAME, judge_cache_dir=None))
    words = itertools.islice(itertools.cycle(["effusion", "opacity"]), 20_000)
    results = asyncio.run(judge.judge(["Small effusion.", " ".join(words)], ["Effusion."] * 2, [None] * 2))
    assert results[0].judgement is not None
    assert results[1].failure == "request refused"


def test_a_wrong_model_is_named(base_url):
    with pytest.raises(JudgeError, match=f"does not serve the model 'gpt-4'.*{NAME}"):
        judge_pairs(base_url, 1, "wrong", judge_model="gpt-4")
