#!/usr/bin/env bash
# A run on every host of an existing TPU slice.
#   launch/tpu_pod.sh NAME ZONE --config=configs/bootmae.py --workdir=gs://BUCKET/run ...
# Copies this checkout, installs it, starts the same command on all hosts: process 0 writes. Run it
# again after a preemption: the run continues. MODE=setup|start does one half alone. A run that was
# stopped by SIGTERM (exit code 75) is started again where its host is still there, at most
# RESTARTS=10 times.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: launch/tpu_pod.sh NAME ZONE --config=... --workdir=gs://..." >&2
  exit 2
fi
NAME="$1" ZONE="$2"
shift 2
MODE="${MODE:-all}"
cd "$(dirname "$0")/.."
on_all() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}
if [ "$MODE" != start ]; then
  archive="$(mktemp -d)/mimjax.tar.gz"
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:mimjax.tar.gz" --zone="$ZONE" --worker=all
  on_all "mkdir -p mimjax && tar -xzf mimjax.tar.gz -C mimjax && python3 -m venv mimjax/.venv && \
mimjax/.venv/bin/python -m pip install -q -c mimjax/constraints.txt -e 'mimjax[tpu]'"
fi
if [ "$MODE" != setup ]; then
  quoted=$(printf ' %q' "$@")
  run=".venv/bin/mimjax train --distributed=auto$quoted"
  on_all "cd mimjax && for ((i = 0; i <= ${RESTARTS:-10}; i++)); do code=0; $run || code=\$?; \
[ \$code = 75 ] || break; done; exit \$code"
fi
