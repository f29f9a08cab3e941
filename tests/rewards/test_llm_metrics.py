"""GREEN and CRIMSON on the judge's engine: answers, scores, faults, cache, governance; and parity with their packages."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from llm_packages import Scripted, stand_in_packages

from foundation.governance import JudgeError
from rewards.__main__ import main
from rewards.chexprompt import calls
from rewards.chexprompt.parse import AnswerError
from rewards.chexprompt.settings import JudgeSettings
from rewards.llm_metrics import LLM_METRICS, crimson
from rewards.llm_metrics.crimson import Crimson, crimson_prompt, crimson_score
from rewards.llm_metrics.green import Green, green_prompt, parse_green
from rewards.metric import MetricError
from rewards.trl import composite_reward

REFERENCE = "There is a moderate left pleural effusion. Severe cardiomegaly."
CANDIDATES = [REFERENCE, "There is a moderate left pleural effusion.", "Right pneumothorax."]
GREEN = """[Explanation]:
The effusion is found; a ratio: 3. is no count.

[Clinically Significant Errors]:
(a) False report of a finding in the candidate: 1. pneumothorax
(b) Missing a finding present in the reference: 2. edema; cardiomegaly

[Clinically Insignificant Errors]:
No errors.

[Matched Findings]:
3. effusion; atelectasis; line
"""


def finding(number: int, level: str, side: str = "R") -> dict[str, str]:
    return {"id": f"{side}{number}", "finding": "x", "clinical_significance": level}


def crimson_answer(**changes) -> dict:
    answer = {
        "reference_findings": [
            finding(1, "urgent"),
            finding(2, "actionable_not_urgent"),
            finding(3, "benign_expected"),
        ],
        "predicted_findings": [finding(1, "urgent", "P"), finding(2, "not_actionable_not_urgent", "P")],
        "matched_findings": [{"ref_id": "R1", "pred_id": "P1"}],
        "errors": {
            "false_findings": ["P2"],
            "missing_findings": ["R2"],
            "attribute_errors": [
                {
                    "ref_id": "R1",
                    "pred_id": "P1",
                    "severity": "significant",
                    "error_types": ["location"],
                    "explanation": "",
                }
            ],
        },
    }
    return answer | changes


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_green_is_matched_over_matched_and_significant_errors() -> None:
    score = parse_green(GREEN)
    assert score.score == pytest.approx(3 / 6)
    assert score.counts == {"significant": 3, "insignificant": 0, "matched": 3}
    assert parse_green(GREEN.replace("3. effusion; atelectasis; line", "No matched findings.")).score == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The reports agree.",  # RadEval reads this as 0
        GREEN.split("[Matched Findings]")[0],
        GREEN.replace("[Clinically Significant Errors]:", "Errors:"),
        GREEN + GREEN,
        GREEN.replace("candidate: 1. pneumothorax", "candidate: some"),
        GREEN.replace("(b)", "(a)"),
        GREEN.replace("3. effusion", "several. effusion"),
        GREEN.replace("3. effusion", "999. effusion"),
        GREEN.replace("3. effusion", "9" * 5000 + ". effusion"),
    ],
)
def test_an_answer_out_of_greens_format_is_no_score(text: str) -> None:
    with pytest.raises(AnswerError):
        parse_green(text)


def test_crimsons_score_follows_its_formula() -> None:
    # credit 1 · 1/(1 + 0.5), false 0.25, reference 1 + 0.5 + 0
    score = crimson_score(crimson_answer())
    assert score.score == pytest.approx(round((1 / 1.5 - 0.25) / 1.5, 4))
    assert score.counts == {"false": 1, "missing": 1, "attribute": 1, "matched": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"errors": {}},
        {"matched_findings": [{"ref_id": "R9", "pred_id": "P1"}]},
        {"reference_findings": [finding(1, "grave")]},
        {"reference_findings": [finding(1, "urgent"), finding(1, "urgent")]},
        {"predicted_findings": None},
        {"errors": {"false_findings": ["P9"], "missing_findings": [], "attribute_errors": []}},
    ],
)
def test_an_answer_out_of_crimsons_format_is_no_score(changes: dict) -> None:
    with pytest.raises(AnswerError):
        crimson_score(crimson_answer(**changes))


# ---- on the judge's engine -------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from stand_in_packages(monkeypatch)


def ask(metric, candidates=("a",), references=("b",), **more):
    async def scored():
        results = await metric.judge(list(candidates), list(references), ["iu_xray"] * len(candidates), **more)
        await metric.aclose()
        return results

    return asyncio.run(scored())


@pytest.mark.parametrize("name", ["green", "crimson"])
def test_the_stand_in_server_answers_each_metric(prompts, name: str) -> None:
    settings = JudgeSettings(judge_base_url="offline", judge_cache_dir=None)
    with LLM_METRICS[name].from_settings(settings) as metric:
        assert metric.name == f"{name}[offline-rules-judge]"
        same, part, wrong = (result.judgement.score for result in ask(metric, CANDIDATES, [REFERENCE] * 3))
    assert same == 1
    assert 1 > part > wrong
    assert metric.range[0] <= wrong <= 0


def test_a_malformed_answer_is_asked_again_and_never_a_score(prompts) -> None:
    with Scripted("I cannot say.", GREEN) as endpoint:
        metric = Green.from_settings(endpoint.settings(judge_max_retries=1))
        (result,) = ask(metric)
        assert result.judgement.score == 0.5
        assert metric.retries == {calls.BAD_ANSWER: 1}
        assert endpoint.asked[0]["max_completion_tokens"] == 2048  # 256 would cut each answer
    with Scripted("I cannot say.") as endpoint:
        metric = Green.from_settings(endpoint.settings(judge_max_retries=1))
        (result,) = ask(metric)
        assert (result.judgement, result.failure) == (None, calls.BAD_ANSWER)


def test_scores_are_kept_by_pair_and_context_and_no_text_is(prompts, tmp_path: Path) -> None:
    answer = json.dumps(crimson_answer())
    with Scripted(answer) as endpoint:
        for age, asked in (("60", 1), ("60", 1), ("90", 2)):
            metric = Crimson.from_settings(endpoint.settings(judge_cache_dir=str(tmp_path)))
            contexts = [{"age": age, "indication": "Mr Smith coughs"}]
            (result,) = ask(metric, ["left edema"], ["right edema"], contexts=contexts)
            assert result.judgement == crimson_score(crimson_answer())
            assert len(endpoint.asked) == asked
        user = endpoint.asked[0]["messages"][-1]["content"]
    assert "age: 60" in user
    assert "indication: Mr Smith coughs" in user
    assert endpoint.asked[0]["response_format"] == {"type": "json_object"}
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Smith" not in content
    assert b"edema" not in content


def test_an_endpoint_without_json_mode_is_asked_without(prompts) -> None:
    with Scripted(json.dumps(crimson_answer()), json_object=False) as endpoint:
        results = ask(Crimson.from_settings(endpoint.settings()), ["a", "b"], ["c", "d"])
        assert [result.failure for result in results] == [None, None]
        assert all("response_format" not in body for body in endpoint.asked)


def test_reports_are_not_sent_to_a_host_that_is_not_listed(prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    settings = {"judge_base_url": "https://llm.example.com/v1", "judge_model": "m", "judge_cache_dir": None}
    metric = Green.from_settings(JudgeSettings(**settings))
    with pytest.raises(JudgeError, match=r"reports of mimic are not sent to llm.example.com"):
        asyncio.run(metric.judge(["a"], ["b"], ["mimic"]))
    with pytest.raises(JudgeError, match="reports of mimic are not sent"):
        composite_reward({"green": 1.0}, llm_metrics={"green": settings}, source="mimic")


def test_it_is_a_part_of_a_reward_and_its_failure_is_neutral(prompts) -> None:
    with Scripted(GREEN, "?") as endpoint:
        settings = {n: getattr(endpoint.settings(), n) for n in ("judge_base_url", "judge_model", "judge_cache_dir")}
        settings |= {"judge_max_retries": 0, "judge_concurrency": 1}
        reward = composite_reward({"bleu2": 1.0, "green": 2.0}, llm_metrics={"green": settings}, source="iu_xray")
        logged: dict[str, float] = {}
        totals = asyncio.run(
            reward(completions=["no edema", "no"], reference=["no edema"] * 2, log_metric=logged.__setitem__)
        )
    assert totals == [pytest.approx(1.0 + 2 * 0.5), None]
    assert logged["reward_parts/green[m]"] == 0.5
    assert logged["reward_parts/judge_failed"] == 0.5
    with pytest.raises(MetricError, match="llm_metrics: grey is unknown; known: green, crimson, radmatch"):
        composite_reward({"grey": 1.0}, llm_metrics={"grey": {}})


def test_any_trainers_columns_tell_it_of_the_patient(prompts) -> None:
    with Scripted(json.dumps(crimson_answer())) as endpoint:
        settings = {n: getattr(endpoint.settings(), n) for n in ("judge_base_url", "judge_model", "judge_cache_dir")}
        given = {"llm_metrics": {"crimson": settings}, "source": "iu_xray"}
        reward = composite_reward({"crimson": 1.0}, context_columns={"age": "years", "indication": "why"}, **given)
        columns = {"reference": ["no edema"] * 2, "years": [61, None], "why": ["Cough.", None]}
        asyncio.run(reward(completions=["edema", "no edema"], **columns))
        shown = " ".join(body["messages"][-1]["content"] for body in endpoint.asked)
        assert shown.count("age: 61") == shown.count("indication: Cough.") == 1
        with pytest.raises(MetricError, match=r"no column 'years' \(context_columns, age\)"):
            asyncio.run(reward(completions=["edema"], reference=["no edema"]))
        with pytest.raises(MetricError, match="context_columns has weight; known: age, indication"):
            composite_reward({"crimson": 1.0}, context_columns={"weight": "kg"}, **given)


def test_the_command_scores_a_file_of_pairs_with_what_is_known_of_the_patient(prompts, tmp_path: Path, capsys) -> None:
    pairs = tmp_path / "scores.jsonl"
    rows = [
        {
            "study_id": f"s{i}",
            "dataset": "iu_xray",
            "reference": REFERENCE,
            "candidate": text,
            "age": 60.0,
            "indication": "?",
        }
        for i, text in enumerate(CANDIDATES)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--pairs", str(pairs), "--out", str(tmp_path / "out.jsonl"), "--judge-base-url", "offline"]
    main(["llm-score", "--metric", "crimson", *arguments, "--judge-cache-dir", str(tmp_path / "cache")])
    scores = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in scores] == ["s0", "s1", "s2"]
    assert scores[0]["score"] == 1 > scores[1]["score"]
    assert json.loads((tmp_path / "out.summary.json").read_text())["n"] == 3
    assert "crimson[offline-rules-judge]: " in capsys.readouterr().out
    pairs.write_text(json.dumps(rows[0] | {"age": "old"}) + "\n")
    with pytest.raises(SystemExit, match="2"):
        main(["llm-score", "--metric", "crimson", *arguments])
    assert "'age' must be a number of years" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "package"), [("green", "radeval"), ("crimson", "CRIMSON"), ("radmatch", "radmatch")])
def test_without_its_package_the_way_to_have_its_prompt_is_said(name: str, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(JudgeError, match=r"prompts? (is|are) taken from .*: pip install "):
        LLM_METRICS[name].from_settings(JudgeSettings(judge_base_url="offline"))


# ---- beside the packages themselves ----------------------------------------------------------------------------------


def random_crimson_answer(rng: random.Random) -> dict:
    levels, severities = sorted(crimson.FINDING_WEIGHTS), sorted(crimson.ATTRIBUTE_WEIGHTS)
    ours = [finding(i, rng.choice(levels)) for i in range(rng.randrange(5))]
    theirs = [finding(i, rng.choice(levels), "P") for i in range(rng.randrange(5))]
    matched = [(r["id"], p["id"]) for r in ours for p in theirs if rng.random() < 0.3]
    return {
        "reference_findings": ours,
        "predicted_findings": theirs,
        "matched_findings": [{"ref_id": r, "pred_id": p} for r, p in matched],
        "errors": {
            "false_findings": [p["id"] for p in theirs if p["id"] not in {m[1] for m in matched}],
            "missing_findings": [r["id"] for r in ours if r["id"] not in {m[0] for m in matched}],
            "attribute_errors": [
                {"ref_id": r, "pred_id": p, "severity": rng.choice(severities), "error_types": ["location"]}
                for r, p in matched
                if rng.random() < 0.5
            ],
        },
    }


@pytest.mark.slow
def test_crimsons_prompt_and_score_are_its_packages() -> None:
    generate_score = pytest.importorskip("CRIMSON.generate_score", reason="crimson-score is not installed")
    scorer = object.__new__(generate_score.CRIMSONScore)
    rng = random.Random(0)
    answers = [random_crimson_answer(rng) for _ in range(500)]
    theirs = [scorer._calculate_crimson(answer)["crimson_score"] for answer in answers]
    assert [crimson_score(answer).score for answer in answers] == theirs
    assert min(theirs) < 0 < max(theirs) == 1
    crimson_prompt.cache_clear()
    system, user = crimson_prompt(True).messages(REFERENCE, CANDIDATES[1], {"age": "60", "indication": "Cough."})
    assert system["role"] == "system"
    scorer.api, scorer.model_name = "openai", "m"
    assert user["content"] == scorer._build_evaluation_prompt(
        REFERENCE, CANDIDATES[1], {"age": "60", "indication": "Cough."}
    )
    scorer.api, scorer.model_name = "vllm", scorer.DEFAULT_HF_MODEL
    assert scorer.DEFAULT_HF_MODEL == crimson.OWN_MODEL
    short = crimson_prompt(False).messages(REFERENCE, CANDIDATES[1], {})[1]["content"]
    assert short == scorer._build_evaluation_prompt(REFERENCE, CANDIDATES[1])
    with Crimson.from_settings(JudgeSettings(judge_base_url="offline", judge_cache_dir=None)) as metric:
        assert ask(metric, [REFERENCE], [REFERENCE])[0].judgement.score == 1


@pytest.mark.slow
def test_greens_prompt_and_score_are_radevals() -> None:
    if importlib.util.find_spec("radeval") is None:
        pytest.skip("radeval is not installed")
    from radeval.metrics.green_score.green import GREEN as RadEvalGreen
    from radeval.metrics.green_score.utils import make_prompt

    green_prompt.cache_clear()
    assert green_prompt().messages("a", "b", {}) == [{"role": "user", "content": make_prompt("a", "b")}]
    theirs = RadEvalGreen(cpu=True)
    rng, texts = random.Random(0), []
    for _ in range(200):
        lines = "\n".join(f"({letter}) An error: {rng.randrange(3)}. x; y" for letter in "abcdef")
        matched = rng.randrange(4)
        found = f"{matched}. x" if matched else "No matched findings."
        texts.append(
            f"[Clinically Significant Errors]:\n{lines}\n\n[Clinically Insignificant Errors]:\n{lines}\n\n"
            f"[Matched Findings]:\n{found}\n"
        )
    ours = [parse_green(text).score for text in [*texts, GREEN]]
    np.testing.assert_allclose(ours, [theirs.compute_green(text) for text in [*texts, GREEN]])
    assert (
        theirs.compute_green("The reports agree.") == 0
    )  # where it is not right: no answer is read as the worst score
    with Green.from_settings(JudgeSettings(judge_base_url="offline", judge_cache_dir=None)) as metric:
        assert ask(metric, [REFERENCE], [REFERENCE])[0].judgement.score == 1
