"""Show how words map onto the emotion wheels, and why.

For each word and wheel: the word of the wheel that stands for it, how the tables of synonyms and word forms lead
there, and its class at level 1 (inner ring) and level 2, under the rules of the published scorer (`reference`) and
under ours (`strict`).

  affectgpt wheel fear excited neutral --wheel-dir emotion_wheel

The emotion wheels are the folder emotion_wheel of https://github.com/zeroQiaoba/AffectGPT; without them the words are
looked up in the built-in lexicon.
"""

import argparse
from pathlib import Path

from rich.console import Console

from affectgpt_jax.unibench.lexicon import GROUP_OF, NAME, POLARITY
from affectgpt_jax.unibench.official import OfficialTables, explain, find_wheel_dir, parse_files, read_files
from affectgpt_jax.unibench.report.render import print_table
from affectgpt_jax.unibench.report.tables import NOTHING, Table
from affectgpt_jax.unibench.wheel import RULESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "words", nargs="+", metavar="WORD", help='an emotion word; quote one of several words: "let down"'
    )
    parser.add_argument("--wheel-dir", type=Path, help="official emotion-wheel folder (default: $AFFECTGPT_WHEEL_DIR)")


def run(args: argparse.Namespace) -> int:
    """Print a table for each word."""
    console = Console()
    words = [word.strip().lower() for word in args.words]
    folder = find_wheel_dir(args.wheel_dir)
    if folder is None:
        print_table(console, _lexicon_table(words))
        return 0
    tables = parse_files(read_files(folder), folder)
    for word in words:
        print_table(console, _word_table(word, tables))
    return 0


def _lexicon_table(words: list[str]) -> Table:
    rows = [
        (word, GROUP_OF.get(word, NOTHING), f"{POLARITY[word]:+d}" if word in POLARITY else NOTHING) for word in words
    ]
    note = f"{NAME}: the built-in lexicon, not the official emotion wheels."
    return Table("Built-in lexicon", ("Word", "group", "sentiment"), tuple(rows), note, names=2)


def _word_table(word: str, tables: OfficialTables) -> Table:
    rows = []
    for ruleset in RULESETS:
        for k, place in enumerate(explain(word, tables, ruleset), start=1):
            cells = (place.wheel_word, place.route, *place.classes) if place else ("not on this wheel", *[NOTHING] * 3)
            rows.append((f"wheel {k}, {ruleset}", *cells))
    bases = ", ".join(sorted(tables.bases.get(word, ()))) or "none: the published scorer drops it"
    header = ("Wheel", "stands for it", "because it", "level 1", "level 2")
    return Table(word, header, tuple(rows), f"Base words of {word!r}: {bases}.", (len(tables.wheels),), names=5)
