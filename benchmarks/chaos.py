"""Kill, damage, fill up and start twice at random moments; start again until done; compare with a run that nothing disturbed.

    make chaos [ROUNDS=20] [CHAOS_SEED=1] [ARGS="--stages sft eval --folder outputs/chaos"]

A small SFT → step 1 → selection → step 2 → evaluation is made once, undisturbed. Each round then makes one of these stages
again, with one fault at a moment drawn from the seed, and runs the same command until it ends with status 0. A fault is
survived where model, selection or scores are bit-equal to the undisturbed ones, no stack trace was printed, nothing is left
running, and no text of a marked patient lies outside the folders of the run. In step 2 the judge fails three calls in ten.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from foundation.files import sha256_of, write_json
from foundation.signals import end_with_parent
from rewards.offline.judge_server import MODEL as JUDGE
from rewards.offline.judge_server import offline_judge_server

STAGES = ("sft", "rl_step1", "select", "rl_step2", "eval")
FAULTS = ("kill", "signal", "damage", "disk", "twice")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
ATTEMPTS = 6
DATA = "phantom_prairie"
MARK = "UNIRG_CHAOS"  # in the environment of all that a round starts
JUDGE_FAULTS = 0.3
_LONGEST = 900  # seconds of one attempt; a run beyond it hangs
_TRAINING = {
    "datasets": DATA, "dataset_weights": 1, "max_steps": 6, "save_steps": 2, "save_total_limit": 9, "logging_steps": 1,
    "global_batch_size": 2, "seed": 3,
}  # fmt: skip
_GRPO = {
    **_TRAINING, "max_steps": 4, "num_generations": 4, "updates_per_generation": 1, "per_device_train_batch_size": 8,
    "max_completion_length": 16, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_steps": 0,
    "mask_truncated_completions": False, "monitor_max_truncated": 1, "monitor_min_unique": 0, "monitor_max_length_drift": 1e9, "monitor_max_prior_copies": 1,
}  # fmt: skip


class RoundError(Exception):
    """A fault that was not survived, and how it showed."""


@dataclass
class Outcome:
    """One round: what was done at which moment, how often the stage had to be started, and what was lost, if anything."""

    number: int
    stage: str
    fault: str
    detail: str
    starts: int = 0
    refusals: list[str] = field(default_factory=list)
    lost: str | None = None


class Chaos:
    """The folder of all rounds, with the data, the base model and the undisturbed run."""

    def __init__(self, folder: Path, judge_url: str) -> None:
        self.folder, self.judge_url = folder.absolute(), judge_url
        self.data, self.base, self.whole = self.folder / "data", self.folder / "base", self.folder / "whole"
        self.temporary = self.folder / "tmp"
        self.seconds: dict[str, float] = {}

    # ---- commands --------------------------------------------------------------------------------------------------------

    def command(self, stage: str, run: Path) -> list[str]:
        """A stage's command as make gives it, on one process; what it starts from is always the undisturbed run's."""
        module, given = "recipes.grpo", dict(_GRPO)
        if stage in ("select", "eval"):
            module = "recipes.select_checkpoint" if stage == "select" else "recipes.evaluate"
            given = {"run": run, "data_dir": self.data, "only_dataset": DATA, "max_new_tokens": 16, "batch_size": 2}
            if stage == "select":
                given["stage"] = "rl_step1"
            words = ["-m", module, "--config", "recipes/demo/eval.yaml", *_options(given)]
            if stage == "eval":
                words += ["--models", f"sft={self.whole}/sft/final", f"rl_step2={self.whole}/rl_step2/final"]
            return [
                sys.executable,
                "-m",
                "launch.stage",
                "--run",
                str(run),
                "--stage",
                stage,
                "--",
                sys.executable,
                *words,
            ]
        start = {"sft": self.base, "rl_step1": self.whole / "sft/final", "rl_step2": self.whole / "rl_step1/best"}[
            stage
        ]
        if stage == "sft":
            module, given = "recipes.sft", {**_TRAINING, "per_device_train_batch_size": 2}
        given |= {"data_dir": self.data, "model_name_or_path": start, "output_dir": run / stage}
        if stage == "rl_step2":
            given |= {"judge_base_url": self.judge_url, "judge_model": JUDGE, "judge_cache_dir": run / "judge"}
            given |= {"judge_max_retries": 40, "judge_backoff": 0.01}
        words = ["-m", module, "--config", f"recipes/demo/{stage}.yaml", *_options(given)]
        return [sys.executable, "-m", "launch.stage", "--run", str(run), "--stage", stage, "--", *words]

    def start(self, stage: str, run: Path, log: Path, limit: int | None = None) -> subprocess.Popen:
        """Start a stage; with `limit` no file may grow beyond so many bytes, as on a full disk."""
        environment = {
            **os.environ,
            MARK: str(run),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(self.temporary),
        }
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}

        def set_up() -> None:
            end_with_parent()  # this driver, when it is stopped
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        with log.open("a") as file:
            return subprocess.Popen(
                self.command(stage, run),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=set_up,
            )

    def prepare(self) -> None:
        """Data, base model and the undisturbed run, where they are not there."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        numbers = ["--train", "32", "--validation", "6", "--test", "6"]
        if not (self.data / DATA / "card.json").is_file():
            _run(
                [
                    "-m",
                    "data_prep",
                    "phantom",
                    "--institution",
                    "prairie",
                    "--seed",
                    "1",
                    *numbers,
                    "--out",
                    self.data / DATA,
                ]
            )
        if not (self.base / "config.json").is_file():
            _run(["-m", "recipes.tiny_model", "--datasets", DATA, "--data_dir", self.data, "--output_dir", self.base])
        noted = self.folder / "seconds.json"
        self.seconds = json.loads(noted.read_text()) if noted.is_file() else {}
        for stage in STAGES:
            if stage not in self.seconds:
                self.whole.mkdir(parents=True, exist_ok=True)
                started = time.monotonic()
                process = self.start(stage, self.whole, self.folder / "whole.log")
                if process.wait():
                    raise SystemExit(f"error: {stage} fails undisturbed; see {self.folder / 'whole.log'}")
                self.seconds[stage] = time.monotonic() - started
                write_json(noted, self.seconds)
                print(f"undisturbed {stage}: {self.seconds[stage]:.0f} s", flush=True)

    # ---- a round -----------------------------------------------------------------------------------------------------------

    def round(self, number: int, seed: int, stages: list[str], faults: list[str]) -> Outcome:
        draw = random.Random(f"{seed}/{number}")
        outcome = Outcome(number, draw.choice(stages), draw.choice(faults), "")
        run = self.folder / f"round-{number}"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        if outcome.stage == "select":
            ours = shutil.ignore_patterns("selection*", "best", ".lock")
            shutil.copytree(self.whole / "rl_step1", run / "rl_step1", ignore=ours)
        log = run / "log"
        try:
            self.disturb(outcome, run, log, draw)
            self.finish(outcome, run, log)
            self.compare(outcome.stage, run, log)
        except RoundError as error:
            outcome.lost = str(error)
        finally:
            for pid in _living(run):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if outcome.lost is None:
            shutil.rmtree(run)
        return outcome

    def disturb(self, outcome: Outcome, run: Path, log: Path, draw: random.Random) -> None:
        """One start with the round's fault."""
        stage, fault = outcome.stage, outcome.fault
        moment = draw.uniform(0.2, 1.0) * self.seconds[stage]
        outcome.starts += 1
        if fault == "disk":
            limit = int(2 ** draw.uniform(8, 21))
            outcome.detail = f"no file beyond {limit:,} bytes"
            self.start(stage, run, log, limit).wait(_LONGEST)
            return
        process = self.start(stage, run, log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        outcome.detail = f"after {moment:.1f} s"
        if fault == "twice":
            second = self.start(stage, run, log)
            process.wait(_LONGEST)
            if process.returncode:
                raise RoundError(f"the first of two ended with status {process.returncode}")
            if second.wait(_LONGEST) not in (0, 2):
                raise RoundError(f"the second of two ended with status {second.returncode}")
            return
        living = _living(run)
        if living and process.poll() is None:
            number = signal.SIGKILL if fault in ("kill", "damage") else draw.choice(SIGNALS)
            victim = draw.choice(living)
            outcome.detail += f", {signal.Signals(number).name} to {_module(victim)}"
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, number)
        try:
            process.wait(_LONGEST)
        except subprocess.TimeoutExpired:
            raise RoundError("did not end after it") from None
        self.nothing_left(run)
        if fault == "damage":
            outcome.detail += self.damage(run, draw)

    def damage(self, run: Path, draw: random.Random) -> str:
        """Damage one file that the stage wrote; what it was is kept beside, for `mend`."""
        inputs = (
            {path.relative_to(self.whole) for path in self.whole.rglob("*")}
            if (run / "rl_step1/selection").exists()
            else set()
        )
        files = [
            p for p in sorted(run.rglob("*")) if p.is_file() and not p.is_symlink() and p.name not in ("log", ".lock")
        ]
        files = [
            p for p in files if p.stat().st_size and not ("checkpoint-" in str(p) and p.relative_to(run) in inputs)
        ]
        if not files:
            return ""
        path = draw.choice(files)
        shutil.copy2(path, self.folder / "undamaged")
        self.damaged = path
        content = bytearray(path.read_bytes())
        how = draw.choice(("cut", "emptied", "zeroed", "deleted", "{}"))
        at = draw.randrange(len(content))
        if how == "deleted":
            path.unlink()
        else:
            zeroed = content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]
            path.write_bytes({"cut": content[:at], "emptied": b"", "zeroed": zeroed, "{}": b"{}"}[how])
        return f"; {path.relative_to(run)} {how}"

    def finish(self, outcome: Outcome, run: Path, log: Path) -> None:
        """The same command until it ends well; where it refuses a damaged file in one line, that is put back once."""
        for _ in range(ATTEMPTS):
            outcome.starts += 1
            process = self.start(outcome.stage, run, log)
            try:
                status = process.wait(_LONGEST)
            except subprocess.TimeoutExpired:
                raise RoundError(f"start {outcome.starts} hangs") from None
            self.nothing_left(run)
            if status == 0:
                return
            error = next((line for line in reversed(log.read_text().splitlines()) if line.startswith("error: ")), "")
            if status == 2 and error and getattr(self, "damaged", None) is not None:
                outcome.refusals.append(error)
                shutil.copy2(self.folder / "undamaged", self.damaged)
                self.damaged = None
                continue
            raise RoundError(
                f"start {outcome.starts} ended with status {status}: {log.read_text().strip().splitlines()[-1][:200]}"
            )
        raise RoundError(f"not done after {outcome.starts} starts")

    def nothing_left(self, run: Path) -> None:
        until = time.monotonic() + 30
        while (living := _living(run)) and time.monotonic() < until:
            time.sleep(0.2)
        if living:
            raise RoundError(f"left running: {', '.join(map(_module, living))}")

    def compare(self, stage: str, run: Path, log: Path) -> None:
        """Raise `RoundError` where the stage's result differs, a stack trace was printed, or text lies where it should not."""
        said = log.read_text()
        if "Traceback" in said:
            raise RoundError(f"a stack trace: {said[said.index('Traceback') :].strip().splitlines()[-1][:200]}")
        ours, wanted = self.results(stage, run), self.results(stage, self.whole)
        if differs := [name for name in wanted if ours.get(name) != wanted[name]]:
            raise RoundError(f"another {', '.join(differs)}")
        marked = self.marked_text()
        elsewhere = [path for path in self.temporary.rglob("*") if path.is_file() and marked in path.read_bytes()]
        if marked in said.encode() or elsewhere:
            raise RoundError(f"a patient's text in {elsewhere[0] if elsewhere else 'what was printed'}")

    def results(self, stage: str, run: Path) -> dict[str, Any]:
        """What has to be equal to the bit."""
        if stage == "select":
            content = json.loads((run / "rl_step1/selection.json").read_text())
            return {"selection": content, "best": os.readlink(run / "rl_step1/best")}
        if stage == "eval":
            found = {}
            for folder in sorted((run / "eval" / DATA).glob("*/")):
                if (folder / "scores.json").is_file():
                    scores = json.loads((folder / "scores.json").read_text())
                    found[f"{folder.name} predictions"] = sha256_of(folder / "predictions.json")
                    found[f"{folder.name} scores"] = sorted((folder / "scores.jsonl").read_text().splitlines())
                    found[f"{folder.name} means"] = (scores["studies"], scores["metrics"])
            return found
        result = json.loads((run / stage / "result.json").read_text())
        losses = [log.get("loss") for log in json.loads((run / stage / "log_history.json").read_text())]
        return {"model": sha256_of(run / stage / "final/model.safetensors"), "steps": result["steps"], "losses": losses}

    def marked_text(self) -> bytes:
        """The findings of the longest report of the data: long enough to be nobody else's."""
        texts = pq.read_table(self.data / DATA / "test.parquet", columns=["findings"]).column("findings").to_pylist()
        return max(filter(None, texts), key=len).encode()


