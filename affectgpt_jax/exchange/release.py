"""Do the authors' weights, opened here, answer as their own predictions say they do?

Their answers were drawn at temperature 1, ours are the likeliest, so that they cannot all be the same. What can be
expected was measured on their predictions for five data sets (MER2023, MELD, CMU-MOSI, CH-SIMS, OV-MERD+): between the
last two checkpoints of one training the label sets of a clip have a mean Jaccard index of 0.20 to 0.22, and F by
emotion wheel is 0.67 to 0.75; between answers to different clips it is 0.03 to 0.05, and 0.27 to 0.34. At least
0.1 and 0.5 are both reached by 95 to 99 % of draws of 20 clips of the former and by at most 1.4 % of the latter; with
50 clips by at least 99.8 %, and by none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.prompts import needs, question
from affectgpt_jax.data.responses import response_labels
from affectgpt_jax.data.shard_schema import TEXT, parse_stream, read_manifest
from affectgpt_jax.data.shards import Corpus
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.export import open_whole
from affectgpt_jax.exchange.sources import read_export
from affectgpt_jax.inference.answering import Answer, Answerer, Query
from affectgpt_jax.inference.clip_files import CLIP_ENDINGS, SUBTITLES
from affectgpt_jax.inference.predict import Failed, longest_answer, open_encoders, predict
from affectgpt_jax.inference.runs import Run, Trained, model_streams, open_shards, open_trained
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.unibench.metrics import values
from affectgpt_jax.unibench.predictions import read_answers
from affectgpt_jax.unibench.scoring import set_overlap
from affectgpt_jax.unibench.wheel import WheelTable

OPENING = "In the text"
"""How descriptions of the released weights begin."""


class Pair(NamedTuple):
    """The answers about one clip.

    Attributes:
      name: the clip's.
      subtitle: what the prompts gave as said in it.
      released: the authors' answer to the question for labels.
      answer: ours.
      description: ours to the question for a description.
    """

    name: str
    subtitle: str
    released: str
    answer: str
    description: str

    @property
    def labels(self) -> tuple[list[str], list[str]]:
        """Labels of the released answer and of ours."""
        return response_labels(self.released), response_labels(self.answer)

    @property
    def jaccard(self) -> float:
        """Labels in both answers per label in either; 0 if there is none at all."""
        theirs, ours = map(set, self.labels)
        return len(theirs & ours) / len(theirs | ours) if theirs | ours else 0.0


class Limits(NamedTuple):
    """The least that passes, see `Agreement`."""

    opening: float
    jaccard: float
    wheel_f: float


class Agreement(NamedTuple):
    """How well the answers agree, each from 0 to 1.

    Attributes:
      opening: descriptions that begin with `OPENING`.
      jaccard: mean over clips.
      wheel_f: F of our label sets with the released ones as truth, grouped by an emotion table; NaN if that knows none
        of the released labels.
      first_label: clips whose first labels are the same.
    """

    opening: float
    jaccard: float
    wheel_f: float
    first_label: float

    def passes(self, limits: Limits) -> dict[str, bool]:
        """For each limit whether it is kept."""
        return {name: bool(getattr(self, name) >= least) for name, least in limits._asdict().items()}


def agreement(pairs: Sequence[Pair], table: WheelTable) -> Agreement:
    """Compare answers.

    Args:
      pairs: at least one.
      table: emotion table that groups words.
    """
    theirs, ours = zip(*(pair.labels for pair in pairs), strict=True)
    return Agreement(
        opening=float(np.mean([pair.description.startswith(OPENING) for pair in pairs])),
        jaccard=float(np.mean([pair.jaccard for pair in pairs])),
        wheel_f=values(set_overlap(theirs, ours, table, "strict"))["f_score"],
        first_label=float(np.mean([bool(a) and a[:1] == b[:1] for a, b in zip(theirs, ours, strict=True)])),
    )


def answer_released(
    weights: Path,
    predictions: Path,
    data: Path,
    *,
    clips: int,
    overrides: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Pair]:
    """Answer clips of a released prediction file, greedily and with `compat: reference`.

    Args:
      weights: a run folder, or what `sources.read_export` opens.
      predictions: the authors' file of raw answers, NAME.npz.
      data: clips in the MER2025 layout, whose sound is that of the videos, or prepared shards.
      clips: how many at most: the first by name of those that both have.
      overrides: settings, for weights that are no run folder.
      progress: called with the number of answers so far and in all.

    Raises:
      UserError: a file is missing, broken or of another kind; there is no common clip; a clip lacks what the model
        needs.
    """
    released = read_answers(predictions)
    trained = _open(weights, overrides)
    config = trained.config
    prepared = (data / "mer_caption").is_dir()
    samples = _samples(data, config) if prepared else {}
    videos = {} if prepared else _videos(data, config)
    names = sorted(released.keys() & (samples.keys() | videos.keys()))[:clips]
    if not names:
        raise UserError(
            f"{predictions} ({_some(released)}) and {data} ({_some(samples or videos)}) have no clip in common; name "
            "the predictions for the data set that these clips are of"
        )
    if not any(response_labels(released[name]) for name in names):
        raise UserError(
            f"{predictions}: its answers list no labels, for example {released[names[0]]!r:.100}; expected the answers "
            "to the question for labels, as released for MER-UniBench"
        )
    batch = min(config.evaluate.batch, len(names))
    streams = {name: parse_stream(stream) for name, stream in model_streams(config).items()}
    encoders = open_encoders(config, streams, batch) if videos else None  # what they lack is said before the model
    opened = open_whole(trained)
    run = Run(weights, opened.config, opened.tokenizer, AffectGPT(config.model), opened.params, trained.step)
    answerer = Answerer(run, batch=batch, max_new=longest_answer(config))
    pairs: list[Pair] = []

    def ask(queries: Sequence[Query]) -> list[Answer]:
        """Both questions about some clips; the answers to the one for labels."""
        lost = {q.name: [name for name in streams if name not in q.features] for q in queries}
        if lost := {name: lacking for name, lacking in lost.items() if lacking}:
            listed = ", ".join(f"{name} ({' and '.join(lacking)})" for name, lacking in list(lost.items())[:5])
            raise UserError(
                f"{data}: {len(lost)} of {len(queries)} clips lack what mode {config.model.mode!r} needs: {listed}; "
                "add the files (faces lie in openface_face/NAME/NAME.npy) or take the clips out"
            )
        found: list[list[Answer]] = []
        for kind in ("description", "ovlabel"):
            asked = [query._replace(question=question(kind)) for query in queries]
            found.append(_answered(answerer(asked)))
            progress(2 * len(pairs) + len(found) * len(queries), 2 * len(names))
        descriptions, answers = found
        for query, description, answer in zip(queries, descriptions, answers, strict=True):
            pairs.append(Pair(query.name, query.subtitle, released[query.name], answer.text, description.text))
        return answers

    if prepared:
        ask(_queries(samples, names, config))
    for outcome in predict(run, [videos[name] for name in names if name in videos], encoders=encoders, answerer=ask):
        if isinstance(outcome, Failed):
            raise UserError(f"{outcome.clip}: {outcome.error}; mend the clip or take it out")
    return pairs


def _open(weights: Path, overrides: Sequence[str]) -> Trained:
    if (weights / "config.yaml").is_file():
        if overrides:
            raise UserError(f"{weights} is a run folder; change {overrides[0].partition('=')[0]} in its config.yaml")
        trained = open_trained(weights)
    else:
        trained = read_export(weights, None, overrides)
    return trained._replace(config=trained.config.model_copy(update={"compat": "reference"}))


def _videos(data: Path, config: RunConfig) -> dict[str, Path]:
    """Clips by name."""
    if not (data / "video").is_dir():
        raise UserError(
            f"{data}: neither clips in the MER2025 layout (no folder video) nor prepared shards (no folder mer_caption)"
        )
    if needs(config.model.mode).text and not (data / SUBTITLES).is_file():
        raise UserError(f"{data / SUBTITLES} is missing; the prompts of mode {config.model.mode!r} quote what is said")
    files = sorted((data / "video").iterdir())
    return {file.stem: file for file in files if file.suffix.lower() in CLIP_ENDINGS}


def _samples(data: Path, config: RunConfig) -> dict[str, tuple[Corpus, int]]:
    """Samples of all splits by name."""
    splits = read_manifest(data, TEXT).splits
    corpora = [open_shards(config, split, str(data)) for split in splits]
    return {name: (corpus, i) for corpus in corpora for i, name in enumerate(corpus.names)}


def _queries(samples: Mapping[str, tuple[Corpus, int]], names: Sequence[str], config: RunConfig) -> list[Query]:
    queries = []
    for name in names:
        corpus, i = samples[name]
        columns = {key: corpus.features(stream, [i]) for key, stream in model_streams(config).items()}
        features = {key: x[0].astype(np.float32) for key, (x, present) in columns.items() if present[0]}
        queries.append(Query(name, corpus.text(i).subtitle, "", features))
    return queries


def _answered(outcomes: Sequence[Answer | Rejected]) -> list[Answer]:
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            raise UserError(f"clip {outcome.name} {outcome.reason}; take it out")
    return [outcome for outcome in outcomes if isinstance(outcome, Answer)]


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"{len(listed)} clips, such as {', '.join(listed[:2])}" if listed else "no clips"
