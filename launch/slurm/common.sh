# shellcheck shell=bash
# What the sbatch files share; they source it. Settings are variables at the top of each sbatch file.

# One line of error and exit status 2.
fail() { echo "error: $*" >&2; exit 2; }

# The folder of the checkout: where sbatch was called.
enter_repository() {
  cd "${SLURM_SUBMIT_DIR:-.}" || fail "no folder ${SLURM_SUBMIT_DIR:-.}"
  [[ -f launch/slurm/common.sh ]] || fail "call sbatch from the root of the checkout"
  PYTHON=${PYTHON:-.venv/bin/python}
  command -v "$PYTHON" >/dev/null || fail "no Python at $PYTHON; make setup, or set PYTHON"
}

# Where the first process listens. The port differs between jobs that share a node.
set_master() {
  if command -v scontrol >/dev/null && [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  fi
  export MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
  export MASTER_PORT=${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 20000))}
}

# Run a step so that a preemption costs one optimiser step: Slurm's warning (SIGUSR1, or SIGTERM) reaches the training
# processes, which save a checkpoint and stop with 128 + the signal; the job then goes back to the queue, and the same
# command goes on from the checkpoint.
run_and_requeue() {
  local status=0 warned=0 step
  "$@" & step=$!
  trap 'warned=1; echo "warning from Slurm: saving a checkpoint"; kill -USR1 "$step" 2>/dev/null || true' USR1 TERM
  while true; do
    wait "$step" && status=0 || status=$?
    kill -0 "$step" 2>/dev/null || break    # wait also returns when a signal arrives
  done
  trap - USR1 TERM
  if ((warned && status != 0)); then
    echo "requeueing job ${SLURM_JOB_ID:-?}"
    scontrol requeue "${SLURM_JOB_ID:?}" || fail "the job could not be requeued; submit it again, it goes on from its checkpoint"
    exit 0
  fi
  return "$status"
}
