"""A voice without words: glottal pulses and breath through the resonances of a vocal tract.

Two steps. `compose` lays out the syllables of an utterance as tracks on a 5 ms grid (pitch, loudness, vowel), which
the face's lips follow too; `synthesize` turns the tracks into sound. The manner of speaking sits in pitch movement,
rate, spectral tilt, breath, jitter and tremor, relative to a speaker's own pitch and tract length. Vowels are drawn
at random and have nothing to do with the words, and loudness is random: neither tells anything about the answer.
"""

from typing import NamedTuple

import numpy as np

SAMPLE_RATE = 16000
"""Samples a second."""
_HOP = 80  # samples a track step, 5 ms
_WINDOW = 512
_STRIDE = 256  # of the spectral filter

# First three formants of a, e, i, o, u and a neutral vowel for an adult tract of average length (Hz), and bandwidths.
_VOWELS = np.array(
    [(730, 1200, 2500), (530, 1800, 2500), (300, 2200, 2950), (500, 900, 2450), (330, 850, 2300), (500, 1500, 2500)],
    dtype=np.float64,
)
_FOURTH_FORMANT = 3500.0
_BANDWIDTHS = np.array([80.0, 100.0, 140.0, 220.0])


class Voice(NamedTuple):
    """A manner of speaking, relative to the speaker's habit."""

    pitch_shift: float  # semitones above the speaker's own pitch
    pitch_range: float  # semitones that the melody swings to either side
    rate: float  # syllables a second
    tilt: float  # dB an octave above 500 Hz; more negative is softer
    breathiness: float  # level of breath noise relative to the pulses
    jitter: float  # irregularity of the pulses, relative
    tremor: float  # semitones of a 6 Hz wavering
    attack: float  # seconds until a syllable is at full loudness


VOICE_LATENTS = Voice._fields
"""Names of the voice's latents, in the order of `Voice`."""

MANNERS = {
    "warm": Voice(1.0, 4.5, 4.2, -10.0, 0.06, 0.004, 0.0, 0.060),
    "flat": Voice(-2.5, 0.20, 2.8, -4.0, 0.02, 0.002, 0.0, 0.040),
    "sharp": Voice(3.0, 2.0, 6.4, 2.0, 0.01, 0.004, 0.0, 0.006),
    "shaky": Voice(4.5, 1.0, 4.6, -6.0, 0.45, 0.030, 2.2, 0.030),
}
"""Manner of speaking -> its typical latents."""

_SPREAD = Voice(0.4, 0.12, 0.25, 0.6, 0.15, 0.2, 0.15, 0.1)  # pitch_shift, rate and tilt absolute, others relative
_ABSOLUTE = {"pitch_shift", "rate", "tilt"}


class Speaker(NamedTuple):
    """What stays the same in everything a speaker says."""

    pitch: float  # Hz
    tract: float  # formant scale; above 1 for a shorter tract
    tilt: float  # dB an octave added to the manner's
    nasality: float  # 0..1, depth of an anti-resonance near 1 kHz


class Tracks(NamedTuple):
    """An utterance on a grid of 5 ms steps: each [k] but the last."""

    pitch: np.ndarray  # Hz
    voicing: np.ndarray  # 0..1, level of the pulses
    hiss: np.ndarray  # 0..1, level of consonant noise
    formants: np.ndarray  # [k, 3] Hz, before the speaker's scale

    def loudness_at(self, seconds: np.ndarray) -> np.ndarray:
        """Voicing at given times, smoothed over 60 ms as lips are: 0..1, same shape as `seconds`."""
        smooth = np.convolve(self.voicing, np.full(12, 1 / 12), mode="same")
        return np.interp(seconds * SAMPLE_RATE / _HOP, np.arange(len(smooth)), smooth)


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """A speaker with a low or a high voice and a tract length that goes with it, loosely."""
    low = rng.random() < 0.5
    pitch = float(rng.uniform(90, 145) if low else rng.uniform(160, 240))
    tract = float((0.92 if low else 1.08) * rng.uniform(0.93, 1.07))
    return Speaker(pitch, tract, float(rng.uniform(-0.7, 0.7)), float(rng.uniform(0, 0.6)))


