#!/usr/bin/env bash
# All workers of a TPU VM, a single one or a pod, train one model.
#
#   launch/tpu_vm.sh [--dry-run] NAME ZONE CHIP CONFIG [KEY=VALUE ...] [options of `affectgpt train`]
#
# CHIP names a file of launch/xla: v5e, v5p, v6e. Each worker needs the repository in ~/affectgpt_jax with its .venv,
# and the run folder on storage that all of them mount; docs/running.md says how. The smoke job comes first.
set -euo pipefail
source launch/common.sh
name=${1:?which TPU VM?} zone=${2:?in which zone?}
words=$(printf '%q ' "${@:3}")
run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
  --command "cd ~/affectgpt_jax && PATH=\$PWD/.venv/bin:\$PATH exec launch/local.sh ${words% }"
