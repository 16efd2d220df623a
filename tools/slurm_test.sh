#!/usr/bin/env bash
# Tests a checkpoint in a slurm job that this command starts and waits for.
#
#   tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
#
# Variables:
#   GPUS           all GPUs of the run, one process each (default 4)
#   GPUS_PER_NODE  those of one machine (default: GPUS, at most 8)
#   CPUS_PER_TASK  processors of each process (default 5)
#   SRUN_ARGS      more options of srun, such as '--time=04:00:00 --qos=low'
#   PORT           a port that is free on the first machine (default 29500)
# PYTHON is the interpreter (default: python).

set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

[ $# -ge 4 ] || fail 'expected tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]'
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
CHECKPOINT=$4
shift 4
[ -f "$CONFIG" ] || fail "config $CONFIG does not exist"
GPUS=${GPUS:-4}
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$GPUS: expected a number of at least 1"
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
[[ $GPUS_PER_NODE =~ ^[1-9][0-9]*$ ]] || fail "GPUS_PER_NODE=$GPUS_PER_NODE: expected a number of at least 1"
command -v srun >/dev/null || fail 'srun is not on the PATH: run this on a login node of the slurm cluster, or use tools/dist_test.sh'

TOOLS=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
[ -z "${PORT:-}" ] || export MASTER_PORT=$PORT
# One process that fails ends the others, which would wait for it.
# shellcheck disable=SC2086 # SRUN_ARGS holds several words
exec srun --partition="$PARTITION" --job-name="$JOB_NAME" --ntasks="$GPUS" \
  --ntasks-per-node="$GPUS_PER_NODE" --gres="gpu:$GPUS_PER_NODE" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "${PYTHON:-python}" -u "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher slurm "$@"