def draw_voice(manner: str, rng: np.random.Generator) -> Voice:
    """The manner's typical latents, varied a little."""
    values = {}
    for name, mean, spread in zip(VOICE_LATENTS, MANNERS[manner], _SPREAD, strict=True):
        deviation = float(np.clip(rng.standard_normal(), -2, 2)) * spread
        values[name] = mean + deviation if name in _ABSOLUTE else mean * (1 + deviation)
    return Voice(**values)


def compose(voice: Voice, speaker: Speaker, seconds: float, rng: np.random.Generator) -> Tracks:
    """Lay out syllables, melody and vowels over a duration.

    Args:
      voice: the manner of speaking.
      speaker: who speaks.
      seconds: duration; speech fills it but for a breath at either end.
      rng: source of the vowels, accents and pauses.

    Returns:
      Tracks of `seconds * 200` steps, rounded.
    """
    steps = round(seconds * SAMPLE_RATE / _HOP)
    time = np.arange(steps) * _HOP / SAMPLE_RATE
    voicing, hiss = np.zeros(steps), np.zeros(steps)
    centres: list[float] = []
    accents: list[float] = []
    vowels: list[int] = []
    start, end, phrase = rng.uniform(0.05, 0.15), seconds - rng.uniform(0.05, 0.15), rng.integers(4, 8)
    while start < end:
        length = rng.uniform(0.85, 1.15) / voice.rate
        onset = start + rng.uniform(0.1, 0.3) * length  # a consonant, then the vowel
        stop = min(start + length, end)
        rise = np.clip((time - onset) / voice.attack, 0, 1)
        fall = np.clip((stop - time) / min(0.35 * length, 2 * voice.attack + 0.02), 0, 1)
        level = rng.uniform(0.7, 1.0)
        voicing = np.maximum(voicing, level * np.minimum(rise, fall))
        if rng.random() < 0.7:
            hiss = np.where((time >= start) & (time < onset), rng.uniform(0.3, 0.8), hiss)
        centres.append((onset + stop) / 2)
        accents.append(rng.uniform(0.6, 1.0) * (1 if len(accents) % 2 == 0 else -1))  # a melody that keeps swinging
        vowels.append(int(rng.integers(len(_VOWELS))))
        start, phrase = stop, phrase - 1
        if phrase == 0:
            start, phrase = start + rng.uniform(0.08, 0.2), rng.integers(4, 8)
    melody = np.interp(time, centres, accents)
    declination = 1.0 - 2.0 * time / seconds  # sentences fall by about two semitones
    wavering = voice.tremor * np.sin(2 * np.pi * rng.uniform(5.5, 7.0) * time + rng.uniform(0, 2 * np.pi))
    semitones = voice.pitch_shift + voice.pitch_range * melody + declination + wavering
    vowel_track = np.array([np.interp(time, centres, _VOWELS[vowels, i]) for i in range(_VOWELS.shape[1])]).T
    voicing = voicing * (1 - 0.12 * voice.tremor * (1 + np.sin(2 * np.pi * 6.0 * time)))
    return Tracks(speaker.pitch * 2 ** (semitones / 12), np.clip(voicing, 0, 1), hiss, vowel_track)


