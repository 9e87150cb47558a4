"""Opening what a run needs and what it left behind: shards, layout, the trained model."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
from jax.sharding import Mesh

from affectgpt_jax.checkpoint import Checkpoints
from affectgpt_jax.config import RunConfig, load_config, save_config
from affectgpt_jax.config.loading import parse_mesh
from affectgpt_jax.config.networks import Base, ModelConfig
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.data.prompts import needs, soft_layout
from affectgpt_jax.data.shard_schema import digest, parse_stream
from affectgpt_jax.data.shards import Corpus, open_corpus
from affectgpt_jax.data.storage import is_remote, local_copy
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answer_file import step_name
from affectgpt_jax.inference.cpu_layout import arrange
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import check_split, make_mesh, parameter_shardings, whole
from affectgpt_jax.weights.initial import (
    fresh_parameters,
    in_base,
    parameter_shapes,
    put,
    read_base,
    resolve,
    round_kernels,
)
from affectgpt_jax.weights.networks import SCALE
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


class Placement(NamedTuple):
    """Where an opened model lies, and how it is held.

    Attributes:
      mesh: over which it lies; by default all devices hold the whole model, and each takes a part of the rows.
      weights: how the kernels of the language model's layers are held, whatever the run was trained with: "float", in
        its own type, or "int8", rounded while they are read; None as the run's config says.
      cache: how answers hold keys and values, likewise.
    """

    mesh: Mesh | None = None
    weights: Base | None = None
    cache: Base | None = None

    def held(self, config: RunConfig) -> RunConfig:
        """A resolved config of a model that is held so."""
        decoder = config.model.decoder
        changes = {"base": self.weights or decoder.base, "cache": self.cache or decoder.cache}
        return config.model_copy(
            update={"model": config.model.model_copy(update={"decoder": decoder.model_copy(update=changes)})}
        )

    def shardings(self, model: ModelConfig) -> Tree:
        """Where each parameter of a model lies.

        Raises:
          UserError: the mesh does not divide the model.
        """
        mesh = self.mesh or make_mesh(MeshConfig())
        check_split(model, mesh.shape)
        return parameter_shardings(mesh, parameter_shapes(AffectGPT(model)))


HERE = Placement()
"""On all devices, as the run's config says."""


def make_placement(
    mesh: str | MeshConfig | None = None, weights: Base | None = None, cache: Base | None = None
) -> Placement:
    """A placement of what a person says.

    Args:
      mesh: sizes of its axes, also as text such as "data=4,tensor=2".
      weights: see `Placement`.
      cache: see `Placement`.

    Raises:
      UserError: a mesh of other axes, or of sizes that do not fit the devices; another way to hold numbers.
    """
    for key, how in (("weights", weights), ("cache", cache)):
        if how is not None and how not in get_args(Base):
            raise UserError(f"{key}={how!r}: expected one of {', '.join(get_args(Base))}")
    sizes = parse_mesh(mesh) if isinstance(mesh, str) else mesh
    return Placement(None if sizes is None else make_mesh(sizes), weights, cache)


class Trained(NamedTuple):
    """What a run has learned, without the base model that it started from.

    Attributes:
      config: resolved; `weights.language` names the base, if there is one.
      tokenizer: the run's.
      params: every parameter that does not stand in the base's folder: what was trained, and what was made at the
        start and never trained.
      step: the checkpoint's.
      source: where it comes from, for messages and reports.
      place: where its base shall lie, and how it is held; the config says the latter, too.
    """

    config: RunConfig
    tokenizer: Tokenizer
    params: Tree
    step: int
    source: str
    place: Placement = HERE


class Run(NamedTuple):
    """A trained run, ready to answer; its parameters lie as `cpu_layout.arrange` says."""

    folder: Path
    config: RunConfig
    tokenizer: Tokenizer
    model: AffectGPT
    params: Tree
    step: int


CHECKPOINTS, BEST = "checkpoints", "best"
"""Folders of a run: its newest checkpoints, and the one that validation found best."""

UNTRAINED = "untrained"
"""The checkpoint item for parameters that are neither trained nor in the base's folder nor made from the seed."""


Step = int | Literal["best"] | None
"""Which checkpoint of a run: by its optimizer step, the one that validation found best, the newest."""


