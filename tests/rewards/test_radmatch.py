"""RadMatch on the judge's engine: its driver with steps made here; with its package installed, all of it beside the package's own run."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from llm_packages import Endpoint

from rewards.chexprompt import calls
from rewards.chexprompt.parse import AnswerError
from rewards.llm_metrics.base import MetricPrompt
from rewards.llm_metrics.radmatch import RadMatch
from rewards.offline import judge_server

INSTALLED = pytest.mark.skipif(importlib.util.find_spec("radmatch") is None, reason="radmatch is not installed")
REFERENCE = "There is a moderate left pleural effusion. Severe cardiomegaly. No pneumothorax."
CANDIDATES = [
    REFERENCE,
    "There is a moderate left pleural effusion.",
    "Right pneumothorax.",
    "Moderate right pleural effusion. Mild cardiomegaly.",
    "",
]


def understood(body: dict) -> dict:
    """The stand-in's answer to the request, or to what a correction corrects: the stand-in itself is never wrong."""
    for message in reversed(body["messages"]):
        for begin in (0, message["content"].find("{")):
            with contextlib.suppress(ValueError):
                return judge_server.answer({"messages": [{"role": "user", "content": message["content"][begin:]}]})
    raise AssertionError("a request that the stand-in does not know")


class ByRules(Endpoint):
    """Answers with the stand-in's rules, or with what `spoil` makes of them."""

    def __init__(self, spoil=lambda body, text, count: text, schemas: bool = True) -> None:
        self.spoil = spoil
        super().__init__(schemas)

    def completion(self, body: dict) -> dict:
        completion = understood(body)
        message = completion["choices"][0]["message"]
        message["content"] = self.spoil(body, message["content"], len(self.asked))
        return completion


class Steps(RadMatch):
    """RadMatch's engine without its package: a prompt of its own."""

    @staticmethod
    def prompt_for(model: str) -> MetricPrompt:
        return MetricPrompt("steps-1", lambda report, _, context: [ask(report)])


def ask(report: str) -> dict[str, str]:
    return {"role": "user", "content": f"extract findings from the following radiology report:\n\n{report}"}


def run(metric: RadMatch, work):
    async def all_of_it():
        try:
            return await work()
        finally:
            await metric.aclose()

    return asyncio.run(all_of_it())


def judged(metric: RadMatch, candidates: Sequence[str] = CANDIDATES, reference: str = REFERENCE, **more):
    n = len(candidates)
    return run(metric, lambda: metric.judge(list(candidates), [reference] * n, ["iu_xray"] * n, **more))


# ---- the driver ------------------------------------------------------------------------------------------------------


def step(correct: str, seen: list[list[str]]):
    """A step as the package's are: two requests, each corrected once, with the correction's words where the package has them."""

    def run_step(client) -> list[str]:
        found = []
        for number, report in enumerate(("no edema.", "no effusion.")):
            messages = [ask(report)]
            text = client.complete(messages, {"type": "json_schema", "step": number})
            if not text.startswith('{"findings"'):
                added = {"role": "user", "content": "wrong"}
                corrected = (
                    [*messages, added]
                    if correct == "after"
                    else [ask(report) | {"content": "wrong " + ask(report)["content"]}]
                )
                text = client.complete(corrected, {"type": "json_schema", "step": number})
                assert text.startswith('{"findings"')
            found.append(text)
        seen.append(found)
        return found

    return run_step


@pytest.mark.parametrize("correct", ["after", "before"])
def test_requests_of_a_step_are_asked_in_turn_and_a_malformed_answer_with_what_was_wrong(correct: str) -> None:
    def spoil(body: dict, text: str, count: int) -> str:
        return "I cannot." if count == 2 else text

    seen: list[list[str]] = []
    with ByRules(spoil) as endpoint:
        metric = Steps.from_settings(endpoint.settings())
        made, cause = run(metric, lambda: metric._driven(step(correct, seen), [0, 0]))
        assert (len(made), cause) == (2, None)
        assert metric.retries == {calls.BAD_ANSWER: 1}
        sent = [[message["content"].split(" ")[0] for message in body["messages"]] for body in endpoint.asked]
        assert sent == [["extract"], ["extract"], ["extract", "wrong"] if correct == "after" else ["wrong"]]
        assert [body["response_format"]["step"] for body in endpoint.asked] == [0, 1, 1]


