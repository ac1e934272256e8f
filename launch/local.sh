#!/usr/bin/env bash
# Several processes of one run on this machine, each with its share of every batch.
#   NUM=2 launch/local.sh --config=configs/bootmae.py:demo --workdir=runs/two
# On GPUs each process gets one: process i sees CUDA device i. On CPU each has one device.
set -euo pipefail
NUM="${NUM:-2}"
PORT="${PORT:-12621}"
PYTHON="${PYTHON:-python}"
pids=()
stop() { kill "${pids[@]}" 2>/dev/null || true; }
trap stop INT TERM
for ((i = 0; i < NUM; i++)); do
  CUDA_VISIBLE_DEVICES="$i" "$PYTHON" -m mimjax.main "$@" \
    --coordinator="localhost:$PORT" --num_processes="$NUM" --process_id="$i" &
  pids+=($!)
done
code=0
for pid in "${pids[@]}"; do
  wait "$pid" || { code=$?; stop; }  # one that fails would leave the others waiting for it
done
exit "$code"
