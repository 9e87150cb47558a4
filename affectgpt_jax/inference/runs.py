"""Opening what a run needs and what it left behind: shards, layout, the trained model."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from affectgpt_jax.checkpoint import Checkpoints
from affectgpt_jax.config import RunConfig, load_config, save_config
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.data.prompts import needs, soft_layout
from affectgpt_jax.data.shard_schema import digest, parse_stream
from affectgpt_jax.data.shards import Corpus, open_corpus
from affectgpt_jax.data.storage import is_remote, local_copy
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import make_mesh, parameter_shardings, whole
from affectgpt_jax.weights.initial import fresh_parameters, in_base, parameter_shapes, read_base, resolve
from affectgpt_jax.weights.table import nest, paths
from affectgpt_jax.weights.towers import weights_hash
from affectgpt_jax.weights.trainable import Tree, join, split


def model_layout(config: RunConfig) -> dict[str, range]:
    """Soft tokens of a sample under a run's config."""
    tokens = config.model.tokens
    return soft_layout(
        config.model.mode, multi=tokens.multi, audio=tokens.audio, video=tokens.video, image=tokens.image
    )


def model_streams(config: RunConfig) -> dict[str, str]:
    """Corpus stream of each stream the model uses, for example {"face": "face@8"}; an image is one picture."""
    prepared = {"image": "image@1"} | {parse_stream(stream).modality: stream for stream in config.prepare.streams}
    return {name: prepared[name] for name in needs(config.model.mode).streams}


def feature_shapes(config: RunConfig) -> dict[str, tuple[int, int]]:
    """Time steps and width of the features that the model reads, by stream."""
    widths = {"audio": config.model.audio_width}
    return {
        name: (parse_stream(stream).count, widths.get(name, config.model.vision_width))
        for name, stream in model_streams(config).items()
    }


def open_shards(config: RunConfig, split_name: str, root: str | None = None, *, verify: bool = True) -> Corpus:
    """The shards of a split with the model's streams, of the widths the model expects.

    An address such as gs://BUCKET/PATH is copied to this machine first.
    """
    root = config.data.shards if root is None else root
    if not root:
        raise UserError("data.shards: name the folder that `affectgpt prepare` wrote")
    widths = {name: width for name, (_, width) in feature_shapes(config).items()}
    expect = {stream: {"width": widths[name]} for name, stream in model_streams(config).items()}
    if is_remote(root):
        root, verify = str(local_copy(root, split_name, tuple(expect), _tell)), False  # checked as it came
    return open_corpus(root, split_name, tuple(expect), expect=expect, verify=verify)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Trained(NamedTuple):
    """What a run has learned, without the base model that it started from.

    Attributes:
      config: resolved; `weights.language` names the base, if there is one.
      tokenizer: the run's.
      params: every parameter that does not stand in the base's folder: what was trained, and what was made at the
        start and never trained.
      step: the checkpoint's.
      source: where it comes from, for messages and reports.
    """

    config: RunConfig
    tokenizer: Tokenizer
    params: Tree
    step: int
    source: str


class Run(NamedTuple):
    """A trained run, ready to answer."""

    folder: Path
    config: RunConfig
    tokenizer: Tokenizer
    model: AffectGPT
    params: Tree
    step: int


UNTRAINED = "untrained"
"""The checkpoint item for parameters that are neither trained nor in the base's folder nor made from the seed."""


