"""Slurm for tests, as far as the sbatch files need it: srun that starts tasks here, scontrol that notes what it is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

SRUN = """#!/usr/bin/env bash
# srun for tests: $TASKS tasks here, signals forwarded, the job ended with the first task that fails.
args=(); for a in "$@"; do case $a in --kill-on-bad-exit=1) ;; *) args+=("$a") ;; esac; done
pids=()
trap 'kill -USR1 "${pids[@]}" 2>/dev/null' USR1
for ((i = 0; i < ${TASKS:-1}; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=${TASKS:-1} "${args[@]}" & pids+=($!)
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


def make_cluster(folder: Path) -> None:
    """Put srun and scontrol into `folder`, which is to come first in PATH; scontrol writes `scontrol.log` there."""
    scontrol = f'#!/bin/sh\necho "$@" >> {folder}/scontrol.log\n[ "$1" = show ] && echo 127.0.0.1\nexit 0\n'
    for name, text in (("srun", SRUN), ("scontrol", scontrol)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def start_job(name: str, cluster: Path, **environment: str) -> subprocess.Popen:
    """What Slurm does with `launch/slurm/<name>`: bash, with its variables set. Output (both streams) is text, piped."""
    variables = {"PATH": f"{cluster}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_JOB_ID": "77"}
    variables |= {"SLURM_JOB_NODELIST": "node[0-1]"} | environment
    return subprocess.Popen(
        ["bash", str(REPOSITORY / "launch/slurm" / name)],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
