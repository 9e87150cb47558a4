"""Frames, sound and pixels, against the reference's own and the processors of the transformers library."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_jax.data.preprocess import (
    SAMPLE_RATE,
    audio_clips,
    clip_pixels,
    clip_starts,
    frame_indices,
    mono,
    normalise_audio,
    pick_faces,
    truncate_frames,
)
from affectgpt_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(goldens: Path) -> Path:
    return goldens / "preprocess"


# Frames


def test_frame_indices(folder: Path) -> None:
    golden = json.loads((folder / "d_frame_indices.json").read_text(encoding="utf-8"))
    one_too_many = golden.pop(next(key for key in golden if key.startswith("video_lengths")))
    for key, cases in golden.items():
        count = int(key.partition("=")[2])
        for total, expected in cases.items():
            assert frame_indices(int(total), count, compat="reference").tolist() == expected
    for count, totals in one_too_many.items():
        found = [n for n in range(1, 3001) if len(frame_indices(n, int(count), compat="reference")) > int(count)]
        assert found[: len(totals)] == totals


@given(st.integers(1, 5000), st.integers(1, 40))
def test_strict_frame_indices_are_as_many_as_asked(total: int, count: int) -> None:
    picked = frame_indices(total, count)
    assert len(picked) == count
    assert picked[0] == 0
    assert picked[-1] < total
    assert (np.diff(picked) >= 0).all()


def test_no_frames_are_said() -> None:
    with pytest.raises(UserError, match="8 frames of 0"):
        frame_indices(0)


# Sound


def test_clip_starts(folder: Path) -> None:
    golden = json.loads((folder / "c_audio_clip_starts.json").read_text(encoding="utf-8"))
    for case in golden.values():
        clips, _, length = case["clips"]
        starts = clip_starts(case["samples"], clips=clips, seconds=length / SAMPLE_RATE)
        assert list(starts) == [Fraction(start) for start in case["start_exact_fraction"]]
        assert [float(start) for start in starts] == pytest.approx(case["start_seconds"], rel=1e-12)
        assert [int(start * SAMPLE_RATE) for start in starts] == case["start_index"]

        ramp = np.arange(1, case["samples"] + 1, dtype=np.float32)
        cut = audio_clips(ramp, clips=clips, seconds=length / SAMPLE_RATE)
        assert cut.shape == (clips, length)
        assert cut[:, 0].tolist() == case["first_value_of_clip"]
        assert cut[:, -1].tolist() == case["last_value_of_clip"]
        assert np.count_nonzero(cut, axis=1).tolist() == case["nonzero_samples_per_clip"]


def test_clips_of_recordings(folder: Path) -> None:
    with np.load(folder / "c_audio_clips.npz") as arrays:
        names = {key.partition("/")[0] for key in arrays} - {"mean_removal"}
        assert names
        for name in names:
            cut = audio_clips(mono(arrays[f"{name}/waveform"], compat="reference"))
            for key in arrays:
                if key.startswith(f"{name}/clip"):
                    np.testing.assert_array_equal(cut[int(key.removeprefix(f"{name}/clip"))], arrays[key][0])

        samples = mono(arrays["mean_removal/waveform"])
        before, after = audio_clips(samples), audio_clips(samples, compat="reference")
        np.testing.assert_array_equal(before[3], arrays["mean_removal/clip3_before"][0])
        np.testing.assert_allclose(after[3], arrays["mean_removal/clip3_after"][0], rtol=0, atol=1e-7)
        np.testing.assert_allclose(before.mean(1), arrays["mean_removal/clip_means_before"], rtol=0, atol=1e-7)
        np.testing.assert_allclose(after.mean(1), arrays["mean_removal/clip_means_after"], rtol=0, atol=1e-7)


def test_channels() -> None:
    six = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert mono(six[:2], compat="reference").tolist() == mono(six[:2]).tolist() == [1.0, 2.0]
    assert mono(six, compat="reference").tolist() == [0.0, 1.0]
    assert mono(six).tolist() == [5.0, 6.0]


def test_normalisation_is_over_the_whole_array(folder: Path) -> None:
    with np.load(folder / "a_audio_encoder.npz") as arrays:
        batches = sorted({key.partition("/")[0] for key in arrays if key.endswith("/raw_audio")})
        assert batches
        for batch in batches:
            found = normalise_audio(arrays[f"{batch}/raw_audio"])
            expected = arrays[f"{batch}/input_values"]
            np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=1e-6)


# Pictures


def test_face_loading(folder: Path) -> None:
    with np.load(folder / "d_face_loading.npz") as arrays:
        _, count, size, _ = arrays["output_shape"].tolist()
        faces = pick_faces(arrays["faces_npy"], count, size)
        assert faces.shape == (count, size, size, 3)
        np.testing.assert_array_equal(faces[0].transpose(2, 0, 1), arrays["frame0_uint8_chw"])


@pytest.mark.parametrize(
    "faces", [np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.float32)]
)
def test_other_arrays_are_no_faces(faces: np.ndarray) -> None:
    with pytest.raises(UserError, match="Face crops must be uint8"):
        pick_faces(faces)


def test_pixels_of_the_public_processor(folder: Path) -> None:
    with np.load(folder / "b_visual_encoder.npz") as arrays:
        names = [key.partition("/")[0] for key in arrays if key.endswith("/frames_uint8")]
        assert names
        for name in names:
            raw = arrays[f"{name}/raw_frames"]  # [b, 3, t, h, w], with fractions
            frames = truncate_frames(raw.transpose(0, 2, 3, 4, 1).reshape(-1, *raw.shape[3:], 3))
            np.testing.assert_array_equal(frames, arrays[f"{name}/frames_uint8"])
            expected = arrays[f"{name}/pixel_values"]
            np.testing.assert_allclose(clip_pixels(frames, expected.shape[-1]), expected, rtol=0, atol=1e-6)

        for key in arrays:
            if key.endswith("/image_uint8"):
                expected = arrays[key.replace("image_uint8", "pixel_values_f16")]
                found = clip_pixels(arrays[key][None], expected.shape[-1])
                # Half precision rounds by up to 0.001 here; one grey level is 0.014.
                np.testing.assert_allclose(found, expected.astype(np.float32), rtol=0, atol=1e-3)


def test_pixels_of_the_tiny_processor(folder: Path) -> None:
    with np.load(folder / "b_visual_encoder.npz") as arrays:
        names = [key.partition("/")[0] for key in arrays if key.endswith("/raw_frames_uint8")]
        assert names
        for name in names:
            frames = arrays[f"{name}/raw_frames_uint8"]  # [b, 3, t, h, w]
            expected = arrays[f"{name}/pixel_values"]
            images = frames.transpose(0, 2, 3, 4, 1).reshape(-1, *frames.shape[3:], 3)
            found = clip_pixels(images, expected.shape[-1])
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([24, 28, 37]), st.integers(0, 99))
def test_pixels_of_any_size_agree_with_transformers(height: int, width: int, size: int, seed: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)
    oracle = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    expected = oracle(list(images), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(clip_pixels(images, size), expected, rtol=0, atol=1e-6)
