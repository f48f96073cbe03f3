#!/usr/bin/env bash
# On a machine with a GPU and PyTorch, within 25 minutes: builds for its architecture, tests, runs
# compute-sanitizer, measures. Each step writes a log to the output folder and a line to
# gpu-status.txt there; none stops the others.
# usage: [OUT=folder] [BUDGET=seconds of measuring] [PYTHON=python3] run.sh [build test sanitize measure]
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-benchmarks/results}
python=${PYTHON:-python3}
budget=${BUDGET:-360}
mkdir -p "$out"
status="$out/gpu-status.txt"
export PYTHONUNBUFFERED=1

say() { echo "$*" | tee -a "$status"; }

step() { # name, seconds, command
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  # By SIGINT first, on which pytest still says what failed.
  timeout --signal=INT --kill-after=20 "$limit" "$@" >"$out/gpu-$name.log" 2>&1
  local result=$?
  say "$name: exit $result after $((SECONDS - begin)) s$([ $result = 124 ] && echo ", its time was over")"
  tail -n 4 "$out/gpu-$name.log"
  return $result
}

has() { "$python" -c "import $1" 2>/dev/null; }

sources_alone() { # what runs without a build: PyTorch's part of everything
  local folder=build/uninstalled
  rm -rf $folder && mkdir -p $folder
  cp -r python/fastconv $folder/ && rm -rf $folder/fastconv/kernels && cp -r kernels $folder/fastconv/
  export PYTHONPATH="$PWD/$folder${PYTHONPATH:+:$PYTHONPATH}"
  say "fastconv is not built: its sources stand for it, without its compiled ops"
}

build() {
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST
  step build 300 "$python" -m pip install --no-build-isolation --no-deps . || sources_alone
  step info 20 "$python" -m fastconv info
}

tests() {
  if ! has pytest; then
    say "test: skipped, pytest is not installed"
    return
  fi
  local parallel=() common=(--device cuda -q -p no:cacheprovider --continue-on-collection-errors)
  has xdist && parallel=(-n 8)
  step test 330 "$python" -m pytest "${common[@]}" "${parallel[@]}" --maxfail 100 tests --ignore tests/test_large_tensors.py
  step large 60 "$python" -m pytest "${common[@]}" tests/test_large_tensors.py
}

sanitize() {
  # First as it is, so that Triton has compiled everything and the tool sees kernels only.
  step small 90 "$python" -m benchmarks.gpu.small
  if ! type compute-sanitizer >/dev/null 2>&1; then
    say "sanitize: skipped, there is no compute-sanitizer"
    return
  fi
  local tool
  for tool in memcheck racecheck; do
    # Every tensor in an allocation of its own, so that what lies beside it is nobody's.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 90 \
      compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m benchmarks.gpu.small
  done
}

measure() {
  step prepare 140 "$python" -m benchmarks.gpu.prepare --budget 120
  step measure "$((budget + 60))" "$python" -m benchmarks.gpu --budget "$budget" --output "$out"
}

if ! has torch || ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  say "nothing ran: $python has no PyTorch that can use a GPU here"
  exit 1
fi
say "$(date -u '+%Y-%m-%d %H:%M UTC'), $("$python" -c 'import torch; print(torch.cuda.get_device_name(0))')"
wanted=("$@")
[ $# = 0 ] && wanted=(build test sanitize measure)
for name in "${wanted[@]}"; do
  case $name in
    build) build ;;
    test | sanitize | measure)
      has fastconv || sources_alone
      if [ "$name" = test ]; then tests; else $name; fi ;;
    *) say "no step is called $name" ;;
  esac
done
cat "$status"
