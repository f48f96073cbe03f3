#!/usr/bin/env bash
# On a machine with a GPU and PyTorch: builds for its architecture, tests, sanitizes, measures. Each
# step writes a log and its status to the output folder; none stops the others.
# usage: run.sh [output folder]; BUDGET: seconds of measuring
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-benchmarks/results}}
mkdir -p "$out"
status="$out/gpu-status.txt"
: >"$status"
export PYTHONUNBUFFERED=1
python=${PYTHON:-python3}

step() { # name, seconds, command
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$out/gpu-$name.log" 2>&1
  local result=$?
  echo "$name: exit $result after $((SECONDS - begin)) s" | tee -a "$status"
  tail -n 3 "$out/gpu-$name.log"
}

capability=$($python -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
export TORCH_CUDA_ARCH_LIST=$capability
step build 400 "$python" -m pip install --no-build-isolation --no-deps .
step info 60 "$python" -m fastconv info
# The networks first: they are what is wanted most, and they compile least.
step measure "$((${BUDGET:-900} + 120))" "$python" -m benchmarks.gpu --budget "${BUDGET:-900}" --output "$out"
step test 500 "$python" -m pytest --device cuda -q --maxfail 40 tests/test_gpu_kernels.py tests/test_on_gpu.py \
  tests/test_gpu_graphs.py tests/test_pointwise_conv2d.py tests/test_depthwise_conv2d.py \
  tests/test_depthwise_separable_conv2d.py tests/test_inverted_residual.py tests/test_squeeze_excite.py \
  tests/test_conv2d_bias_act.py tests/test_pointwise_conv2d_pool.py tests/test_linear.py
for tool in memcheck racecheck; do
  step "$tool" 200 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m benchmarks.gpu.small
done
cat "$status"
