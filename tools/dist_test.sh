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

. "$(dirname "$0")/launchers.sh"

[ $# -ge 3 ] || fail 'expected tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]'
require_config "$1"
run_with_torchrun "$3" test "$1" "$2" --launcher pytorch "${@:4}"