def open_trained(folder: str | Path, step: Step = None, place: Placement = HERE) -> Trained:
    """Read a run's checkpoint, but not its base model.

    Args:
      folder: run folder.
      step: which checkpoint.
      place: where the parameters shall lie, and how they are held.

    Raises:
      UserError: no run there, no such checkpoint, or a mesh that does not divide the model.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml; train first, or name another folder")
    config, tokenizer = resolve(_anywhere(load_config(folder / "config.yaml")))
    inside = folder / (BEST if step == "best" else CHECKPOINTS)
    step = None if step == "best" else step
    if not inside.is_dir():
        remedy = "train with validation.every" if inside.name == BEST else "let it train up to its first one"
        raise UserError(f"{folder} has no {inside.name} yet; {remedy}")
    model = AffectGPT(config.model)
    shardings = place.shardings(config.model)
    trainable, rest = split(config.model, _abstract(model, shardings), config.train.trainable)
    untrained = nest({path: leaf for path, leaf in paths(rest).items() if not in_base(config, path)})
    checkpoints = Checkpoints(inside)
    wanted = {"params": trainable}
    if stored := checkpoints.holds(UNTRAINED, step):
        wanted[UNTRAINED] = untrained
    held = place.held(config)
    held_shardings = place.shardings(held.model)
    # A kernel that becomes int8 is read alone, so that one at a time is a float.
    scaled = {path for path in paths(held_shardings) if path.endswith(SCALE)}
    step, parts = checkpoints.restore_apart(wanted, lambda path: f"{path}_scale" in scaled, step)
    flat: Tree = {}
    for part in map(partial(round_kernels, shardings=held_shardings), parts):
        flat |= part
    checkpoints.close()
    if not stored:
        flat |= round_kernels(paths(fresh_parameters(config, model, shardings, set(paths(untrained)))), held_shardings)
    return Trained(held, tokenizer, nest(flat), step, str(folder), place)


def settle(trained: Trained, place: Placement) -> Trained:
    """What was read from elsewhere, placed and held so; none of it is a kernel that int8 would round.

    Args:
      trained: as `exchange.sources.read_export` gives it.
      place: where to.

    Raises:
      UserError: the mesh does not divide the model.
    """
    config = place.held(trained.config)
    shardings = paths(place.shardings(config.model))
    params = nest({path: put(leaf, shardings[path]) for path, leaf in paths(trained.params).items()})
    return trained._replace(config=config, params=params, place=place)


def _anywhere(config: RunConfig) -> RunConfig:
    """The config without what suits only the devices that the run was trained on."""
    decoder = config.model.decoder.model_copy(update={"attention": "auto", "fused": False})
    return config.model_copy(update={"model": config.model.model_copy(update={"decoder": decoder})})


def write_run(trained: Trained, folder: Path) -> None:
    """Write a run folder that evaluation, prediction and export open.

    Args:
      trained: what it holds.
      folder: where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_config(trained.config, folder / "config.yaml")
    chosen, rest = split(trained.config.model, trained.params, trained.config.train.trainable)
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep=1)
    items = {"params": chosen, UNTRAINED: rest} if rest else {"params": chosen}
    checkpoints.save(trained.step, jax.tree.map(jax.numpy.asarray, items), {"step": trained.step})
    checkpoints.wait()
    checkpoints.close()


def _abstract(model: AffectGPT, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), parameter_shapes(model), shardings
    )


def open_run(folder: str | Path, step: Step = None, place: Placement = HERE) -> Run:
    """Open a run folder on this machine's devices, whatever it was trained on.

    Args:
      folder: run folder.
      step: which checkpoint.
      place: where the model shall lie, and how it is held.

    Raises:
      UserError: as `open_trained`.
    """
    trained = open_trained(folder, step, place)
    return with_base(trained, open_base(trained))


def open_base(trained: Trained) -> Tree:
    """Read the base model of a run, which all its checkpoints share; empty where there is none."""
    config = trained.config
    return read_base(
        config, AffectGPT(config.model), trained.place.shardings(config.model), paths(trained.params).keys()
    )


def with_base(trained: Trained, base: Tree) -> Run:
    """A checkpoint ready to answer, its parameters arranged for it."""
    config = trained.config
    params = arrange(join(trained.params, base))
    return Run(Path(trained.source), config, trained.tokenizer, AffectGPT(config.model), params, trained.step)


def open_steps(
    folder: str | Path, steps: Iterable[int], place: Placement = HERE
) -> Iterator[tuple[Trained, Callable[[], Run]]]:
    """Several checkpoints of a run, each with what completes it; their common base is read once, and only if asked for.

    Args:
      folder: run folder.
      steps: which checkpoints.
      place: where the models shall lie, and how they are held.

    Raises:
      UserError: as `open_trained`.
    """
    base: Tree | None = None

    def opened(trained: Trained) -> Run:
        nonlocal base
        base = open_base(trained) if base is None else base
        return with_base(trained, base)

    for step in steps:
        trained = open_trained(folder, step, place)
        yield trained, partial(opened, trained)


def run_steps(folder: str | Path) -> list[int]:
    """Steps of a run's checkpoints, ascending.

    Raises:
      UserError: it has none.
    """
    if not (Path(folder) / CHECKPOINTS).is_dir():
        raise UserError(f"{folder} has no checkpoints; name a run folder that has trained up to its first one")
    checkpoints = Checkpoints(Path(folder) / CHECKPOINTS)
    try:
        return checkpoints.steps
    finally:
        checkpoints.close()


def checkpoint_name(trained: Trained) -> str:
    """Name of a checkpoint in files that depend on how it is held, too, such as step00000500-weights-int8."""
    return "-".join([step_name(trained.step), *(f"{key}-{how}" for key, how in roundings(trained.config).items())])


def roundings(config: RunConfig) -> dict[str, str]:
    """How a model is held, where that is not in its own type; part of what answers depend on."""
    decoder = config.model.decoder
    return {key: how for key, how in (("weights", decoder.base), ("cache", decoder.cache)) if how != "float"}


def fingerprint(trained: Trained) -> str:
    """Identity of a model: changes with any number it has learned, its settings (so with how it is held, not with where
    it lies), its tokenizer or its base's files.
    """
    config = trained.config
    settings = {"model": config.model.model_dump(mode="json"), "compat": config.compat}
    base = weights_hash(config.weights.language) if config.weights.language else ""
    heads = (json.dumps(settings, sort_keys=True), trained.tokenizer.fingerprint, base)
    learned = sorted(paths(trained.params).items())
    numbers = (part for path, leaf in learned for part in (path.encode(), whole(leaf).tobytes()))
    return digest(*(head.encode() for head in heads), *numbers)
