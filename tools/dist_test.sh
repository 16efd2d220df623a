#!/usr/bin/env bash
# Tests a checkpoint on several GPUs of one machine or of several, with torchrun.
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
#
# GPUS counts those of this machine; on a machine without a GPU, processes. On several machines run
# the same command on each, with these variables:
#   NNODES       number of machines (default 1)
#   NODE_RANK    number of this machine, from 0 (default 0)
#   MASTER_ADDR  address of machine 0 (default 127.0.0.1)
#   PORT         a port that is free on machine 0 (default 29500; on one machine any free port)
# PYTHON is the interpreter (default: python).

set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

[ $# -ge 3 ] || fail 'expected tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]'
CONFIG=$1
CHECKPOINT=$2
GPUS=$3
NNODES=${NNODES:-1}
[ -f "$CONFIG" ] || fail "config $CONFIG does not exist"
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$GPUS: expected a number of at least 1"
[[ $NNODES =~ ^[1-9][0-9]*$ ]] || fail "NNODES=$NNODES: expected a number of at least 1"

MEETING=(--nnodes="$NNODES" --node_rank="${NODE_RANK:-0}"
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
# Two runs on one machine must not meet on one port.
[ "$NNODES" != 1 ] || [ -n "${PORT:-}" ] || MEETING=(--standalone)

TOOLS=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run "${MEETING[@]}" --nproc_per_node="$GPUS" \
  "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
