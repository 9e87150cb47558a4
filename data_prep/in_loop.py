"""Encoders in the training loop: clips are decoded by the loader's threads and encoded batch by batch.

The same functions as in preparation read and encode, and features take the shards' type, so a run on media sees what
a run on shards sees.
"""

from collections.abc import Mapping

import jax

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.clips import MediaReader
from affectgpt_jax.data.pipeline import MediaInLoop
from affectgpt_jax.data.shard_schema import Stream, parse_stream
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.encoders import BATCH, Encoders, encode_batch
from affectgpt_jax.inference.runs import model_streams
from data_prep.corpora import read_corpus
from data_prep.faces import face_crops


def media_in_loop(config: RunConfig) -> MediaInLoop:
    """What `data.source: media` needs: a reader of raw media and an encoder of batches.

    The shards of `data.shards` say which samples there are and in which order; `prepare.corpus` has the clips.

    Raises:
      UserError: the corpus is not named, or lacks a sample of the shards.
    """
    if not config.prepare.corpus:
        raise UserError("data.source=media needs prepare.corpus, the folder of the clips")
    names = open_corpus(config.data.shards, config.data.split).names
    files = {record.name: record.files for record in read_corpus(config.prepare.corpus).records}
    lost = [name for name in names if name not in files]
    if lost:
        raise UserError(
            f"{config.prepare.corpus} lacks {len(lost)} samples of {config.data.shards}, for example {lost[0]}; "
            "prepare the shards again, or name the corpus they were made from"
        )
    streams = {name: parse_stream(stream) for name, stream in model_streams(config).items()}
    encoders = Encoders.of(config, min(_most(config, streams), BATCH))
    size = encoders.image_size if set(streams) - {"audio"} else 0
    faces = face_crops(config.prepare.faces, config.prepare.detector)
    read = MediaReader(tuple(files[name] for name in names), size, faces.media)
    shapes = {name: read.shape(stream) for name, stream in streams.items()}
    return MediaInLoop(read, shapes, lambda batch: encode_batch(encoders, batch))


def _most(config: RunConfig, streams: Mapping[str, Stream]) -> int:
    """Pictures, or clips of sound, of this process's part of a step at most; an encoder's batch is filled up."""
    samples = config.train.rows * config.train.accumulate * config.data.row_samples // jax.process_count()
    return samples * max((stream.count for stream in streams.values()), default=1)
