#!/usr/bin/env bash
# One process with all devices of this machine. Also what a container, a pod of launch/gke and each worker of
# launch/tpu_vm.sh runs: there the processes find each other.
#
#   launch/local.sh [--dry-run] CHIP CONFIG [KEY=VALUE ...] [options of `affectgpt train`]
#
# CHIP names a file of launch/xla: cpu, h100, h200, v5e, v5p, v6e. The smoke job comes first.
set -euo pipefail
source launch/common.sh
set_flags "${1:-}"
run affectgpt smoke "${@:2}"
run exec affectgpt train "${@:2}"
