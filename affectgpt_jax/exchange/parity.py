"""Does an export compute what the run computed? Fixed probes, hashes, and a report beside every export.

`parity.json` holds the hashes of all files, versions, and the differences of logits between the run and the folder
opened again, computed in float32 and in bfloat16. `parity.safetensors` holds the run's own logits, so that `affectgpt
verify` needs nothing but the folder (and the base model, where the folder rests on one).
"""

import contextlib
import functools
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from affectgpt_jax.config import RunConfig
from affectgpt_jax.config.networks import ModelConfig
from affectgpt_jax.config.run import WeightsConfig
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.examples import BatchShape, Conversation, Rejected, Sample, collate_rows, training_example
from affectgpt_jax.data.prompts import answer, layout_size, question
from affectgpt_jax.data.shard_schema import file_digest
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import feature_shapes, model_layout
from affectgpt_jax.model_folders import model_folder
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.version import __version__
from affectgpt_jax.weights.files import PARTS, Item, read_file, write_file
from affectgpt_jax.weights.table import nest, paths
from affectgpt_jax.weights.towers import weights_hash
from affectgpt_jax.weights.trainable import Tree

REPORT, LOGITS = "parity.json", "parity.safetensors"
DTYPES = ("float32", "bfloat16")
POSITIONS = 6
"""Positions of a probe whose logits are kept; a vocabulary is large."""

_TEXTS = (
    ("ovlabel", "I did not expect to see you here.", answer("ovlabel", labels="surprised, happy")),
    ("description", "", "In the text, nothing is said. In the audio, the voice is low, which suggests sadness."),
)
TOLERANCE = 1e-4
"""Two machines may differ by this in float32 logits."""


class Difference(NamedTuple):
    """How two sets of logits differ; see `compare`."""

    largest: float
    mean: float
    positions: int
    argmax_differs: int
    argmax_differs_clearly: int


def probes(config: RunConfig, tokenizer: Tokenizer) -> Batch:
    """The probe batch of a model: two samples with fixed texts and features drawn from a fixed seed, one a row."""
    layout = model_layout(config)
    shapes = feature_shapes(config)
    rng = np.random.default_rng(0)
    samples = []
    for kind, subtitle, reply in _TEXTS:
        conversation = Conversation("probe", config.model.mode, subtitle, question(kind), reply)
        example = training_example(conversation, layout, tokenizer, compat=config.compat)
        if isinstance(example, Rejected):
            raise UserError(f"the probe for comparing logits cannot be made: {example.reason}")
        features = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        samples.append(Sample(example, features))
    shape = BatchShape(
        rows=len(samples),
        length=max(len(sample.example.tokens) for sample in samples),
        targets=max(len(sample.example.target_ids) for sample in samples),
        samples=1,
        soft=layout_size(layout),
        streams=shapes,
    )
    return collate_rows([[sample] for sample in samples], shape)


def probe_logits(config: RunConfig, params: Tree, batch: Batch, dtype: str) -> np.ndarray:
    """Logits float32 [rows * POSITIONS, V] at the probes' first targets.

    Args:
      config: resolved config of the model.
      params: its parameters.
      batch: the probes.
      dtype: what the language model computes in; its frozen weights are rounded to it.
    """
    decoder = config.model.decoder.model_copy(update={"dtype": dtype, "remat": "none"})
    compute = _compiled(config.model.model_copy(update={"decoder": decoder}))
    return np.asarray(compute(params, jax.tree.map(jnp.asarray, batch)))


@functools.cache
def _compiled(config: ModelConfig) -> Any:
    model, to = AffectGPT(config), jnp.dtype(config.decoder.dtype)

    @jax.jit
    def compute(params: Any, batch: Batch) -> Any:
        flat = paths(params)
        base = {p: x.astype(to) for p, x in flat.items() if p.startswith("decoder/") and "/lora_" not in p}
        logits: Any = model.apply({"params": nest(flat | base)}, batch, method="logits")
        at = batch.target_positions[:, :POSITIONS, None]
        return jnp.take_along_axis(logits, at, axis=1).astype(jnp.float32).reshape(-1, logits.shape[-1])

    return compute


