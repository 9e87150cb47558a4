"""Score a vocabulary of emotion words for the clips of a split: calibrated probabilities, groups, and when to abstain.

    affectgpt labels runs/demo --calibrate validation --precision 0.9
    affectgpt labels runs/demo --evidence
    affectgpt labels runs/demo --vocabulary words.txt --calibrate validation --out runs/demo/own_words

Nothing is read out of free text: each word is scored as the beginning of the model's own list of labels. SPLIT comes
from the run's shards (--shards names others). The words are those of the emotion wheels (of the built-in lexicon
without --wheel-dir), or the lines of a file.

--calibrate fits the temperature to the true labels of a split, chooses the threshold below which no label is given, and
writes OUT/STEP/calibration.json, which later calls and `affectgpt benchmark --scored` use. Clips are written to
OUT/STEP/SPLIT.jsonl, beside the answers in free words; --evidence adds how both change without face, voice or words.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt_jax.cli.checkpoint_step import add_step
from affectgpt_jax.cli.progress import stage_bar
from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from affectgpt_jax.data.shards import Corpus
    from affectgpt_jax.inference.benchmark import Record
    from affectgpt_jax.inference.calibration import Calibration, Vocabulary
    from affectgpt_jax.inference.runs import Trained
    from affectgpt_jax.unibench.wheel import WheelTable

WHEEL = "wheel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder")
    add_step(parser)
    add("--split", help="split to score; the run's evaluate.split by default")
    add("--shards", metavar="DIR", help="prepared clips; the run's data.shards by default")
    add("--vocabulary", metavar="wheel|FILE", help="the words (default: those of the calibration, else the wheel's)")
    add("--wheel-dir", type=Path, help="official emotion-wheel folder (default: $AFFECTGPT_WHEEL_DIR)")
    add("--calibrate", metavar="SPLIT", help="first fit temperature and threshold to a split's true labels")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--threshold", type=_share, metavar="P", help="a label is given from this probability on")
    choice.add_argument("--precision", type=_share, metavar="P", help="the lowest threshold that is so often right")
    choice.add_argument(
        "--coverage", type=_share, metavar="P", help="the highest one that labels such a share of clips"
    )
    add("--top-k", type=int, metavar="K", help="labels of a clip at most (default: 3)")
    add("--evidence", action="store_true", help="also without each modality")
    add("--no-answers", action="store_true", help="leave out the answers in free words")
    add("--out", type=Path, metavar="DIR", help="where to; default: RUN/labels")
    add("--batch", type=int, metavar="N", help="clips at a time; the run's evaluate.batch by default")
    add("--max-new", type=int, metavar="N", help="tokens of an answer at most")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 to 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Calibrate if asked to, score what is left, write, print."""
    from affectgpt_jax.cli.extract import write_records
    from affectgpt_jax.inference.answer_file import step_name
    from affectgpt_jax.inference.benchmark import score_split
    from affectgpt_jax.inference.calibration import FOLDER, TOP_K
    from affectgpt_jax.inference.evaluate import PLAIN, conditions
    from affectgpt_jax.inference.runs import fingerprint, model_streams, open_run, open_shards, open_trained
    from affectgpt_jax.unibench.table_cache import load_table

    for option in ("batch", "max_new", "top_k"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} must be at least 1, not {value}")
    if not args.calibrate and (args.precision is not None or args.coverage is not None):
        raise UserError(
            "--precision and --coverage choose a threshold on true labels: name their split with --calibrate"
        )
    trained = open_trained(args.run, args.step)
    model, config = fingerprint(trained), trained.config
    table = load_table(args.wheel_dir)
    place = (args.out or Path(args.run) / FOLDER) / step_name(trained.step)
    asked = [PLAIN, *(one for one in conditions(tuple(model_streams(config))) if one.modality and not one.shuffled)]

    def score(corpus: "Corpus", words: Sequence[str], name: str, **more: Any) -> "dict[str, Record]":
        with stage_bar("labels", 1) as bar:
            return score_split(
                trained,
                lambda: open_run(args.run, trained.step),
                corpus,
                place / "scores" / f"{name}.jsonl",
                model=model,
                words=words,
                batch=args.batch,
                max_new=args.max_new,
                report=bar(corpus.split),
                **more,
            )

    if args.calibrate:
        vocabulary = chosen_vocabulary(args.vocabulary or WHEEL, args.wheel_dir, table)
        corpus = open_shards(config, args.calibrate, args.shards)
        calibration = _calibrate(
            args, trained, model, corpus, score(corpus, vocabulary.words, args.calibrate), vocabulary, table
        )
        calibration.write(place / "calibration.json")
        print(f"written: {place / 'calibration.json'}")
    else:
        calibration, vocabulary = open_calibration(
            place / "calibration.json", trained, model, table, args.vocabulary, args.wheel_dir
        )
    threshold = calibration.threshold if args.threshold is None else args.threshold
    corpus = open_shards(config, args.split or config.evaluate.split, args.shards)
    parts = [corpus.split, *([] if args.no_answers else ["answers"]), *(["evidence"] if args.evidence else [])]
    began = time.perf_counter()
    asked = asked if args.evidence else asked[:1]
    records = score(corpus, vocabulary.words, "-".join(parts), asked=asked, answers=not args.no_answers)
    seconds = time.perf_counter() - began
    truth = {text.name: text.labels for text in corpus.texts()}
    lines = [
        clip_record(record, truth[name], vocabulary, calibration.temperature, threshold, args.top_k or TOP_K)
        for name, record in records.items()
    ]
    write_records(place / f"{corpus.split}.jsonl", lines)
    if fits := _fits(records, truth, vocabulary, table, calibration.temperature):
        print(fits)
    _print_summary(lines, table, [one.name for one in asked[1:]])
    print(f"written: {place / f'{corpus.split}.jsonl'}, {len(lines):,} clips in {seconds:.1f} s")
    return 0


