# What dist_train.sh, dist_test.sh, slurm_train.sh and slurm_test.sh share; they source it.

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

fail() {
  echo "error: $1" >&2
  exit 2
}

require_config() { # FILE
  [ -f "$1" ] || fail "config $1 does not exist"
}

require_number() { # NAME VALUE
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1=$2: expected a number of at least 1"
}

# Becomes GPUS processes of a tool, with torchrun.
run_with_torchrun() { # GPUS TOOL ARGUMENTS...
  local gpus=$1 tool=$2 nnodes=${NNODES:-1}
  shift 2
  require_number GPUS "$gpus"
  require_number NNODES "$nnodes"
  local meeting=(--nnodes="$nnodes" --node_rank="${NODE_RANK:-0}"
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
  # Two runs on one machine must not meet on one port.
  [ "$nnodes" != 1 ] || [ -n "${PORT:-}" ] || meeting=(--standalone)
  exec "${PYTHON:-python}" -m torch.distributed.run "${meeting[@]}" --nproc_per_node="$gpus" \
    "$TOOLS/$tool.py" "$@"
}

# Becomes a slurm job of a tool, GPUS processes in all.
run_with_srun() { # PARTITION JOB_NAME TOOL ARGUMENTS...
  local partition=$1 job_name=$2 tool=$3 gpus=${GPUS:-4}
  shift 3
  require_number GPUS "$gpus"
  local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
  require_number GPUS_PER_NODE "$per_node"
  command -v srun >/dev/null || fail "srun is not on the PATH: run this on a login node of the slurm cluster, or use tools/dist_$tool.sh"
  [ -z "${PORT:-}" ] || export MASTER_PORT=$PORT
  # One process that fails ends the others, which would wait for it.
  # shellcheck disable=SC2086 # SRUN_ARGS holds several words
  exec srun --partition="$partition" --job-name="$job_name" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --gres="gpu:$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$TOOLS/$tool.py" "$@"
}
