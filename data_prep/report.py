"""What a preparation did, for people and for programs."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from affectgpt_jax.data.shard_schema import TEXT
from affectgpt_jax.replacing import replacing
from data_prep.readers import Problem

_SHOWN = 20
"""Problems of a kind that the summary spells out; the files hold all."""


class PrepareReport(BaseModel):
    """Counts and problems of a preparation.

    Attributes:
        out: the corpus.
        written: streams that were written, the text among them for a new corpus.
        clips: clips that the corpus on disk lists.
        kept: clips in the shards.
        splits: clips in the shards of each split.
        present: per feature stream, kept clips that have the modality.
        dropped: names of clips left out because they lack a modality.
        broken: clips whose media cannot be used; left out, or without that modality if the corpus was already settled.
        tables: what was wrong with the corpus's tables.
        megabytes: size of the streams' files.
        seconds: how long it took; of a resumed preparation the last part only.
        clips_per_second: clips decoded and encoded in that time.
        detected: per stream of faces written with a detector, kept clips whose crops were detected and not stored.
        encoders_busy: share of the time in which an encoder was at work; the rest it waited for clips to be decoded.
        unfinished: shards that other processes have not written yet; nothing can be read before they have, and the
            counts are those of the shards that are there.
        unfinished_clips: clips of these shards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    written: tuple[str, ...]
    clips: int
    kept: int
    splits: Mapping[str, int]
    present: Mapping[str, int]
    dropped: tuple[str, ...]
    broken: tuple[Problem, ...]
    tables: tuple[Problem, ...]
    megabytes: float
    seconds: float
    clips_per_second: float
    detected: Mapping[str, int] = {}
    encoders_busy: float = 0.0
    unfinished: int = 0
    unfinished_clips: int = 0

    def summary(self, shown: int | None = _SHOWN) -> str:
        """The report in words, with the first `shown` problems of each kind; None shows all."""
        splits = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        streams = ", ".join(f"{stream} {count}" for stream, count in self.present.items())
        broken = {problem.name for problem in self.broken}
        detected = ", ".join(f"{stream} {count}" for stream, count in self.detected.items())
        speed = f"{self.clips_per_second:.1f} clips/s, encoders busy {self.encoders_busy:.0%}"
        lines = [
            f"corpus      {self.out}",
            f"clips       {self.clips} listed, {self.kept} kept ({splits})",
            f"present     {streams or 'text only'}",
            *([f"detected    {detected}; the other crops are stored ones"] if detected else []),
            f"left out    {len(self.dropped)} lack a modality, {len(broken)} broken",
            f"size        {self.megabytes:.1f} MB",
            f"time        {self.seconds:.1f} s, {speed}",
        ]
        if self.unfinished:
            lines.append(
                f"not done    {self.unfinished} shards of {self.unfinished_clips} clips are left to other processes; "
                "the last one to finish publishes the corpus. If none is at work any more, run the command again."
            )
        lines += _listed("broken", [_line(problem) for problem in self.broken], shown)
        lines += _listed("lack a modality", list(self.dropped), shown)
        lines += _listed("tables", [_line(problem) for problem in self.tables], shown)
        return "\n".join(lines)

    def save(self, directory: Path) -> None:
        """Writes the report as NAME.json and NAME.txt, named after the streams it is about."""
        path = _path(directory, tuple(self.present))
        contents = {path: self.model_dump_json(indent=1), path.with_suffix(".txt"): self.summary(shown=None)}
        for file, content in contents.items():
            with replacing(file) as temporary:
                temporary.write_text(content + "\n", encoding="utf-8")


def load_report(directory: Path, streams: tuple[str, ...]) -> PrepareReport | None:
    """Reads the report of a preparation of these streams, if there is one."""
    path = _path(directory, streams)
    return PrepareReport.model_validate_json(path.read_bytes()) if path.is_file() else None


def _path(directory: Path, streams: tuple[str, ...]) -> Path:
    return directory / f"prepare-{'+'.join(streams) or TEXT}.json"


def _line(problem: Problem) -> str:
    return f"{problem.name or '-'}: {problem.file}: {problem.reason}"


def _listed(title: str, lines: list[str], shown: int | None) -> list[str]:
    if not lines:
        return []
    rest = len(lines) - len(lines[:shown])
    return ["", f"{title}:", *(f"  {line}" for line in lines[:shown]), *([f"  ... and {rest} more"] if rest else [])]
