"""One file over HTTP: resumed where it was cut, checked while it comes, there whole or not at all."""

import errno
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from affectgpt_jax.errors import UserError
from affectgpt_jax.fetch.sums import BLOCK, Hashes, Report, hash_file

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try; a try that brought something starts them anew."""
TIMEOUT = 30.0
"""Seconds without a byte after which a try is given up."""
_AGAIN = (408, 429, 500, 502, 503, 504)


class NoAccessError(UserError):
    """The server wants a permission that this account does not have."""


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes:
      name: path within the folder it goes to.
      url: where it is.
      size: bytes; None if unknown.
      sha256: checksum; None if unknown.
      git: git's name of it, where that is what the server knows.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    git: str | None = None

    def differs(self, found: Hashes) -> str:
        """What is wrong with content of these checksums; empty if nothing."""
        if self.size is not None and found.size != self.size:
            return f"{found.size:,} bytes, expected {self.size:,}"
        if self.sha256 is not None and found.sha256 != self.sha256:
            return f"sha256 {found.sha256}, expected {self.sha256}"
        if self.sha256 is None and self.git is not None and found.git != self.git:
            return f"git checksum {found.git}, expected {self.git}"
        return ""


def download(remote: Remote, target: Path, headers: Mapping[str, str], report: Report) -> str:
    """Fetch a file. What an earlier try left in TARGET.part is not fetched again.

    Args:
      remote: the file.
      target: where it goes. A file that is there already is kept as TARGET.bad.
      headers: of the request; `Authorization` is sent to the same host only.
      report: told the bytes that are done.

    Returns:
      Its SHA-256.

    Raises:
      NoAccessError: the server refuses it to this account.
      UserError: it is not there, the server is not reached, the disk is full, or the checksum is another; what came is
        then kept as TARGET.bad.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        hashes = _receive(remote, part, headers, report)
        if wrong := remote.differs(hashes):
            bad = _keep_as_bad(part, target)
            raise UserError(
                f"{target}: what came from {remote.url} has {wrong}. It is kept as {bad.name}; run the command again, "
                "and if it comes out the same, tell the owner or take another mirror"
            )
        with part.open("rb") as file:
            os.fsync(file.fileno())
        if target.exists():
            _keep_as_bad(target, target)
        part.replace(target)
    except OSError as error:
        remedy = "choose another folder with --to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full: free some space and run it again, what came is kept"
        raise UserError(f"{target} could not be written ({error}); {remedy}") from error
    return hashes.sha256


def _keep_as_bad(file: Path, target: Path) -> Path:
    return file.replace(target.with_name(target.name + ".bad"))


def _receive(remote: Remote, part: Path, headers: Mapping[str, str], report: Report) -> Hashes:
    """Fill `part` until it is whole."""
    hashes = hash_file(part, size=remote.size) if part.exists() else Hashes(remote.size)
    waits = iter(WAITS)
    while remote.size is None or hashes.size != remote.size:
        before = hashes.size
        try:
            hashes, whole = _try(remote, part, hashes, headers, report)
            if whole:
                break
            reason = f"the connection ended after {hashes.size:,} bytes"
        except urllib.error.HTTPError as error:
            _refuse(error, remote)
            reason = f"HTTP status {error.code}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
            hashes = hash_file(part, size=remote.size) if part.exists() else Hashes(remote.size)
        if hashes.size > before:
            waits = iter(WAITS)
        wait = next(waits, None)
        if wait is None:
            host = urlsplit(remote.url).netloc
            raise UserError(
                f"{remote.name}: {host} was not reached or broke off {len(WAITS) + 1} times in a row ({reason}). "
                "Check the connection, or choose a mirror of the Hub with HF_ENDPOINT, and run the command again: it "
                "goes on where it ended"
            )
        time.sleep(wait)
    return hashes


def _refuse(error: urllib.error.HTTPError, remote: Remote) -> None:
    """Raise what trying again will not change."""
    if error.code in (401, 403):
        raise NoAccessError(f"{remote.name}: {remote.url} is not granted to you (HTTP status {error.code})") from error
    if error.code == 404:
        raise UserError(f"{remote.name}: nothing is at {remote.url} any more (HTTP status 404)") from error
    if error.code not in _AGAIN:
        raise UserError(f"{remote.name}: {remote.url} answers HTTP status {error.code} ({error.reason})") from error


def _try(remote: Remote, part: Path, hashes: Hashes, headers: Mapping[str, str], report: Report) -> tuple[Hashes, bool]:
    """One request for what is missing; the checksums then, and whether it is whole."""
    request = urllib.request.Request(remote.url, headers={"Accept-Encoding": "identity"})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    if hashes.size:
        request.add_unredirected_header("Range", f"bytes={hashes.size}-")
    try:
        response = urllib.request.build_opener(_Redirect).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink()  # longer than the file: of another one
        return Hashes(remote.size), False
    with response:
        if hashes.size and response.status != 206:  # the server does not resume
            hashes = Hashes(remote.size)
        length = response.headers.get("Content-Length")
        size = remote.size if length is None else hashes.size + int(length)
        with part.open("ab" if hashes.size else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                hashes.update(block)
                report(hashes.size, size or hashes.size)
    return hashes, size is None or hashes.size >= size


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Takes the place in the file along, and the token only to the same host: a CDN must not see it."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            same = urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]
            for name in ("Range", "Authorization") if same else ("Range",):
                if value := req.unredirected_hdrs.get(name):
                    new.add_unredirected_header(name, value)
        return new
