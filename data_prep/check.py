"""A look at a corpus before it is prepared: what is there, what is wrong with it, and how much of it.

Every finding has a severity. An *error* is what would cost clips or comparability: media that cannot be used, so that
`prepare` leaves the clip out, a number of clips other than the release's, a clip of which nothing is there. A *warning*
is what a person should decide about, a *note* what is good to know.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, TypeVar

from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.shard_schema import SPLITS
from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import DATASETS, SYNTHETIC, Dataset
from affectgpt_jax.unibench.truth import read_truth
from data_prep.benchmarks import find_benchmark_folder
from data_prep.corpora import Corpus, find_corpus
from data_prep.probe import Probe, probe_clip
from data_prep.readers import ClipRecord, Listing, Problem, read_rows

Severity = Literal["error", "warning", "note"]

TOO_SHORT = 0.2
"""Seconds; a clip below holds no utterance."""
TOO_LONG = 60.0
"""Seconds; a clip above is no single utterance, and eight frames do not show it."""

_SHOWN = 5
"""Examples of a finding in the report; its JSON holds all."""
_TOP_LABELS = 20
_TABLES = (".csv", ".npz", ".jsonl", ".parquet")
_STREAMS = {"frame": "picture", "audio": "sound", "face": "face"}
"""Modality -> what a clip without it lacks."""
_HEAD = 1 << 16
"""Bytes that tell most files of one size apart."""


class Finding(NamedTuple):
    """Something found.

    Attributes:
        severity: how bad it is.
        text: what it is.
        where: clips or files concerned, each with what there is to say about it; empty if it is none in particular.
    """

    severity: Severity
    text: str
    where: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.where:
            return f"{self.severity}: {self.text}"
        return f"{self.severity}: {self.text}: {len(self.where):,} ({shorten(self.where)})"


class Topic(NamedTuple):
    """What was looked at under one heading.

    Attributes:
        name: the heading.
        lines: the facts, in words.
        facts: the same for programs.
        findings: what is wrong.
    """

    name: str
    lines: tuple[str, ...] = ()
    facts: Mapping[str, Any] = {}
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        corpus: which corpus.
        topics: in the order of the report.
    """

    corpus: Corpus
    topics: tuple[Topic, ...]

    def count(self, severity: Severity) -> int:
        """How many findings are that bad."""
        return sum(finding.severity == severity for topic in self.topics for finding in topic.findings)

    def text(self) -> str:
        """The report in words."""
        lines = [("corpus", f"{self.corpus.title} at {self.corpus.path}")]
        for topic in self.topics:
            said = [*topic.lines, *map(str, topic.findings)]
            lines += [(topic.name if not number else "", line) for number, line in enumerate(said)]
        kinds: tuple[Severity, ...] = ("error", "warning", "note")
        lines.append(("found", ", ".join(f"{kind}s {self.count(kind)}" for kind in kinds)))
        return "\n".join(f"{name:<11} {line}" for name, line in lines)

    def record(self) -> dict[str, Any]:
        """As JSON holds it: every finding with all that it is about."""
        topics = {
            topic.name: {"facts": dict(topic.facts), "findings": [finding._asdict() for finding in topic.findings]}
            for topic in self.topics
        }
        counts = {"errors": self.count("error"), "warnings": self.count("warning"), "notes": self.count("note")}
        about = {"corpus": self.corpus.title, "kind": self.corpus.kind, "path": str(self.corpus.path)}
        return about | counts | {"topics": topics}


Progress = Callable[[str], Callable[[int, int], None]]
"""Begins a stage under a title, and returns what is told how much is done, of how much."""


@dataclass(frozen=True)
class CheckSettings:
    """How a corpus is checked.

    Attributes:
        fast: look at the headers of media alone, and not for identical ones.
        threads: threads that decode.
        limit: open the media of the first so many clips; of all by default.
        against: lists of names, folders of benchmark data sets or corpora, whose clips should not be among these.
    """

    fast: bool = False
    threads: int = 2
    limit: int | None = None
    against: tuple[str, ...] = ()

    @property
    def stages(self) -> int:
        """How many stages the check has."""
        return 1 if self.fast else 1 + len(ClipFiles._fields)


