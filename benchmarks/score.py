"""How fast MER-UniBench is scored: against plain Python, from a cold start, and on a million clips.

  python benchmarks/score.py

Reads the folder named by AFFECTGPT_UNIBENCH (default ../shared/unibench) and, if it holds them, scores the seven
checkpoints of MELD. The plain version applies the same rules clip by clip and word by word, with dictionaries and
sets; its second form remembers the classes of words it has met.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from rich.console import Console

from affectgpt_jax.unibench.datasets import find_dataset
from affectgpt_jax.unibench.evaluation import Answers, measures
from affectgpt_jax.unibench.metrics import values
from affectgpt_jax.unibench.official import OfficialTables, parse_files, preference, read_files, ring_classes
from affectgpt_jax.unibench.predictions import find_checkpoints, read_predictions
from affectgpt_jax.unibench.report.render import print_table
from affectgpt_jax.unibench.report.tables import Table
from affectgpt_jax.unibench.table_cache import load_official
from affectgpt_jax.unibench.truth import Truth, read_truth
from affectgpt_jax.unibench.wheel import WheelTable

MILLION = 1_000_000


def plain_hit_rate(
    truth: Sequence[str], answers: Answers, place: Callable[[str, int], str | None], wheels: int
) -> tuple[float, float]:
    """Hit rate and m-score, clip by clip.

    Args:
        truth: the true label of each clip.
        answers: its predicted labels.
        place: word, wheel -> class, or None.
        wheels: number of wheels.
    """
    rates, m_scores = [], []
    for wheel in range(wheels):
        candidates = {place(label, wheel) for label in set(truth)} - {None}
        hits, ratios = [], []
        for label, words in zip(truth, answers, strict=True):
            true = place(label, wheel)
            if true is None:
                continue
            found = {place(word.strip().lower(), wheel) for word in words} - {None}
            shared = found & candidates
            hits.append(true in found)
            ratios.append((true in found) / len(shared) if shared else 0.0)
        rates.append(sum(hits) / len(hits))
        m_scores.append(sum(ratios) / len(ratios))
    return sum(rates) / wheels, sum(m_scores) / wheels


def plain_place(tables: OfficialTables) -> Callable[[str, int], str | None]:
    """Word, wheel -> class under the reference rules, worked out anew at each call."""
    rings = [ring_classes(rows, "level1") for rows in tables.wheels]

    def place(word: str, wheel: int) -> str | None:
        ring = rings[wheel]
        return next((ring[owner] for owner in preference(word, tables, "reference") if owner in ring), None)

    return place


def repeat(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of several runs, in order of size."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)


def against_plain(truth: Truth, runs: Sequence[Answers], folder: Path, table: WheelTable) -> list[tuple[str, ...]]:
    """Time of scoring all checkpoints after loading, beside the plain versions; the scores must agree."""
    labels = [words[0] for words in truth.labels]
    place = plain_place(parse_files(read_files(folder), folder))
    wheels = len(table.grouping("reference").classes)

    def ours() -> list[tuple[float, ...]]:
        return [tuple(values(measure).values()) for measure in measures(truth, runs, table, "reference")]

    def plain(place: Callable[[str, int], str | None]) -> list[tuple[float, ...]]:
        return [plain_hit_rate(labels, answers, place, wheels) for answers in runs]

    if not np.allclose(ours(), plain(lru_cache(None)(place)), rtol=0, atol=1e-12):
        raise SystemExit("the plain version gives other scores")
    times = {
        "plain Python": repeat(lambda: plain(place), 3),
        "plain Python, remembering words": repeat(lambda: plain(lru_cache(None)(place)), 5),
        "affectgpt_jax": repeat(ours, 20),
    }
    own = statistics.median(times["affectgpt_jax"])
    return [
        (name, *milliseconds(seconds), f"{statistics.median(seconds) / own:.1f}x") for name, seconds in times.items()
    ]


def milliseconds(seconds: Sequence[float]) -> tuple[str, str]:
    """Median and spread."""
    return f"{1000 * statistics.median(seconds):.1f} ms", f"{1000 * seconds[0]:.1f} - {1000 * seconds[-1]:.1f}"


def cold_start(root: Path, folder: Path) -> list[float]:
    """Seconds, three times, of `affectgpt score` on MELD in a new process, emotion table cached."""
    arguments = [
        "score",
        root / "predictions/meld",
        "--dataset",
        "meld",
        "--labels",
        root / "labels",
        "--wheel-dir",
        folder,
    ]
    command = [str(Path(sys.executable).with_name("affectgpt")), *map(str, arguments)]
    return repeat(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), 3)


def many_clips(truth: Truth, answers: Answers, table: WheelTable) -> list[float]:
    """Seconds, three times, to score a million clips, drawn from real ones."""
    picks = np.random.default_rng(0).integers(0, len(answers), MILLION).tolist()
    # each list a new object, as a file would give them
    drawn = tuple((*answers[i][:-1], *answers[i][-1:]) for i in picks)
    names = tuple(map(str, range(MILLION)))
    large = Truth(truth.dataset, names, tuple(truth.labels[i] for i in picks), np.zeros(MILLION), truth.path)
    return repeat(lambda: values(measures(large, [drawn], table, "reference")[0]), 3)


def main(arguments: Iterable[str] | None = None) -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--unibench", type=Path, default=Path(os.environ.get("AFFECTGPT_UNIBENCH", "../shared/unibench"))
    )
    args = parser.parse_args(None if arguments is None else list(arguments))
    folder = args.unibench / "emotion_wheel"
    dataset = find_dataset("meld")
    table = load_official(folder)
    truth = read_truth(dataset, args.unibench / "labels")
    files = find_checkpoints(args.unibench / "predictions/meld", dataset.task)
    runs = []
    for file in files:
        labels = read_predictions(file, dataset.task).labels
        runs.append(tuple(labels[name] for name in truth.names))
    console = Console()
    rows = against_plain(truth, runs, folder, table)
    title = f"Scoring {len(runs)} checkpoints of MELD ({len(truth.names):,} clips, 5 wheels), files loaded"
    print_table(console, Table(title, ("Version", "time", "spread", "ratio"), tuple(rows)))
    cold = cold_start(args.unibench, folder)
    million = many_clips(truth, runs[0], table)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = [
        ("affectgpt score on MELD, new process", *milliseconds(cold), ""),
        ("one million clips, 5 wheels", *milliseconds(million), f"{memory:,.0f} MiB"),
    ]
    print_table(console, Table("Whole runs, three times", ("Run", "time", "spread", "peak memory"), tuple(rows)))


if __name__ == "__main__":
    main()
