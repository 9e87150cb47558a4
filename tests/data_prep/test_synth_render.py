"""What is drawn and sung carries what the specification says, for people never seen before."""

import numpy as np
import pytest

from data_prep.synth import SAMPLE_RATE, ClipSpec, render_clip, render_faces, render_frames, sample_specs, synthesize
from data_prep.synth.render import CROP_STRIDE
from data_prep.synth.voice import MANNERS, Speaker, compose

SPEAKER = Speaker(pitch=120.0, tract=1.0, tilt=0.0, nasality=0.0)


def held_out_accuracy(features: np.ndarray, names: list[str], tested: np.ndarray) -> float:
    """Accuracy of a ridge classifier, trained on the rows that are not tested."""
    classes = sorted(set(names))
    targets = np.array([[name == c for c in classes] for name in names], float)
    scaled = (features - features[~tested].mean(0)) / (features[~tested].std(0) + 1e-6)
    scaled = np.concatenate([scaled, np.ones((len(scaled), 1))], 1)
    gram = scaled[~tested] @ scaled[~tested].T
    weights = np.linalg.solve(gram + 100.0 * np.eye(len(gram)), targets[~tested])
    answers = (scaled[tested] @ scaled[~tested].T @ weights).argmax(1)
    return float(np.mean([classes[a] == name for a, name in zip(answers, np.array(names)[tested])]))


def log_mel_statistics(wave: np.ndarray) -> np.ndarray:
    """Mean, spread and movement of the level in 30 bands spaced as the ear hears, without the loudness."""
    windows = np.lib.stride_tricks.sliding_window_view(wave, 400)[::240] * np.hanning(400).astype(np.float32)
    power = np.abs(np.fft.rfft(windows, 512)) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2840, 32) / 2595) - 1)
    frequency = np.fft.rfftfreq(512, 1 / SAMPLE_RATE)
    rising = (frequency - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequency) / np.diff(edges)[1:, None]
    bands = np.log(power @ np.clip(np.minimum(rising, falling), 0, None).T + 1e-9)
    bands -= bands.mean()
    return np.concatenate([bands.mean(0), bands.std(0), np.abs(np.diff(bands, axis=0)).mean(0)])


@pytest.fixture(scope="module")
def specs() -> list[ClipSpec]:
    return sample_specs(11, "train", 280) + sample_specs(11, "test", 84)


def test_a_clip_has_frames_faces_and_a_wave() -> None:
    spec = sample_specs(1, "train", 1)[0]
    frames, faces, wave = render_clip(spec)
    assert (frames.shape, frames.dtype) == ((spec.frames, 128, 128, 3), np.uint8)
    assert (faces.shape, faces.dtype) == ((-(-spec.frames // CROP_STRIDE), 64, 64, 3), np.uint8)
    assert (wave.shape, wave.dtype) == ((spec.frames * SAMPLE_RATE // 25,), np.float32)
    assert 0.1 < np.abs(wave).max() < 1.0
    again = render_clip(spec)
    assert all(np.array_equal(a, b) for a, b in zip((frames, faces, wave), again))


def test_some_frames_are_those_of_the_whole_clip() -> None:
    spec = sample_specs(1, "validation", 1)[0]
    frames, faces, _ = render_clip(spec)
    wanted = np.array([3, 12, 30])
    assert np.array_equal(render_frames(spec, wanted), frames[wanted])
    assert np.array_equal(render_faces(spec, wanted), faces[wanted // CROP_STRIDE])


def test_expressions_are_read_from_new_faces(specs: list[ClipSpec]) -> None:
    pictures = [render_faces(s, np.linspace(5, s.frames - 5, 3).astype(int)).mean((0, 3)) for s in specs]
    small = np.stack(pictures).reshape(len(specs), 32, 2, 32, 2).mean((2, 4)).reshape(len(specs), -1)
    small = (small - small.mean(1, keepdims=True)) / small.std(1, keepdims=True)
    tested = np.array([s.split == "test" for s in specs])
    assert held_out_accuracy(small, [s.scene.face for s in specs], tested) >= 0.95
    # What is not in the picture cannot be read from it: no better than the most frequent class, and some luck.
    assert held_out_accuracy(small, [s.scene.text for s in specs], tested) <= 0.5


def test_manners_are_heard_from_new_voices(specs: list[ClipSpec]) -> None:
    waves = []
    for s in specs:
        rng = np.random.default_rng(s.index)
        waves.append(synthesize(compose(s.voice, s.speaker, 2.0, rng), s.voice, s.speaker, rng))
    features = np.stack([log_mel_statistics(wave) for wave in waves])
    tested = np.array([s.split == "test" for s in specs])
    manners = [s.scene.voice for s in specs]
    assert held_out_accuracy(features, manners, tested) >= 0.95
    loudness = np.log([[np.abs(wave).max(), wave.std()] for wave in waves])
    assert held_out_accuracy(loudness, manners, tested) <= 0.6


def test_the_pitch_heard_is_the_pitch_written() -> None:
    voice = MANNERS["flat"]._replace(pitch_range=0.0, jitter=0.0, breathiness=0.0)
    rng = np.random.default_rng(0)
    tracks = compose(voice, SPEAKER, 2.0, rng)
    wave = synthesize(tracks, voice, SPEAKER, rng).astype(np.float64)
    middle = wave[SAMPLE_RATE - 2400 : SAMPLE_RATE + 2400]
    echo = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    period = np.argmax(echo[80:320]) + 80  # 50 to 200 Hz
    assert SAMPLE_RATE / period == pytest.approx(tracks.pitch[200], rel=0.03)
    assert tracks.pitch[200] == pytest.approx(120 * 2 ** (-2.5 / 12), rel=0.02)  # at half time, declination is 0


def test_a_sharp_voice_is_brighter_and_faster_than_a_warm_one() -> None:
    centroid, syllables = {}, {}
    for manner in ("warm", "sharp"):
        rng = np.random.default_rng(3)
        tracks = compose(MANNERS[manner], SPEAKER, 4.0, rng)
        spectrum = np.abs(np.fft.rfft(synthesize(tracks, MANNERS[manner], SPEAKER, rng))) ** 2
        centroid[manner] = np.average(np.arange(len(spectrum)), weights=spectrum)
        voiced = tracks.voicing > 0.3
        syllables[manner] = np.count_nonzero(voiced[1:] & ~voiced[:-1])
    assert centroid["sharp"] > 1.3 * centroid["warm"]
    assert syllables["sharp"] > 1.2 * syllables["warm"]


def test_lips_open_with_the_voice() -> None:
    spec = next(s for s in sample_specs(2, "train", 60) if s.scene.face == "neutral")
    tracks = compose(spec.voice, spec.speaker, 2.0, np.random.default_rng(0))
    times = np.arange(50) / 25
    loudness = tracks.loudness_at(times)
    assert loudness.min() >= 0
    assert loudness.max() <= 1
    assert loudness[[0, -1]].max() < 0.3  # a breath before and after
    assert loudness.mean() > 0.3
