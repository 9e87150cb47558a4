"""Opening what a run needs and what it left behind: shards, layout, the trained model."""

from pathlib import Path
from typing import NamedTuple

from affectgpt_jax.checkpoint import Checkpoints, targets
from affectgpt_jax.config import RunConfig, load_config
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.data.prompts import needs, soft_layout
from affectgpt_jax.data.shard_schema import parse_stream
from affectgpt_jax.data.shards import Corpus, open_corpus
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import make_mesh, parameter_shardings
from affectgpt_jax.weights.initial import initial_parameters, parameter_shapes, resolve
from affectgpt_jax.weights.trainable import Tree, join, split


def model_layout(config: RunConfig) -> dict[str, range]:
    """Soft tokens of a sample under a run's config."""
    tokens = config.model.tokens
    return soft_layout(
        config.model.mode, multi=tokens.multi, audio=tokens.audio, video=tokens.video, image=tokens.image
    )


def model_streams(config: RunConfig) -> dict[str, str]:
    """Corpus stream of each stream the model uses, for example {"face": "face@8"}."""
    prepared = {parse_stream(stream).modality: stream for stream in config.prepare.streams}
    return {name: prepared[name] for name in needs(config.model.mode).streams}


def open_shards(config: RunConfig, split_name: str, root: str | None = None, *, verify: bool = True) -> Corpus:
    """The shards of a split with the model's streams, of the widths the model expects."""
    root = config.data.shards if root is None else root
    if not root:
        raise UserError("data.shards: name the folder that `affectgpt prepare` wrote")
    widths = {"audio": config.model.audio_width}
    expect = {
        stream: {"width": widths.get(name, config.model.vision_width)} for name, stream in model_streams(config).items()
    }
    return open_corpus(root, split_name, tuple(expect), expect=expect, verify=verify)


class Run(NamedTuple):
    """A trained run, ready to answer."""

    folder: Path
    config: RunConfig
    tokenizer: Tokenizer
    model: AffectGPT
    params: Tree
    step: int


def open_run(folder: str | Path, step: int | None = None) -> Run:
    """Open a run folder on this machine's devices, whatever it was trained on.

    Args:
      folder: run folder.
      step: which checkpoint; the newest when None.

    Raises:
      UserError: no run there, or no such checkpoint.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml; train first, or name another folder")
    config, tokenizer = resolve(load_config(folder / "config.yaml"))
    model = AffectGPT(config.model)
    shardings = parameter_shardings(make_mesh(MeshConfig()), parameter_shapes(model))
    trainable, frozen = split(config.model, initial_parameters(config, model, shardings), config.train.trainable)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} has no checkpoints yet; let it train up to its first one")
    checkpoints = Checkpoints(folder / "checkpoints")
    restored = checkpoints.restore({"params": targets(trainable)}, step)
    checkpoints.close()
    return Run(folder, config, tokenizer, model, join(restored.items["params"], frozen), restored.step)
