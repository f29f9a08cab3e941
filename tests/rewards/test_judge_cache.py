"""The cache of answers: by everything that matters, without patient text, safe for several processes."""

import json
import multiprocessing
import os
import sqlite3

import pytest
from cache_writers import write_judgements

from foundation.governance import JudgeError
from rewards.chexprompt.cache import FILE_NAME, JudgeCache, cache_stats, export_cache, prune_cache
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.judgement import Judgement
from rewards.chexprompt.settings import JudgeSettings

JUDGEMENT = Judgement((1, 0, 0, 0, 0, 0), (0, 0, 0, 2, 0, 0))


def cache(folder, model="m", version="v", **sampling) -> JudgeCache:
    return JudgeCache(folder, model, version, sampling or {"temperature": 0.0})


def get(opened: JudgeCache, reference: str, candidate: str) -> Judgement | None:
    return opened.get([opened.key(reference, candidate)]).get(opened.key(reference, candidate))


def test_an_answer_is_found_again_by_another_process_later(tmp_path):
    cache(tmp_path).put("reference", "candidate", JUDGEMENT, 10, 2)
    assert get(cache(tmp_path), "reference", "candidate") == JUDGEMENT


def test_another_model_prompt_setting_reference_or_candidate_is_another_question(tmp_path):
    cache(tmp_path).put("reference", "candidate", JUDGEMENT, 10, 2)
    assert get(cache(tmp_path, model="n"), "reference", "candidate") is None
    assert get(cache(tmp_path, version="w"), "reference", "candidate") is None
    assert get(cache(tmp_path, temperature=0.5), "reference", "candidate") is None
    same = cache(tmp_path)
    assert get(same, "candidate", "reference") is None
    assert get(same, "referencec", "andidate") is None
    assert get(same, "reference", "candidate ") is None


@pytest.mark.parametrize(
    "change",
    [{"judge_model": "n"}, {"judge_temperature": 1.0}, {"judge_max_tokens": 9}, {"judge_extra_body": '{"seed": 1}'}],
)
def test_a_judges_settings_reach_the_key(tmp_path, change):
    values = {"judge_model": "m", "judge_cache_dir": str(tmp_path)}
    one, other = (Judge.from_settings(JudgeSettings(**v)) for v in (values, values | change))
    assert one.cache.key("r", "c") != other.cache.key("r", "c")
    assert one.fingerprint != other.fingerprint
    unrelated = Judge.from_settings(JudgeSettings(**values, judge_concurrency=3, judge_timeout=7))
    assert one.cache.key("r", "c") == unrelated.cache.key("r", "c")


def test_no_report_text_is_on_disk(tmp_path):
    opened = cache(tmp_path)
    opened.put("Mr Smith has an effusion", "Mrs Jones has none", JUDGEMENT, 10, 2)
    for path in tmp_path.iterdir():
        assert b"Smith" not in path.read_bytes()
        assert b"Jones" not in path.read_bytes()


def test_several_processes_write_at_once(tmp_path):
    processes = [
        multiprocessing.get_context("spawn").Process(target=write_judgements, args=(tmp_path, i)) for i in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (row,) = cache_stats(tmp_path / FILE_NAME)
    assert row["answers"] == 100 + 4 * 100


def test_a_forked_child_opens_its_own_connection(tmp_path):
    opened = cache(tmp_path)
    opened.put("r", "parent", JUDGEMENT, 1, 1)
    child = os.fork()
    if child == 0:
        opened.put("r", "child", JUDGEMENT, 1, 1)
        os._exit(0 if get(opened, "r", "parent") == JUDGEMENT else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert get(opened, "r", "child") == JUDGEMENT


def test_stats_export_and_prune(tmp_path):
    for model, n in (("a", 3), ("b", 2)):
        for i in range(n):
            cache(tmp_path, model=model).put("r", f"c{i}", JUDGEMENT, 100, 10)
    path = tmp_path / FILE_NAME
    assert [(r["model"], r["answers"], r["prompt_tokens"], r["completion_tokens"]) for r in cache_stats(path)] == [
        ("a", 3, 300, 30),
        ("b", 2, 200, 20),
    ]
    records = list(export_cache(path))
    assert len(records) == 5
    assert {json.dumps(r["significant"]) for r in records} == {"[1, 0, 0, 0, 0, 0]"}
    assert prune_cache(path, older_than_days=1) == 0
    assert prune_cache(path, older_than_days=1, model="a") == 0
    assert prune_cache(path, older_than_days=0, model="a") == 3
    assert [r["model"] for r in cache_stats(path)] == ["b"]
    assert prune_cache(path, prompt_version="v") == 2
    with pytest.raises(JudgeError, match="what to prune"):
        prune_cache(path)


def test_a_file_that_is_no_cache_is_left_alone_and_named(tmp_path):
    path = tmp_path / FILE_NAME
    path.write_bytes(b"something else entirely, of some length" * 50)
    with pytest.raises(JudgeError, match="cannot be used as judge cache"):
        cache(tmp_path).get([])
    assert path.read_bytes().startswith(b"something else")
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE answers (x)")
    other.commit()
    other.close()
    with pytest.raises(JudgeError, match="cannot be used as judge cache"):
        cache(tmp_path).get([])


def test_a_missing_cache_is_one_clear_line(tmp_path):
    with pytest.raises(JudgeError, match="no judge cache at"):
        cache_stats(tmp_path / FILE_NAME)
    (tmp_path / "file").write_text("")
    with pytest.raises(JudgeError, match="judge_cache_dir"):
        cache(tmp_path / "file" / "folder").get([])


@pytest.mark.parametrize(
    "stored",
    ["[]", "[0,0,0,0,0]", "[-9,0,0,0,0,0]", '["0",0,0,0,0,0]', "[0,0,", "null", "[99999,0,0,0,0,0]", "[NaN,0,0,0,0,0]"],
)
def test_a_row_that_no_answer_could_have_made_is_not_there_and_is_stored_anew(stored: str, tmp_path) -> None:
    """An empty list would count as no error: the best reward there is."""
    opened = cache(tmp_path)
    opened.put("r", "c", JUDGEMENT, 1, 1)
    key = opened.key("r", "c")
    opened.close()
    with sqlite3.connect(opened.path) as connection:
        connection.execute("UPDATE answers SET significant = ?", (stored,))
    connection.close()
    assert opened.get([key]) == {}
    assert opened.damaged == 1
    assert list(export_cache(opened.path)) == []
    opened.put("r", "c", JUDGEMENT, 1, 1)
    assert opened.get([key]) == {key: JUDGEMENT}


def _fill(opened: JudgeCache) -> None:
    for i in range(1000):
        opened.put("r", f"c{i}", JUDGEMENT, 1, 1)


def test_a_disk_without_room_is_one_line_that_says_so(tmp_path) -> None:
    opened = cache(tmp_path)
    opened.get([])
    with opened._lock:
        pages = opened._connect().execute("PRAGMA page_count").fetchone()[0]
        opened._connect().execute(f"PRAGMA max_page_count = {pages}")  # as a full disk
    with pytest.raises(JudgeError, match=r"judge_cache\.sqlite .*full: make room on its disk"):
        _fill(opened)
