"""From a clip's files to encoder inputs: which file is read, what counts as absent, what the numbers look like."""

from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.data.clips import ClipFiles, read_modality
from affectgpt_jax.data.media import MediaError, read_faces, read_frames
from affectgpt_jax.data.shard_schema import parse_stream
from affectgpt_jax.errors import UserError
from tests.media_files import tone, write_faces, write_video, write_wav


def test_absent_is_not_broken(tmp_path: Path) -> None:
    silent = ClipFiles(video=write_video(tmp_path / "silent.mp4"))
    blind = ClipFiles(video=write_video(tmp_path / "blind.mp4", 0, sound=tone(1, 44_100)[None]))
    audio, frame, face = map(parse_stream, ("audio@8", "frame@8", "face@8"))
    assert [read_modality(silent, stream) is None for stream in (audio, frame, face)] == [True, False, True]
    assert [read_modality(blind, stream) is None for stream in (audio, frame, face)] == [False, True, True]
    assert [read_modality(ClipFiles(), stream) is None for stream in (audio, frame, face)] == [True, True, True]
    with pytest.raises(MediaError, match="no such file"):
        read_modality(ClipFiles(audio=tmp_path / "gone.wav"), audio)
    with pytest.raises(UserError, match="no modality 'image'"):
        read_modality(silent, parse_stream("image@1"))


def test_sound_comes_from_the_wav_first(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", sound=np.tile(tone(3, 44_100, 440.0), (2, 1)))
    wav = write_wav(tmp_path / "clip.wav", tone(3, 16_000, 110.0))
    for files, pitch in ((ClipFiles(video, wav), 110), (ClipFiles(video), 440)):
        clips = read_modality(files, parse_stream("audio@8"))
        assert clips is not None
        assert (clips.shape, clips.dtype) == ((8, 32_000), np.float32)
        assert int(np.abs(np.fft.rfft(clips[0])).argmax()) == 2 * pitch  # a bin is half a hertz
        # Normalised over the eight clips of the sample, after each lost its mean.
        np.testing.assert_allclose(clips.mean(axis=1), 0, atol=1e-5)
        np.testing.assert_allclose(clips.std(), 1, atol=1e-4)


def test_counts_come_from_the_stream(tmp_path: Path) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (20, 224, 224, 3), np.uint8)
    files = ClipFiles(write_video(tmp_path / "a.mp4", 20), faces=write_faces(tmp_path / "a.npy", crops))
    faces = read_modality(files, parse_stream("face@4"))
    np.testing.assert_array_equal(faces, read_faces(files.faces or Path())[[0, 5, 10, 15]])
    np.testing.assert_array_equal(
        read_modality(files, parse_stream("frame@2")), read_frames(files.video or Path(), indices=[0, 10])
    )
