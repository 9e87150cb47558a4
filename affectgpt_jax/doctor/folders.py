"""Folders of weights: is every file there, of the length that its header says, and with the hash that was recorded?

Hashes are recorded by whoever wrote a file `SHA256SUMS` beside the weights (`affectgpt fetch`, `sha256sum`), and by
the Hub: in its cache a file is a link to a blob that is named by its hash, and a folder that `hf download
--local-dir` wrote keeps the hash of each file in `.cache/huggingface/download/NAME.metadata`. Large files have a
SHA-256 there, small ones the hash that git gives them.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from affectgpt_jax.config import RunConfig
from affectgpt_jax.config.networks import DecoderConfig
from affectgpt_jax.doctor.findings import Finding, Question, amount, fault
from affectgpt_jax.doctor.room import resolved
from affectgpt_jax.errors import UserError
from affectgpt_jax.fetch.plan import read_source
from affectgpt_jax.fetch.sums import SUMS, hash_file, read_sums
from affectgpt_jax.model_folders import hub_name, model_folder
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.weights.files import INDEX, SINGLE, SafetensorsFolder, open_part, part_config
from affectgpt_jax.weights.initial import base_shapes
from affectgpt_jax.weights.networks import DECODER
from affectgpt_jax.weights.table import readers
from affectgpt_jax.weights.towers import audio_config, vision_config

HASHED = (".safetensors", "tokenizer.json", "vocab.json", "merges.txt")
"""Names that end so decide what a model computes, and nobody edits them; a config.json may be corrected by hand."""

READERS: dict[str, Callable[[str], Any]] = {
    "vision": vision_config,
    "audio": audio_config,
    "language": lambda folder: DecoderConfig.from_hf(part_config(folder, "language")),
}
"""What reads the sizes of a part's network."""


def named_folders(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Key of the config -> the part that it names a folder of, and the folder."""
    named = {f"weights.{part}": (part, getattr(config.weights, part)) for part in READERS}
    if config.evaluate.extractor != config.weights.language:
        named["evaluate.extractor"] = ("language", config.evaluate.extractor)
    return {key: (part, folder) for key, (part, folder) in named.items() if folder}


def weights(question: Question) -> Iterator[Finding]:
    """Every folder of weights that the config names."""
    if question.config is None:
        return
    for key, (part, folder) in named_folders(question.config).items():
        found = list(check_folder(key, part, folder, question))
        if key == "weights.language" and all(finding.status == "ok" for finding in found):
            found = list(_fitting(question.config, folder)) or found
        yield from found


def _fitting(config: RunConfig, name: str) -> Iterator[Finding]:
    """Whether the tensors of the base are those of the network that its config.json describes."""
    config = resolved(config)
    try:
        shapes, tensors = base_shapes(config, AffectGPT(config.model)), open_part(name, "language")[1]
        next(readers(DECODER, shapes, tensors, name), None)
    except UserError as error:
        yield fault("weights.language", error, fetch(name, model_folder(name)))


def check_folder(key: str, part: str, name: str, question: Question) -> Iterator[Finding]:
    """One folder.

    Args:
      key: of the config, the findings' area.
      part: what network it holds.
      name: a path, or OWNER/NAME in the Hub's cache.
      question: whether to hash, and what is told how far that is.
    """
    try:
        folder = model_folder(name)
    except UserError as error:
        yield fault(key, error, f"hf download {name}")
        return
    if not folder.is_dir():
        remedy = f"{key}=FOLDER, or hf download OWNER/NAME and {key}=OWNER/NAME"
        yield Finding(key, "fault", f"{name}: there is no such folder", remedy)
        return
    wrong = list(_broken(key, part, name, folder))
    sums = recorded(folder)
    if not question.fast and not wrong:
        wrong += _changed(key, name, folder, sums, question)
    yield from wrong
    if wrong:
        return
    files = weight_files(folder)
    size = sum((folder / file).stat().st_size for file in files)
    compared = "not compared" if question.fast else "right"
    checked = f"{len(sums)} recorded hashes {compared}" if sums else "no hash is recorded to compare with"
    yield Finding(key, "ok", f"{name}: {len(files)} files, {amount(size)}, whole; {checked}")


def _changed(
    key: str, name: str, folder: Path, sums: list[tuple[str, str, str]], question: Question
) -> Iterator[Finding]:
    """The files that do not have their recorded hash."""
    for file, expected, origin in sums:
        hashes = hash_file(folder / file, question.begin(f"{name}/{file}"))
        found = hashes.sha256 if len(expected) == len(hashes.sha256) else hashes.git
        if found != expected:
            what = f"{folder / file} has the hash {str(found)[:16]}..., {origin} says {expected[:16]}..."
            yield Finding(key, "fault", what, fetch(name, folder, file))


def _broken(key: str, part: str, name: str, folder: Path) -> Iterator[Finding]:
    """What is wrong with the files, without reading the tensors."""
    try:
        READERS[part](name)
    except UserError as error:
        yield fault(key, error, fetch(name, folder, "config.json"))
    except (KeyError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        yield Finding(key, "fault", f"{folder / 'config.json'}: {what}", f"{key}=FOLDER of a {part} model")
    try:
        files = weight_files(folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        yield Finding(key, "fault", f"{folder / INDEX} is no index: {error!r}", fetch(name, folder, INDEX))
        return
    lengths = [(file, _length_fault(folder / file)) for file in files]
    for file, why in lengths:
        if why:
            yield Finding(key, "fault", f"{folder / file} {why}", fetch(name, folder, file))
    if not any(why for _, why in lengths):
        try:
            SafetensorsFolder(folder)
        except UserError as error:
            yield fault(key, error, fetch(name, folder))


def weight_files(folder: Path) -> list[str]:
    """The safetensors files that a folder has or, by its index, should have."""
    if not (folder / INDEX).is_file():
        return [SINGLE]
    return sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))


def _length_fault(path: Path) -> str:
    """Why a safetensors file cannot be whole; empty if it can. It is a length, a header of it, and what that counts."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return f"ends within its header, after {size:,} bytes"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "has no header of safetensors"
    expected = 8 + length + max(ends, default=0)
    return "" if size == expected else f"has {size:,} bytes, its header counts {expected:,}"


def recorded(folder: Path) -> list[tuple[str, str, str]]:
    """Recorded hashes of a folder's files: file, hash in hexadecimal, who says so."""
    found = [(file, code, SUMS) for file, code in read_sums(folder).items()]
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and (blob := path.readlink()).parent.name == "blobs":
            found.append((path.name, blob.name, "the Hub"))
        said = folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
        if said.is_file() and len(lines := said.read_text(errors="replace").splitlines()) > 1:
            found.append((path.name, lines[1].strip().strip('"'), "the Hub"))
    return [
        (file, code, origin)
        for file, code, origin in found
        if file.endswith(HASHED) and (folder / file).is_file() and re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", code)
    ]


def fetch(name: str, folder: Path, file: str = "") -> str:
    """The command that brings a file of a folder, or all of it, again."""
    if item := read_source(folder).get("item"):
        return f"affectgpt fetch {item} --to {folder.parent}"
    if hub := hub_name(folder):
        return " ".join(word for word in ("hf download", hub, file, "--force-download") if word)
    what = " ".join(word for word in ("hf download OWNER/NAME", file, f"--local-dir {folder} --force-download") if word)
    return f"{what}, or copy it again from where it came from"
