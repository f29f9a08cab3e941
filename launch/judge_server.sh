#!/usr/bin/env bash
# The judge on its own vLLM server: an OpenAI-compatible endpoint on this machine, so that no report leaves it.
#   CUDA_VISIBLE_DEVICES=7 launch/judge_server.sh          then: make rl-step2 JUDGE_URL=http://127.0.0.1:8001/v1
# The rubric is the same in every request, the reference in those of a study: prefix caching computes them once, and the
# server reports how much of its input that was. Judges that differ in cost: python -m launch.judges
set -euo pipefail

JUDGE_MODEL=${JUDGE_MODEL:-Qwen/Qwen3-30B-A3B-Instruct-2507}  # its hub name, under which recipes ask for it; or a folder
WEIGHTS_DIR=${WEIGHTS_DIR:-weights}         # where make weights put it; not there: from the hub, by its name
HOST=${HOST:-127.0.0.1}
PORT=${PORT:-8001}
TENSOR_PARALLEL=${TENSOR_PARALLEL:-1}
DATA_PARALLEL=${DATA_PARALLEL:-1}           # copies of the model, for more calls a second
MAX_MODEL_LEN=${MAX_MODEL_LEN:-8192}
MAX_SEQUENCES=${MAX_SEQUENCES:-256}
MEMORY=${MEMORY:-0.92}
VLLM=${VLLM:-.venv/bin/vllm}
PYTHON=${PYTHON:-.venv/bin/python}
EXTRA=${EXTRA:-}

if ! command -v "$VLLM" >/dev/null; then
  echo "error: no vLLM at $VLLM; install it: .venv/bin/pip install -r requirements-gpu.txt" >&2; exit 2
fi
if ! "$PYTHON" -c 'import sys; from foundation.machine import port_is_free; sys.exit(not port_is_free(int(sys.argv[1]), sys.argv[2]))' "$PORT" "$HOST"; then
  echo "error: port $PORT on $HOST is in use; choose another: PORT=$((PORT + 1))" >&2; exit 2
fi

set -a
# shellcheck source=foundation/telemetry.env
. "$(dirname "$0")/../foundation/telemetry.env"
set +a
model=$JUDGE_MODEL
if [[ ! -d $model && -f $WEIGHTS_DIR/${JUDGE_MODEL##*/}/config.json ]]; then
  model=$WEIGHTS_DIR/${JUDGE_MODEL##*/}
  export HF_HUB_OFFLINE=1                   # all of it is here
fi
own=()
while IFS= read -r option; do own+=("$option"); done < <("$PYTHON" -m launch.judges --options "$JUDGE_MODEL")
# shellcheck disable=SC2086  # EXTRA is a list of options
exec "$VLLM" serve "$model" --served-model-name "$JUDGE_MODEL" --host "$HOST" --port "$PORT" \
  --tensor-parallel-size "$TENSOR_PARALLEL" --data-parallel-size "$DATA_PARALLEL" \
  --max-model-len "$MAX_MODEL_LEN" --max-num-seqs "$MAX_SEQUENCES" --gpu-memory-utilization "$MEMORY" \
  --enable-prefix-caching --enable-prompt-tokens-details ${own[@]+"${own[@]}"} $EXTRA
