"""Words of a clip by a speech recogniser that somebody serves: any endpoint of the form POST /v1/audio/transcriptions.

Nothing is sent unless a person asks for it, and then only the sound: 16 kHz, one channel, a WAV file without a name.
"""

import io
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import soundfile

from affectgpt_jax.data.media import AbsentStream, MediaError, read_audio
from affectgpt_jax.data.preprocess import SAMPLE_RATE, mono
from affectgpt_jax.errors import UserError

KEY = "AFFECTGPT_TRANSCRIBE_KEY"
"""Environment variable of the key that goes along as a bearer token; none is sent where it is not set."""

ROUTE = "/audio/transcriptions"
ATTEMPTS = 3
SECONDS = 300.0
"""That an endpoint may take to answer."""
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
REFUSED = (301, 302, 303, 307, 308, 401, 403, 404, 405)
"""Statuses that every clip would get."""


class EndpointError(UserError):
    """The endpoint serves no clip at all."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # sound and key go where the user said, and nowhere else


@dataclass(frozen=True)
class Transcriber:
    """Asks an endpoint.

    Attributes:
      url: of the endpoint, or the base that its routes have in common (http://localhost:8000/v1).
      model: the recogniser's name there.
      wait: seconds before a second attempt; four times as many before a third.
    """

    url: str
    model: str
    wait: float = 1.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--transcribe {self.url}: expected an address such as http://localhost:8000/v1")
        if parts.username is not None or parts.query:
            raise UserError(f"--transcribe: the address must hold no key; put it into the environment as {KEY}")

    @property
    def address(self) -> str:
        """Where requests go."""
        url = self.url.rstrip("/")
        return url if url.endswith(ROUTE) else url + ROUTE

    @property
    def origin(self) -> str:
        """Where words come from, for records."""
        return f"transcribed by {self.model} at {self.address}"

    def __call__(self, path: Path) -> str | None:
        """The words that are said in a media file; None if it has no sound track.

        Raises:
          MediaError: the file is broken, or the endpoint gives no words for it.
          EndpointError: it gives none for any file: no connection, no such route, a wrong key.
        """
        try:
            sound = io.BytesIO()
            soundfile.write(sound, mono(read_audio(path).samples), SAMPLE_RATE, format="WAV", subtype="PCM_16")
        except AbsentStream:
            return None
        body, kind = _form({"model": self.model, "response_format": "json"}, sound.getvalue())
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._ask(body, kind, path)
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                status = error.code if isinstance(error, urllib.error.HTTPError) else None
                said = f"{status} {error.read(300).decode(errors='replace')}" if isinstance(
                    error, urllib.error.HTTPError
                ) else str(getattr(error, "reason", error))  # fmt: skip
                if (status is None or status in BUSY) and attempt < ATTEMPTS:
                    time.sleep(self.wait * 4 ** (attempt - 1))
                elif status is None or status in REFUSED:
                    raise EndpointError(
                        f"--transcribe {self.address} answers {said}; check the address, and the key in {KEY}"
                    ) from error
                else:
                    raise MediaError(path, f"cannot be transcribed: {self.address} answers {said}") from error
        raise AssertionError

    def _ask(self, body: bytes, kind: str, path: Path) -> str:
        headers = {"Content-Type": kind, "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.address, body, headers, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=SECONDS) as answer:
            content = answer.read()
        try:
            words = json.loads(content)["text"]
        except (ValueError, KeyError, TypeError):
            words = None
        if not isinstance(words, str):
            raise MediaError(
                path, f"cannot be transcribed: {self.address} answers {content[:100]!r}, expected JSON with a text"
            )
        return " ".join(words.split())


def _form(fields: dict[str, str], sound: bytes) -> tuple[bytes, str]:
    """multipart/form-data with some fields and a file of sound, and its type."""
    boundary = uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="clip.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    )
    body = ("".join(parts) + head).encode() + sound + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"