def synthesize(tracks: Tracks, voice: Voice, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Sing the tracks.

    Args:
      tracks: what `compose` laid out.
      voice: the manner of speaking (breath, jitter, tilt).
      speaker: who speaks (tract length, tilt, nasality).
      rng: source of the noises and of the recording's loudness.

    Returns:
      float32 [k * 80] in -1..1 at 16 kHz.
    """
    samples = len(tracks.pitch) * _HOP
    grid, sample = np.arange(len(tracks.pitch)) * _HOP, np.arange(samples)
    pitch = tracks.pitch * (1 + voice.jitter * rng.standard_normal(len(tracks.pitch)))
    phase = np.cumsum(np.interp(sample, grid, pitch) / SAMPLE_RATE) % 1.0
    open_part = np.clip(phase / 0.6, 0, 1)
    pulse = np.where(open_part < 1, open_part * (2 - 3 * open_part), 0.0)  # derivative of the glottal flow x^2 (1 - x)
    noise = rng.standard_normal(samples, np.float32)
    voicing, hiss = np.interp(sample, grid, tracks.voicing), np.interp(sample, grid, tracks.hiss)
    source = voicing * (pulse + voice.breathiness * noise * (0.5 + 0.5 * (open_part < 1)))
    wave = _filter(source, _tract_response(tracks, voice, speaker, samples))
    hissing = np.diff(0.06 * hiss * noise, prepend=0.0)
    wave = wave / (np.sqrt(np.mean(wave**2)) + 1e-9) + hissing
    wave += rng.uniform(0.003, 0.015) * rng.standard_normal(samples, np.float32)  # the room
    peak = rng.uniform(0.15, 0.9)  # how close the microphone stands: no cue
    return (peak * wave / np.abs(wave).max()).astype(np.float32)


def _tract_response(tracks: Tracks, voice: Voice, speaker: Speaker, samples: int) -> np.ndarray:
    """Gain of the vocal tract, [frames, bins], for `_filter`."""
    frames = -(-samples // _STRIDE) + _WINDOW // _STRIDE - 1
    middle = (np.arange(frames) + 1) * _STRIDE - _WINDOW // 2  # of each window, see _filter
    at = np.clip(middle // _HOP, 0, len(tracks.pitch) - 1)
    frequency = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE).astype(np.float32)
    fourth = np.full((frames, 1), _FOURTH_FORMANT)
    formants = (speaker.tract * np.concatenate([tracks.formants[at], fourth], axis=1)).astype(np.float32)
    gain: np.ndarray = np.ones((frames, len(frequency)), np.float32)
    for centre, bandwidth in zip(formants.T, _BANDWIDTHS, strict=True):
        squared = (frequency / centre[:, None]) ** 2
        gain *= (1 - squared) ** 2 + squared * (bandwidth / centre[:, None]) ** 2
    gain = 1 / np.sqrt(gain)
    octaves = np.log2(np.maximum(frequency, 500.0) / 500.0)
    # The resonances above the fourth are missing, which costs about 6 dB an octave: given back here.
    gain *= 10 ** ((voice.tilt + speaker.tilt + 6.0) * octaves / 20)
    nasal = 1 - 0.7 * speaker.nasality * np.exp(-(((frequency - 1000 * speaker.tract) / 200) ** 2))
    return np.minimum(gain, 60.0) * nasal.astype(np.float32)


def _filter(signal: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Apply a gain that changes over time, by overlap and add of windowed spectra."""
    frames = len(gain)
    lead = _WINDOW - _STRIDE
    padded = np.zeros(frames * _STRIDE + lead, np.float32)
    padded[lead : lead + len(signal)] = signal
    window = np.sqrt(np.hanning(_WINDOW + 1)[:-1]).astype(np.float32)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_STRIDE][:frames] * window
    filtered = np.fft.irfft(np.fft.rfft(pieces, axis=1) * gain, n=_WINDOW, axis=1) * window
    out = np.zeros_like(padded)
    strips = filtered.reshape(frames, _WINDOW // _STRIDE, _STRIDE)
    rows = out[: frames * _STRIDE].reshape(frames, _STRIDE)
    for k in range(strips.shape[1]):  # strip k of a frame lies k rows further on
        rows[k:] += strips[: frames - k, k]
    return out[lead : lead + len(signal)] / (_WINDOW // _STRIDE / 2)