def test_answers_that_stay_malformed_are_a_failure_and_empty_ones_too() -> None:
    for text in ("I cannot.", " \n"):
        with ByRules(lambda *_, text=text: text) as endpoint:
            metric = Steps.from_settings(endpoint.settings(judge_max_retries=1))
            assert run(metric, lambda: metric._driven(step("after", []), [0, 0])) == (None, calls.BAD_ANSWER)  # noqa: B023
            assert len(endpoint.asked) == 2


def test_pairs_that_want_one_reports_findings_share_the_request_and_its_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rewards.llm_metrics.radmatch._schema", lambda: {"type": "json_schema"})

    def read(text: str) -> list:
        if "findings" not in text:
            raise AnswerError("none")
        return json.loads(text)["findings"]

    monkeypatch.setattr("rewards.llm_metrics.radmatch._read_findings", read)
    for spoilt, expected in ((False, None), (True, calls.BAD_ANSWER)):
        with ByRules(lambda body, text, count, spoilt=spoilt: "?" if spoilt else text) as endpoint:
            metric = Steps.from_settings(endpoint.settings(judge_max_retries=0))

            async def together(metric: Steps = metric):
                return await asyncio.gather(*(metric._extracted(REFERENCE, "", [0, 0]) for _ in range(8)))

            results = run(metric, together)
            assert {cause for _, cause in results} == {expected}
            assert len(endpoint.asked) == 1
            assert not metric._turns
    assert run(metric, lambda: metric._extracted(" \n", "", [0, 0])) == ([], None)  # nobody is asked


def test_the_stand_in_speaks_radmatchs_formats() -> None:
    def answer(message: str) -> dict:
        body = {"messages": [{"role": "user", "content": message}]}
        return json.loads(judge_server.answer(body)["choices"][0]["message"]["content"])

    ours = answer(ask(REFERENCE)["content"])["findings"]
    theirs = answer(ask(CANDIDATES[3])["content"])["findings"]
    assert [f["clinical_status"] for f in ours] == ["abnormal", "abnormal", "normal"]
    for side, findings in (("g", ours), ("p", theirs)):
        for number, finding in enumerate(findings):
            finding["finding_id"] = f"{side}{number}"
    matching = answer(json.dumps({"pred_findings": theirs, "gt_findings": ours}))
    assert [(m["pred_id"], m["gt_id"]) for m in matching["matches"]] == [("p0", "g0"), ("p1", "g1")]
    assert matching["unmatched_gt"] == ["g2"]
    pairs = [{"pred_finding": theirs[i], "gt_finding": ours[i]} for i in range(2)]
    errors = answer(json.dumps({"series_uuid": "report", "pairs": pairs}))["errors_per_match"]
    assert [[(e["dimension"], e["severity"]) for e in of_one] for of_one in errors] == [
        [("location", "major")],
        [("severity", "major")],
    ]


# ---- with the package ------------------------------------------------------------------------------------------------


@INSTALLED
def test_the_score_is_one_over_its_actionable_errors_and_one() -> None:
    with ByRules() as endpoint:
        metric = RadMatch.from_settings(endpoint.settings())
        results = judged(metric)
        assert [r.judgement.counts["actionable_errors"] for r in results] == [0, 1, 3, 2, 2]
        assert [r.judgement.score for r in results] == [1, 1 / 2, 1 / 4, 1 / 3, 1 / 3]
        extractions = [b for b in endpoint.asked if "following radiology report" in b["messages"][-1]["content"]]
        assert len(extractions) == 4  # the reference once, an equal candidate not again, an empty one never
        assert endpoint.asked[0]["max_completion_tokens"] == 8192
        assert endpoint.asked[0]["response_format"]["type"] == "json_schema"


