"""Secrets put where they do not belong: masked in all that is written and printed, or refused before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rl_runs import REPOSITORY

from foundation.governance import JudgeError
from foundation.masking import mask, mask_words
from foundation.provenance import write_run
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.settings import JudgeSettings


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("hub_token: hf_SECRET123", "hub_token: ***"),
        ('{"api_key": "SECRET", "seed": 1}', '{"api_key": ***, "seed": 1}'),
        ("{'headers': {'x-api-key': 'SECRET'}}", "{'headers': {'x-api-key': ***}}"),
        ('"Authorization": "Bearer SECRET"', '"Authorization": ***'),
        ("HF_TOKEN=SECRET make weights", "HF_TOKEN=*** make weights"),
        ("https://user:SECRET@host/v1", "https://host/v1"),
        ("https://host/v1?api_key=SECRET&x=1 done", "https://host/v1?*** done"),
        ("no such model sk-proj-SECRET12", "no such model ***"),
        ("judge_api_key_env: SECRETsecret1", "judge_api_key_env: ***"),
        ("judge_api_key_env: JUDGE_API_KEY", "judge_api_key_env: JUDGE_API_KEY"),
        ("judge_max_tokens: 256", "judge_max_tokens: 256"),
        ('"pad_token": "<|endoftext|>"', '"pad_token": "<|endoftext|>"'),
        ("is it a question? a=b", "is it a question? a=b"),
        ("keys: 3, monkey: 4, tokenizer: x", "keys: 3, monkey: 4, tokenizer: x"),
    ],
)
def test_what_is_masked_and_what_is_not(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_what_follows_a_flag_that_names_a_secret_is_masked() -> None:
    words = [
        "-m",
        "recipes.grpo",
        "--hub_token",
        "SECRET",
        "--api-key=SECRET",
        "--judge_api_key_env",
        "SECRETvalue",
        "--seed",
        "1",
    ]
    shown = ["-m", "recipes.grpo", "--hub_token", "***", "--api-key=***", "--judge_api_key_env", "***", "--seed", "1"]
    assert mask_words(words) == shown


def test_run_json_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("hub_token: SECRET\noutput_dir: x\n")
    flags = [
        "--hub_token",
        "SECRET",
        "--judge_extra_body",
        '{"api_key": "SECRET"}',
        "--judge_base_url",
        "https://j/v1?key=SECRET",
    ]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "recipes.grpo", "--config", str(recipe), *flags])
    write_run(tmp_path / "out", "rl_step1", 1)
    written = (tmp_path / "out" / "run.json").read_text()
    assert "SECRET" not in written
    assert "recipes.grpo" in written


@pytest.mark.parametrize(
    "settings",
    [
        {"judge_api_key_env": "sk-proj-SECRET12"},
        {"judge_api_key_env": "SECRETvalue1"},
        {"judge_extra_body": '{"headers": {"api-key": "SECRET"}}'},
        {"judge_base_url": "https://api.example/v1?api_key=SECRET"},
        {"judge_base_url": "https://user:SECRET@api.example/v1"},
    ],
)
def test_a_key_in_the_judges_settings_is_refused_and_not_shown(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "k")
    given = {"judge_base_url": "https://api.example/v1", "judge_model": "m", "judge_cache_dir": None, **settings}
    with pytest.raises(JudgeError) as caught:
        Judge.from_settings(JudgeSettings(**given))
    assert "SECRET" not in str(caught.value)


SECRET = "hf_MARKEDSECRET0123456789"
JUDGED = [
    "--judge_base_url",
    f"https://judge.invalid/v1?api_key={SECRET}",
    "--judge_extra_body",
    f'{{"api_key": "{SECRET}"}}',
]
COMMANDS = {
    "sft": ["-m", "recipes.sft", "--config", "{recipe}", "--hub_token", SECRET],
    "sft by its recipe": ["-m", "recipes.sft", "--config", "{recipe}"],
    "sft mistyped": ["-m", "recipes.sft", "--config", "recipes/demo/sft.yaml", "--hub_tokn", SECRET],
    "grpo": ["-m", "recipes.grpo", "--config", "recipes/demo/rl_step2.yaml", *JUDGED, "--output_dir", "{out}"],
    "grpo by a key for a name": ["-m", "recipes.grpo", "--config", "recipes/demo/rl_step2.yaml", "--judge_api_key_env", SECRET],
    "evaluate": ["-m", "recipes.evaluate", "--config", "recipes/demo/eval.yaml", "--run", "{out}", *JUDGED],
    "select": ["-m", "recipes.select_checkpoint", "--config", "recipes/demo/eval.yaml", "--run", "{out}", *JUDGED],
    "score": ["-m", "evaluation", "score", "--predictions", "{out}/p.json", "--out", "{out}", "--judge", JUDGED[1], "--judge_model", "m"],
    "judge": ["-m", "rewards", "judge", "--pairs", "{out}/p.jsonl", "--out", "{out}/r.jsonl", *JUDGED],
    "training": ["-m", "launch.stage", "--dry-run", "--", "-m", "recipes.sft", "--config", "{recipe}", "--hub_token", SECRET],
    "stage": ["-m", "launch.stage", "--run", "{out}", "--stage", "sft", "--", sys.executable, "-m", "recipes.sft", "--hub_token", SECRET],
    "doctor": ["-m", "launch.doctor", "--recipe", "demo", "--judge_base_url", JUDGED[1]],
    "plan": ["-m", "launch.plan", "--recipe", "demo", "--api_key", SECRET],
    "generate": ["-m", "evaluation", "generate", "--model", "{out}", "--data", "{out}", "--out", "{out}/g", "--hub_token", SECRET],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_writes_or_prints_a_secret_wherever_it_was_put(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    content = yaml.safe_load(Path(REPOSITORY, "recipes/demo/sft.yaml").read_text())
    recipe.write_text(yaml.safe_dump({**content, "hub_token": SECRET}))
    out = tmp_path / "out"
    out.mkdir()
    words = [word.replace("{recipe}", str(recipe)).replace("{out}", str(out)) for word in COMMANDS[name]]
    keys = {"HF_TOKEN": SECRET, "JUDGE_API_KEY": SECRET, "WANDB_API_KEY": SECRET, "OPENAI_API_KEY": SECRET}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env={**os.environ, **keys},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert SECRET not in said, said
    assert [path for path in out.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []
