"""Slurm for tests, as far as the sbatch files need it: srun that starts tasks here, scontrol that notes what it is told."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

SRUN = """#!/usr/bin/env bash
# srun for tests: $TASKS tasks here (or --ntasks), signals forwarded, the job ended with the first task that fails.
tasks=${TASKS:-1}
while [[ $1 == --* ]]; do
  case $1 in --ntasks=*) tasks=${1#*=} ;; esac
  shift
done
pids=()
trap 'kill -USR1 "${pids[@]}" 2>/dev/null' USR1
for ((i = 0; i < tasks; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=$tasks "$@" & pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
  while true; do
    wait "$pid"; s=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  if ((s != 0 && status == 0)); then status=$s; kill "${pids[@]}" 2>/dev/null; fi
done
exit $status
"""


SCONTROL = """#!/usr/bin/env bash
# scontrol for tests: notes what it is told; the job is in the state that the file `state` says, else it runs.
echo "$@" >> {folder}/scontrol.log
case "$1 $2" in
  "show hostnames") echo 127.0.0.1 ;;
  "show job") echo "JobId=$3 JobName=test"; echo "   JobState=$(cat {folder}/state 2>/dev/null || echo RUNNING) Reason=None" ;;
esac
"""
# What a fresh checkout does not have.
_MADE = ("outputs", "data", "weights", ".git")


def make_cluster(folder: Path) -> None:
    """Put srun and scontrol into `folder`, which is to come first in PATH, and a fresh checkout into `folder`/checkout.

    scontrol writes `scontrol.log` into `folder`.
    """
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL.format(folder=folder))):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    checkout = folder / "checkout"
    checkout.mkdir()
    for path in REPOSITORY.iterdir():
        if path.name not in _MADE:
            (checkout / path.name).symlink_to(path)


def log_folder(script: Path, submitted_from: Path) -> Path:
    """The folder of the job's log, which Slurm does not make: a job without it ends before it begins."""
    (pattern,) = re.findall(r"^#SBATCH --output=(\S+)$", script.read_text(), re.MULTILINE)
    return (submitted_from / pattern).parent


def start_job(name: str, cluster: Path, **environment: str) -> subprocess.Popen:
    """What Slurm does with `launch/slurm/<name>`: bash, with its variables set. Output (both streams) is text, piped."""
    checkout = cluster / "checkout"
    script = checkout / "launch/slurm" / name
    if not log_folder(script, checkout).is_dir():
        raise FileNotFoundError(f"{name}: Slurm could not open its log in {log_folder(script, checkout)}")
    variables = {"PATH": f"{cluster}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "77"}
    variables |= {"SLURM_JOB_NODELIST": "node[0-1]"} | environment
    return subprocess.Popen(
        ["bash", str(script)],
        env=os.environ | variables,
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
