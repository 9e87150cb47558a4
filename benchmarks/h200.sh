#!/usr/bin/env bash
# Everything that a GPU has to show, in one call of at most ten minutes: correctness first, then benchmarks, torch and
# ours in turn, then one table.
#
#   bash benchmarks/h200.sh                # on a machine with one NVIDIA GPU; results in ./h200
#   bash benchmarks/h200.sh --shape tiny   # the same on a CPU, to see that it runs
#
# Needs Python 3.11 or newer with the project and its extras [cuda,torch] and pytest. On a machine without a network,
# put wheels into a folder, install them with `pip install --no-index --no-deps --target SITE WHEELS/*.whl`, and set
# PYTHONPATH=SITE. The golden numbers are looked for in AFFECTGPT_GOLDENS; without them their tests are skipped.
#
#   PYTHON  interpreter (python3)        OUT    folder for logs, JSON and table.txt (h200)
#   LIMIT   seconds for all of it (590)  RUNS   of each comparison (1)
#
# What does not fit into LIMIT is named at the end. Exit status 1 if anything failed or did not fit.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3} OUT=${OUT:-h200} LIMIT=${LIMIT:-590} RUNS=${RUNS:-1}
case "$*" in
  '') shape=gpu ;;
  '--shape tiny') shape=tiny ;;
  *) echo "usage: bash benchmarks/h200.sh [--shape tiny]" >&2 && exit 2 ;;
esac
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
rm -f "$OUT"/*.json "$OUT"/*.log "$OUT"/table.txt "$OUT"/state.txt
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
if [[ $shape == tiny ]]; then
  export JAX_PLATFORMS=cpu
  step=(--shape tiny --dropout 0 --rate 1e-3) answers=(--shape tiny --batches 3 --single 2)
  towers=(--shape tiny --samples 2 --batch 5) saved=(--shape tiny) TRAIN=60 STEPS=6
  tests=(tests/parity/test_goldens_encoders.py)
else
  export JAX_PLATFORMS=cuda XLA_FLAGS="${XLA_FLAGS:-}" XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
  step=(--shape 7b) answers=(--shape 7b --dtype bfloat16 --batches 1 32 128 256)
  towers=(--shape large --samples 256 --batch 256 --dtype bfloat16) saved=(--shape 7b)
  TRAIN=2000 STEPS=300
  tests=(tests/parity/test_goldens_model.py tests/parity/test_goldens_encoders.py tests/parity/test_goldens_training.py
    tests/parity/test_goldens_generation.py)
fi

# stage NAME SECONDS COMMAND...: run it within its limit and what is left of the whole.
stage() {
  local name=$1 limit=$2 left=$((LIMIT - SECONDS)) status=0
  shift 2
  if ((left < 15)); then
    echo "$name: no time left" | tee -a "$OUT/state.txt"
    return
  fi
  local before=$SECONDS
  timeout --kill-after=5 $((left < limit ? left : limit)) "$@" >"$OUT/$name.log" 2>&1 || status=$?
  case $status in
    0) echo "$name: passed in $((SECONDS - before)) s" ;;
    5) echo "$name: skipped, no tests to run here" ;;
    124) echo "$name: stopped after $((SECONDS - before)) s" ;;
    *) echo "$name: FAILED ($status), see $OUT/$name.log" ;;
  esac | tee -a "$OUT/state.txt"
}

# The demo's network, trained and scored on features of the synthetic scenes.
demo() {
  local folder=$OUT/demo
  local affectgpt=("$PYTHON" -m affectgpt_jax.cli)
  rm -rf "$folder"
  "${affectgpt[@]}" synth "$folder/data" --features --train "$TRAIN" --validation 8 --test 64 &&
    "${affectgpt[@]}" train demo weights.vision=null weights.audio=null \
      "weights.tokenizer=$folder/data/tokenizer" "data.shards=$folder/data" model.vision_width=64 model.audio_width=64 \
      "train.output=$folder/run" "train.steps=$STEPS" train.optimizer.warmup_steps=2 \
      train.log_every=1 evaluate.max_new=16 &&
    "${affectgpt[@]}" evaluate "$folder/run" --plain &&
    "$PYTHON" -c 'import json, sys
losses = [line["loss"] for line in map(json.loads, open(sys.argv[1])) if "loss" in line]
print("first and last loss", losses[0], losses[-1])
sys.exit(not losses[-1] < losses[0])' "$folder/run/metrics.jsonl"
}
export -f demo
export PYTHON OUT TRAIN STEPS

# Nothing is timed here, so that these share the device. Float32 products of the goldens are as exact as a CPU's.
share=(env XLA_PYTHON_CLIENT_PREALLOCATE=false)
stage goldens 180 "${share[@]}" JAX_DEFAULT_MATMUL_PRECISION=highest "$PYTHON" -m pytest -q "${tests[@]}" &
stage gpu 180 "${share[@]}" "$PYTHON" -m pytest -q -m gpu tests/gpu &
stage demo 180 "${share[@]}" bash -c demo &
wait
stage train_step 330 "$PYTHON" benchmarks/train_step.py "${step[@]}" --runs "$RUNS" --json "$OUT/train_step.json"
stage generate 120 "$PYTHON" benchmarks/generate.py "${answers[@]}" --runs "$RUNS" --json "$OUT/generate.json"
stage encoders 75 "$PYTHON" benchmarks/encoders.py "${towers[@]}" --runs "$RUNS" --json "$OUT/encoders.json"
stage checkpoint 60 "$PYTHON" benchmarks/checkpoint.py "${saved[@]}" --runs "$RUNS" --json "$OUT/checkpoint.json"
"$PYTHON" benchmarks/summary.py "$OUT" | tee "$OUT/table.txt"
! grep -Eqv ': (passed|skipped)' "$OUT/state.txt"
