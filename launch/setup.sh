#!/usr/bin/env bash
# The environment of either machine: with NVIDIA GPUs requirements-gpu.txt (vLLM, DeepSpeed, Liger), elsewhere requirements.txt.
#   make setup             what the machine is: GPUs that nvidia-smi lists, or none
#   make setup GPU=1       GPU=0: the other way
# .venv/installed says which it became and from which files; it stays that until it is asked for the other, and after a
# `git pull` only what changed in those files is installed.
set -euo pipefail

VENV=${VENV:-.venv}
SYSTEM_PYTHON=${SYSTEM_PYTHON:-python3}
DRIVER=580                                  # the oldest NVIDIA driver that runs CUDA 13, which torch's wheels are built for
GPU=${GPU:-}

fail() { echo "error: $*" >&2; exit 2; }

before=$(sed -n 's/^kind //p' "$VENV/installed" 2>/dev/null || true)
case $GPU in
  1) kind=gpu ;;
  0) kind=cpu ;;
  *) if [[ -n $before ]]; then kind=$before
     elif nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then kind=gpu
     else kind=cpu; fi ;;
esac
if [[ $kind == gpu ]]; then files=(requirements-gpu.txt); else files=(requirements.txt requirements-dev.txt constraints.txt); fi
digest=$(cat "${files[@]}" requirements-ratescore.txt | sha256sum | cut -d' ' -f1)
if [[ -x $VENV/bin/python && $(cat "$VENV/installed" 2>/dev/null) == "kind $kind"$'\n'"sha256 $digest" ]]; then
  touch "$VENV/installed"
  exit 0
fi

if [[ $kind == gpu ]]; then                 # before ten gigabytes are fetched
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)
  [[ $driver =~ ^[0-9]+ ]] || fail "GPU=1, but nvidia-smi finds no NVIDIA driver; install one of $DRIVER or newer, or make setup GPU=0"
  ((${driver%%.*} >= DRIVER)) || fail "NVIDIA driver $driver: these packages are built for CUDA 13, which wants $DRIVER or newer; update it, or make setup GPU=0"
  if ! command -v nvcc >/dev/null && [[ ! -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
    echo "note: no CUDA toolkit (nvcc) on this machine; DeepSpeed wants one of 13.x (CUDA_HOME), without it use PARALLEL=fsdp2"
  fi
  echo "── installing the pinned packages for GPUs into $VENV (about 10 GB, 5–15 minutes)"
else
  echo "── installing the pinned packages for a CPU into $VENV (about 2 GB; several more where pip's index has torch with CUDA alone, as plain PyPI has for Linux)"
fi
[[ -x $VENV/bin/python ]] || "$SYSTEM_PYTHON" -m venv "$VENV"
rm -f "$VENV/installed"
pip() { "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --progress-bar off "$@"; }
if [[ $kind == gpu ]]; then
  pip -r requirements-gpu.txt
else
  pip "$(grep '^torch==' requirements.txt)" -c constraints.txt
  pip -r requirements.txt -r requirements-dev.txt -c constraints.txt
fi
pip --no-deps -r requirements-ratescore.txt
printf 'kind %s\nsha256 %s\n' "$kind" "$digest" >"$VENV/installed"
