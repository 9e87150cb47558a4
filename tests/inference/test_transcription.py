"""Transcription by an endpoint: what is sent, what comes back, and every way in which it can go wrong."""

import io
import json
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import soundfile

from affectgpt_jax.data.media import MediaError
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.clip_files import Beside, file_item, find_clip
from affectgpt_jax.inference.subtitles import read_table
from affectgpt_jax.inference.transcription import KEY, EndpointError, Transcriber
from tests.media_files import tone, write_video

Replies = list[tuple[int, bytes]]


class Endpoint:
    """A server that replies what a test wants, and keeps what it was sent."""

    def __init__(self) -> None:
        self.replies: Replies = []
        self.seen: list[tuple[str, dict[str, str], dict[str, bytes]]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                parts: Any = BytesParser().parsebytes(head + body).get_payload()
                fields = {
                    part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                    for part in parts
                }
                endpoint.seen.append((self.path, dict(self.headers), fields))
                status, content = endpoint.replies.pop(0)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", 25, sound=np.stack([tone(1.0, 44_100)] * 2))


def test_the_sound_alone_is_sent(endpoint: Endpoint, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.replies = [(200, b'{"text": " Thank  you. "}')] * 2
    monkeypatch.setenv(KEY, "secret")
    found = find_clip(file_item(clip), Beside(transcribe=Transcriber(endpoint.url, "tiny")), read_table)
    assert (found.subtitle, found.subtitle_from) == (
        "Thank you.",
        f"transcribed by tiny at {endpoint.url}/audio/transcriptions",
    )
    ((path, headers, fields),) = endpoint.seen
    assert path == "/v1/audio/transcriptions"
    assert headers["Authorization"] == "Bearer secret"
    assert (fields["model"], fields["response_format"]) == (b"tiny", b"json")
    sound, rate = soundfile.read(io.BytesIO(fields["file"]))
    assert rate == 16_000
    assert sound.shape == (16_000,) or abs(len(sound) - 16_000) < 2_100  # whole AAC frames
    assert 0.3 < np.abs(sound).max() < 0.6
    monkeypatch.delenv(KEY)
    Transcriber(f"{endpoint.url}/audio/transcriptions/", "tiny")(clip)
    assert endpoint.seen[1][0] == path
    assert "Authorization" not in endpoint.seen[1][1]


def test_only_clips_without_a_subtitle_are_sent(endpoint: Endpoint, clip: Path) -> None:
    transcribe = Transcriber(endpoint.url, "tiny")
    for beside in (
        Beside(transcribe=transcribe, subtitle=""),
        Beside(transcribe=transcribe, words=False),
        Beside(transcribe=transcribe, subtitle="Hello"),
    ):
        find_clip(file_item(clip), beside, read_table)
    silent = find_clip(
        file_item(write_video(clip.with_name("silent.mp4"), 5)), Beside(transcribe=transcribe), read_table
    )
    assert silent.absent["text"] == "there is no sound to transcribe"
    clip.with_suffix(".srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nBeside\n")
    assert find_clip(file_item(clip), Beside(transcribe=transcribe), read_table).subtitle == "Beside"
    assert not endpoint.seen
    clip.with_suffix(".srt").unlink()
    endpoint.replies = [(200, b'{"text": ""}')]
    assert find_clip(file_item(clip), Beside(transcribe=transcribe), read_table).absent["text"] == "no word is said"


def test_a_busy_endpoint_is_asked_again(endpoint: Endpoint, clip: Path) -> None:
    transcribe = Transcriber(endpoint.url, "tiny", wait=0.01)
    endpoint.replies = [(503, b"later"), (429, b"slower"), (200, b'{"text": "Well."}')]
    assert transcribe(clip) == "Well."
    endpoint.replies = [(503, b"later")] * 3
    with pytest.raises(MediaError, match=r"cannot be transcribed: .* answers 503 later") as caught:
        transcribe(clip)
    assert not isinstance(caught.value, EndpointError)
    assert not endpoint.replies


def test_what_goes_wrong_is_told(endpoint: Endpoint, clip: Path, unused_port: Callable[[], int]) -> None:
    transcribe = Transcriber(endpoint.url, "tiny", wait=0.01)
    for reply, message in (
        ((400, b"no speech"), "answers 400 no speech"),
        ((413, b"too long"), "answers 413 too long"),
        ((200, b"<html>"), "expected JSON with a text"),
        ((200, json.dumps({"text": None}).encode()), "expected JSON with a text"),
    ):
        endpoint.replies = [reply]
        with pytest.raises(MediaError, match=message):
            transcribe(clip)
    for status in (401, 404, 302):  # every clip would get these; what is sent is never sent on
        endpoint.replies = [(status, b"no")]
        with pytest.raises(EndpointError, match=f"answers {status} no; check the address, and the key in {KEY}"):
            transcribe(clip)
    assert len(endpoint.seen) == 7
    with pytest.raises(EndpointError, match="Connection refused"):
        Transcriber(f"http://127.0.0.1:{unused_port()}/v1", "tiny", wait=0.01)(clip)
    for url, message in (
        ("localhost:8000", "expected an address such as"),
        ("http://me:key@localhost/v1", "must hold no key"),
        ("http://localhost/v1?key=1", "must hold no key"),
    ):
        with pytest.raises(UserError, match=message):
            Transcriber(url, "tiny")


@pytest.fixture
def unused_port() -> Callable[[], int]:
    def find() -> int:
        server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        server.server_close()
        return server.server_address[1]

    return find
