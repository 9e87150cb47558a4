"""Coming back: any exported folder, a PEFT adapter, or a checkpoint of the authors, as a run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt_jax.config import RunConfig, build_config, load_config
from affectgpt_jax.config.loading import RUN_CONFIG
from affectgpt_jax.config.networks import LoraConfig
from affectgpt_jax.config.reference import import_reference
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange import adapter
from affectgpt_jax.exchange.fusion import fusion_shapes, read_fusion
from affectgpt_jax.inference.runs import HERE, Placement, Step, Trained, open_trained, settle
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.weights.files import SafetensorsFolder, Within, read_config
from affectgpt_jax.weights.initial import parameter_shapes, resolve
from affectgpt_jax.weights.networks import TRAINED
from affectgpt_jax.weights.pth import check_settings, infer_settings, read_pth
from affectgpt_jax.weights.table import nest, paths, read_tree

SETTINGS = "affectgpt.yaml"
"""The run's resolved config, in every export."""


_UNSAID = ("qformer.", "positions.", "decoder.lora.")


def kind_of(source: Path) -> str:
    """What lies there: "adapter", "merged", "transformers" or "pth".

    Raises:
      UserError: none of these.
    """
    if source.is_file() and source.suffix == ".pth":
        return "pth"
    if (source / adapter.CONFIG).is_file():
        return "adapter"
    if (source / "config.json").is_file():
        return "transformers" if read_config(source).get("model_type") == "affectgpt" else "merged"
    if len(list(source.glob("*.pth"))) == 1:
        return "pth"
    raise UserError(
        f"{source}: neither a .pth checkpoint (or a folder with one), nor a PEFT adapter, nor a folder of "
        "`affectgpt export`"
    )


def read_export(source: Path, config: str | None = None, overrides: Sequence[str] = ()) -> Trained:
    """Open what `kind_of` knows.

    Args:
      source: a folder or a .pth file.
      config: name or file of the run's config; None takes the one in the folder or, of a .pth, its own settings.
      overrides: dotted keys, such as `weights.language=DIR`.

    Returns:
      A run: its parameters, and a config that names the folders with the rest.

    Raises:
      UserError: files missing or damaged, or another model than the config says.
    """
    kind = kind_of(source)
    file = source if source.is_file() else next(iter(source.glob("*.pth"))) if kind == "pth" else None
    checkpoint = read_pth(file) if file else None
    own = source / SETTINGS
    if config is None and own.is_file():
        config = str(own)
    if config is not None:
        found = load_config(config, overrides)
    elif checkpoint and checkpoint.config:
        values, _ = import_reference(checkpoint.config, str(file))
        # Sizes that are constants of their code, not settings; the shapes show them.
        seen = infer_settings(checkpoint.tensors, str(file))
        sizes = {key: x for key, x in seen.items() if x is not None and key.startswith(_UNSAID)}
        found = build_config(values, str(file), [*(f"model.{key}={_yaml(x)}" for key, x in sizes.items()), *overrides])
    else:
        raise UserError(f"{source} has no {SETTINGS}; name the run's config with --config")
    match kind:
        case "adapter":
            return _from_adapter(source, found)
        case "merged":
            return _from_merged(source, found)
        case "transformers":
            return _from_transformers(source, found)
    assert checkpoint
    return _from_pth(str(file), checkpoint.tensors, checkpoint.epoch, found)