def chosen_vocabulary(named: str, wheel_dir: Path | None, table: "WheelTable") -> "Vocabulary":
    """The words that --vocabulary names."""
    from affectgpt_jax.inference.calibration import make_vocabulary, read_words
    from affectgpt_jax.unibench.table_cache import wheel_words

    return make_vocabulary(wheel_words(wheel_dir) if named == WHEEL else read_words(Path(named)), table)


def open_calibration(
    file: Path, trained: "Trained", model: str, table: "WheelTable", named: str | None, wheel_dir: Path | None
) -> "tuple[Calibration, Vocabulary]":
    """A checkpoint's calibration with its vocabulary; of temperature 1 where there is none.

    Raises:
      UserError: it is of another model, of other words than --vocabulary names, or of another emotion table.
    """
    from affectgpt_jax.inference.calibration import Calibration, make_vocabulary, read_calibration

    if not file.is_file():
        print(f"no {file}: probabilities are not calibrated (affectgpt labels RUN --calibrate SPLIT)")
        vocabulary = chosen_vocabulary(named or WHEEL, wheel_dir, table)
        return Calibration(model, trained.step, vocabulary.words, vocabulary.identity, table.name), vocabulary
    calibration = read_calibration(file, model)
    vocabulary = (
        make_vocabulary(calibration.words, table) if named is None else chosen_vocabulary(named, wheel_dir, table)
    )
    if vocabulary.identity != calibration.identity:
        raise UserError(
            f"{file} is of other words, or of words grouped by {calibration.table} and not {table.name}; calibrate "
            "again with --calibrate SPLIT, or name another --out"
        )
    return calibration, vocabulary


def _calibrate(
    args: argparse.Namespace,
    trained: "Trained",
    model: str,
    corpus: "Corpus",
    records: "Mapping[str, Record]",
    vocabulary: "Vocabulary",
    table: "WheelTable",
) -> "Calibration":
    from affectgpt_jax.inference.calibration import Calibration, calibrate

    scores, truth = _known(records, {text.name: text.labels for text in corpus.texts()})
    if not truth:
        raise UserError(f"--calibrate {corpus.split}: it has no clip with true labels that can be asked")
    base = Calibration(
        model,
        trained.step,
        vocabulary.words,
        vocabulary.identity,
        table.name,
        clips=corpus.fingerprint,
        split=corpus.split,
    )
    found = calibrate(
        scores,
        truth,
        vocabulary,
        table,
        base,
        threshold=args.threshold,
        precision=args.precision,
        coverage=args.coverage,
    )
    assert found.before is not None and found.after is not None  # noqa: PT018
    print(
        f"{found.n:,} clips of {corpus.split}, {len(vocabulary.words)} words: temperature {found.temperature:.3f}, "
        f"NLL {found.before.nll:.3f} -> {found.after.nll:.3f}, ECE {found.before.ece:.3f} -> {found.after.ece:.3f}; "
        f"threshold {found.threshold:.3f} labels {found.coverage:.1%} of them, of which {found.precision:.1%} are right"
    )
    return found


