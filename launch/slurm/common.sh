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
  set -a
  # shellcheck source=foundation/telemetry.env
  . foundation/telemetry.env
  set +a
  # srun does not take --cpus-per-task from sbatch's flags (since Slurm 22.05).
  if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-$SLURM_CPUS_PER_TASK}; fi
}

# The run's folder OUT, as make has it: RUN is a name, by default the recipe's with its variant; and its EVAL_YAML.
set_run() {
  OWN_RUN=$RECIPE${VARIANT:+_$VARIANT}
  RUN=${RUN:-$OWN_RUN}
  OUT=${OUTPUTS_DIR:-outputs}/$RUN
  EVAL_YAML=recipes/$RECIPE/eval${VARIANT:+_$VARIANT}.yaml
  [[ -f $EVAL_YAML ]] || EVAL_YAML=recipes/$RECIPE/eval.yaml
}

# set_stage STAGE MODEL: the stage's YAML, and FLAGS for its data, its weights, and a run that is not the recipe's own, which
# starts from MODEL ("" for the YAML's).
set_stage() {
  set_run
  YAML=recipes/$RECIPE/$1${VARIANT:+_$VARIANT}.yaml
  [[ -f $YAML ]] || fail "no $YAML; sft.sbatch runs sft, rl.sbatch rl_step1 or rl_step2 (STAGE), with the VARIANTs that recipes/$RECIPE has"
  FLAGS=(--data_dir "$DATA_DIR")
  if [[ $1 != sft ]]; then
    FLAGS+=(--weights_dir "$WEIGHTS_DIR")
  elif [[ $WEIGHTS_DIR != weights ]]; then
    local model
    model=$("$PYTHON" -m foundation.recipe_files "$YAML" model_name_or_path)
    if [[ $model == weights/* ]]; then FLAGS+=(--model_name_or_path "$WEIGHTS_DIR/${model#weights/}"); fi
  fi
  if [[ $OUT != "outputs/$OWN_RUN" ]]; then FLAGS+=(--output_dir "$OUT/$1" ${2:+--model_name_or_path "$OUT/$2"}); fi
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
# command resumes from the checkpoint. A step that was ended so by Slurm itself is one too; not that of a cancelled job.
run_and_requeue() {
  local status=0 warned=0 step state
  "$@" & step=$!
  trap 'warned=1; echo "warning from Slurm: saving a checkpoint"; kill -USR1 "$step" 2>/dev/null || true' USR1 TERM
  while true; do
    wait "$step" && status=0 || status=$?
    kill -0 "$step" 2>/dev/null || break    # wait also returns when a signal arrives
  done
  trap - USR1 TERM
  if ((status == 0 || !warned && status != 128 + 10 && status != 128 + 15)); then return "$status"; fi
  state=$(scontrol show job "${SLURM_JOB_ID:?}" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' | head -n 1)
  case ${state:-RUNNING} in
    RUNNING | PREEMPTED | SUSPENDED) ;;
    *) echo "job $SLURM_JOB_ID is $state, and not requeued; submitted again, it resumes from its checkpoint"; return "$status" ;;
  esac
  echo "requeueing job $SLURM_JOB_ID"
  scontrol requeue "$SLURM_JOB_ID" || fail "the job could not be requeued; submit it again, it resumes from its checkpoint"
  exit 0
}
