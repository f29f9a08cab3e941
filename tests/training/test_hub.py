"""What goes to a hub: `final/` alone, once a stage has finished, private unless said; nothing for closed data unless listed."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from rl_runs import SMALL, options
from trl import SFTConfig

from foundation.errors import RecipeError
from recipes import grpo, sft
from training.hub import open_upload


@dataclass
class Recorder:
    """A hub that takes uploads and notes them.

    Attributes:
        private: of the repository; None while there is none.
        files: every path that was committed, with each commit.
        revisions: the branch of each commit.
        others: requests that are no upload of model files.
    """

    url: str = ""
    private: bool | None = None
    files: list[str] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, value: dict) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            private = bool(recorder.private)
            self.answer({"id": "someone/model", "modelId": "someone/model", "private": private, "sha": "0" * 40})

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/api/repos/create":
                if recorder.private is None:
                    recorder.private = json.loads(body).get("visibility") == "private"
                self.answer({"url": f"{recorder.url}/someone/model"})
            elif "/preupload/" in self.path:
                names = [entry["path"] for entry in json.loads(body)["files"]]
                self.answer(
                    {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
                )
            elif "/commit/" in self.path:
                recorder.revisions.append(self.path.rpartition("/commit/")[2].split("?")[0])
                lines = [json.loads(line) for line in body.splitlines()]
                recorder.files += [line["value"]["path"] for line in lines if line["key"] == "file"]
                self.answer(
                    {
                        "commitUrl": f"{recorder.url}/someone/model/commit/{'0' * 40}",
                        "commitOid": "0" * 40,
                        "success": True,
                    }
                )
            else:
                recorder.others.append(self.path)
                self.answer({})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    recorder.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", recorder.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield recorder
    server.shutdown()
    server.server_close()


SHORT = {"max_steps": 2, "save_steps": 1, "warmup_steps": 0, "datasets": "phantom_prairie"}
STAGES = {
    "sft": (sft, "sft", {"global_batch_size": 4, "per_device_train_batch_size": 4}),
    "lora": (
        sft,
        "sft",
        {
            "global_batch_size": 4,
            "per_device_train_batch_size": 4,
            "use_peft": "true",
            "lora_target_modules": ["q_proj", "v_proj"],
        },
    ),
    "rl_step1": (grpo, "rl_step1", {**SMALL, "rollouts_logged": 4}),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_upload_of_a_stage_is_a_model_file_of_its_final(
    stage: str, hub: Recorder, tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, recipe, settings = STAGES[stage]
    out = tmp_path / stage
    given = {"model_name_or_path": tiny_base, "data_dir": phantom_data, "output_dir": out, **settings, **SHORT}
    given |= {"push_to_hub": "true", "hub_model_id": "someone/model"}
    if stage == "rl_step1":
        given["score_cache_dir"] = tmp_path / "cache"
    argv = [stage, "--config", f"recipes/demo/{recipe}.yaml", *options(given)]
    monkeypatch.setattr(sys, "argv", argv)
    module.main()
    allowed = {path.name for path in (out / "final").iterdir()}
    assert sorted(hub.files) == sorted(allowed)  # each once, no folder but final's own
    assert "model.safetensors" in hub.files
    assert hub.private is True
    assert set(hub.others) <= {"/api/validate-yaml"}  # the hub checks the head of a README.md
    hub.files.clear()
    module.main()  # finished already: uploaded again, where the first upload had failed
    assert sorted(hub.files) == sorted(allowed)


def config(folder: Path, **settings: object) -> SFTConfig:
    given = {"push_to_hub": True, "hub_model_id": "someone/model", **settings}
    return SFTConfig(output_dir=str(folder / "sft"), use_cpu=True, bf16=False, **given)


def test_models_of_closed_data_are_refused_unless_listed_also_by_an_earlier_stage(
    hub: Recorder, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"hub_allow_datasets: \[mimic\]"):
        open_upload(config(tmp_path), {"mimic", "iu_xray"}, "somewhere/base", [])
    assert open_upload(config(tmp_path), {"mimic"}, "somewhere/base", ["mimic"]).private
    earlier = tmp_path / "sft" / "settings.json"
    earlier.parent.mkdir()
    earlier.write_text(json.dumps({"datasets": ["chexpert_plus"], "model_name_or_path": "weights/base"}))
    with pytest.raises(RecipeError, match="chexpert_plus"):
        open_upload(config(tmp_path), {"iu_xray"}, str(tmp_path / "sft" / "checkpoint-2"), [])
    assert not hub.files


def test_a_public_repository_takes_nothing_unless_public_is_said(hub: Recorder, tmp_path: Path) -> None:
    hub.private = False
    with pytest.raises(RecipeError, match="hub_private_repo: false"):
        open_upload(config(tmp_path), {"iu_xray"}, "base", [])
    assert open_upload(config(tmp_path, hub_private_repo=False), {"iu_xray"}, "base", []) is not None


def test_without_a_network_or_a_repository_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE"):
        open_upload(config(tmp_path), {"iu_xray"}, "base", [])
    with pytest.raises(RecipeError, match="hub_model_id: owner/name"):
        open_upload(config(tmp_path, hub_model_id=None), {"iu_xray"}, "base", [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RecipeError, match="cannot use someone/model"):
        open_upload(config(tmp_path), {"iu_xray"}, "base", [])


def test_the_trainers_own_push_is_off(hub: Recorder, tmp_path: Path) -> None:
    training = config(tmp_path)
    open_upload(training, {"iu_xray"}, "base", [])
    assert training.push_to_hub is False


def test_a_branch_is_committed_to(hub: Recorder, tmp_path: Path) -> None:
    upload = open_upload(config(tmp_path, hub_revision="trial"), {"iu_xray"}, "base", [])
    upload.folder.mkdir(parents=True)
    (upload.folder / "config.json").write_text("{}")
    (upload.folder / "notes.parquet").write_text("text")
    upload.push()
    assert hub.files == ["config.json"]
    assert hub.revisions == ["trial"]
