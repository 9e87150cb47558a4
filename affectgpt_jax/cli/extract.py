"""Read emotion words, and their sentiment, out of free answers.

    affectgpt extract output/results-meld predictions/meld --language Qwen/Qwen2.5-7B-Instruct
    affectgpt extract output/results-cmumosi predictions/cmumosi --language MODEL --sentiment
    affectgpt extract answers.jsonl predictions/meld

PREDICTIONS is a file of raw answers, the reference's NAME.npz or JSON lines with name and answer, or a folder of such
files, one a checkpoint. For each, OUT/NAME.jsonl gets what `affectgpt score` reads: name, answer, labels, response and,
with --sentiment, sentiment.

MER-UniBench prescribes the language model Qwen2.5-7B-Instruct, and draws its words at random (--sampling reference);
by default the likeliest are taken, so that a second time gives the same. Its responses are kept, so that an interrupted
job goes on where it ended. Without a language model labels are read by rule, which serves answers such as "The
character's emotional state is happy, sad.", and sentiments are those of a small built-in lexicon.
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt_jax.cli.placement import add_placement, placement
from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from affectgpt_jax.inference.extraction import Extractor, Rules

MODEL_OPTIONS = ("sampling", "seed", "batch", "mesh", "weights", "cache")
"""Options that say how a language model is asked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("predictions", type=Path, metavar="PREDICTIONS", help="file of raw answers, or a folder of such files")
    add("out", type=Path, metavar="OUT", help="folder for NAME.jsonl")
    add("--language", metavar="DIR", help="language model that reads the answers; default: by rule")
    add("--sentiment", action="store_true", help="also choose positive, negative or neutral, for sentiment datasets")
    add("--sampling", choices=("greedy", "reference"), help="how the language model chooses words (default: greedy)")
    add("--seed", type=int, metavar="N", help="seed of --sampling reference (default: 0)")
    add("--batch", type=int, metavar="N", help="answers at a time (default: 8)")
    add("--limit", type=int, metavar="N", help="the first N answers of each file only")
    add("--overwrite", action="store_true", help="replace files of OUT")
    add_placement(parser)


def run(args: argparse.Namespace) -> int:
    """Read, ask, write, count."""
    from affectgpt_jax.cli.progress import stage_bar
    from affectgpt_jax.inference.extraction import prediction_records

    _check(args)
    files = {file: args.out / f"{file.stem}.jsonl" for file in answer_files(args.predictions)}
    _check_out(args, files)
    answers = {file: dict(list(read_raw(file).items())[: args.limit]) for file in files}
    reader = _reader(args)
    summaries = []
    with stage_bar("reading", len(files) * (1 + args.sentiment)) as bar:
        for file, out in files.items():
            try:
                labels = reader.labels(answers[file], bar(f"labels of {file.stem}"))
                sentiments = reader.sentiments(labels, bar(f"sentiments of {file.stem}")) if args.sentiment else None
            except UserError as error:
                raise UserError(f"{file}: {error}") from error
            records = prediction_records(answers[file], labels, sentiments)
            write_records(out, records)
            summaries.append(f"{out}: {_summary(records)}")
    print("\n".join(summaries))
    return 0


def _check(args: argparse.Namespace) -> None:
    for option in ("batch", "limit"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"--{option} must be at least 1, not {value}")
    given = [f"--{option}" for option in MODEL_OPTIONS if getattr(args, option) is not None]
    if given and args.language is None:
        raise UserError(f"{' and '.join(given)}: only a language model is asked so; name one with --language")
    if args.seed is not None and not 0 <= args.seed < 2**32:
        raise UserError(f"--seed must be from 0 to {2**32 - 1}, not {args.seed}")
    if args.seed is not None and args.sampling != "reference":
        raise UserError("--seed: nothing is drawn without --sampling reference; add it, or leave --seed out")


