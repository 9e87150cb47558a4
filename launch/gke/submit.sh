#!/usr/bin/env bash
# A TPU slice of a GKE cluster, or several, by Cluster Toolkit, which writes and submits the JobSet.
#
#   CLUSTER=... LOCATION=... IMAGE=... CLAIM=... launch/gke/submit.sh [--dry-run] NAME TYPE CHIP CONFIG [KEY=VALUE ...]
#
# NAME is the workload's, TYPE the accelerator (v5litepod-16), CHIP its file of launch/xla (v5e), IMAGE the container,
# CLAIM a volume claim that many nodes can mount, which becomes /runs. SLICES (1) is how many. The smoke job comes
# first.
# launch/gke/jobset.yaml and jobset_gpu.yaml do the same with kubectl alone.
set -euo pipefail
source launch/common.sh
words=$(printf '%q ' "${@:3}")
run gcluster job submit --name "${1:?which name?}" --compute-type "${2:?which accelerator?}" \
  --cluster "${CLUSTER:?}" --location "${LOCATION:?}" --image "${IMAGE:?}" --num-slices "${SLICES:-1}" \
  --mount "${CLAIM:?}:/runs:rw" --restarts 10 --grace-period 10m --command "exec launch/local.sh ${words% }"
