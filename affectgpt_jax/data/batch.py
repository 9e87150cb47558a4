"""The batch: the one typed struct at the boundary between data and model.

Axes: B rows, T tokens of a row, N targets of a row, S samples of a row, t time steps, D features of a stream, K soft
tokens of a sample.

A *row* holds one or more samples one after the other. Its *soft table* [S * K, D_llm], which the model computes from
`features`, lists for each sample in turn the soft tokens of every modality its input mode asks for, in `SOFT_ORDER`;
sample s (from 0) owns the slots s * K + 1 .. (s + 1) * K. `soft_index` says which slot stands at a position, so the
model only gathers inside the row.
"""

from typing import Any, NamedTuple

Array = Any
"""numpy where the data are made, JAX inside the model."""

SOFT_ORDER = ("multi", "audio", "face", "frame", "image")
"""Order of the modalities in the soft tokens of one sample."""

STREAMS = ("face", "frame", "audio", "image")
"""Feature streams of a sample. `multi` has none of its own: it mixes `audio` with `face` or `frame`."""


class Batch(NamedTuple):
    """Rows of packed samples; every shape is static for a run.

    Attributes:
        tokens: int32 [B, T], token ids. Where `soft_index` is not 0 the id is the placeholder's own.
        segment_ids: int32 [B, T], number of the sample in its row from 1; 0 is padding, which nothing attends to.
        positions: int32 [B, T], position in the sample from 0; 0 on padding.
        soft_index: int32 [B, T], 0 for text, k for the k-th slot (from 1) of the row's soft table.
        target_positions: int32 [B, N], positions whose hidden state predicts a target (the label's position - 1);
            padded with 0.
        target_ids: int32 [B, N], the token to predict there; padded with 0.
        loss_weight: float32 [B, N], 0 on padding. The loss is sum(weight * cross entropy) / sum(weight).
        features: per stream of `STREAMS` in use, float [B, S, t, D]; zeros where a sample lacks the stream.
        present: per stream of `features`, bool [B, S]; False for an absent stream and for an unused sample slot.
    """

    tokens: Array
    segment_ids: Array
    positions: Array
    soft_index: Array
    target_positions: Array
    target_ids: Array
    loss_weight: Array
    features: dict[str, Array]
    present: dict[str, Array]
