"""The demo: corpus, towers, shards, training, scores and report, each by the command a user would type.

    python -m scripts.demo                                   # runs/demo
    python -m scripts.demo --labels                          # also probabilities of labels, and evidence of some clips
    python -m scripts.demo --prefusion none attention qformer   # one run a pre-fusion on the same corpus

Stages that are already complete are used again, so an interrupted demo goes on where it stopped.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from affectgpt_jax.cli.evaluate import SHOWN
from affectgpt_jax.inference.report.examples import EXAMPLES

FOLDER = Path("runs/demo")
CLIPS = {"train": 1200, "validation": 60, "test": 240}
AGAIN = {"train": 1, "validation": 1, "test": 240}
"""Size of the second corpus: other people, other clips, for the same model."""


def stage(name: str, *words: str) -> None:
    """Run one command; stop the demo if it fails."""
    print(f"\n== {name}: affectgpt {' '.join(words)}", flush=True)
    started = time.perf_counter()
    environment = {"JAX_PLATFORMS": "cpu"} | os.environ
    code = subprocess.run([sys.executable, "-m", "affectgpt_jax.cli", *words], env=environment, check=False).returncode
    if code:
        sys.exit(code)
    print(f"== {name}: {time.perf_counter() - started:.0f} s", flush=True)


def shared_stages(seed: int) -> None:
    """What every demo run reads: the corpus, the towers and the shards."""
    counts = [word for split, count in CLIPS.items() for word in (f"--{split}", str(count))]
    stage("corpus", "synth", str(FOLDER / "corpus"), *counts, "--seed", str(seed))
    stage("towers", "towers", str(FOLDER / "towers"), "--seed", str(seed))
    stage("shards", "prepare", "demo")


def compare(prefusions: list[str]) -> None:
    """Train and score one run a pre-fusion, and print them side by side."""
    rows = []
    for prefusion in prefusions:
        folder = FOLDER.parent / f"demo-{prefusion}"
        words = [f"model.prefusion={prefusion}", f"name=demo-{prefusion}", f"train.output={folder}"]
        if prefusion == "none":
            words.append("model.mode=face")
        stage(f"training, pre-fusion {prefusion}", "train", "demo", *words)
        stage(f"scores, pre-fusion {prefusion}", "evaluate", str(folder), "--plain")
        scores = next(iter(json.loads((folder / "scores.json").read_text())["scores"].values()))
        rows.append((prefusion, scores))
    print("\n" + f"{'pre-fusion':<12}" + "".join(f"{title:>24}" for title in SHOWN.values()))
    for prefusion, scores in rows:
        cells = (f"{scores[n]['value']:.3f} [{scores[n]['low']:.3f}, {scores[n]['high']:.3f}]" for n in SHOWN)
        print(f"{prefusion:<12}" + "".join(f"{cell:>24}" for cell in cells))


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of corpus and towers")
    parser.add_argument("--prefusion", nargs="+", choices=("none", "attention", "qformer"), help="compare these")
    parser.add_argument("--again", action="store_true", help="also score the model on a corpus of another seed")
    parser.add_argument("--labels", action="store_true", help="also score labels, with evidence of the report's clips")
    args = parser.parse_args()
    started = time.perf_counter()
    shared_stages(args.seed)
    if args.prefusion:
        compare(args.prefusion)
    else:
        stage("training", "train", "demo")
        stage("scores", "evaluate", str(FOLDER))
        if args.labels:
            stage("labels", "labels", str(FOLDER), "--calibrate", "validation", "--evidence", str(EXAMPLES))
    if args.again:
        other = FOLDER / f"corpus-{args.seed + 1}"
        counts = [word for split, count in AGAIN.items() for word in (f"--{split}", str(count))]
        stage("another corpus", "synth", str(other), *counts, "--seed", str(args.seed + 1))
        stage("its scores", "evaluate", str(FOLDER), "--corpus", str(other), "--plain", "--output", f"{other}-scores")
    if not args.prefusion:
        stage("report", "report", str(FOLDER))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\ndemo: {time.perf_counter() - started:.0f} s, largest process {peak:.1f} GB")
    if not args.prefusion:
        print(f"scores: {FOLDER / 'scores.json'}\nreport: {FOLDER / 'report.html'}")


if __name__ == "__main__":
    main()
