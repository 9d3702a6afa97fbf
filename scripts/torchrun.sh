#!/usr/bin/env bash
# Start a training or evaluation script with one process per GPU, on one machine or several:
#   scripts/torchrun.sh vq_train.py --recipe configs/vfmtok/emoji64.yaml --data-path DATA
# On each of N machines: NODE_COUNT=N NODE_RANK=0..N-1 MASTER_ADDR=<host of rank 0> scripts/torchrun.sh ...
# PROC_PER_NODE: processes here (default: the GPUs, or 1), MASTER_PORT: a free port (default 29500). PYTHON: interpreter.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: scripts/torchrun.sh SCRIPT ARGS" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
script=$1; shift
[ -f "$script" ] || script=$root/$script
[ -f "$script" ] || { echo "scripts/torchrun.sh: error: no script $script" >&2; exit 2; }
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
processes=${PROC_PER_NODE:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
exec "$python" -m torch.distributed.run \
    --nnodes "${NODE_COUNT:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$processes" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
    "$script" "$@"
