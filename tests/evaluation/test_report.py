"""The report: everything in one file, untrusted text harmless, and a study browser that works in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from evaluation_files import make_data, write_predictions
from PIL import Image

from data_prep.study import read_studies, report_text
from evaluation import figures
from evaluation.browser import data_uri, script_json
from evaluation.graphs import marked_graphs
from evaluation.principal_part import readable
from evaluation.report import write_report
from evaluation.run_folder import read_run
from evaluation.scorers import open_scorers
from evaluation.scoring import score_file
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.conditions import CONDITIONS
from rewards.offline.graph import entity_places, report_graph
from rewards.radcliq import radcliq_v1
from rewards.radgraph import Entity, RadGraphF1

HTML = ("section", "form", "input", "select", "div", "p", "article", "script")  # the page's own tags, not the figures'
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & 'text' \u2028"
)
JUDGE = {"judge_base_url": "offline", "judge_cache_dir": None}
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small run: base, sft, rl_step1 and a baseline on two data sets, one of them zero-shot; hostile texts among them."""
    folder = tmp_path_factory.mktemp("run")
    outputs = folder / "outputs" / "small"
    for dataset in ("phantom_seen", "phantom_far"):
        data = make_data(folder / "data" / dataset, train=2, test=12, dataset=dataset)
        studies = read_studies(data, "test").to_pylist()
        ids = [s["study_id"] for s in studies]
        right = {s["study_id"]: report_text(s["findings"], s["impression"]) for s in studies}
        for model, good in (("base", 0), ("sft", 10), ("rl_step1", 18), ("copy_prior", 5)):
            reports = {key: right[key] if i < good else "Findings: The heart is enlarged." for i, key in enumerate(ids)}
            if model == "sft":
                reports[ids[1]] = f"Findings: {HOSTILE}"
                reports[ids[2]] = None
            out = outputs / "eval" / dataset / model
            path = write_predictions(out / "predictions.json", studies, reports)
            with open_scorers("offline", judge=JUDGE) as scorers:
                score_file(path, scorers, out, data=data, resamples=100)
        (data / "card.md").write_text(f"# {dataset}\n{HOSTILE}\n")
    for stage, steps in (("sft", 50), ("rl_step1", 40)):
        (outputs / stage).mkdir()
        (outputs / stage / "result.json").write_text('{"settings": {"datasets": ["phantom_seen"]}, "seconds": 5}')
        names = ("bleu2", "bertscore[offline-hash]", "sembscore[offline-rules]", "radgraph[offline-rules]")
        history = [{"step": s, "loss": 1 / s, "completions/mean_length": 20 + s} for s in range(10, steps, 10)]
        if stage == "rl_step1":
            for row in history:
                row |= {f"reward_parts/{name}": 0.3 + row["step"] / 1000 for name in names}
                row |= {"reward_parts/chexprompt[offline-rules-judge]": 0.4, "reward_parts/judge_errors": 2.5}
        (outputs / stage / "log_history.json").write_text(json.dumps(history))
    rated = {"mean": 0.9, "low": 0.8, "high": 1.0}
    inverse = {"mean": 1.11, "low": 1.0, "high": 1.25}
    checkpoints = [
        {"checkpoint": f"checkpoint-{step}", "studies": 9, "radcliq_v1": rated, "inverse_radcliq_v1": inverse}
        for step in (20, 30)
    ]
    selection = {"backend": "offline-rules", "best": "checkpoint-30", "checkpoints": checkpoints}
    (outputs / "rl_step1" / "selection.json").write_text(json.dumps(selection))
    (outputs / "timings.json").write_text('{"sft": 5.5}')
    write_report(outputs, resamples=100)
    return outputs


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self._hidden = "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._hidden = tag

    def handle_endtag(self, tag):
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data):
        if not self._hidden:
            self.text += data