def _options(given: dict[str, Any]) -> list[str]:
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def _run(words: list[Any]) -> None:
    subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def _living(run: Path) -> list[int]:
    """Processes that a round started and that still run, by the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"{MARK}={run}\0".encode() in (folder / "environ").read_bytes() + b"\0"
            if ours and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(folder.name))
    return sorted(found)


def _module(pid: int) -> str:
    """What a process runs, for people."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return str(pid)
    return words[words.index("-m") + 1] if "-m" in words[:-1] else words[0]


@contextlib.contextmanager
def faulty_judge(seed: int) -> Iterator[str]:
    """The stand-in judge behind a server that fails `JUDGE_FAULTS` of its calls; yields its address."""
    draw = random.Random(seed)
    with offline_judge_server() as real:

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

            def _answer(self, body: bytes | None) -> None:
                fault = (
                    draw.choice(("500", "429", "not JSON", "dropped", "half")) if draw.random() < JUDGE_FAULTS else None
                )
                if body is not None and fault == "dropped":
                    self.close_connection = True
                    return
                if body is not None and fault in ("500", "429"):
                    return self._send(int(fault), b'{"error": {}}')
                request = urllib.request.Request(
                    f"{real}{self.path.removeprefix('/v1')}", body, {"Content-Type": "application/json"}
                )
                try:
                    content = urllib.request.urlopen(request, timeout=60).read()
                except urllib.error.HTTPError as error:
                    return self._send(error.code, error.read())
                if body is not None and fault:
                    content = content[: len(content) // 2] if fault == "half" else b"<html>"
                return self._send(200, content)

            def _send(self, status: int, content: bytes) -> None:
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()


def table(outcomes: list[Outcome]) -> str:
    """Faults survived by kind and stage, as Markdown, and each that was not."""
    stages = [stage for stage in STAGES if any(outcome.stage == stage for outcome in outcomes)]
    lines = [
        "| fault | " + " | ".join(stages) + " | refused in one line, then put back |",
        "|---" * (len(stages) + 2) + "|",
    ]
    for fault in FAULTS:
        of_kind = [outcome for outcome in outcomes if outcome.fault == fault]
        tried = Counter(outcome.stage for outcome in of_kind)
        survived = Counter(outcome.stage for outcome in of_kind if outcome.lost is None)
        cells = [f"{survived[stage]} of {tried[stage]}" if tried[stage] else "–" for stage in stages]
        if of_kind:
            lines.append(f"| {fault} | {' | '.join(cells)} | {sum(bool(outcome.refusals) for outcome in of_kind)} |")
    lost = [outcome for outcome in outcomes if outcome.lost is not None]
    lines.append(f"\n{len(outcomes) - len(lost)} of {len(outcomes)} faults survived.")
    lines += [f"- round {o.number}, {o.stage}, {o.fault} ({o.detail}): {o.lost}" for o in lost]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m benchmarks.chaos")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first round: a long run in parts, or one again"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--folder", type=Path, default=Path("outputs/chaos"))
    given = parser.parse_args(arguments)
    outcomes: list[Outcome] = []
    with faulty_judge(given.seed) as url:
        chaos = Chaos(given.folder, url)
        chaos.prepare()
        for number in range(given.first, given.first + given.rounds):
            chaos.damaged = None
            outcome = chaos.round(number, given.seed, given.stages, given.faults)
            outcomes.append(outcome)
            told = "survived" if outcome.lost is None else f"LOST: {outcome.lost}"
            refused = f"; refused: {outcome.refusals[0]}" if outcome.refusals else ""
            print(
                f"round {number}: {outcome.stage}, {outcome.fault} {outcome.detail}: {told} ({outcome.starts} starts{refused})",
                flush=True,
            )
            write_json(
                given.folder / f"rounds-{given.seed}-{given.first}.json", [vars(outcome) for outcome in outcomes]
            )
    print(table(outcomes))
    return int(any(outcome.lost is not None for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
