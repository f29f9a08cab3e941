#!/usr/bin/env bash
# Rollouts on GPUs of their own: a vLLM server that the GRPO trainer pushes its weights to.
#   MODEL=outputs/unirg_cxr/sft/final CUDA_VISIBLE_DEVICES=6,7 TENSOR_PARALLEL=2 launch/vllm_server.sh
# The trainer then runs with: --vllm_mode server --vllm_server_base_url http://HOST:8000
set -euo pipefail

MODEL=${MODEL:?set MODEL to the checkpoint that the stage starts from, e.g. outputs/unirg_cxr/sft/final}
HOST=${HOST:-127.0.0.1}                     # 0.0.0.0 only inside a cluster: the weight push has no password
PORT=${PORT:-8000}
TENSOR_PARALLEL=${TENSOR_PARALLEL:-1}
MAX_MODEL_LEN=${MAX_MODEL_LEN:-4096}
MEMORY=${MEMORY:-0.9}                       # share of each GPU
IMAGES=${IMAGES:-2}                         # current and prior
VLLM=${VLLM:-.venv/bin/vllm}
PYTHON=${PYTHON:-.venv/bin/python}
EXTRA=${EXTRA:-}                            # further options of vllm serve

if [[ ! -f $MODEL/config.json && $MODEL == outputs/* ]]; then
  echo "error: no model in $MODEL; train the stage before it first" >&2; exit 2
fi
if ! command -v "$VLLM" >/dev/null; then
  echo "error: no vLLM at $VLLM; install it: .venv/bin/pip install -r requirements-gpu.txt" >&2; exit 2
fi
if ! "$PYTHON" -c 'import sys; from foundation.machine import port_is_free; sys.exit(not port_is_free(int(sys.argv[1]), sys.argv[2]))' "$PORT" "$HOST"; then
  echo "error: port $PORT on $HOST is in use; choose another: PORT=$((PORT + 1))" >&2; exit 2
fi

export VLLM_SERVER_DEV_MODE=1               # opens the weight push to the trainer
set -a
# shellcheck source=foundation/telemetry.env
. "$(dirname "$0")/../foundation/telemetry.env"
set +a
# shellcheck disable=SC2086  # EXTRA is a list of options
exec "$VLLM" serve "$MODEL" --host "$HOST" --port "$PORT" \
  --tensor-parallel-size "$TENSOR_PARALLEL" --max-model-len "$MAX_MODEL_LEN" --gpu-memory-utilization "$MEMORY" \
  --limit-mm-per-prompt "{\"image\":$IMAGES,\"video\":0}" \
  --weight-transfer-config '{"backend":"nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1 \
  --enable-scale-out $EXTRA