def test_one_file_with_every_section_and_nothing_to_load(run):
    html = (run / "report.html").read_text()
    page = Page(html)
    sections = {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    wanted = {
        "summary",
        "metrics",
        "counterfactual",
        "published",
        "rewards",
        "training",
        "reward-parts",
        "length",
        "error-counts",
        "conditions",
    }
    assert (
        wanted | {"cases", "encounters", "temporal", "subgroups", "institutions", "other", "made", "browser"}
        <= sections
    )
    identities = [attributes["id"] for tag, attributes in page.tags if "id" in attributes and tag in HTML]
    assert len(identities) == len(set(identities))
    assert sum(tag == "svg" for tag, _ in page.tags) == 12
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert not attributes.get("src")
        href = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert href.startswith("#"), (tag, href)
    summary = json.loads((run / "summary.json").read_text())
    for numbers in summary["stages"].values():
        assert f"{numbers['composite']['mean']:.3f} [" in page.text
    assert "not the published metrics" in page.text
    assert "RL step 1, checkpoint-30" in page.text
    assert "Zero-shot: phantom_far" in page.text
    assert "What each model was told" in page.text
    assert "24 test studies of 12 patients (phantom_seen) that all models have" in page.text
    assert "python -m evaluation score" in page.text
    assert "images could not be shown" not in page.text  # found where the scores say that the data lie
    for figure in ("metrics", "training", "subgroups"):
        assert Image.open(run / "figures" / f"{figure}.png").size[0] > 300
        assert (run / "figures" / f"{figure}.svg").read_text().startswith("<?xml")


def test_case_studies_are_chosen_by_the_stated_rules(run):
    """Of the last trained model, rl_step1, on the data set that is pooled."""
    lines = [json.loads(line) for line in (run / "eval/phantom_seen/rl_step1/scores.jsonl").read_text().splitlines()]
    errors = {line["study_id"]: sum(line["judge"]["significant"] + line["judge"]["insignificant"]) for line in lines}
    text = Page((run / "report.html").read_text()).text
    cases = text[text.rindex("Case studies") :]
    found = re.findall(
        r"(Best|In the middle|Worst|[\w ]+, best|[\w ]+, in the middle): (\S+) of phantom_seen, ([\w ]+)", cases
    )
    chosen = {rule: study for rule, study, _ in found}
    assert errors[chosen["Best"]] == min(errors.values())
    assert errors[chosen["Worst"]] == max(errors.values()) > 0
    assert errors[chosen["In the middle"]] == sorted(errors.values())[len(errors) // 2]
    by_change = [(rule, change) for rule, _, change in found if ", " in rule]
    assert by_change
    assert all(rule.lower().startswith(change) for rule, change in by_change)
    worst = cases[cases.index("Worst: ") :]
    line = next(line for line in lines if line["study_id"] == chosen["Worst"])
    assert line["reference"] in worst
    assert line["candidate"] in worst
    named = [name.replace("_", " ") for name, n in zip(ERROR_TYPES, line["judge"]["significant"], strict=True) if n]
    assert all(name in worst for name in named)


def test_a_report_without_studies_has_no_cases_either(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "small")
    path = write_report(copied, resamples=100, browser_studies=0)
    page = Page(path.read_text())
    assert not {"cases", "browser"} & {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    assert "The heart is enlarged." not in page.text


def test_unusual_predictions_are_shown(run):
    text = Page((run / "report.html").read_text()).text
    assert "Unusual predictions" in text
    assert "null" in text


def test_hostile_text_adds_no_tag(run):
    html = (run / "report.html").read_text()
    page = Page(html)
    assert html.count("<script>") == 1  # the page's own; the data are application/json
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "document.title='owned'" in page.text  # the data card, as text
    data = re.search(r'<script type="application/json" id="studies">(.*?)</script>', html, re.DOTALL).group(1)
    assert HOSTILE in json.loads(data)["studies"][_hostile(json.loads(data))]["candidates"][1]["text"]


def _hostile(data: dict) -> int:
    return next(i for i, s in enumerate(data["studies"]) if s["candidates"][1]["text"].endswith(HOSTILE))


def test_the_same_run_gives_the_same_report(run):
    before = (run / "report.html").read_bytes()
    write_report(run, resamples=100)
    assert (run / "report.html").read_bytes() == before


def test_script_json_survives_any_text():
    text = "</script><!--<script> & \u2028\u2029 é"
    assert json.loads(script_json({"a": text})) == {"a": text}
    assert not re.search(r"[<>&\u2028\u2029]", script_json({"a": text}))


def test_images_are_small_and_stay_inside_the_data_folder(tmp_path):
    Image.new("L", (2000, 1000), 7).save(tmp_path / "x.png")
    Image.new("L", (10, 10)).save(tmp_path.parent / "secret.png")
    uri = data_uri(tmp_path, "x.png")
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 20_000
    assert data_uri(tmp_path, "../secret.png") is None
    assert data_uri(tmp_path, "none.png") is None


SHOWN = "[...document.querySelectorAll('#rows .row')].sort((a, b) => parseFloat(a.style.top) - parseFloat(b.style.top))"


def choose(page: Browser, field: str, value: str) -> None:
    page.run(
        f"(() => {{ const f = document.getElementById('{field}'); f.value = {json.dumps(value)};"
        " f.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def rows(page: Browser) -> list[str]:
    return page.run(f"{SHOWN}.map((row) => row.dataset.study)")


def count(page: Browser) -> str:
    return page.run("document.getElementById('count').textContent")


def judged(run: Path, model: str) -> list[dict]:
    """The judge's counts of a model's studies."""
    files = sorted(run.glob(f"eval/*/{model}/scores.jsonl"))
    return [json.loads(line)["judge"] for file in files for line in file.read_text().split("\n") if line]


@needs_chromium
def test_the_browser_shows_sorts_filters_and_steps(run):
    with Browser() as page:
        page.open(run / "report.html")
        assert page.run("document.title") == "Report of small"
        assert count(page) == "48 of 48 studies"
        assert page.run("document.querySelector('#study img').naturalWidth") == 64
        # keyboard
        first = page.run("document.querySelector('#study h3').textContent")
        page.key("j")
        second = page.run("document.querySelector('#study h3').textContent")
        page.key("k")
        assert (first, page.run("document.querySelector('#study h3').textContent")) == (rows(page)[0], first)
        assert second == rows(page)[1]
        # two images where there is a prior, and its report
        assert page.run("document.querySelectorAll('#study img').length") == 1
        page.key("j")
        assert page.run("document.querySelectorAll('#study img').length") == 2
        assert "Prior report" in page.run("document.querySelector('#study .context').textContent")
        # side by side: all four models
        names = page.run("[...document.querySelectorAll('#study .report h4')].map((h) => h.textContent)")
        assert names == ["Reference", "base", "SFT", "RL step 1", "baseline: copy the prior report"]
        # sort by errors, highest first
        choose(page, "order", "-1")
        choose(page, "sort", "errors")
        errors = page.run(f"{SHOWN}.map((row) => parseInt(row.lastChild.textContent))")
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > errors[-1]
        # filters
        choose(page, "finding", str(CONDITIONS.index("Edema")))
        edema = int(count(page).split()[0])
        assert 0 < edema < 48
        choose(page, "agreement", "missed")
        assert int(count(page).split()[0]) < edema
        choose(page, "finding", "")
        choose(page, "model", "0")
        choose(page, "errors", "0-1")
        few = sum(sum(j["significant"] + j["insignificant"]) <= 1 for j in judged(run, "base"))
        assert 0 < few < 48
        assert int(count(page).split()[0]) == few
        choose(page, "errors", "")
        choose(page, "dataset", "phantom_far")
        assert count(page) == "24 of 48 studies"
        choose(page, "search", "test003_2")
        assert rows(page) == ["test003_2"]
        choose(page, "search", "no such words")
        assert "No study passes" in page.run("document.getElementById('study').textContent")
        assert page.problems == []
        assert all(url.startswith(("file:", "data:")) for url in page.requests)


@needs_chromium
def test_hostile_text_is_shown_as_text(run):
    with Browser() as page:
        page.open(run / "report.html")
        choose(page, "search", "onerror")
        assert len(rows(page)) == 2
        assert "</script>" in page.run("document.getElementById('study').textContent")
        assert page.run("document.title") == "Report of small"
        assert page.run("document.querySelectorAll('#study script, #study [onerror]').length") == 0
        assert page.problems == []


@needs_chromium
def test_words_and_labels_that_disagree_are_marked(run):
    with Browser() as page:
        page.open(run / "report.html")
        choose(page, "model", "0")  # base: always "The heart is enlarged."
        choose(page, "finding", str(CONDITIONS.index("Pneumothorax")))
        choose(page, "agreement", "missed")
        missing = page.run(
            "[...document.querySelectorAll('.reference mark.missing')].map((m) => m.textContent).join(' ')"
        )
        assert "pneumothorax" in missing
        chips = page.run("[...document.querySelectorAll('.report.chosen .chip')].map((c) => c.textContent)")
        assert "− Pneumothorax missed" in chips
        choose(page, "finding", str(CONDITIONS.index("Cardiomegaly")))
        choose(page, "agreement", "added")
        added = page.run(
            "[...document.querySelectorAll('.report.chosen mark.added')].map((m) => m.textContent).join(' ')"
        )
        assert "enlarged" in added


def mark(page: Browser, what: str) -> None:
    page.run(
        f"(() => {{ const f = document.querySelector('#marks input[value={what}]'); f.checked = true;"
        " f.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def texts(page: Browser, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")


@needs_chromium
def test_entities_of_one_graph_alone_are_marked_on_demand(run):
    with Browser() as page:
        page.open(run / "report.html")
        choose(page, "model", "0")  # base: always "The heart is enlarged."
        choose(page, "finding", str(CONDITIONS.index("Pneumothorax")))
        choose(page, "agreement", "missed")
        words = texts(page, ".reference mark.missing")
        mark(page, "graph")
        # The reference says "Right apical pneumothorax." and no enlarged heart.
        assert {"Right", "apical", "pneumothorax"} <= set(texts(page, ".reference mark.missing"))
        assert "− pneumothorax, present" in texts(page, ".report.chosen .chip")
        legend = texts(page, ".legend")[0]
        assert "radgraph[offline-rules]" in legend
        assert "stand in for RadGraph" in legend
        chosen = page.run("document.querySelector('.report.chosen p').textContent")
        assert chosen == "Findings: The heart is enlarged."  # the text itself stays as it is
        mark(page, "labels")
        assert texts(page, "#study mark:not(.legend mark)") == []
        assert "− Pneumothorax missed" in texts(page, ".report.chosen .chip")
        mark(page, "words")
        assert texts(page, ".reference mark.missing") == words
        # A report that says the same has no entity of its own.
        mark(page, "graph")
        choose(page, "finding", "")
        choose(page, "model", "2")
        choose(page, "sort", "0")
        choose(page, "order", "-1")
        assert texts(page, ".report.chosen mark, .reference mark") == []
        assert all("in both" in chip for chip in texts(page, ".report.chosen .chip"))
        assert page.problems == []


@needs_chromium
def test_hostile_text_is_text_with_every_mark(run):
    with Browser() as page:
        page.open(run / "report.html")
        choose(page, "search", "onerror")
        for what in ("graph", "labels", "words"):
            mark(page, what)
            assert "</script>" in page.run("document.getElementById('study').textContent")
            assert page.run("document.querySelectorAll('#study script, #study [onerror]').length") == 0
        assert page.run("document.title") == "Report of small"
        assert page.problems == []


@needs_chromium
def test_the_styles_arrive_whole_and_paper_has_no_studies(run):
    with Browser() as page:
        page.open(run / "report.html")
        family = page.run("getComputedStyle(document.body).fontFamily")
        assert '"Segoe UI"' in family
        chosen, other = (
            page.run(f"getComputedStyle(document.querySelector('.row[aria-selected={state}]')).backgroundColor")
            for state in ("true", "false")
        )
        assert chosen != other
        page.print_media()
        assert page.run("getComputedStyle(document.getElementById('browser')).display") == "none"
        assert page.run("getComputedStyle(document.querySelector('details:not([open])')).display") == "none"
        assert page.run("getComputedStyle(document.getElementById('summary')).display") == "block"


def test_a_reciprocal_that_says_nothing_is_a_dash():
    clear = {"mean": 1.2, "low": 1.1, "high": 1.3}
    below = {"mean": -9.7, "low": -144.0, "high": -5.1}
    unbounded = {"mean": 40.0, "low": None, "high": None}
    assert readable("1/radcliq_v1", clear) == "1.200 [1.100, 1.300]"
    assert readable("1/radcliq_v1", below) == readable("1/radcliq_v1", unbounded) == "–"
    assert readable("radcliq_v1", below).startswith("−9.700 [−144")
    means = {"sft": {"bleu2": clear, "1/radcliq_v1": clear}, "rl_step1": {"bleu2": clear, "1/radcliq_v1": below}}
    drawn = figures.single_against_combined(means, ["bleu2", "1/radcliq_v1"])
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == ["BLEU-2"]


def test_comparisons_of_the_run_stand_in_the_reward_figure(run, tmp_path):
    """An ablation is evaluated in its own folder, as recipes.ablate leaves it."""
    outputs = tmp_path / "small"
    shutil.copytree(run, outputs)
    for dataset in ("phantom_seen", "phantom_far"):
        target = outputs / "ablations" / "reward_bleu2" / "eval" / dataset / "reward_bleu2"
        shutil.copytree(outputs / "eval" / dataset / "rl_step1", target)
        shutil.copytree(outputs / "eval" / dataset / "copy_prior", target.parent / "copy_prior")
    stage = outputs / "ablations" / "reward_bleu2" / "rl_step1"
    stage.mkdir()
    shutil.copy(outputs / "rl_step1" / "log_history.json", stage)
    other = outputs / "ablations" / "other_backend" / "eval" / "phantom_seen" / "other_backend"
    shutil.copytree(outputs / "eval" / "phantom_seen" / "sft", other)
    changed = json.loads((other / "scores.json").read_text())
    changed["made_by"]["scorers"]["metrics"]["bleu2"]["fingerprint"] = "of other code"
    (other / "scores.json").write_text(json.dumps(changed))
    found = read_run(outputs)
    assert found.models == ["base", "sft", "rl_step1", "copy_prior"]  # comparisons are no models of the run
    assert set(found.ablations) == {"reward_bleu2", "other_backend"}
    write_report(outputs, resamples=50, browser_studies=0)
    html = (outputs / "report.html").read_text()
    text = Page(html).text
    assert "Comparisons beside the run's own stages: reward bleu2." in text
    assert "other backend (scored by another backend than the run)" in text
    svg = (outputs / "figures" / "rewards.svg").read_text()
    assert "reward bleu2" in svg
    assert "other backend" not in svg
    assert "reward bleu2, rollouts" in (outputs / "figures" / "training.svg").read_text()


def test_places_of_entities_of_either_graph():
    report = "Findings: No effusion is seen. The prior effusion has RESOLVED. Impression: Clear lungs; 3.5 cm nodule."
    graph = report_graph(report)
    places = entity_places(report)
    assert len(places) == len(graph)
    for entity, place in zip(graph, places, strict=True):
        assert report[slice(*place)].lower().rstrip("s") == entity.tokens
    # RadGraph counts words in its own way, and keeps the report's spelling.
    words = report.replace(".", " .").replace(":", " :").replace(";", " ;").split()
    entities = (
        Entity("effusion", "OBS-DA", 3, 3),
        Entity("effusion", "OBS-DP", 9, 9),
        Entity("Clear", "OBS-DP", 15, 15),
    )
    assert [words[e.start] for e in entities] == [e.tokens for e in entities]
    metric = RadGraphF1(lambda texts: [entities for _ in texts], "real", "of weights")
    (marked,) = marked_graphs(metric, [report])
    assert [report[start:end] for start, end, _, _ in marked] == ["effusion", "effusion", "Clear"]
    assert marked[0][0] < marked[1][0]


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1300, False), (1300, True), (390, False), (390, True)])
def test_wide_and_narrow_light_and_dark(run, tmp_path, width, dark):
    with Browser(width, 900, dark) as page:
        page.open(run / "report.html")
        assert page.run("document.documentElement.scrollWidth") <= width  # nothing sticks out
        light = page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light != dark
        text, back = (page.run(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        assert contrast(text, back) > 7
        assert (
            page.run("getComputedStyle(document.querySelector('figure svg')).color") == text
        )  # figures follow the theme
        page.screenshot(tmp_path / "page.png")
        assert len(np.unique(np.asarray(Image.open(tmp_path / "page.png").convert("L")))) > 20
        assert page.problems == []


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two rgb() colours."""

    def luminance(colour: str) -> float:
        channels = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@needs_chromium
def test_three_thousand_studies_are_quick(run, tmp_path):
    """The small run's lines under new ids, 3,000 of them."""
    outputs = tmp_path / "large"
    for source in (run / "eval" / "phantom_seen").iterdir():
        target = outputs / "eval" / "phantom_seen" / source.name
        target.mkdir(parents=True)
        (target / "scores.json").write_bytes((source / "scores.json").read_bytes())
        lines = [json.loads(line) for line in (source / "scores.jsonl").read_text().split("\n") if line]
        with (target / "scores.jsonl").open("w") as file:
            for i in range(3000):
                line = lines[i % len(lines)]
                longer = {"reference": line["reference"] * 4, "candidate": line["candidate"] * 4}
                file.write(json.dumps({**line, **longer, "study_id": f"s{i:04d}", "patient_id": f"p{i // 2}"}) + "\n")
    write_report(outputs, data_dir=tmp_path, resamples=20)
    sort_and_search = (
        "(() => { const t = performance.now(); const s = document.getElementById('sort'); s.value = '0';"
        " s.dispatchEvent(new Event('input', {bubbles: true})); const q = document.getElementById('search');"
        " q.value = 'enlarged'; q.dispatchEvent(new Event('input', {bubbles: true})); return performance.now() - t; })()"
    )
    with Browser() as page:
        page.open(run / "report.html")
        of_48 = max(1.0, page.run(sort_and_search))
        page.open(outputs / "report.html")
        assert count(page) == "3,000 of 3,000 studies"
        assert page.run("document.querySelectorAll('#rows .row').length") < 60  # only what is in view
        milliseconds = page.run(sort_and_search)
        choose(page, "search", "")
        choose(page, "sort", "id")
        page.run("document.getElementById('list').scrollTop = 1e9")
        time.sleep(0.2)
        assert rows(page)[-1] == "s2999"
        assert page.problems == []
    assert milliseconds < 2 * 4 * 3000 / 48 * of_48  # texts four times as long; no more than by their number


def test_radcliq_is_drawn_itself_where_its_inverse_would_jump():
    def history(radgraph):
        values = {"bleu2": 0.2, "bertscore": 0.5, "sembscore": 0.4, "radgraph": radgraph}
        return [{"step": step, **{f"reward_parts/{k}": v for k, v in values.items()}} for step in (10, 20)]

    far = figures.training_curves({"rl_step1": history(0.1)}, {})
    near = figures.training_curves({"rl_step1": history(0.9)}, {})
    assert [figure.axes[0].get_title() for figure in (far, near)] == ["1/RadCliQ-v1", "RadCliQ-v1 (lower is better)"]
    drawn = far.axes[0].lines[0].get_ydata()
    assert drawn[0] == pytest.approx(1 / float(radcliq_v1(0.1, 0.5, 0.4, 0.2)))
