"""Corpora in object storage (`gs://`, `s3://`, whatever fsspec opens): what a run needs is copied once to this machine.

The copy lies in the cache folder. The manifest decides: it is asked for each time, and a file that is there with the
size and checksum that it states is not fetched again, so another split or stream, or a corpus prepared anew, brings
only what is new.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from affectgpt_jax.cache import cache_folder
from affectgpt_jax.data.shard_schema import (
    MANIFEST,
    TEXT,
    Manifest,
    digest,
    file_digest,
    read_manifest,
    stream_directory,
)
from affectgpt_jax.errors import UserError
from affectgpt_jax.replacing import replacing

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
"""Protocol -> our extra that brings its client."""


def is_remote(root: str | Path) -> bool:
    """Whether a name is an address and no folder."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(root)) is not None


def local_copy(
    root: str, split: str, streams: Sequence[str], report: Callable[[str], None] = lambda line: None
) -> Path:
    """Copy what a run reads of a corpus to this machine.

    Any number of processes may do it at once: a file appears under its name only when it is whole.

    Args:
        root: address of the corpus, `gs://BUCKET/PATH`.
        split: the split that is wanted.
        streams: feature streams that are wanted; the text always is.
        report: told what is fetched.

    Returns:
        A corpus for `open_corpus` with these streams and this split.

    Raises:
        UserError: no client for this kind of storage, nothing there, no access, or a file that arrives damaged.
    """
    files, path = _open(root)
    place = cache_folder() / "shards" / digest(root.rstrip("/").encode())[:16]
    for stream in (TEXT, *streams):
        _fetch_stream(files, f"{path.rstrip('/')}/{stream_directory(Path(), stream).as_posix()}", place, stream)
        folder, manifest = stream_directory(place, stream), read_manifest(place, stream)
        wanted = [
            entry
            for entry in manifest.splits.get(split, ())
            if not _is_there(folder / entry.file, entry.size, entry.blake2b)
        ]
        if wanted:
            report(f"{root}: fetching {len(wanted)} shards of {stream}, {sum(e.size for e in wanted) / 1e6:,.1f} MB")
        for entry in wanted:
            source = f"{path.rstrip('/')}/{folder.relative_to(place).as_posix()}/{entry.file}"
            _fetch(files, source, folder / entry.file, root)
            if not _is_there(folder / entry.file, entry.size, entry.blake2b):
                (folder / entry.file).unlink()
                raise UserError(
                    f"{root}: {entry.file} of {stream} does not have the checksum that its manifest states; it was "
                    "damaged on the way or in the storage. Try again, or upload it again"
                )
    return place


def _open(root: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(root)
    except ImportError as error:
        protocol = root.partition("://")[0]
        remedy = f"pip install 'affectgpt-jax[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else "install its client"
        raise UserError(f"{root}: {error}; {remedy}") from error
    except ValueError as error:
        raise UserError(f"{root}: {error}; expected an address such as gs://BUCKET/PATH or s3://BUCKET/PATH") from error


def _fetch_stream(files: Any, source: str, place: Path, stream: str) -> None:
    """Bring a stream's manifest up to date, and the small files beside it."""
    folder = stream_directory(place, stream)
    remote = f"{source}/{MANIFEST}"
    try:
        content = files.cat_file(remote)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no stream {stream!r} at {files.unstrip_protocol(source)}; prepare it into a local folder, and "
            "upload that as it is"
        ) from error
    except Exception as error:  # every client has errors of its own
        raise UserError(f"{files.unstrip_protocol(remote)} cannot be read ({error}); are you logged in?") from error
    manifest = folder / MANIFEST
    if manifest.is_file() and manifest.read_bytes() == content:
        return
    for name in Manifest.model_validate_json(content).metadata:
        _fetch(files, f"{source}/{name}", folder / name, source)
    with replacing(manifest) as draft:
        draft.write_bytes(content)


def _fetch(files: Any, source: str, target: Path, root: str) -> None:
    with replacing(target) as draft:
        try:
            files.get_file(source, str(draft))
        except Exception as error:  # every client has errors of its own
            raise UserError(f"{root}: {source} cannot be fetched ({error}); try again") from error


def _is_there(path: Path, size: int, checksum: str) -> bool:
    return path.is_file() and path.stat().st_size == size and file_digest(path) == checksum
