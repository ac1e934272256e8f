#!/usr/bin/env bash
# Several processes of one run on this machine, each with its share of every batch.
#   NUM=2 launch/local.sh --config=configs/bootmae.py:demo --workdir=runs/two
# The exit code is the run's (docs/running.md): 75 after SIGTERM, and the same command continues.
# On GPUs each process gets one: process i sees CUDA device i. On CPU each has one device.
set -euo pipefail
NUM="${NUM:-2}"
PORT="${PORT:-12621}"
PYTHON="${PYTHON:-python}"
pids=()
stop() { kill "$@" "${pids[@]}" 2>/dev/null || true; }
trap stop TERM
# Started in the background, they do not hear Ctrl-C themselves.
trap 'interrupted=1; stop' INT
for ((i = 0; i < NUM; i++)); do
  CUDA_VISIBLE_DEVICES="$i" "$PYTHON" -m mimjax train "$@" \
    --coordinator="localhost:$PORT" --num_processes="$NUM" --process_id="$i" &
  pids+=($!)
done
code=0 failed=0 interrupted=0
while ((${#pids[@]})); do
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    status=0
    wait "${pids[i]}" || status=$?
    unset "pids[i]"
    # 76 says that another process ended first: its code is the run's
    if ((status && (!code || code == 76))); then code=$status; fi
    case $status in
      0 | 75 | 130 | 143) ;; # finished, or asked to stop: the others are about to end as well
      *)
        ((failed)) || echo "$0: process $i ended with code $status; its error is above" >&2
        failed=1
        ;;
    esac
  done
  # one that fails leaves the others waiting for it: those that stop by themselves get ten seconds
  if ((failed && ${#pids[@]})); then
    for ((i = 0; i < ${GRACE:-10} * 5; i++)); do
      jobs -r | grep -q . || break
      sleep 0.2 || true
    done
    for i in "${!pids[@]}"; do
      if kill -KILL "${pids[i]}" 2>/dev/null; then continue; fi
      status=0 # it ended by itself, after the one that noticed
      wait "${pids[i]}" || status=$?
      if ((status && code == 76)); then code=$status; fi
    done
    wait
    break
  fi
  sleep 0.2 || true  # a signal to the whole group ends it: the processes decide when to stop
done
if ((interrupted && code == 75)); then code=130; fi
exit "$code"
