#!/usr/bin/env bash
# What a GPU says in eight minutes, without network: golden numbers of MAE and BootMAE, one bfloat16
# step of each at ViT-B and batch 256 against eager and compiled PyTorch, a trace.
#   benchmarks/gpu.sh OUTPUT [WHEELS]
# OUTPUT gets golden.log, gpu.jsonl, gpu.log and trace/. WHEELS is a folder of wheels of what the
# machine's Python lacks; its own jax (for CUDA) and torch are used. Make it where pip has a network:
#   python -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d WHEELS NAME ...
# Needs Python 3.11 or newer. PYTHON=python3.12 names another one, SHAPE=tiny BATCH=2 DEVICE=cpu
# tries the script itself on any machine.
set -euo pipefail
if (($# < 1 || $# > 2)); then
  echo "usage: $0 OUTPUT [WHEELS]" >&2
  exit 2
fi
mkdir -p "$1"
output=$(cd "$1" && pwd)
wheels=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
if [ -n "$wheels" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
    --target "$output/site" "$wheels"/*.whl
fi
export PYTHONPATH="$PWD${wheels:+:$output/site}" JAX_PLATFORMS=$device
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
"$python" -c "import jax; print(jax.__version__, jax.devices())"

# tests/conftest.py asks for the highest precision of products; XLA_FLAGS of its own are for CPUs
status=0
XLA_FLAGS="" timeout "${GOLDEN_SECONDS:-240}" "$python" -m pytest -q -p no:cacheprovider \
  tests/test_golden.py -k "mae and not mcmae and not mrmae" 2>&1 | tee "$output/golden.log" || status=$?
if ((status)); then echo "golden numbers: exit code $status, see $output/golden.log" >&2; fi

timeout "${STEP_SECONDS:-230}" "$python" -m benchmarks.gpu --shape="${SHAPE:-b}" \
  --batch="${BATCH:-256}" --output="$output" 2>&1 | tee "$output/gpu.log" || status=$?
exit "$status"
