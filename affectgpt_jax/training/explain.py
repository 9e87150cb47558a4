"""What the model sees of one sample: pictures, sound, prompt, soft tokens, masks, targets, as text and as a picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.clips import AUDIO_SECONDS, ClipFiles, read_modality
from affectgpt_jax.data.examples import BatchShape, Rejected, Sample, collate_rows
from affectgpt_jax.data.media import MediaError
from affectgpt_jax.data.prompts import layout_size
from affectgpt_jax.data.shard_schema import TextRecord, parse_stream
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.inference.clip_files import Source, places
from affectgpt_jax.inference.runs import feature_shapes, model_streams
from affectgpt_jax.training.data import make_asker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Seen(NamedTuple):
    """One stream of a sample.

    Attributes:
      stream: its name, such as "face@8".
      source: where it was read from; None if the clip is not at hand.
      media: what the encoder reads, uint8 [n, 224, 224, 3] or float32 [n, samples]; None if absent or not at hand.
      features: what the encoder gave, [n, F]; None if absent or not at hand.
      note: why something is missing.
    """

    stream: str
    source: Source | None
    media: np.ndarray | None
    features: np.ndarray | None
    note: str


class Explanation(NamedTuple):
    """A sample as the model sees it.

    Attributes:
      text: its texts.
      streams: by name of the model's stream.
      rows: question type -> its row of a batch, or why it cannot be asked.
    """

    text: TextRecord
    streams: dict[str, Seen]
    rows: dict[str, Batch | Rejected]


def explain(
    config: RunConfig,
    tokenizer: Tokenizer,
    text: TextRecord,
    files: ClipFiles | None,
    features: Mapping[str, np.ndarray] | None,
) -> Explanation:
    """Make a sample's inputs as training does.

    Args:
      config: of the run, resolved.
      tokenizer: the run's.
      text: the sample's texts.
      files: its media; None if they are not at hand.
      features: by stream of the model, [n, F], of those that the sample has; None if they are not at hand.
    """
    ask, shapes = make_asker(config, tokenizer), feature_shapes(config)
    rows: dict[str, Batch | Rejected] = {}
    for number, kind in enumerate(config.data.label_types):
        example = ask(text, number)
        if isinstance(example, Rejected):
            rows[kind] = example
            continue
        shape = BatchShape(
            1, len(example.tokens), len(example.target_ids), 1, layout_size(ask.layout), shapes, np.float32
        )
        unattended = tokenizer.eos if config.compat == "reference" else None
        sample = Sample(example, {name: x for name, x in (features or {}).items() if name in shapes})
        rows[kind] = collate_rows([[sample]], shape, unattended=unattended)
    streams = {name: _see(name, stream, files, features) for name, stream in model_streams(config).items()}
    return Explanation(text, streams, rows)


def _see(name: str, stream: str, files: ClipFiles | None, features: Mapping[str, np.ndarray] | None) -> Seen:
    found = None if features is None else features.get(name)
    note = "" if features is None or found is not None else "no features in the shards: the clip lacks it"
    if files is None:
        return Seen(stream, None, None, found, note or "the clip itself is not at hand")
    try:
        media = read_modality(files, parse_stream(stream))
    except MediaError as error:
        return Seen(stream, None, None, found, f"{error.path}: {error.reason}")
    if media is None:
        return Seen(stream, None, None, found, "the clip lacks it")
    return Seen(stream, places(files, parse_stream(stream)), media, found, note)


def as_text(explanation: Explanation, config: RunConfig, tokenizer: Tokenizer) -> str:
    """The explanation in words and tables."""
    text = explanation.text
    lines = [f"sample      {text.name} ({text.split})", f"subtitle    {text.subtitle!r}"]
    lines += [f"labels      {', '.join(text.labels) or 'none'}", f"description {text.description!r}", ""]
    lines += [line for name, seen in explanation.streams.items() for line in _stream_lines(name, seen)]
    for kind, row in explanation.rows.items():
        lines += ["", *_row_lines(kind, row, config, tokenizer)]
    return "\n".join(lines) + "\n"


def _stream_lines(name: str, seen: Seen) -> Iterator[str]:
    yield f"{name:<11} stream {seen.stream}"
    if seen.source is not None:
        where = ", ".join(f"{place:g}" for place in seen.source.places)
        yield f"            from {seen.source.origin}" + (f", {seen.source.unit}s {where}" if where else "")
    if seen.media is not None:
        if seen.media.dtype == np.uint8:
            height, width = seen.media.shape[1:3]
            yield f"            {len(seen.media)} pictures of {height} x {width}, before the encoder"
        else:
            loud = ", ".join(f"{np.sqrt(np.mean(np.square(clip))):.2f}" for clip in seen.media)
            yield f"            {len(seen.media)} clips of {AUDIO_SECONDS:g} s, normalised together; loudness {loud}"
    if seen.features is not None:
        x = seen.features.astype(np.float32)
        yield f"            features {list(x.shape)}, mean {x.mean():.4f}, standard deviation {x.std():.4f}"
    if seen.note:
        yield f"            {seen.note}"


def _row_lines(kind: str, row: Batch | Rejected, config: RunConfig, tokenizer: Tokenizer) -> Iterator[str]:
    if isinstance(row, Rejected):
        yield f"asked {kind}: not used: {row.reason}"
        return
    tokens, slots, segments = row.tokens[0], row.soft_index[0], row.segment_ids[0]
    targets = dict(zip(row.target_positions[0].tolist(), row.target_ids[0].tolist(), strict=True))
    names = {slot: modality for modality, range_ in make_asker(config, tokenizer).layout.items() for slot in range_}
    yield (
        f"asked {kind}: {len(tokens)} tokens, {int((slots > 0).sum())} of them soft, {len(targets)} targets"
        f"{'' if (segments > 0).all() else f', {int((segments == 0).sum())} that nothing attends to'}"
    )
    yield f"  {'at':>4}  {'id':>6}  {'token':<22} {'soft token':<12} predicts"
    for at, (token, slot) in enumerate(zip(tokens.tolist(), slots.tolist(), strict=True)):
        soft = f"{names[slot]} {slot}" if slot else ""
        aim = f"{targets[at]:>6}  {tokenizer.decode([targets[at]])!r}" if at in targets else ""
        hidden = "" if segments[at] else "  (not attended to)"
        yield f"  {at:>4}  {token:>6}  {tokenizer.decode([token])!r:<22} {soft:<12} {aim}{hidden}".rstrip()


def as_picture(explanation: Explanation) -> "Figure":
    """The pictures, the sound and the tokens of the explanation."""
    from matplotlib.figure import Figure

    seen = {name: stream for name, stream in explanation.streams.items() if stream.media is not None}
    rows = {kind: row for kind, row in explanation.rows.items() if isinstance(row, Batch)}
    heights = [1.6 if stream.media.dtype == np.uint8 else 1.1 for stream in seen.values() if stream.media is not None]
    figure = Figure(figsize=(13, max(sum(heights) + 0.7 * len(rows) + 0.6, 2)), layout="constrained")
    parts = figure.subfigures(len(seen) + len(rows), 1, height_ratios=[*heights, *[0.7] * len(rows)], squeeze=False)
    for part, (name, stream) in zip(parts[:, 0], seen.items(), strict=False):
        assert stream.media is not None
        marks: Sequence[str] = [f"{place:g}" for place in stream.source.places] if stream.source else []
        unit = stream.source.unit if stream.source else ""
        part.suptitle(f"{name}: {stream.stream}", x=0.01, ha="left", fontsize=9)
        axes = part.subplots(1, len(stream.media), squeeze=False)[0]
        for i, (axis, media) in enumerate(zip(axes, stream.media, strict=True)):
            if media.ndim == 3:
                axis.imshow(media)
            else:
                axis.plot(media, linewidth=0.3, color="#2563c9")
                axis.set_ylim(-6, 6)
            axis.set_title(f"{unit} {marks[i]}" if i < len(marks) else "", fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
    for part, (kind, row) in zip(parts[len(seen) :, 0], rows.items(), strict=True):
        part.suptitle(f"{kind}: tokens (grey), soft tokens (orange), targets (green)", x=0.01, ha="left", fontsize=9)
        axis = part.subplots()
        colours = np.full((1, row.tokens.shape[1], 3), 0.85)
        colours[0, row.soft_index[0] > 0] = (0.77, 0.31, 0.11)
        colours[0, np.minimum(row.target_positions[0] + 1, row.tokens.shape[1] - 1)] = (0.06, 0.54, 0.41)
        axis.imshow(colours, aspect="auto", interpolation="nearest")
        axis.set_yticks([])
        axis.tick_params(labelsize=7)
    return figure


def write(explanation: Explanation, config: RunConfig, tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """Write NAME.txt and NAME.png; the folder is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    text, picture = (folder / f"{explanation.text.name}.{ending}" for ending in ("txt", "png"))
    text.write_text(as_text(explanation, config, tokenizer), encoding="utf-8")
    as_picture(explanation).savefig(picture, dpi=110)
    return [text, picture]
