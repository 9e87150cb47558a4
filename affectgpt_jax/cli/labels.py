"""Score a vocabulary of emotion words for the clips of a split: calibrated probabilities, groups, and when to abstain.

    affectgpt labels runs/demo --calibrate validation --precision 0.9
    affectgpt labels runs/demo --evidence
    affectgpt labels runs/demo --evidence 10
    affectgpt labels runs/demo --vocabulary words.txt --calibrate validation --out runs/demo/own_words

Nothing is read out of free text: each word is scored as the beginning of the model's own list of labels. SPLIT comes
from the run's shards (--shards names others). The words are those of the emotion wheels (of the built-in lexicon
without --wheel-dir), or the lines of a file.

--calibrate fits the temperature to the true labels of a split, chooses the threshold below which no label is given, and
writes OUT/STEP/calibration.json, which later calls and `affectgpt benchmark --scored` use. Clips are written to
OUT/STEP/SPLIT.jsonl, beside the answers in free words; --evidence adds how both change without face, voice or words, of
all clips or of N, those that `affectgpt report` shows among them. OUT/STEP/SPLIT.summary.json has the scores.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt_jax.cli.checkpoint_step import add_step
from affectgpt_jax.cli.placement import add_placement, placement
from affectgpt_jax.cli.progress import stage_bar
from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from affectgpt_jax.data.shards import Corpus
    from affectgpt_jax.inference.benchmark import Record
    from affectgpt_jax.inference.calibration import Calibration, Vocabulary
    from affectgpt_jax.inference.clip_scores import Scale
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
    add("--evidence", nargs="?", type=int, const=0, metavar="N", help="also without each modality; of N clips only")
    add("--no-answers", action="store_true", help="leave out the answers in free words")
    add("--out", type=Path, metavar="DIR", help="where to; default: RUN/labels")
    add("--batch", type=int, metavar="N", help="clips at a time; the run's evaluate.batch by default")
    add("--max-new", type=int, metavar="N", help="tokens of an answer at most")
    add_placement(parser)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 to 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Calibrate if asked to, score what is left, write, print."""
    from affectgpt_jax.cli.extract import write_records
    from affectgpt_jax.inference.benchmark import score_split
    from affectgpt_jax.inference.calibration import FOLDER, SUMMARY, TOP_K, make_vocabulary
    from affectgpt_jax.inference.clip_scores import Scale
    from affectgpt_jax.inference.evaluate import PLAIN, conditions
    from affectgpt_jax.inference.report.examples import spread
    from affectgpt_jax.inference.runs import (
        checkpoint_name,
        fingerprint,
        model_streams,
        open_base,
        open_shards,
        open_trained,
        with_base,
    )
    from affectgpt_jax.unibench.table_cache import load_table

    for option in ("batch", "max_new", "top_k"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} must be at least 1, not {value}")
    if args.evidence is not None and args.evidence < 0:
        raise UserError(f"--evidence {args.evidence}: expected a number of clips, or nothing for all")
    if not args.calibrate and (args.precision is not None or args.coverage is not None):
        raise UserError(
            "--precision and --coverage choose a threshold on true labels: name their split with --calibrate"
        )
    trained = open_trained(args.run, args.step, placement(args))
    model, config = fingerprint(trained), trained.config
    table = load_table(args.wheel_dir)
    place = (args.out or Path(args.run) / FOLDER) / checkpoint_name(trained)
    asked = [PLAIN, *(one for one in conditions(tuple(model_streams(config))) if one.modality and not one.shuffled)]

    def score(corpus: "Corpus", words: Sequence[str], name: str, **more: Any) -> "dict[str, Record]":
        with stage_bar("labels", 1) as bar:
            return score_split(
                trained,
                lambda: with_base(trained, open_base(trained)),
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
        vocabulary = make_vocabulary(named_words(args.vocabulary or WHEEL, args.wheel_dir), table)
        corpus = open_shards(config, args.calibrate, args.shards)
        calibration = _calibrate(
            args, trained, model, corpus, score(corpus, vocabulary.words, args.calibrate), vocabulary, table
        )
        calibration.write(place / "calibration.json")
        print(f"written: {place / 'calibration.json'}")
        scale = Scale(vocabulary, calibration.temperature, calibration.threshold, True)
    else:
        scale = open_calibration(place / "calibration.json", trained, model, table, args.vocabulary, args.wheel_dir)
    vocabulary, temperature = scale.vocabulary, scale.temperature
    threshold = scale.threshold if args.threshold is None else args.threshold
    corpus = open_shards(config, args.split or config.evaluate.split, args.shards)
    name = "-".join([corpus.split, *([] if args.no_answers else ["answers"])])
    began = time.perf_counter()
    # With evidence of all clips, nothing is asked twice.
    asked = asked if args.evidence is not None else asked[:1]
    records = {} if args.evidence == 0 else score(corpus, vocabulary.words, name, answers=not args.no_answers)
    if args.evidence is not None:
        chosen = [corpus.names[i] for i in spread(len(corpus), args.evidence or len(corpus))]
        more: dict[str, Any] = {"asked": asked, "answers": not args.no_answers, "names": chosen}
        records |= score(corpus, vocabulary.words, f"{name}-evidence", **more)
    seconds = time.perf_counter() - began
    truth = {text.name: text.labels for text in corpus.texts()}
    lines = [
        clip_record(record, truth[name], vocabulary, temperature, threshold, args.top_k or TOP_K)
        for name, record in records.items()
    ]
    write_records(place / f"{corpus.split}.jsonl", lines)
    summary = {
        "step": trained.step,
        "split": corpus.split,
        "clips": len(lines),
        "words": len(vocabulary.words),
        "table": table.name,
        "temperature": temperature,
        "threshold": threshold,
        "fit": _fit(records, truth, vocabulary, table, temperature),
        "systems": _systems(lines, table),
        "evidence": _evidence(lines, [one.name for one in asked[1:]]),
    }
    (place / f"{corpus.split}{SUMMARY}").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _print_summary(summary)
    if rejected := [line for line in lines if "rejected" in line]:
        print(f"{len(rejected)} clips could not be asked, e.g. {rejected[0]['name']} {rejected[0]['rejected']}")
    print(f"written: {place / f'{corpus.split}.jsonl'}, {len(lines):,} clips in {seconds:.1f} s")
    return 0


def named_words(named: str, wheel_dir: Path | None) -> Sequence[str]:
    """The words that --vocabulary names."""
    from affectgpt_jax.inference.calibration import read_words
    from affectgpt_jax.unibench.table_cache import wheel_words

    return wheel_words(wheel_dir) if named == WHEEL else read_words(Path(named))


def open_calibration(
    file: Path, trained: "Trained", model: str, table: "WheelTable", named: str | None, wheel_dir: Path | None
) -> "Scale":
    """What a calibration and --vocabulary make of scores; says so if there is no calibration.

    Raises:
      UserError: it is of another model, of other words than --vocabulary names, or of another emotion table.
    """
    from affectgpt_jax.inference.clip_scores import open_scale

    if not file.is_file():
        print(f"no {file}: probabilities are not calibrated (affectgpt labels RUN --calibrate SPLIT)")
    words = None if named is None else named_words(named, wheel_dir)
    return open_scale(trained, lambda: model, table, words, wheel_dir=wheel_dir, file=file, strict=True)


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


def _fit(
    records: "Mapping[str, Record]",
    truth: Mapping[str, Sequence[str]],
    vocabulary: "Vocabulary",
    table: "WheelTable",
    temperature: float,
) -> "Record | None":
    """How well the probabilities fit the true labels; None where there are none that count."""
    from affectgpt_jax.inference.calibration import fit, targets

    scores, known = _known(records, truth)
    wanted = targets(known, vocabulary, table)
    if not any(share.any() for share in wanted):
        return None
    return {"clips": len(known)} | fit(scores, wanted, vocabulary, temperature)._asdict()


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
      `name`, `truth`, `limits`, `answer` and `answer_labels` (in free words), what `calibration.label_record` gives, or
      `rejected`; and `evidence`, per condition answer, answer_labels, `calibration.changes` and, as `words`,
      `calibration.moves`, or `rejected`.
    """
    import numpy as np

    from affectgpt_jax.inference.calibration import changes, label_record, moves
    from affectgpt_jax.inference.evaluate import PLAIN
    from affectgpt_jax.inference.limits import LIMITS

    def answered(found: "Record") -> "Record":
        return {"answer": found["answer"], "answer_labels": found["labels"]} if "answer" in found else {}

    by = dict(record["found"])
    plain = by.pop(PLAIN.name)
    line = {"name": record["name"], "truth": list(truth), "limits": LIMITS}
    if "rejected" in plain:
        return line | {"labels": [], "abstained": True, "rejected": plain["rejected"]}
    scores = np.array(plain["scores"])
    line |= answered(plain) | label_record(scores, vocabulary, temperature, threshold, top_k)
    if by:
        line["evidence"] = {
            name: {"rejected": found["rejected"]}
            if "rejected" in found
            else answered(found)
            | changes(np.array(found["scores"]), scores, vocabulary, temperature)
            | {"words": moves(np.array(found["scores"]), scores, vocabulary, temperature)}
            for name, found in by.items()
        }
    return line


def _systems(lines: "Sequence[Record]", table: "WheelTable") -> "Record":
    """By system: clips without a label, and where there are true labels its scores, over all clips and over those that
    it gives labels."""
    found = {"scored labels": [line["labels"] for line in lines]}
    if any("answer" in line for line in lines):
        found["labels in free words"] = [line.get("answer_labels", []) for line in lines]
    truth = [line["truth"] for line in lines]
    systems: dict[str, Record] = {}
    for name, labels in found.items():
        given = [i for i, own in enumerate(labels) if own]
        systems[name] = {"none": len(lines) - len(given)}
        if any(truth):
            systems[name]["scores"] = _rates(truth, labels, table)
            if 0 < len(given) < len(lines):
                systems[name]["given"] = _rates([truth[i] for i in given], [labels[i] for i in given], table)
    return systems


def _evidence(lines: "Sequence[Record]", without: Sequence[str]) -> "Record":
    """By condition the mean change of the best label's probability, and of how many clips."""
    found = {}
    for name in without:
        moved = [line["evidence"][name] for line in lines if "evidence" in line]
        known = [one["change"] for one in moved if "change" in one]
        if known:
            found[name] = {"clips": len(known), "change": sum(known) / len(known)}
    return found


def _print_summary(summary: "Record") -> None:
    if fit := summary["fit"]:
        told = f"NLL {fit['nll']:.3f}, ECE {fit['ece']:.3f}"
        print(f"temperature {summary['temperature']:.3f}, {fit['clips']:,} clips with true labels: {told}")
    for name, system in summary["systems"].items():
        told = f"{system['none']} of {summary['clips']} clips have none"
        if "scores" in system:
            told = f"{_shown(system['scores'])} by {summary['table']}; {told}"
        if "given" in system:
            told += f", the others {_shown(system['given'])}"
        print(f"{name}: {told}")
    for name, found in summary["evidence"].items():
        clips = "" if found["clips"] == summary["clips"] else f" over {found['clips']} clips"
        print(f"{name}: the best label's probability changes by {found['change']:+.3f} on average{clips}")


def _rates(truth: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], table: "WheelTable") -> "Record":
    from affectgpt_jax.unibench.scoring import score_labels

    scores = score_labels(truth, labels, table).scores
    return {name: scores[name]._asdict() for name in ("hit_rate", "f_score")}


def _shown(rates: "Record") -> str:
    names = {"hit rate": rates["hit_rate"], "set F": rates["f_score"]}
    return ", ".join(f"{name} {x['value']:.3f} [{x['low']:.2f}, {x['high']:.2f}]" for name, x in names.items())
