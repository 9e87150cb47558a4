"""Decoding against decord and libsndfile, and what becomes of files that are broken or odd."""

import pickle
import platform
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from affectgpt_jax.data.media import (
    AbsentStream,
    MediaError,
    duration,
    frame_count,
    read_audio,
    read_faces,
    read_frames,
)
from affectgpt_jax.errors import UserError
from tests.media_files import rotate_metadata, tone, truncate, write_faces, write_video, write_wav

# zlib.crc32 of decord 0.6.0's VideoReader(path, width=224, height=224).get_batch(indices) for lossless `pictures`.
DECORD_CRC = 3552210971
DECORD_PIXELS = [[117.16666666666667, 112.91666666666667, 113.5], [106.5, 132.5, 150.0]]


@pytest.mark.parametrize(("codec", "ending"), [("ffv1", "mkv"), ("rawvideo", "nut")])
def test_frames_equal_decord(tmp_path: Path, codec: str, ending: str) -> None:
    path = write_video(tmp_path / f"clip.{ending}", 20, codec=codec)
    frames = read_frames(path)
    assert frames.shape == (8, 224, 224, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_allclose(frames[:2, ::73, ::91].mean((1, 2)), DECORD_PIXELS, atol=1)
    if platform.machine() in ("x86_64", "AMD64"):  # FFmpeg's scaler may round otherwise on other processors
        assert zlib.crc32(frames.tobytes()) == DECORD_CRC


def test_frames_are_those_asked_for(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 20)
    every = read_frames(path, indices=range(20), size=64)
    np.testing.assert_array_equal(read_frames(path, indices=[7, 3, 3, 19], size=64), every[[7, 3, 3, 19]])
    # arange(0, 20, 20 / 8) truncated: QUIRKS 10
    np.testing.assert_array_equal(read_frames(path, 8, size=64), every[[0, 2, 5, 7, 10, 12, 15, 17]])


def test_short_video_repeats_its_last_frame(tmp_path: Path) -> None:
    frames = read_frames(write_video(tmp_path / "clip.mp4", 3), 8)
    assert len(frames) == 8
    assert (frames[3:] == frames[2]).all()
    assert (frames[1] != frames[2]).any()


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata_turns_the_picture(tmp_path: Path, degrees: int) -> None:
    # A square that is only turned: the same pixels elsewhere, up to the scaler's treatment of subsampled colour.
    upright = write_video(tmp_path / "upright.mp4", 4, height=224, width=224)
    turned = rotate_metadata(write_video(tmp_path / "turned.mp4", 4, height=224, width=224), degrees)
    expected = np.rot90(read_frames(upright, 4), -degrees // 90, axes=(1, 2))
    difference = np.abs(read_frames(turned, 4).astype(int) - expected)
    assert difference.mean() < 2
    assert np.abs(read_frames(turned, 4).astype(int) - read_frames(upright, 4)).mean() > 20


def test_foreign_mp4(tmp_path: Path) -> None:
    stereo = np.stack([tone(2.2, 44_100), np.zeros_like(tone(2.2, 44_100))])
    path = write_video(tmp_path / "foreign.mp4", 60, rate=Fraction(30000, 1001), sound=stereo)
    assert frame_count(path) == 60
    assert read_frames(path).shape == (8, 224, 224, 3)
    samples, rate = read_audio(path)
    assert (rate, len(samples)) == (16_000, 2)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples.shape[1] / rate, 2.2, atol=0.05)
    np.testing.assert_allclose(duration(path), 2.2, atol=0.05)
    # AAC is lossy, the resampler is not: the tone is there, at its pitch and loudness, on the left only.
    spectrum = np.abs(np.fft.rfft(samples[0, 8_000:24_000])) / 8_000
    assert int(spectrum.argmax()) == 220
    np.testing.assert_allclose(spectrum.max(), 0.5, rtol=0.02)
    assert np.abs(samples[1, 8_000:24_000]).max() < 0.01


def test_wav_is_read_sample_for_sample(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.stack([tone(0.5), -tone(0.5)]))
    samples, rate = read_audio(path)
    assert rate == 16_000
    np.testing.assert_array_equal(samples, soundfile.read(path, dtype="float32")[0].T)
    assert duration(path) == 0.5


def test_wav_of_another_rate_is_resampled(tmp_path: Path) -> None:
    samples, rate = read_audio(write_wav(tmp_path / "a.wav", tone(1, 48_000, 1000.0), 48_000))
    assert (rate, samples.shape) == (16_000, (1, 16_000))
    np.testing.assert_allclose(samples[0, 500:-500], tone(1, 16_000, 1000.0)[500:-500], atol=1e-4)


def _text_file(path: Path) -> Path:
    path.write_text("this is no video\n" * 100)
    return path


def _empty_wav(path: Path) -> Path:
    return write_wav(path, np.zeros(0, np.float32))


def _no_bytes(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(
    ("make", "read", "reason"),
    [
        (lambda d: d / "gone.mp4", read_frames, "no such file"),
        (lambda d: d / "gone.wav", read_audio, "no such file"),
        (lambda d: d / "gone.npy", read_faces, "no such file"),
        (lambda d: _text_file(d / "text.mp4"), read_frames, "cannot be decoded"),
        (lambda d: _text_file(d / "text.mp4"), read_audio, "cannot be decoded"),
        (lambda d: _text_file(d / "text.mp4"), duration, "cannot be decoded"),
        (lambda d: _text_file(d / "text.wav"), read_audio, "cannot be read as a sound file"),
        (lambda d: _text_file(d / "text.npy"), read_faces, "cannot be read as a numpy array"),
        (lambda d: _no_bytes(d / "empty.mp4"), read_frames, "cannot be decoded"),
        (lambda d: _no_bytes(d / "empty.wav"), read_audio, "cannot be read as a sound file"),
        (lambda d: _empty_wav(d / "short.wav"), read_audio, "length zero"),
        (lambda d: truncate(write_video(d / "cut.mp4"), 0.8), read_frames, "cannot be decoded"),
        (lambda d: truncate(write_video(d / "cut.mp4", movflags="faststart"), 0.8), read_frames, "cut short"),
        (lambda d: truncate(write_video(d / "cut.mp4", movflags="faststart"), 0.8), frame_count, "cut short"),
        (lambda d: write_faces(d / "rank.npy", np.zeros((4, 4, 3), np.uint8)), read_faces, r"found uint8 \[4, 4, 3\]"),
        (lambda d: write_faces(d / "grey.npy", np.zeros((4, 4, 4, 1), np.uint8)), read_faces, "found uint8"),
        (lambda d: write_faces(d / "real.npy", np.zeros((4, 4, 4, 3))), read_faces, "found float64"),
        (lambda d: write_faces(d / "none.npy", np.zeros((0, 4, 4, 3), np.uint8)), read_faces, "no face crop"),
        (lambda d: write_faces(d / "obj.npy", np.asarray([None, 1])), read_faces, "cannot be read as a numpy array"),
        (lambda d: truncate(write_faces(d / "cut.npy", np.zeros((4, 9, 9, 3), np.uint8)), 0.5), read_faces, "cannot"),
    ],
)
def test_broken_file(tmp_path: Path, make, read, reason: str) -> None:  # type: ignore[no-untyped-def]
    path = make(tmp_path)
    with pytest.raises(MediaError, match=reason) as caught:
        read(path)
    assert not isinstance(caught.value, AbsentStream)
    assert isinstance(caught.value, UserError)
    assert str(path) in str(caught.value)


def test_cut_between_two_packets(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 50, movflags="faststart")
    with av.open(str(path)) as container:
        middle = list(container.demux())[25]
        end = (middle.pos or 0) + middle.size
    path.write_bytes(path.read_bytes()[:end])
    for read in (frame_count, read_frames):
        with pytest.raises(MediaError, match="cut short"):
            read(path)


def test_truncated_sound_track_is_not_taken_for_a_short_one(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "clip.mp4", 50, sound=tone(2, 44_100)[None], movflags="faststart")
    with pytest.raises(MediaError, match="cut short"):
        read_audio(truncate(whole, 0.7))


def test_absent_streams(tmp_path: Path) -> None:
    silent = write_video(tmp_path / "silent.mp4")
    blind = write_video(tmp_path / "blind.mp4", 0, sound=tone(1, 44_100)[None])
    with pytest.raises(AbsentStream, match=r"silent\.mp4: has no audio stream"):
        read_audio(silent)
    with pytest.raises(AbsentStream, match=r"blind\.mp4: has no video stream"):
        read_frames(blind)
    assert read_frames(silent).shape[0] == 8
    assert read_audio(blind).samples.shape[0] == 1


def test_frame_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="frames 0 to 30 wanted, the video has 0 to 24"):
        read_frames(write_video(tmp_path / "clip.mp4"), indices=[0, 30])


def test_errors_cross_processes(tmp_path: Path) -> None:
    error = pickle.loads(pickle.dumps(AbsentStream(tmp_path / "a.mp4", "has no audio stream")))
    assert isinstance(error, AbsentStream)
    assert error.reason == "has no audio stream"
