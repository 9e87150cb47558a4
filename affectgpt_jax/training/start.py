"""Where a run starts that goes on from what another has learned (`train.init_from`)."""

from pathlib import Path
from typing import Any, NamedTuple

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.sources import read_export
from affectgpt_jax.inference.runs import Placement, Trained, fingerprint, open_trained
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import run_mesh
from affectgpt_jax.weights.initial import in_base, parameter_shapes
from affectgpt_jax.weights.table import paths
from affectgpt_jax.weights.towers import weights_hash

_UNSEEN = ("decoder.lora.alpha", "qformer.heads")
"""Settings that show in no shape, and change what a parameter means."""


class Start(NamedTuple):
    """Parameters to start from.

    Attributes:
      given: by path.
      fresh: paths of those that the source does not have, which are made from the seed.
      source: name and step of the source.
      model: its fingerprint.
    """

    given: dict[str, Any]
    fresh: tuple[str, ...]
    source: str
    model: str


def read_start(config: RunConfig, tokenizer: Tokenizer) -> Start:
    """Read what `train.init_from` names.

    Args:
      config: the new run, resolved.
      tokenizer: the new run's.

    Raises:
      UserError: nothing there, or parameters that the new run's model has no place for, or that rest on another base.
    """
    origin = config.train.init_from
    trained = _open(config)
    wanted = {p: x.shape for p, x in paths(parameter_shapes(AffectGPT(config.model))).items() if not in_base(config, p)}
    found = paths(trained.params)
    wrong = [
        f"{path}: {tuple(leaf.shape)} in {origin}, expected {tuple(wanted[path])}"
        for path, leaf in found.items()
        if path in wanted and leaf.shape != wanted[path]
    ]
    wrong += [f"{path}: not in this run's model" for path in found if path not in wanted]
    wrong += [
        f"model.{key}: {theirs} in {origin}, here {ours}"
        for key in _UNSEEN
        if (theirs := _setting(trained.config, key)) != (ours := _setting(config, key))
        and any(_part(key) in path for path in found)
    ]
    if wrong:
        shown = "\n  ".join(wrong[:10] + ([f"and {len(wrong) - 10} more"] if len(wrong) > 10 else []))
        raise UserError(f"train.init_from={origin} does not fit the model of this run:\n  {shown}")
    if trained.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(f"train.init_from={origin} has another tokenizer; name it with weights.tokenizer")
    _check_base(trained, config)
    fresh = tuple(path for path in wanted if path not in found)
    return Start(found, fresh, f"{trained.source}, step {trained.step}", fingerprint(trained))


def _open(config: RunConfig) -> Trained:
    origin = Path(config.train.init_from)
    if (origin / "config.yaml").is_file():
        return open_trained(origin, place=Placement(run_mesh(config)))
    if not origin.exists():
        raise UserError(f"train.init_from={origin}: there is no such run folder, export or .pth file")
    # A checkpoint of the authors, or one that was downloaded, does not know where its base lies here.
    here = [f"weights.{part}={name}" for part, name in config.weights if name]
    return read_export(origin, None, here)


def _setting(config: RunConfig, key: str) -> Any:
    value: Any = config.model
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _part(key: str) -> str:
    return "/lora_" if "lora" in key else "/qformer/"


def _check_base(trained: Trained, config: RunConfig) -> None:
    """What was learned on one language model means nothing on another."""
    theirs, ours = trained.config.weights.language, config.weights.language
    if not theirs and not ours:
        return
    same = theirs and ours and (theirs == ours or weights_hash(theirs) == weights_hash(ours))
    if not same:
        raise UserError(
            f"train.init_from={config.train.init_from} rests on the language model {theirs or 'none'}, this run on "
            f"{ours or 'none'}; set weights.language={theirs or ''}"
        )
