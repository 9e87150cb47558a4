"""One tower from nothing to its folder: render, fit, probe, store."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.data.preprocess import SAMPLE_RATE
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.models.hubert import Hubert
from data_prep.synth import ClipSpec, sample_specs
from data_prep.towers.fitting import View, fit, initial_parameters, random_excerpt, whole
from data_prep.towers.folders import write_audio, write_vision
from data_prep.towers.lessons import SEEN, Lesson, face_lesson, voice_lesson
from data_prep.towers.probe import encoder, probe_accuracy
from data_prep.towers.report import Kind, Progress, TowerReport
from data_prep.towers.settings import TowerSettings

_PROBE_CLIPS = 250
"""Clips that a probe learns from; more change little."""


class _Course(NamedTuple):
    """How one kind of tower is taught.

    Attributes:
        network: the encoder.
        lesson: clips, views and a callback -> lesson.
        views: of each clip that is learned from.
        batch: views a step.
        peak: highest learning rate.
        view: what a step sees of them.
        encode_batch: views encoded at once.
        write: folder and parameters -> files.
    """

    network: Any
    lesson: Callable[[Sequence[ClipSpec], int, Callable[[], None]], Lesson]
    views: int
    batch: int
    peak: float
    view: View
    encode_batch: int
    write: Callable[[Path, Any], None]


def _course(kind: Kind, settings: TowerSettings) -> _Course:
    if kind == "vision":
        config = settings.vision
        return _Course(
            network=VisionTower(config),
            lesson=lambda specs, views, on_clip: face_lesson(specs, views, config.image_size, on_clip),
            views=6,
            batch=32,
            peak=2e-3,
            view=whole,
            encode_batch=64,
            write=lambda folder, params: write_vision(folder, config, params),
        )
    return _Course(
        network=Hubert(settings.audio),
        lesson=voice_lesson,
        views=2,
        batch=16,
        peak=4e-3,
        view=random_excerpt(SAMPLE_RATE),  # one second
        encode_batch=16,
        write=lambda folder, params: write_audio(folder, settings.audio, params),
    )


def train_tower(kind: Kind, folder: Path, settings: TowerSettings, tell: Callable[[Progress], None]) -> TowerReport:
    """Train a tower on training identities, probe it on others and store it.

    The probe learns from clips that the tower learned from and is judged on the test clips of another seed:
    people, camera and sentences are new to both.

    Args:
        kind: which tower.
        folder: its folder.
        settings: sizes, seed and how long.
        tell: called with the progress.

    Returns:
        How it came out.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    course = _course(kind, settings)
    total = settings.clips + settings.held_out
    rendered = 0

    def on_clip() -> None:
        nonlocal rendered
        rendered += 1
        tell(Progress(kind, "rendering", rendered, total))

    lesson = course.lesson(sample_specs(settings.seed, "train", settings.clips), course.views, on_clip)
    exam = course.lesson(sample_specs(settings.seed + 1, "test", settings.held_out), SEEN, on_clip)

    tell(Progress(kind, "training", 0, settings.steps))
    fresh = initial_parameters(course.network, lesson.inputs[0, :1], settings.seed)
    fitted = fit(
        course.network,
        fresh,
        lesson,
        steps=settings.steps,
        batch=course.batch,
        peak=course.peak,
        seed=settings.seed,
        view=course.view,
        on_step=lambda step: tell(Progress(kind, "training", step, settings.steps)),
    )

    tell(Progress(kind, "probing", 0, 2))
    encode = encoder(course.network, course.encode_batch)
    known = lesson.inputs[:_PROBE_CLIPS]
    accuracies = []
    for done, params in enumerate((fresh, fitted.params), start=1):
        features, new_features = encode(params, known), encode(params, exam.inputs)
        accuracies.append(probe_accuracy(features, lesson.classes[: len(known)], new_features, exam.classes))
        tell(Progress(kind, "probing", done, 2))
    course.write(folder, fitted.params)
    return TowerReport(
        classes=lesson.names,
        probe=accuracies[1],
        untrained_probe=accuracies[0],
        cross_entropy=fitted.cross_entropy,
        squared_error=fitted.squared_error,
        feature_std=float(np.mean(np.std(new_features, axis=(0, 1)))),
        seconds=round(time.perf_counter() - started, 1),
        cpu_seconds=round(time.process_time() - cpu_started, 1),
    )