def _known(
    records: "Mapping[str, Record]", truth: Mapping[str, Sequence[str]]
) -> "tuple[np.ndarray, list[Sequence[str]]]":
    """Scores [N, V] and true labels of the clips that have both."""
    import numpy as np

    from affectgpt_jax.inference.evaluate import PLAIN

    found = {name: record["found"][PLAIN.name] for name, record in records.items()}
    names = [name for name, plain in found.items() if "scores" in plain and truth[name]]
    return np.array([found[name]["scores"] for name in names]), [truth[name] for name in names]


def _fits(
    records: "Mapping[str, Record]",
    truth: Mapping[str, Sequence[str]],
    vocabulary: "Vocabulary",
    table: "WheelTable",
    temperature: float,
) -> str:
    """How well the probabilities fit the true labels, in words; nothing where there are none that count."""
    from affectgpt_jax.inference.calibration import fit, targets

    scores, known = _known(records, truth)
    wanted = targets(known, vocabulary, table)
    if not any(share.any() for share in wanted):
        return ""
    found = fit(scores, wanted, vocabulary, temperature)
    told = f"NLL {found.nll:.3f}, ECE {found.ece:.3f}"
    return f"temperature {temperature:.3f}, {len(known):,} clips with true labels: {told}"


def clip_record(
    record: "Record",
    truth: Sequence[str],
    vocabulary: "Vocabulary",
    temperature: float,
    threshold: float,
    top_k: int,
) -> "Record":
    """What is written about a clip.

    Args:
      record: of `score_split`.
      truth: the clip's true labels; may be empty.
      vocabulary: the words that were scored.
      temperature: of the softmax.
      threshold: what a label's support must reach.
      top_k: labels at most.

    Returns:
      `name`, `truth`, `answer` and `answer_labels` (in free words), what `calibration.label_record` gives, or
      `rejected`; and `evidence`, per condition answer, answer_labels and `calibration.changes`, or `rejected`.
    """
    import numpy as np

    from affectgpt_jax.inference.calibration import changes, label_record
    from affectgpt_jax.inference.evaluate import PLAIN

    def answered(found: "Record") -> "Record":
        return {"answer": found["answer"], "answer_labels": found["labels"]} if "answer" in found else {}

    by = dict(record["found"])
    plain = by.pop(PLAIN.name)
    line = {"name": record["name"], "truth": list(truth)}
    if "rejected" in plain:
        return line | {"labels": [], "abstained": True, "rejected": plain["rejected"]}
    scores = np.array(plain["scores"])
    line |= answered(plain) | label_record(scores, vocabulary, temperature, threshold, top_k)
    if by:
        line["evidence"] = {
            name: {"rejected": found["rejected"]}
            if "rejected" in found
            else answered(found) | changes(np.array(found["scores"]), scores, vocabulary, temperature)
            for name, found in by.items()
        }
    return line


def _print_summary(lines: "Sequence[Record]", table: "WheelTable", without: Sequence[str]) -> None:
    systems = {"scored labels": [line["labels"] for line in lines]}
    if any("answer" in line for line in lines):
        systems["labels in free words"] = [line.get("answer_labels", []) for line in lines]
    truth = [line["truth"] for line in lines]
    for name, labels in systems.items():
        given = [i for i, own in enumerate(labels) if own]
        told = f"{len(lines) - len(given)} of {len(lines)} clips have none"
        if any(truth):
            told = f"{_rates(truth, labels, table)} by {table.name}; {told}"
            if 0 < len(given) < len(lines):
                told += f", the others {_rates([truth[i] for i in given], [labels[i] for i in given], table)}"
        print(f"{name}: {told}")
    for name in without:
        moved = [line["evidence"][name].get("change", float("nan")) for line in lines if "evidence" in line]
        known = [x for x in moved if x == x]
        if known:
            print(f"{name}: the best label's probability changes by {sum(known) / len(known):+.3f} on average")
    if rejected := [line for line in lines if "rejected" in line]:
        print(f"{len(rejected)} clips could not be asked, e.g. {rejected[0]['name']} {rejected[0]['rejected']}")


def _rates(truth: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], table: "WheelTable") -> str:
    from affectgpt_jax.unibench.scoring import score_labels

    scores = score_labels(truth, labels, table).scores
    shown = {"hit rate": scores["hit_rate"], "set F": scores["f_score"]}
    return ", ".join(f"{name} {x.value:.3f} [{x.low:.2f}, {x.high:.2f}]" for name, x in shown.items())
