#!/usr/bin/env bash
# Trains in a slurm job that this command starts and waits for.
#
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of train.py]
#
# Variables:
#   GPUS           all GPUs of the run, one process each (default 4)
#   GPUS_PER_NODE  those of one machine (default: GPUS, at most 8)
#   CPUS_PER_TASK  processors of each process (default 5)
#   SRUN_ARGS      more options of srun, such as '--time=04:00:00 --qos=low'
#   PORT           a port that is free on the first machine (default 29500)
# PYTHON is the interpreter (default: python).

set -euo pipefail

. "$(dirname "$0")/launchers.sh"

[ $# -ge 3 ] || fail 'expected tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of train.py]'
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
shift 3
WORK_DIR=()
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  WORK_DIR=(--work-dir "$1")
  shift
fi
require_config "$CONFIG"
run_with_srun "$PARTITION" "$JOB_NAME" train "$CONFIG" --launcher slurm \
  ${WORK_DIR[@]+"${WORK_DIR[@]}"} "$@"
