"""Check everything that a run needs before it costs anything: one line each, and a remedy for each fault.

    affectgpt doctor
    affectgpt doctor affectgpt_qwen2.5_7b_face weights.language=Qwen/Qwen2.5-7B-Instruct data.shards=SHARDS
    affectgpt doctor runs/demo --wheel-dir emotion_wheel --json doctor.json

Of the machine: versions against what the package asks for, devices (and accelerators that jax does not see), the
bandwidth and the result of a sum over all of them, disks, clock, open files. With CONFIG, a YAML file, the name of a
shipped config or a run folder, and KEY=VALUE: the config itself, every shard against its checksum and its encoder,
every file of weights against its length and the hash that the Hub or a file SHA256SUMS records, the tokenizer, the
wheels, the sizes of the mesh, memory, and the room for checkpoints.

    affectgpt doctor affectgpt_qwen2.5_7b_face mesh.data=2 mesh.fsdp=4 train.rows=8 --devices 8

asks whether a mesh fits a machine that is not this one. Nothing is trained, downloaded or changed; only shards in
object storage are copied to the cache folder, as the run would do, unless --fast is given. A process of a job looks
at its own host and devices alone; on a TPU slice of several hosts start it on all of them at once.

Exit status: 0 if there is no fault, 1 if there is one, 2 if the command is wrong.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from affectgpt_jax.cli.progress import stage_bar
from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from affectgpt_jax.doctor import Finding

STYLES = {"ok": "green", "warning": "yellow", "fault": "red", "skipped": "dim"}
LONGEST = 400
"""Letters of a finding that are shown; --json has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("config", metavar="CONFIG", nargs="?", help="run folder, YAML file, or the name of a shipped config")
    add("overrides", metavar="KEY=VALUE", nargs="*", help="dotted settings that replace the config's")
    add("--devices", type=int, metavar="N", help="ask about a machine with N devices instead of this one's")
    add("--wheel-dir", type=Path, help="official emotion-wheel folder (default: $AFFECTGPT_WHEEL_DIR)")
    add("--fast", action="store_true", help="hash no files and measure nothing")
    add("--json", type=Path, metavar="FILE", help="write all findings, for programs")


def run(args: argparse.Namespace) -> int:
    """Examine, print, write."""
    if args.devices is not None and (args.devices < 1 or args.config is None):
        raise UserError(f"--devices {args.devices}: expected 1 or more, and a CONFIG whose mesh they shall form")
    if args.json is not None and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {args.json.parent}")
    # A job may run on the same GPUs, and what is found here must not depend on it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from affectgpt_jax.config import load_config
    from affectgpt_jax.config.loading import find_config, with_overrides
    from affectgpt_jax.doctor import CHECKS, Question, examine, left_behind
    from data_prep.corpora import read_corpus

    config, unreadable = None, ""
    if args.config is not None:
        path = find_config(args.config)
        with_overrides({}, args.overrides)
        try:
            config = load_config(path, args.overrides)
        except UserError as error:
            unreadable = str(error)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    findings = []
    for area, check in CHECKS.items():
        with stage_bar(area, 0) as begin:
            question = Question(
                config,
                unreadable,
                shlex.join([args.config or "CONFIG", *args.overrides]),
                args.devices,
                args.wheel_dir,
                args.fast,
                lambda name: len(read_corpus(name).records),
                begin,
            )
            found = list(examine(area, check, question))
        for finding in found:
            _show(console, finding)
        findings += found
    counts = {status: sum(finding.status == status for finding in findings) for status in STYLES}
    console.print(
        f"\nfaults: {counts['fault']}, warnings: {counts['warning']}, as they should be: {counts['ok']}, "
        f"not checked: {counts['skipped']}"
    )
    if args.json is not None:
        record = {"config": args.config, "overrides": args.overrides, "counts": counts}
        record["findings"] = [finding._asdict() for finding in findings]
        args.json.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    status = 1 if counts["fault"] else 0
    if left_behind():
        sys.stdout.flush()
        os._exit(status)  # what hangs in a driver would hold the process for ever
    return status


def _show(console: Console, finding: "Finding") -> None:
    """A line of what was found, and one of what to do."""
    what = finding.found if len(finding.found) <= LONGEST else f"{finding.found[:LONGEST]} ..."
    console.print(Text(f"{finding.status:<8}", STYLES[finding.status]) + Text(f" {finding.area:<18} {what}"))
    if finding.remedy:
        console.print(Text(f"{'':<8} {'':<18} -> {finding.remedy}", STYLES[finding.status]))
