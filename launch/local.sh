#!/usr/bin/env bash
# Several processes of one run on this machine, each with its share of every batch.
#   NUM=2 launch/local.sh --config=configs/bootmae.py:demo --workdir=runs/two
# On GPUs each process gets one: process i sees CUDA device i. On CPU each has one device.
set -euo pipefail
NUM="${NUM:-2}"
PORT="${PORT:-12621}"
PYTHON="${PYTHON:-python}"
pids=()
stop() { kill "$@" "${pids[@]}" 2>/dev/null || true; }
trap stop INT TERM
for ((i = 0; i < NUM; i++)); do
  CUDA_VISIBLE_DEVICES="$i" "$PYTHON" -m mimjax.main "$@" \
    --coordinator="localhost:$PORT" --num_processes="$NUM" --process_id="$i" &
  pids+=($!)
done
code=0
while ((${#pids[@]})); do
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    status=0
    wait "${pids[i]}" || status=$?
    unset "pids[i]"
    if ((status && !code)); then
      code=$status
      echo "$0: process $i ended with code $code; its error is above" >&2
    fi
  done
  # one that fails leaves the others waiting for it: those that stop by themselves get ten seconds
  if ((code && ${#pids[@]})); then
    sleep "${GRACE:-10}" || true
    stop -KILL
    wait
    break
  fi
  sleep 0.2 || true  # a signal to the whole group ends it: the processes decide when to stop
done
exit "$code"
