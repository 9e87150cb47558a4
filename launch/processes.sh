#!/usr/bin/env bash
# N processes on this machine that train one model, one device each: its first N GPUs, or on the CPU a try of what a
# cluster will do.
#
#   launch/processes.sh [--dry-run] N CHIP CONFIG [KEY=VALUE ...] [options of `affectgpt train`]
#
# CHIP names a file of launch/xla: cpu, h100, h200. PORT (61440) is where the processes meet. The smoke job comes first.
# SIGTERM and Ctrl-C reach all processes, which save and stop together.
set -euo pipefail
source launch/common.sh
count=${1:?how many processes?}
set_flags "${2:-}"

together() {
  local pids=() place=() status=0 pid code i
  for ((i = 0; i < count; i++)); do
    place=(--coordinator "localhost:${PORT:-61440}" --processes "$count" --process "$i" --local-devices "$i")
    if [[ $dry ]]; then
      run "$@" "${place[@]}"
    else
      "$@" "${place[@]}" &
      pids+=("$!")
    fi
  done
  trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
  for pid in "${pids[@]}"; do
    # A signal ends `wait`, but not yet the process.
    wait "$pid" && code=0 || code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" && code=0 || code=$?; done
    ((code == 0)) || status=$code
  done
  return "$status"
}

together affectgpt smoke "${@:3}"
together affectgpt train "${@:3}"
