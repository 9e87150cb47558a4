#!/usr/bin/env bash
# Everything that a GPU has to show, in one call of at most ten minutes: correctness first, then benchmarks, torch and
# ours in turn, then one table.
#
#   bash benchmarks/h200.sh                # on a machine with one NVIDIA GPU; results in ./h200
#   bash benchmarks/h200.sh --shape tiny   # the same on a CPU, to see that it runs
#
# Needs Python 3.11 or newer with the project, its extra [cuda], torch, peft, pytest and beartype, and golden numbers in
# AFFECTGPT_GOLDENS (../shared/goldens). On a machine without a network, put wheels into a folder, install them with
# `pip install --no-index --no-deps --target SITE WHEELS/*.whl`, and set PYTHONPATH=SITE. Beside jax[cuda], torch, peft and
# transformers with what those need, all of it runs with these, some 150 MB once installed: absl-py annotated-types
# array_record beartype cloudpickle dm-tree einops etils flax grain humanize immutabledict iniconfig jaxtyping msgpack
# optax orbax-checkpoint pillow pluggy portpicker promise protobuf pydantic pydantic_core pygments pytest rich simplejson
# six tensorboardX tensorflow-datasets tensorflow-metadata tensorstore toml typing-inspection wrapt.
#
#   PYTHON  interpreter (python3)        OUT     folder for logs, JSON and table.txt (h200)
#   LIMIT   seconds for all of it (590)  STAGES  of them, to run some again; what others found before stays
#   RUNS    of each comparison (1)
#
# What does not fit into LIMIT is named at the end; what it had found is in the table. Exit status 1 if anything failed,
# did not fit, or was skipped on a GPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3} OUT=${OUT:-h200} LIMIT=${LIMIT:-590} RUNS=${RUNS:-1}
STAGES=${STAGES:-goldens gpu demo train_step generate encoders checkpoint}
case "$*" in
  '') shape=gpu ;;
  '--shape tiny') shape=tiny ;;
  *) echo "usage: bash benchmarks/h200.sh [--shape tiny]" >&2 && exit 2 ;;
esac
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
for name in $STAGES; do rm -f "$OUT/$name.json" "$OUT/$name.log"; done
rm -f "$OUT/table.txt" "$OUT/state.txt"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
if [[ $shape == tiny ]]; then
  export JAX_PLATFORMS=cpu
  step=(--shape tiny --dropout 0 --rate 1e-3) answers=(--shape tiny --batches 3 --single 2)
  towers=(--shape tiny --samples 2 --batch 5) saved=(--shape tiny) TRAIN=60 STEPS=6
  tests=(tests/parity/test_goldens_encoders.py)
else
  # shellcheck source=launch/xla/h200.env
  source launch/xla/h200.env
  export AFFECTGPT_GOLDENS=${AFFECTGPT_GOLDENS:-../shared/goldens}
  if [[ " $STAGES " == *' goldens '* && ! -d $AFFECTGPT_GOLDENS ]]; then
    echo "no golden numbers in $AFFECTGPT_GOLDENS; set AFFECTGPT_GOLDENS, or leave goldens out of STAGES" >&2 && exit 2
  fi
  step=(--shape 7b) answers=(--shape 7b --dtype bfloat16 --batches 1 128)
  towers=(--shape large --samples 256 --batch 256 --dtype bfloat16) saved=(--shape 7b)
  TRAIN=2000 STEPS=300
  tests=(tests/parity/test_goldens_model.py tests/parity/test_goldens_encoders.py tests/parity/test_goldens_training.py
    tests/parity/test_goldens_generation.py)
fi