@INSTALLED
@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("findings", lambda answer: answer | {"findings": [{"text": "x"}]}),
        ("findings", lambda answer: {"findings": [f | {"clinical_status": "odd"} for f in answer["findings"]]}),
        ("matches", lambda answer: answer | {"matches": []}),
        ("matches", lambda answer: answer | {"unmatched_pred": ["none such"]}),
        ("errors_per_match", lambda answer: {"errors_per_match": answer["errors_per_match"][1:]}),
        (
            "errors_per_match",
            lambda answer: {"errors_per_match": [[{"dimension": "mood", "severity": "major", "reasoning": ""}]] * 2},
        ),
    ],
)
def test_what_the_package_would_mend_is_asked_again_and_then_a_failure(stage: str, change) -> None:
    def spoil_until(limit: int):
        spoilt = []

        def spoil(body: dict, text: str, _: int) -> str:
            answer = json.loads(text)
            if stage not in answer or len(spoilt) >= limit:
                return text
            spoilt.append(1)
            return json.dumps(change(answer))

        return spoil

    with ByRules(spoil_until(1)) as endpoint:
        metric = RadMatch.from_settings(endpoint.settings(judge_max_retries=1))
        (result,) = judged(metric, [CANDIDATES[3]])
        assert result.judgement.counts["actionable_errors"] == 2
        assert metric.retries == {calls.BAD_ANSWER: 1}
    with ByRules(spoil_until(100)) as endpoint:
        metric = RadMatch.from_settings(endpoint.settings(judge_max_retries=1))
        (result,) = judged(metric, [CANDIDATES[3]])
        assert (result.judgement, result.failure) == (None, calls.BAD_ANSWER)


@INSTALLED
def test_scores_are_kept_without_a_word_and_an_endpoint_without_schemas_is_asked_without(tmp_path: Path) -> None:
    with ByRules(schemas=False) as endpoint:
        for asked in (True, False):
            before = len(endpoint.asked)
            metric = RadMatch.from_settings(endpoint.settings(judge_cache_dir=str(tmp_path)))
            contexts = [{"indication": "Mr Smith coughs"}] * len(CANDIDATES)
            assert all(r.judgement for r in judged(metric, contexts=contexts))
            assert (len(endpoint.asked) > before) == asked
    assert "Mr Smith coughs" in endpoint.asked[0]["messages"][-1]["content"]
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Smith" not in content
    assert b"effusion" not in content


@INSTALLED
@pytest.mark.slow
def test_counts_are_those_of_the_packages_own_run(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import radmatch
    from synthetic_reports import reports

    candidates, references = reports(30, seed=1), reports(30, seed=2)
    for name, texts in (("pred", candidates), ("gt", references)):
        (tmp_path / name).mkdir()
        for i, text in enumerate(texts):
            (tmp_path / name / f"s{i:02}.txt").write_text(text)

    class Rules:
        model, reasoning = "rules", "none"

        def complete(self, messages, response_format=None, **_) -> str:
            return judge_server.answer({"messages": messages})["choices"][0]["message"]["content"]

    radmatch.run_all(
        tmp_path / "pred",
        tmp_path / "out",
        "rules",
        "rules",
        reports_gt_dir=tmp_path / "gt",
        fewshot="chest-xr",
        client_factory=lambda model, reasoning: Rules(),
    )
    kinds = {"COR": "correct", "PAR": "partial", "INC": "incorrect", "MIS": "missing", "SPU": "spurious"}
    with ByRules() as endpoint:
        metric = RadMatch.from_settings(endpoint.settings())
        ours = run(metric, lambda: metric.judge(candidates, references, ["iu_xray"] * 30))
    for i, result in enumerate(ours):
        path = tmp_path / "out" / "radmatch_results" / "per_report_metrics" / f"s{i:02}.json"
        theirs = json.loads(path.read_text())
        expected = {"actionable_errors": theirs["actionable_errors_total"]}
        expected |= {kinds[kind]: count for kind, count in theirs["muc_counts"].items()}
        assert dict(result.judgement.counts) == expected, i