def open_source(
    path: str | Path,
    step: Step = None,
    place: Placement = HERE,
    config: str | None = None,
    overrides: Sequence[str] = (),
) -> Trained:
    """Open a run folder, or whatever `read_export` takes.

    Args:
      path: a folder or a .pth file.
      step: checkpoint of a run.
      place: where the parameters shall lie, and how they are held.
      config: as `read_export`.
      overrides: as `read_export`.

    Raises:
      UserError: nothing there, or not as `open_trained` or `read_export` expect it; settings or a step that it has no
        use for.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such run folder, export or .pth file")
    if (path / RUN_CONFIG).is_file():
        if overrides:
            raise UserError(f"{path} is a run folder, whose config.yaml holds its settings; leave out {overrides[0]!r}")
        return open_trained(path, step, place)
    if step is not None:
        raise UserError(f"{path} is no run folder and holds one checkpoint; leave out step={step!r}")
    return settle(read_export(path, config, overrides), place)


def _yaml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _from_adapter(source: Path, config: RunConfig) -> Trained:
    lora, tensors, base = adapter.read_adapter(source)
    if not (source / "fusion").is_dir():
        raise UserError(f"{source} holds adapters only; the folder `fusion` of an export must lie in it")
    found = {f"decoder.lora.{key}": getattr(lora, key) for key in ("rank", "alpha", "targets")}
    check_settings(found, config.model, source / adapter.CONFIG)
    language = config.weights.language or base
    config = _change(config, weights={"language": language}, lora=config.model.decoder.lora)
    config, tokenizer = resolve(config)
    shapes = paths(parameter_shapes(AffectGPT(config.model)))
    adapters = nest({path: x for path, x in shapes.items() if "/lora_" in path})
    read = read_tree(TRAINED, adapters, tensors, str(source))
    fusion = read_fusion(config.model, source / "fusion")
    return Trained(config, tokenizer, nest(paths(read) | paths(fusion)), _step(source), str(source))


def _from_merged(source: Path, config: RunConfig) -> Trained:
    config = _change(
        config, weights={"language": str(source), "tokenizer": ""}, lora=LoraConfig(rank=0), trainable=("^fusion/",)
    )
    config, tokenizer = resolve(config)
    return Trained(config, tokenizer, read_fusion(config.model, source / "fusion"), _step(source), str(source))


def _from_transformers(source: Path, config: RunConfig) -> Trained:
    here = {"language": str(source), "vision": str(source), "audio": str(source), "tokenizer": ""}
    config = _change(config, weights=here, lora=LoraConfig(rank=0), trainable=("^fusion/",))
    config, tokenizer = resolve(config)
    tensors = Within(SafetensorsFolder(source), "fusion.")
    fusion = read_tree(TRAINED, fusion_shapes(config.model), tensors, str(source))
    return Trained(config, tokenizer, fusion, _step(source), str(source))


def _from_pth(origin: str, tensors: Mapping[str, Any], epoch: int, config: RunConfig) -> Trained:
    if not config.weights.language:
        raise UserError(
            f"{origin} holds adapters and fusion only; name the base model with weights.language=DIR (and the "
            "encoders with weights.vision=DIR and weights.audio=DIR)"
        )
    config, tokenizer = resolve(config)
    check_settings(infer_settings(tensors, origin), config.model, origin)
    shapes = paths(parameter_shapes(AffectGPT(config.model)))
    wanted = {path: x for path, x in shapes.items() if path.startswith("fusion/") or "/lora_" in path}
    found = read_tree(TRAINED, nest(wanted), tensors, origin)
    step = epoch * config.train.optimizer.epoch_steps
    return Trained(config, tokenizer, found, step, origin)


def _change(config: RunConfig, *, weights: Mapping[str, str], lora: LoraConfig, trainable: Any = None) -> RunConfig:
    decoder = config.model.decoder.model_copy(update={"lora": lora})
    changes: dict[str, Any] = {
        "weights": config.weights.model_copy(update=dict(weights)),
        "model": config.model.model_copy(update={"decoder": decoder}),
    }
    if trainable:
        changes["train"] = config.train.model_copy(update={"trainable": trainable})
    return config.model_copy(update=changes)


def _step(source: Path) -> int:
    """The run's step, from the report beside the export; 0 where there is none."""
    try:
        return int(json.loads((source / "parity.json").read_text())["step"])
    except (OSError, json.JSONDecodeError, KeyError):
        return 0
