#!/usr/bin/env bash
# What only a GPU can say, in eight minutes: do the kernels compute what they should, and what do a
# training step, scores and planning cost there.
#
#   bash tools/gpu_check.sh OUTPUT_FOLDER [options of python -m cdra_mm.benchmark.gpu_check]
#
# Needs a checkout and a Python (PYTHON=...) with torch, Triton, timm, peft and pytest; no OpenMMLab,
# no network. Leaves gpu_check.json in the folder and prints one table last.
set -uo pipefail

# Seconds in all, and the shares of it; bash counts SECONDS.
SECONDS=0
whole=${GPU_CHECK_SECONDS:-480}
for_tests=$((whole / 4))
for_start=$((whole / 16)) # imports before the measurements, the table after them

folder=${1:-work_dirs/gpu_check}
[ $# -eq 0 ] || shift
case $folder in
  -*) echo "error: $folder: expected the folder for the results first, then options" >&2; exit 2 ;;
esac
python=${PYTHON:-python3}
mkdir -p "$folder" || exit 2
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$folder/triton}

# Few shapes of each kernel: every one is compiled once for each type. The project's own conftest
# asks for packages that a bare machine lacks.
squares='(adds_the_squares and (ragged or uneven or whole_and_cut))'
timeout -k 2 "$for_tests" \
  "$python" -m pytest --noconftest -c /dev/null --rootdir=. -p no:cacheprovider -q \
  tests/core/adapters/test_block_kernels.py \
  tests/core/adapters/test_native_on_gpu.py \
  tests/core/scoring/test_square_kernel.py \
  -k "not in_the_interpreter and (not square_kernel or bit_for_bit or $squares)" \
  2>&1 | tee "$folder/tests.txt"
tests=${PIPESTATUS[0]}

left=$((whole - SECONDS))
timeout -k 2 "$((left - 4))" \
  "$python" -m cdra_mm.benchmark.gpu_check --json "$folder/gpu_check.json" \
  --tests "$tests" --seconds "$((left - for_start))" "$@"
measured=$?
if [ "$measured" -eq 124 ] || [ "$measured" -eq 137 ]; then
  echo "cut off after $SECONDS s; what was measured is in $folder/gpu_check.json" >&2
fi
[ "$tests" -eq 0 ] && [ "$measured" -eq 0 ]