def check(corpus: Corpus, settings: CheckSettings, progress: Progress) -> CheckReport:
    """Checks a corpus.

    Args:
        corpus: which one (`corpora.find_corpus`).
        settings: how.
        progress: is told how far it is.

    Raises:
        UserError: the corpus or what it is held against cannot be read at all.
    """
    against: dict[str, frozenset[str]] = {}
    for word in settings.against:
        for title, names in benchmark_names(word, corpus).items():
            against[f"{title} ({word})" if title in against else title] = names
    listing = corpus.read()
    opened = listing.records[: settings.limit]
    done = progress("media")
    probes = []
    for probe in _in_threads(lambda record: probe_clip(record.files, settings.fast), opened, settings.threads):
        probes.append(probe)
        done(len(probes), len(opened))
    topics = [
        _counts(corpus, listing.records),
        _tables(corpus, listing.problems),
        _files(corpus, listing),
        _media(opened, probes, len(listing.records), settings.fast),
        _durations(opened, probes),
        _sound(opened, probes),
        _picture(opened, probes),
        _faces(opened, probes),
        _texts(corpus, listing.records),
        _labels(corpus, listing.records),
        _duplicates(listing.records, opened, settings, progress),
        *([_overlap(listing.records, against)] if settings.against else []),
    ]
    return CheckReport(corpus, tuple(topics))


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def _in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Results in order; what still waits is given up if whoever takes them stops."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="check")
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def shorten(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def benchmark_names(word: str, corpus: Corpus) -> dict[str, frozenset[str]]:
    """Names of clips that a corpus is held against.

    Args:
        word: a file with one name a line, or CSV with a column `name`; a folder of benchmark data sets, of which only
            the label files are needed; or another corpus as KIND:PATH.
        corpus: the corpus itself, which is passed over where the folder holds it.

    Returns:
        Title -> the names.

    Raises:
        UserError: there is no such thing, or it names no clip.
    """
    path = Path(word)
    if path.is_dir():
        folders = _benchmark_folders(path)
        found = {
            dataset.title: frozenset(read_truth(dataset, folder, any_count=True).names)
            for dataset, folder in folders
            if folder.resolve() != corpus.path.resolve()
        }
        if not found:
            only = "only the corpus itself" if folders else "no data set of the benchmark"
            raise UserError(
                f"{word} holds {only}; expected folders such as {DATASETS[0].folder}, a file of clip names, or a "
                "corpus as KIND:PATH"
            )
        return found
    if not path.is_file():
        other = find_corpus(word)
        if other.dataset:
            return {other.title: frozenset(read_truth(other.dataset, other.path, any_count=True).names)}
        return {str(other): frozenset(record.name for record in other.read().records)}
    if path.suffix.lower() == ".csv":
        faults: list[Problem] = []
        names = frozenset(name for row in read_rows(path, ("name",), faults) if (name := row.cells["name"].strip()))
        if faults:
            raise UserError(f"{path}, {faults[0].reason.partition(';')[0]}; mend that line")
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
        names = frozenset(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"{path} names no clip; expected one name a line, or CSV with a column name")
    return {path.name: names}


def _benchmark_folders(path: Path) -> list[tuple[Dataset, Path]]:
    """The data sets in a folder, or the one that the folder is."""
    found = []
    for dataset in (*DATASETS, SYNTHETIC):
        try:
            found.append((dataset, find_benchmark_folder(dataset, path)))
        except UserError:
            continue
    if len(same := [dataset.key for dataset, folder in found if folder == path]) > 1:
        raise UserError(f"{path} could be several data sets; say which: {' or '.join(f'{key}:{path}' for key in same)}")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What is listed


def _names(records: Iterable[ClipRecord]) -> tuple[str, ...]:
    return tuple(record.name for record in records)


def _found(severity: Severity, text: str, where: Sequence[str]) -> list[Finding]:
    """A finding about these, if there are any."""
    return [Finding(severity, text, tuple(where))] if where else []


def _most(counts: Mapping[str, int], shown: int | None = None) -> str:
    """Counts in words, the most frequent first."""
    return ", ".join(f"{key} {count:,}" for key, count in Counter(counts).most_common(shown))


def _counts(corpus: Corpus, records: Sequence[ClipRecord]) -> Topic:
    splits = {split: sum(record.split == split for record in records) for split in SPLITS}
    splits = {split: count for split, count in splits.items() if count}
    compared = splits.get("test", 0) if corpus.dataset else len(records)
    findings = []
    if corpus.clips is not None and compared != corpus.clips:
        what = "scored clips" if corpus.dataset else "clips"
        text = f"{corpus.title} has {corpus.clips:,} {what}, here are {compared:,} ({compared - corpus.clips:+,})"
        findings.append(Finding("error", text))
    facts = {"clips": len(records), "splits": splits, "released": corpus.clips}
    return Topic("clips", (f"{len(records):,}: {_most(splits)}",), facts, tuple(findings))


def _is_about_media(corpus: Corpus, problem: Problem) -> bool:
    """Whether a reader's problem is about a file of media, or a folder of them, and not about a table."""
    if corpus.kind == "manifest":
        return problem.file != corpus.path.name
    return Path(problem.file).suffix.lower() not in _TABLES


def _tables(corpus: Corpus, problems: Sequence[Problem]) -> Topic:
    """What the reader had to say about the tables; the same about many clips is one finding.

    What it says about lines without a text is counted again below, for all kinds of corpora alike.
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for problem in problems:
        if _is_about_media(corpus, problem):
            continue
        place, reason = re.fullmatch(r"(?:((?:line|row) \d+): )?(.*)", problem.reason, re.DOTALL).groups("")  # type: ignore[union-attr]
        where = ", ".join(part for part in (problem.name, place) if part)
        groups[problem.file, re.sub(r"'[^']*'|\"[^\"]*\"|\bline \d+", "...", reason)].append((where, reason))
    findings = []
    for (file, alike), members in groups.items():
        reasons = {reason for _, reason in members}
        if len(reasons) == 1:
            places = tuple(where for where, _ in members if where)
            findings.append(Finding("warning", f"{file}: {reasons.pop()}", places))
        else:
            places = tuple(f"{where}: {reason}" if where else reason for where, reason in members)
            findings.append(Finding("warning", f"{file}: {alike}", places))
    return Topic("tables", () if findings else ("as expected",), {}, tuple(findings))


def _files(corpus: Corpus, listing: Listing) -> Topic:
    records = listing.records
    there = {part: sum(getattr(record.files, part) is not None for record in records) for part in ClipFiles._fields}
    named = [problem for problem in listing.problems if corpus.kind == "manifest" and _is_about_media(corpus, problem)]
    findings = _found("warning", "named files that are not there", [f"{it.name}: {it.file}" for it in named])
    for part in ClipFiles._fields:
        lacking = _names(record for record in records if getattr(record.files, part) is None)
        chosen = corpus.kind == "manifest" and not there[part]  # who lists clips may do without; a release has all
        findings += _found("note" if chosen else "warning", f"clips without a file of {part}", lacking)
    if corpus.kind != "manifest" and not any(there.values()):
        findings.append(Finding("error", "no clip has any media; their folders belong beside the tables"))
    nothing = _names(it for it in records if it.files == ClipFiles() and not it.text.subtitle.strip())
    findings += _found("error", "clips with neither media nor a subtitle", nothing)
    return Topic("files", (", ".join(f"{part} {count:,}" for part, count in there.items()),), there, tuple(findings))


# ---------------------------------------------------------------------------------------------------------------------
# What the media hold


def _media(records: Sequence[ClipRecord], probes: Sequence[Probe], total: int, fast: bool) -> Topic:
    how = "headers only" if fast else "decoded as prepare does"
    line = f"{len(probes):,} clips opened, {how}" + (
        f"; the other {total - len(probes):,} not" if total > len(probes) else ""
    )
    broken: dict[Path, str] = {}
    for record, probe in zip(records, probes, strict=True):
        for path, reason in probe.broken.values():
            broken.setdefault(path, f"{record.name}: {path.parent.name}/{path.name}: {reason}")
    findings = _found("error", "files that cannot be used", list(broken.values()))
    present = {word: sum(modality in probe.headers for probe in probes) for modality, word in _STREAMS.items()}
    for modality in ("frame", "audio"):  # a clip without a face is one without that file, which is told above
        word = _STREAMS[modality]
        lacking = _names(
            record
            for record, probe in zip(records, probes, strict=True)
            if modality not in probe.headers and modality not in probe.broken
        )
        findings += _found("warning" if present[word] else "note", f"clips without {word}", lacking)
    facts = {"opened": len(probes), "fast": fast, "usable": present}
    usable = "usable: " + ", ".join(f"{word} {count:,}" for word, count in present.items())
    return Topic("media", (line, usable), facts, tuple(findings))


def _durations(records: Sequence[ClipRecord], probes: Sequence[Probe]) -> Topic:
    lines, findings = [], []
    facts: dict[str, dict[str, float]] = {}
    for modality in ("frame", "audio"):
        word = _STREAMS[modality]
        known: dict[str, float] = {}
        unknown = []
        for record, probe in zip(records, probes, strict=True):
            if modality in probe.headers:
                seconds = probe.headers[modality].seconds
                if seconds is None:
                    unknown.append(record.name)
                else:
                    known[record.name] = seconds
        findings += _found("note", f"{word} whose header states no length", unknown)
        if not known:
            continue
        values = known.values()
        facts[word] = {"min": min(values), "median": median(values), "max": max(values)}
        lines.append(f"{word}: " + ", ".join(f"{key} {value:.2f} s" for key, value in facts[word].items()))
        short = [f"{name}: {value:.2f} s" for name, value in known.items() if value < TOO_SHORT]
        long = [f"{name}: {value:.1f} s" for name, value in known.items() if value > TOO_LONG]
        findings += _found("warning", f"{word} shorter than {TOO_SHORT:g} s", short)
        findings += _found("warning", f"{word} longer than {TOO_LONG:g} s", long)
    return Topic("durations", tuple(lines or ["none"]), facts, tuple(findings))


def _sound(records: Sequence[ClipRecord], probes: Sequence[Probe]) -> Topic:
    heard = {record.name: probe.headers["audio"] for record, probe in zip(records, probes) if "audio" in probe.headers}
    kinds = Counter(f"{header.rate:g} Hz {header.form}" for header in heard.values())
    many = [f"{name}: {header.form}" for name, header in heard.items() if header.form.endswith("channels")]
    findings = _found("warning", "more than two channels, of which the first alone is heard", many)
    return Topic("sound", (_most(kinds, _SHOWN) or "none",), dict(kinds), tuple(findings))


def _picture(records: Sequence[ClipRecord], probes: Sequence[Probe]) -> Topic:
    seen = {record.name: probe.headers["frame"] for record, probe in zip(records, probes) if "frame" in probe.headers}
    rates = Counter(f"{header.rate:.4g} fps" if header.rate else "unknown" for header in seen.values())
    sizes = Counter(header.form for header in seen.values())
    unknown = [name for name, header in seen.items() if not header.rate]
    line = f"{_most(rates, _SHOWN)}; {_most(sizes, _SHOWN)}" if seen else "none"
    findings = _found("note", "videos whose header states no frame rate", unknown)
    return Topic("picture", (line,), {"rates": dict(rates), "sizes": dict(sizes)}, tuple(findings))


def _faces(records: Sequence[ClipRecord], probes: Sequence[Probe]) -> Topic:
    crops = [probe.headers["face"].crops for probe in probes if "face" in probe.headers]
    sizes = Counter(probe.headers["face"].form for probe in probes if "face" in probe.headers)
    if not crops:
        return Topic("faces", ("none",))
    spread = {"min": min(crops), "median": median(crops), "max": max(crops)}
    line = ", ".join(f"{key} {value:g}" for key, value in spread.items())
    facts = {"crops": spread, "sizes": dict(sizes)}
    return Topic("faces", (f"crops of a clip: {line}; {_most(sizes, _SHOWN)}",), facts)


# ---------------------------------------------------------------------------------------------------------------------
# What is said about them


def _texts(corpus: Corpus, records: Sequence[ClipRecord]) -> Topic:
    parts = {"subtitle": "clips with an empty subtitle", "description": "clips without a description"}
    if corpus.dataset:
        del parts["description"]  # the benchmark has none
    there, findings = {}, []
    for part, text in parts.items():
        empty = _names(record for record in records if not getattr(record.text, part).strip())
        there[part] = len(records) - len(empty)
        findings += _found("note" if part == "subtitle" or not there[part] else "warning", text, empty)
    return Topic("texts", (", ".join(f"{part}s {count:,}" for part, count in there.items()),), there, tuple(findings))


def _labels(corpus: Corpus, records: Sequence[ClipRecord]) -> Topic:
    dataset = corpus.dataset
    if dataset and dataset.task == "sentiment":
        return Topic("labels", ("values of sentiment, which are no words",))
    lists = [record.text.labels for record in records]
    words = Counter(label for labels in lists for label in labels)
    empty = _names(record for record in records if not record.text.labels)
    facts: dict[str, Any] = {
        "distinct": len(words),
        "per_clip": sum(map(len, lists)) / max(len(lists), 1),
        "most_frequent": dict(words.most_common(_TOP_LABELS)),
    }
    lines = [f"{len(words):,} distinct, {facts['per_clip']:.2f} a clip"]
    if words and not (dataset and dataset.classes):
        lines.append(f"most frequent: {_most(words, _TOP_LABELS)}")
    findings = _found("warning" if words else "note", "clips without labels, which train as neutral", empty)
    if dataset and dataset.classes:
        facts["classes"] = {}
        for split in sorted({record.split for record in records}):
            seen = Counter(label for record in records if record.split == split for label in record.text.labels)
            classes = {name: seen[name] for name in dataset.classes}
            facts["classes"][split] = classes
            lines.append(f"{split}: {_most(classes)}")
            findings += _found(
                "warning", f"classes without a clip in {split}", [it for it in classes if not classes[it]]
            )
    return Topic("labels", tuple(lines), facts, tuple(findings))


def _duplicates(
    records: Sequence[ClipRecord], opened: Sequence[ClipRecord], settings: CheckSettings, progress: Progress
) -> Topic:
    alike: dict[str, list[str]] = defaultdict(list)
    for record in records:
        alike[_plain(record.name)].append(record.name)
    pairs = [" = ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    findings = _found("warning", "names that differ in case, blanks or leading zeros alone", pairs)
    if settings.fast:
        return Topic(
            "duplicates", ("names alike alone; identical media are not looked for in headers",), {}, tuple(findings)
        )
    groups = {}
    for part in ClipFiles._fields:
        owners = {record: path for record in opened if (path := getattr(record.files, part)) is not None}
        same = _identical(owners, settings.threads, progress(f"identical files of {part}"))
        groups[part] = [[record.name for record in group] for group in same]
        said = [
            " = ".join(record.name for record in group)
            + (" (in different splits)" if len({record.split for record in group}) > 1 else "")
            for group in same
        ]
        findings += _found("warning", f"identical files of {part}", said)
    line = "identical files: " + ", ".join(f"{part} {len(same)}" for part, same in groups.items())
    return Topic("duplicates", (line,), {"names": pairs, "media": groups}, tuple(findings))


def _plain(name: str) -> str:
    """A name as a spreadsheet or a file system that makes no difference of case could see it."""
    return unicodedata.normalize("NFKC", name).strip().casefold().lstrip("0")


def _identical(
    owners: Mapping[ClipRecord, Path], threads: int, done: Callable[[int, int], None]
) -> list[list[ClipRecord]]:
    """Clips whose files have the same content: the same size, the same beginning, the same digest."""
    groups = [list(owners)]
    keys: tuple[Callable[[Path], Any], ...] = (_size, lambda path: _digest(path, _HEAD), _digest)
    for key in keys:
        waiting = [record for group in groups for record in group]
        seen: dict[Any, list[ClipRecord]] = defaultdict(list)
        found = _in_threads(key, [owners[record] for record in waiting], threads)
        for count, (record, value) in enumerate(zip(waiting, found, strict=True), 1):
            if value is not None:
                seen[value].append(record)
            done(count, len(waiting))
        groups = [group for group in seen.values() if len(group) > 1]
    return groups


def _size(path: Path) -> int | None:
    """Bytes of a file; None if there are none, or it cannot be read, which is told elsewhere."""
    try:
        return path.stat().st_size or None
    except OSError:
        return None


def _digest(path: Path, head: int | None = None) -> bytes | None:
    """Digest of a file, or of its beginning; None if it cannot be read, which is told elsewhere."""
    try:
        with path.open("rb") as file:
            return hashlib.blake2b(file.read(head)).digest() if head else hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None


def _overlap(records: Sequence[ClipRecord], against: Mapping[str, frozenset[str]]) -> Topic:
    lines, findings = [], []
    facts: dict[str, dict[str, Any]] = {}
    for title, names in against.items():
        shared = [record.name for record in records if record.name in names]
        lines.append(f"{title}: {len(shared):,} of its {len(names):,} names")
        facts[title] = {"names": len(names), "shared": shared}
        findings += _found("warning", f"clips that {title} has, too", shared)
    return Topic("overlap", tuple(lines), facts, tuple(findings))