def compare(found: np.ndarray, expected: np.ndarray) -> Difference:
    """Compare logits [n, V].

    The largest logit's id differs *clearly* where the expected logits set it apart from the second by more than eight
    units in the last place of bfloat16: less is within that type's rounding.
    """
    difference = np.abs(found.astype(np.float64) - expected)
    top = np.sort(expected, axis=-1)[:, -2:]
    margin = top[:, 1] - top[:, 0]
    unit = np.exp2(np.floor(np.log2(np.maximum(np.abs(top[:, 1]), 1e-30)))) * float(
        ml_dtypes.finfo(ml_dtypes.bfloat16).eps
    )
    differs = found.argmax(-1) != expected.argmax(-1)
    return Difference(
        largest=float(difference.max()),
        mean=float(difference.mean()),
        positions=len(found),
        argmax_differs=int(differs.sum()),
        argmax_differs_clearly=int((differs & (margin > 8 * unit)).sum()),
    )


class Opened(NamedTuple):
    """A model with all its parameters, ready to be probed."""

    config: RunConfig
    tokenizer: Tokenizer
    params: Tree


def write_report(
    folder: Path,
    kind: str,
    original: Callable[[], Opened],
    reopened: Callable[[], Opened],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Compare a run with its export, and write both files.

    Args:
      folder: the export; all its other files are hashed.
      kind: of export.
      original: opens the run.
      reopened: opens the export again from the folder; called when the run has been let go.
      facts: what else the report says.

    Returns:
      The report.
    """
    expected = _logits(original(), DTYPES)
    items = [Item(dtype, x.shape, x.dtype, partial(np.asarray, x)) for dtype, x in expected.items()]
    hashes = {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    write_file(folder / LOGITS, items)
    report = {
        "kind": kind,
        **facts,
        "versions": versions(),
        "probes": {"samples": len(_TEXTS), "positions": POSITIONS, "seed": 0},
        "differences": differences(reopened(), expected),
        "files": hashes,
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"affectgpt_jax": __version__} | {name: importlib.metadata.version(name) for name in ("jax", "numpy")}


def base_hashes(weights: WeightsConfig) -> dict[str, str]:
    """Identity of the folders that a run rests on, by part; of those that are at hand."""
    found = {}
    for part in PARTS:
        with contextlib.suppress(UserError):  # a name that is not in the Hub's cache
            if (name := getattr(weights, part)) and model_folder(name).is_dir():
                found[part] = weights_hash(name)
    return found


def differences(opened: Opened, expected: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """How a model's probe logits differ from those of the run, by type of computation."""
    found = _logits(opened, expected)
    return {dtype: compare(found[dtype], expected[dtype])._asdict() for dtype in expected}


def _logits(opened: Opened, dtypes: Iterable[str]) -> dict[str, np.ndarray]:
    batch = probes(opened.config, opened.tokenizer)
    return {dtype: probe_logits(opened.config, opened.params, batch, dtype) for dtype in dtypes}


class Verdict(NamedTuple):
    """What a verification found; `problems` is empty if all is well."""

    problems: list[str]
    recorded: dict[str, Any]
    found: dict[str, Any]


def read_report(folder: Path) -> dict[str, Any]:
    """The report of an export.

    Raises:
      UserError: there is none.
    """
    try:
        return json.loads((folder / REPORT).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{folder / REPORT} cannot be read ({error}); is this a folder of `affectgpt export`?"
        ) from error


def check(folder: Path, opened: Opened) -> Verdict:
    """Recompute an export's report.

    Args:
      folder: the export.
      opened: the model in it.
    """
    report = read_report(folder)
    problems = [
        f"{name}: {'is missing' if not (folder / name).is_file() else 'has changed since the export'}"
        for name, digest in report["files"].items()
        if not (folder / name).is_file() or file_digest(folder / name) != digest
    ]
    outside = {part: name for part, name in opened.config.weights if name and Path(name).resolve() != folder.resolve()}
    hashes = base_hashes(opened.config.weights)
    problems += [
        f"weights.{part}={name} is not the folder that the run rested on"
        for part, name in outside.items()
        if part in hashes and hashes[part] != report["base"].get(part)
    ]
    expected = {name: np.asarray(x) for name, x in read_file(folder / LOGITS).items()}
    found = differences(opened, expected)
    for dtype, was in report["differences"].items():
        now = found[dtype]
        # bfloat16 rounds otherwise on another chip; what must hold there is the choice of clear cases.
        if dtype == "float32" and now["largest"] > was["largest"] + TOLERANCE:
            problems.append(f"float32 logits differ by {now['largest']:.2e}, at the export by {was['largest']:.2e}")
        if now["argmax_differs_clearly"] > was["argmax_differs_clearly"]:
            problems.append(f"{dtype}: {now['argmax_differs_clearly']} clear choices of a token differ from the run's")
    return Verdict(problems, report["differences"], found)
