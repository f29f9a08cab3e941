"""The rewards in other people's trainers: TRL's columns, verl's and EasyR1's signatures, RadEval's metrics as parts."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
import threading
import types

import numpy as np
import pytest
from counting_judge import CountingJudge

from foundation.governance import JudgeError
from rewards import easyr1, radeval, verl
from rewards.assemble import assemble, counting_failures
from rewards.bleu import Bleu2
from rewards.blocking import BlockingReward, Combiner
from rewards.composite import CompositeReward, JudgeFailureRateError
from rewards.grpo_reward import GrpoReward
from rewards.metric import MetricError
from rewards.registry import load_metrics
from rewards.trl import composite_reward, reward_function

STEP_1 = {"bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}
REFERENCE = "Moderate left pleural effusion. The heart is normal in size."
CANDIDATES = [REFERENCE, "Moderate right pleural effusion.", "No pleural effusion.", ""]
OFFLINE = {"weights": STEP_1, "backend": "offline"}


def expected() -> np.ndarray:
    metrics = load_metrics(list(STEP_1), "offline")
    references = [REFERENCE] * len(CANDIDATES)
    return sum(weight * metrics[name](CANDIDATES, references).astype(float) for name, weight in STEP_1.items())


def test_trl_composite_takes_the_columns_that_it_is_told_and_logs_each_part() -> None:
    reward = composite_reward(**OFFLINE, reference_column="report", source_column="corpus")
    logged: dict[str, float] = {}
    completions = [[{"role": "assistant", "content": text}] for text in CANDIDATES]
    columns = {"report": [REFERENCE] * 4, "corpus": ["iu_xray"] * 4, "prompts": [""] * 4, "age": [60.0] * 4}
    totals = asyncio.run(reward(completions=completions, **columns, log_metric=logged.__setitem__))
    np.testing.assert_allclose(totals, expected(), atol=1e-5)
    assert "reward_parts/radgraph[offline-rules]" in logged
    assert inspect.iscoroutinefunction(reward.__call__)  # TRL awaits it, beside others
    with pytest.raises(MetricError, match=r"no column 'report' \(reference_column\); it has age, corpus$"):
        asyncio.run(reward(completions=completions, age=[1] * 4, corpus=["iu_xray"] * 4, trainer_state=None))
    with pytest.raises(MetricError, match=r"'report'.*must hold a text for each of 4 completions; it holds NoneType"):
        asyncio.run(reward(completions=completions, report=[None] * 4, corpus=["iu_xray"] * 4))


def test_trl_function_of_one_metric_is_named_after_it_and_higher_is_better() -> None:
    bleu = reward_function("bleu2", reference_column="report")
    assert bleu.__name__ == "bleu2"
    assert bleu(completions=["no edema", "edema"], report=["no edema"] * 2, prompts=["", ""])[0] == pytest.approx(1)
    radcliq = reward_function("radcliq_v1", backend="offline")
    good, bad = radcliq(completions=[REFERENCE, "No pleural effusion."], reference=[REFERENCE] * 2)
    assert good > bad
    assert radcliq.__name__.startswith("-radcliq_v1")


def test_a_weight_that_would_teach_errors_and_unknown_names_are_refused() -> None:
    with pytest.raises(MetricError, match="radcliq_v1 is better when lower"):
        assemble({"radcliq_v1": 1.0}, backend="offline")
    with pytest.raises(MetricError, match=r"unknown metric.*radgraf"):
        composite_reward({"radgraf": 1.0}, backend="offline")
    with pytest.raises(MetricError, match="give numbers by name"):
        assemble(["radgraph"], backend="offline")  # type: ignore[arg-type]


def test_reports_of_no_named_source_stay_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    judge = {"judge_base_url": "https://judge.example.com/v1", "judge_model": "m", "judge_cache_dir": None}
    reward = composite_reward({"bleu2": 1.0}, judge=judge)
    with pytest.raises(JudgeError, match=r"not sent to judge.example.com"):
        asyncio.run(reward(completions=["a"], reference=["a"]))
    with pytest.raises(JudgeError, match="reports of mimic are not sent"):
        composite_reward({"bleu2": 1.0}, judge=judge, source="mimic")
    with pytest.raises(JudgeError, match="reports of mimic are not sent"):
        verl.compute_score("mimic", "a", "a", weights={"bleu2": 1.0}, judge=judge)
    with pytest.raises(JudgeError, match="not sent"):
        easyr1.compute_score([{"response": "a", "ground_truth": "a"}], weights={"bleu2": 1.0}, judge=judge)


def test_the_stand_in_judge_is_a_part_everywhere(tmp_path) -> None:
    judge = {"judge_base_url": "offline", "judge_cache_dir": str(tmp_path)}
    settings = {"weights": {"bleu2": 1.0}, "judge": judge, "judge_weight": 0.5, "source": "iu_xray"}
    rows = easyr1.compute_score([{"response": text, "ground_truth": REFERENCE} for text in CANDIDATES], **settings)
    (name,) = (name for name in rows[0] if name.startswith("chexprompt["))
    assert [row[name] for row in rows] == [1.0, 0.5, 0.5, 0.5]
    assert [row["judge_failed"] for row in rows] == [0.0] * 4
    assert rows[0]["overall"] == pytest.approx(rows[0]["bleu2"] + 0.5, abs=1e-4)


def test_verl_batch_and_single_calls_give_the_same_rewards() -> None:
    batch = verl.compute_score_batch(
        data_sources=np.array(["iu_xray"] * 4, dtype=object),
        solution_strs=CANDIDATES,
        ground_truths=[REFERENCE] * 4,
        extra_infos=[{}] * 4,
        **OFFLINE,
    )
    np.testing.assert_allclose([row["score"] for row in batch], expected(), atol=1e-5)
    one = verl.compute_score(
        data_source="iu_xray",
        solution_str=CANDIDATES[1],
        ground_truth=REFERENCE,
        extra_info={"num_turns": None},
        reward_router_address=None,
        **OFFLINE,
    )
    assert one == batch[1]
    with pytest.raises(MetricError, match="ground_truth is NoneType"):
        verl.compute_score("iu_xray", "a", None, **OFFLINE)  # type: ignore[arg-type]
    with pytest.raises(MetricError, match=r"unknown reward argument\(s\) wieghts"):
        verl.compute_score("iu_xray", "a", "a", wieghts={"bleu2": 1.0})


def test_easyr1_loads_the_file_by_its_path_as_it_loads_any() -> None:
    spec = importlib.util.spec_from_file_location("custom_reward_fn", easyr1.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.REWARD_TYPE == "batch"
    inputs = [{"response": text, "response_length": 9, "ground_truth": REFERENCE} for text in CANDIDATES]
    rows = module.compute_score(inputs, **OFFLINE)
    np.testing.assert_allclose([row["overall"] for row in rows], expected(), atol=1e-5)
    assert all(isinstance(value, float) for row in rows for value in row.values())
    with pytest.raises(MetricError, match=r"data.answer_key"):
        module.compute_score([{"response": "a", "response_length": 1}], **OFFLINE)


def test_a_failed_judge_call_is_worth_its_groups_mean_where_none_cannot_be_said() -> None:
    composite = CompositeReward({"bleu2": 1.0}, {"bleu2": Bleu2()}, CountingJudge(), 0.5)
    reward = BlockingReward(counting_failures(composite))
    rows = reward.score(["no edema", "FAIL", "no edema but"], ["no edema"] * 3, ["phantom_x"] * 3)
    scores = [row["score"] for row in rows]
    assert [row["judge_failed"] for row in rows] == [0.0, 1.0, 0.0]
    assert scores[1] == pytest.approx((scores[0] + scores[2]) / 2)  # advantage 0 in its group
    later = reward.score(["FAIL"], ["no edema"], ["phantom_x"])  # alone in its call: what its reference earned so far
    assert later[0]["score"] == pytest.approx(scores[1])
    fresh = BlockingReward(GrpoReward(composite))
    with pytest.raises(MetricError, match="answered for no rollout yet"):
        fresh.score(["FAIL"], ["no edema"], ["phantom_x"])


def test_too_many_failed_judge_calls_stop_training_here_too() -> None:
    composite = CompositeReward({"bleu2": 1.0}, {"bleu2": Bleu2()}, CountingJudge(), 0.5)
    reward = BlockingReward(GrpoReward(composite, judge_max_failure_rate=0.2, minimum=8))
    with pytest.raises(JudgeFailureRateError, match="judge_max_failure_rate"):
        reward.score(["no edema"] * 4 + ["FAIL"] * 4, ["no edema"] * 8, ["phantom_x"] * 8)


def test_calls_from_many_threads_become_batches_and_an_error_reaches_each() -> None:
    sizes, first = [], threading.Event()

    def serve(items: list[int]) -> list[int]:
        sizes.append(len(items))
        first.wait(10)
        if -1 in items:
            raise ValueError("bad item")
        return [item * item for item in items]

    combiner: Combiner[int, int] = Combiner(serve)
    results: dict[int, object] = {}

    def call(item: int) -> None:
        try:
            results[item] = combiner(item)
        except ValueError as error:
            results[item] = error

    threads = [threading.Thread(target=call, args=(item,)) for item in range(8)]
    for thread in threads:
        thread.start()
    while len(combiner._waiting) + sum(sizes) < 8:  # all have asked
        threading.Event().wait(0.005)
    first.set()
    for thread in threads:
        thread.join(10)
    assert results == {item: item * item for item in range(8)}
    assert sum(sizes) == 8
    assert len(sizes) <= 2
    call(-1)
    assert isinstance(results[-1], ValueError)


def stand_in_radeval(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with RadEval's documented interface: `make_reward_fn(metric, reference_column=, key=)`."""
    module = types.ModuleType("radeval.rewards")

    def make_reward_fn(metric, reference_column="ground_truth", key=None, score_transform=None, **_):
        if metric != "overlap":
            raise ValueError(f"Unknown metric: {metric}")

        def reward(completions, **columns):
            references = columns[reference_column]
            return [None if c == "skip" else float(c == r) for c, r in zip(completions, references, strict=True)]

        return reward

    module.make_reward_fn = make_reward_fn
    monkeypatch.setitem(sys.modules, "radeval", types.ModuleType("radeval"))
    monkeypatch.setitem(sys.modules, "radeval.rewards", module)
    monkeypatch.setattr(radeval, "version", lambda _: "2.2.1")