# stage NAME SECONDS COMMAND...: run it within its limit and what is left of the whole.
stage() {
  local name=$1 limit=$2 left=$((LIMIT - SECONDS)) status=0
  shift 2
  [[ " $STAGES " == *" $name "* ]] || return 0
  if ((left < 15)); then
    echo "$name: no time left" | tee -a "$OUT/state.txt"
    return
  fi
  local before=$SECONDS
  timeout --kill-after=5 $((left < limit ? left : limit)) "$@" >"$OUT/$name.log" 2>&1 || status=$?
  case $status in
    0) echo "$name: passed in $((SECONDS - before)) s$(counted <"$OUT/$name.log")" ;;
    5) echo "$name: no tests to run here" ;;
    124) echo "$name: stopped after $((SECONDS - before)) s" ;;
    *) echo "$name: FAILED ($status), see $OUT/$name.log" ;;
  esac | tee -a "$OUT/state.txt"
}

# What a test run's last line says, if one is read.
counted() {
  sed -En '$s/^(.*(passed|skipped).*) in .*/: \1/p'
}

# The demo's network, trained and scored on features of the synthetic scenes; a CPU's first steps have the same losses.
demo() {
  local folder=$OUT/demo
  local affectgpt=("$PYTHON" -m affectgpt_jax.cli)
  local train=("${affectgpt[@]}" train demo weights.vision=null weights.audio=null
    "weights.tokenizer=$folder/data/tokenizer" "data.shards=$folder/data" model.vision_width=64 model.audio_width=64
    train.optimizer.warmup_steps=2 train.optimizer.end=2e-3 train.log_every=1 evaluate.max_new=16)
  rm -rf "$folder"
  "${affectgpt[@]}" synth "$folder/data" --features --train "$TRAIN" --validation 8 --test 64 &&
    "${train[@]}" "train.output=$folder/run" "train.steps=$STEPS" &&
    JAX_PLATFORMS=cpu "${train[@]}" "train.output=$folder/cpu" "train.steps=$((STEPS < 20 ? STEPS : 20))" &&
    "${affectgpt[@]}" evaluate "$folder/run" --plain &&
    "$PYTHON" -c 'import json, sys
here, cpu = ([line["loss"] for line in map(json.loads, open(f)) if "loss" in line] for f in sys.argv[1:])
off = max(abs(x / y - 1) for x, y in zip(here, cpu))
print(f"first and last loss {here[0]:.4f} {here[-1]:.4f}; {len(cpu)} losses off by {off:.1e} at most of those of a CPU")
sys.exit(not (here[-1] < here[0] and off < 1e-3))' "$folder"/{run,cpu}/metrics.jsonl
}
export -f demo
export PYTHON OUT TRAIN STEPS

# Nothing is timed here, so that these share the device. Float32 products of the goldens are as exact as a CPU's.
share=(env XLA_PYTHON_CLIENT_PREALLOCATE=false) exact=(JAX_DEFAULT_MATMUL_PRECISION=highest)
stage goldens 180 "${share[@]}" "${exact[@]}" "$PYTHON" -m pytest -q "${tests[@]}" &
stage gpu 180 "${share[@]}" "$PYTHON" -m pytest -q -m gpu tests/gpu &
stage demo 180 "${share[@]}" "${exact[@]}" bash -c demo &
wait
stage train_step 330 "$PYTHON" benchmarks/train_step.py "${step[@]}" --runs "$RUNS" --json "$OUT/train_step.json"
stage generate 120 "$PYTHON" benchmarks/generate.py "${answers[@]}" --runs "$RUNS" --json "$OUT/generate.json"
stage encoders 75 "$PYTHON" benchmarks/encoders.py "${towers[@]}" --runs "$RUNS" --json "$OUT/encoders.json"
stage checkpoint 60 "$PYTHON" benchmarks/checkpoint.py "${saved[@]}" --runs "$RUNS" --json "$OUT/checkpoint.json"
"$PYTHON" benchmarks/summary.py "$OUT" | tee "$OUT/table.txt"
bad=': (FAILED|stopped|no time)'
if [[ $shape == gpu ]]; then bad+='|no tests|skipped'; fi
! grep -Eq "$bad" "$OUT/state.txt"