def _check_out(args: argparse.Namespace, files: Mapping[Path, Path]) -> None:
    """No file is written where it would be taken for another one, or in the place of one."""
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"OUT {args.out} is a file; name a folder")
    if args.out.resolve() in {file.parent.resolve() for file in files}:
        raise UserError(f"OUT {args.out} is where the raw answers lie; name another folder, or `score` will read both")
    for out in files.values():
        if (twice := [str(file) for file, other in files.items() if other == out])[1:]:
            raise UserError(f"{' and '.join(twice)} would both become {out}; name one of them, or rename it")
        if out.exists() and not args.overwrite:
            raise UserError(
                f"{out} is there already; give --overwrite to replace it (responses that were kept are not asked for "
                "again), or name another folder"
            )


def answer_files(predictions: Path) -> list[Path]:
    """The files of raw answers, in the order of their names.

    Raises:
      UserError: there is none.
    """
    from affectgpt_jax.unibench.predictions import LABEL_SUFFIX

    if predictions.is_file():
        return [predictions]
    if not predictions.is_dir():
        raise UserError(f"PREDICTIONS {predictions} do not exist; expected NAME.npz, NAME.jsonl, or a folder of them")
    found = sorted(file for file in predictions.iterdir() if file.suffix in (".npz", ".jsonl"))
    # The reference keeps the labels of NAME.npz beside it, in NAME-openset.npz and NAME-openset-sentiment.npz.
    raw = [file for file in found if not (file.suffix == ".npz" and LABEL_SUFFIX in file.stem)]
    if not raw:
        there = ", ".join(sorted(file.name for file in predictions.iterdir())[:5]) or "nothing"
        raise UserError(f"{predictions} has no raw answers; expected NAME.npz or NAME.jsonl, found {there}")
    return raw


def read_raw(file: Path) -> dict[str, str]:
    """The answers of a file by name.

    Raises:
      UserError: the file is broken, names a clip twice, or an answer is no text.
    """
    from affectgpt_jax.unibench.predictions import read_answers

    if file.suffix == ".npz":
        return read_answers(file)
    if file.suffix != ".jsonl":
        raise UserError(f"{file}: expected raw answers as NAME.npz or NAME.jsonl")
    answers: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not readable as UTF-8 ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}, line {number} is not JSON ({error}); mend the line or take it out") from error
        name, answer = (record.get(key) if isinstance(record, dict) else None for key in ("name", "answer"))
        if not isinstance(name, str) or not isinstance(answer, str):
            raise UserError(
                f"{file}, line {number}: expected an object with name and answer, both strings, found {record!r:.200}"
            )
        if name in answers:
            raise UserError(f"{file}, line {number}: {name!r} occurs a second time; keep one of its answers")
        answers[name] = answer
    return answers


def _reader(args: argparse.Namespace) -> "Extractor | Rules":
    from affectgpt_jax.inference.extraction import BATCH, SAMPLINGS, Extractor, Rules

    if args.language is None:
        return Rules()
    sampling = SAMPLINGS[args.sampling or "greedy"]
    return Extractor(
        args.language, sampling=sampling, seed=args.seed or 0, batch=args.batch or BATCH, place=placement(args)
    )


def write_records(out: Path, records: list[dict[str, Any]]) -> None:
    """Write a file of JSON lines, whole or not at all."""
    write_whole(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_whole(out: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    draft = out.with_name(f".{out.name}.unfinished")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(text.encode())
        os.replace(draft, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); free space or choose another folder") from error


def _summary(records: list[dict[str, Any]]) -> str:
    from affectgpt_jax.data.prompts import parse_openset
    from affectgpt_jax.unibench.predictions import POLARITIES

    parts = [f"{len(records)} answers", f"{sum(not record['labels'] for record in records)} gave no label"]
    known = [[word] for word in (*POLARITIES, "neutral")]
    sentiments = (record["sentiment"] for record in records if "sentiment" in record)
    if odd := [text for text in sentiments if [word.lower() for word in parse_openset(text)] not in known]:
        parts.append(f"{len(odd)} gave a sentiment that counts as neutral, such as {odd[0]!r:.40}")
    return ", ".join(parts)