def open_trained(folder: str | Path, step: int | None = None, mesh: Mesh | None = None) -> Trained:
    """Read a run's checkpoint, but not its base model.

    Args:
      folder: run folder.
      step: which checkpoint; the newest when None.
      mesh: where the parameters shall lie; this machine's devices by default.

    Raises:
      UserError: no run there, or no such checkpoint.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml; train first, or name another folder")
    config, tokenizer = resolve(load_config(folder / "config.yaml"))
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} has no checkpoints yet; let it train up to its first one")
    model = AffectGPT(config.model)
    shardings = parameter_shardings(mesh or make_mesh(MeshConfig()), parameter_shapes(model))
    trainable, rest = split(config.model, _abstract(model, shardings), config.train.trainable)
    untrained = nest({path: leaf for path, leaf in paths(rest).items() if not in_base(config, path)})
    checkpoints = Checkpoints(folder / "checkpoints")
    wanted = {"params": trainable}
    if stored := checkpoints.holds(UNTRAINED, step):
        wanted[UNTRAINED] = untrained
    restored = checkpoints.restore(wanted, step)
    checkpoints.close()
    others = restored.items[UNTRAINED] if stored else fresh_parameters(config, model, shardings, set(paths(untrained)))
    return Trained(config, tokenizer, join(restored.items["params"], others), restored.step, str(folder))


def write_run(trained: Trained, folder: Path) -> None:
    """Write a run folder that evaluation, prediction and export open.

    Args:
      trained: what it holds.
      folder: where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_config(trained.config, folder / "config.yaml")
    chosen, rest = split(trained.config.model, trained.params, trained.config.train.trainable)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    items = {"params": chosen, UNTRAINED: rest} if rest else {"params": chosen}
    checkpoints.save(trained.step, jax.tree.map(jax.numpy.asarray, items), {"step": trained.step})
    checkpoints.wait()
    checkpoints.close()


def _abstract(model: AffectGPT, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), parameter_shapes(model), shardings
    )


def open_run(folder: str | Path, step: int | None = None) -> Run:
    """Open a run folder on this machine's devices, whatever it was trained on.

    Args:
      folder: run folder.
      step: which checkpoint; the newest when None.

    Raises:
      UserError: no run there, or no such checkpoint.
    """
    trained = open_trained(folder, step)
    return with_base(trained, open_base(trained))


def open_base(trained: Trained) -> Tree:
    """Read the base model of a run, which all its checkpoints share; empty where there is none."""
    model = AffectGPT(trained.config.model)
    return read_base(trained.config, model, parameter_shardings(make_mesh(MeshConfig()), parameter_shapes(model)))


def with_base(trained: Trained, base: Tree) -> Run:
    """A checkpoint ready to answer."""
    config = trained.config
    params = join(trained.params, base)
    return Run(Path(trained.source), config, trained.tokenizer, AffectGPT(config.model), params, trained.step)


def open_steps(folder: str | Path, steps: Iterable[int]) -> Iterator[tuple[Trained, Callable[[], Run]]]:
    """Several checkpoints of a run, each with what completes it; their common base is read once, and only if asked for.

    Args:
      folder: run folder.
      steps: which checkpoints.

    Raises:
      UserError: no run there, or no such checkpoint.
    """
    base: Tree | None = None

    def opened(trained: Trained) -> Run:
        nonlocal base
        base = open_base(trained) if base is None else base
        return with_base(trained, base)

    for step in steps:
        trained = open_trained(folder, step)
        yield trained, partial(opened, trained)


def run_steps(folder: str | Path) -> list[int]:
    """Steps of a run's checkpoints, ascending.

    Raises:
      UserError: it has none.
    """
    if not (Path(folder) / "checkpoints").is_dir():
        raise UserError(f"{folder} has no checkpoints; name a run folder that has trained up to its first one")
    checkpoints = Checkpoints(Path(folder) / "checkpoints")
    try:
        return checkpoints.steps
    finally:
        checkpoints.close()


def fingerprint(trained: Trained) -> str:
    """Identity of a model: changes with any number it has learned, its settings, its tokenizer or its base's files."""
    config = trained.config
    settings = {"model": config.model.model_dump(mode="json"), "compat": config.compat}
    base = weights_hash(config.weights.language) if config.weights.language else ""
    heads = (json.dumps(settings, sort_keys=True), trained.tokenizer.fingerprint, base)
    learned = sorted(paths(trained.params).items())
    numbers = (part for path, leaf in learned for part in (path.encode(), whole(leaf).tobytes()))
    return digest(*(head.encode() for head in heads), *numbers)
