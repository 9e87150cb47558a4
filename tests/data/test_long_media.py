"""Long recordings from beginning to end: the samples and frames are those of clips, what is broken is passed over."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from affectgpt_jax.data.long_media import read_pictures, read_sound, survey
from affectgpt_jax.data.media import FRAME_SIZE, MediaError, Scaler, read_audio, read_frames
from affectgpt_jax.data.preprocess import mono
from tests.media_files import pictures, tone, truncate, write_video, write_wav


def heard(path: Path) -> tuple[np.ndarray, list[str]]:
    told: list[str] = []
    return np.concatenate(list(read_sound(path, told.append))), told


def shown(path: Path, wanted: list[int]) -> tuple[dict[int, np.ndarray], list[str]]:
    told: list[str] = []
    scaler = Scaler(FRAME_SIZE)
    found = {number: scaler(frame) for number, frame in read_pictures(path, survey(path), wanted, told.append)}
    return found, told


def test_sound_is_that_of_clips(tmp_path: Path) -> None:
    stereo = np.stack([tone(2.5, 44_100), tone(2.5, 44_100, frequency=330)])
    for path in (
        write_video(tmp_path / "a.mp4", 10, sound=stereo),
        write_video(tmp_path / "a.mkv", 0, sound=stereo),
        write_wav(tmp_path / "16.wav", tone(2.5)),
        write_wav(tmp_path / "44.wav", stereo, 44_100),
    ):
        sound, told = heard(path)
        assert not told
        np.testing.assert_array_equal(sound, mono(read_audio(path).samples))


@pytest.mark.parametrize(("codec", "ending"), [("libx264", ".mp4"), ("mpeg4", ".avi"), ("libvpx", ".webm")])
def test_pictures_are_those_of_clips(codec: str, ending: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"a{ending}", 40, codec=codec)
    recording = survey(path)
    np.testing.assert_allclose(recording.times, np.arange(40) / 25, atol=2e-3)
    assert recording.seconds == pytest.approx(1.6, abs=0.01)
    assert (recording.sound, recording.problem) == (False, "")
    wanted = [0, 3, 17, 39]
    found, told = shown(path, wanted)
    assert not told
    np.testing.assert_array_equal(np.stack([found[i] for i in wanted]), read_frames(path, indices=wanted))


def test_frames_that_come_as_they_like(tmp_path: Path) -> None:
    """Telephones take fewer pictures in the dark; each keeps its time, and the clock begins where the file does."""
    stamps = [1000, 1040, 1500, 2700, 2740]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 128, 96, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for stamp, picture in zip(stamps, pictures(5), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    np.testing.assert_allclose(survey(path).times, [0, 0.04, 0.5, 1.7, 1.74], atol=1e-6)
    found, _ = shown(path, [3])
    np.testing.assert_array_equal(found[3], read_frames(path, indices=[3])[0])


def test_missing_sound_is_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for start in (0, 8_000, 40_000):  # half a second each, then nothing for a second and a half
            frame = av.AudioFrame.from_ndarray(np.full((1, 8_000), 9_000, np.int16), format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = 16_000, start, Fraction(1, 16_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sound, _ = heard(path)
    assert len(sound) == pytest.approx(48_000, abs=20)
    assert (sound[:16_000] > 0.2).all()
    assert not sound[16_050:39_950].any()
    assert (sound[40_050:] > 0.2).all()


def test_a_file_that_is_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    sound = tone(4, 44_100)[None]
    whole = write_video(tmp_path / "whole.mp4", 100, sound=sound, movflags="faststart")
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes())
    truncate(path, 0.6)
    recording = survey(path)
    assert "cut short" in recording.problem
    assert 1 < recording.seconds < 3.9
    last = len(recording.times) - 1
    found, _ = shown(path, [0, last])
    np.testing.assert_array_equal(found[0], read_frames(whole, indices=[0])[0])
    assert 16_000 < len(heard(path)[0]) < 62_000


def test_a_damaged_place_is_passed_over(tmp_path: Path) -> None:
    """A later frame stands in for one that cannot be decoded, and it is told."""
    path = write_video(tmp_path / "a.mkv", 50, codec="ffv1")
    whole = read_frames(path, indices=range(50))
    with av.open(str(path)) as container:
        start, size = [(packet.pos or 0, packet.size) for packet in container.demux() if packet.size][20]
    content = bytearray(path.read_bytes())
    content[start + 20 : start + size] = b"\xff" * (size - 20)
    path.write_bytes(bytes(content))
    found, told = shown(path, [5, 19, 20, 21, 30])
    assert len(told) == 1
    assert "cannot be decoded everywhere, first at 0.8" in told[0]
    np.testing.assert_array_equal(found[20], found[21])
    assert (found[20] != found[19]).any()
    for number in (5, 19, 30):
        np.testing.assert_array_equal(found[number], whole[number])


def test_what_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"nothing")
    with pytest.raises(MediaError, match="no media file"):
        survey(path)
    with pytest.raises(MediaError, match="no such file"):
        survey(tmp_path / "b.mp4")
