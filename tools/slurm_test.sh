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

. "$(dirname "$0")/launchers.sh"

[ $# -ge 4 ] || fail 'expected tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]'
require_config "$3"
run_with_srun "$1" "$2" test "$3" "$4" --launcher slurm "${@:5}"