def test_radevals_rewards_are_parts_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_radeval(monkeypatch)
    reward = composite_reward({"radeval:overlap": 2.0, "bleu2": 1.0})
    totals = asyncio.run(reward(completions=["no edema", "no"], reference=["no edema"] * 2))
    assert totals[0] == pytest.approx(3.0)
    assert totals[1] < 1
    with pytest.raises(MetricError, match=r"radeval:overlap: backend radeval 2.2.1 gave 1 finite scores for 2"):
        asyncio.run(reward(completions=["skip", "no"], reference=["no edema"] * 2))
    with pytest.raises(MetricError, match="radeval:other: radeval cannot load it"):
        composite_reward({"radeval:other": 1.0})


@pytest.mark.skipif(importlib.util.find_spec("radeval") is not None, reason="radeval is installed")
def test_without_radeval_the_way_to_have_it_is_said() -> None:
    with pytest.raises(MetricError, match="radeval:bleu is RadEval's, which is not installed: pip install radeval"):
        composite_reward({"radeval:bleu": 1.0})


def test_a_grpo_trainer_of_no_recipe_trains_on_it(tmp_path) -> None:
    """TRL's own GRPOTrainer, a text model, a data set with other column names: rewards and parts arrive in its log."""
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from recipes.tiny_model import build_tokenizer

    tokenizer = build_tokenizer([REFERENCE, "Write a report."], 300)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, **size))
    data = Dataset.from_list([{"prompt": "Write a report.", "text": REFERENCE, "corpus": "iu_xray"}] * 2)
    trainer = GRPOTrainer(
        model,
        reward_funcs=[
            composite_reward({"bleu2": 1.0, "radgraph": 0.5}, **columns("text", "corpus"), backend="offline"),
            reward_function("bleu2", reference_column="text"),
        ],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            num_generations=2,
            per_device_train_batch_size=2,
            logging_steps=1,
            max_completion_length=8,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    logged = {name for row in trainer.state.log_history for name in row}
    assert {"rewards/composite/mean", "rewards/bleu2/mean"} <= logged
    assert {"reward_parts/bleu2", "reward_parts/radgraph[offline-rules]"} <= logged


def columns(reference: str, source: str) -> dict[str, str]:
    return {"reference_column": reference, "source_column": source}


def test_a_recipe_names_radevals_rewards_in_its_yaml_or_by_a_flag(tmp_path) -> None:
    from trl import TrlParser

    from foundation.errors import RecipeError
    from settings.arguments import RewardArguments

    (tmp_path / "rl.yaml").write_text("weight_bertscore: 1.0\nweight_radeval:\n  bleu: 0.5\n", encoding="utf-8")
    for arguments in (
        ["--config", str(tmp_path / "rl.yaml")],
        ["--weight_bertscore", "1", "--weight_radeval", '{"bleu": 0.5}'],
    ):
        (reward,) = TrlParser((RewardArguments,)).parse_args_and_config(arguments)
        assert reward.metric_weights["radeval:bleu"] == 0.5
    with pytest.raises(RecipeError, match=r"weight_radeval is .* it must be numbers by name"):
        RewardArguments(weight_bertscore=1.0, weight_radeval={"bleu": "much"})
