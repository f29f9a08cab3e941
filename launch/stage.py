"""Run one stage of a pipeline: say what it is, run it, and write its seconds and peak memory to the run's timings.json.

    python -m launch.stage --run outputs/demo --stage sft --title "SFT" --done outputs/demo/sft/result.json -- COMMAND …

Where `--done` names the file that the stage leaves last, a run that finds it unchanged did nothing, and the time of the
run that made it is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

from foundation import signals


def modified(path: Path | None) -> int | None:
    """Modification time in ns, or None where there is no such file."""
    return path.stat().st_mtime_ns if path and path.exists() else None


def _earlier(path: Path) -> dict:
    """What earlier stages noted; a damaged file is kept aside and begun anew: it says how long they took and no more."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    kept = path.with_name(f"damaged-{path.name}")
    os.replace(path, kept)
    print(f"   {path} was damaged; kept as {kept.name} and begun anew", file=sys.stderr)
    return {}


def record(run: Path, stage: str, seconds: float, peak_memory_mib: int) -> None:
    """Add one stage to `<run>/timings.json` and `<run>/peak_memory.json` (both atomically)."""
    for name, value in (("timings.json", round(seconds, 1)), ("peak_memory.json", peak_memory_mib)):
        path = run / name
        content = _earlier(path)
        content[stage] = value
        run.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the run's folder, e.g. outputs/demo")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--title", default=None)
    parser.add_argument("--done", type=Path, default=None, help="the file that the stage writes last")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("no command after --")
    print(f"── {arguments.title or arguments.stage}", flush=True)
    before = modified(arguments.done)
    started = time.monotonic()
    signals.end_with_parent()  # make's shell, which a signal to make ends without a word to what it runs
    try:
        status = signals.run(command)
    except OSError as error:
        print(f"error: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - started
    if status:
        print(f"── {arguments.stage} stopped (exit status {status})", file=sys.stderr)
        return status
    if before is None or modified(arguments.done) != before:
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        try:
            record(arguments.run, arguments.stage, seconds, peak)
        except OSError as error:  # the stage's own work is done and kept
            print(f"   {error.filename or arguments.run}: {error.strerror}; its time was not noted", file=sys.stderr)
        print(f"   {seconds:.0f} s, peak memory {peak} MiB", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
