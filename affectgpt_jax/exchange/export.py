"""Leaving with files that other tools open: four kinds of folder, each with a parity report."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from affectgpt_jax.config import save_config
from affectgpt_jax.config.reference import export_reference
from affectgpt_jax.config.run import MeshConfig, RunConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.adapter import write_adapter
from affectgpt_jax.exchange.card import model_card
from affectgpt_jax.exchange.folders import whole_folder
from affectgpt_jax.exchange.fusion import fusion_config, fusion_items, write_fusion
from affectgpt_jax.exchange.hub import CARD
from affectgpt_jax.exchange.language import (
    generation_config,
    language_config,
    merged_items,
    write_language,
    write_tokenizer,
)
from affectgpt_jax.exchange.parity import Opened, base_hashes, write_report
from affectgpt_jax.exchange.sources import SETTINGS, read_export
from affectgpt_jax.inference.runs import Step, Trained, open_trained
from affectgpt_jax.model_folders import hub_name
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import make_mesh, parameter_shardings
from affectgpt_jax.weights.files import PARTS, WEIGHT_NORM, Item, Renamed, open_part, part_config, write_shards
from affectgpt_jax.weights.initial import parameter_shapes, read_base
from affectgpt_jax.weights.networks import CLIP, TRAINED
from affectgpt_jax.weights.pth import write_pth
from affectgpt_jax.weights.table import nest, paths, write_tree
from affectgpt_jax.weights.trainable import join

Kind = Literal["adapter", "merged", "transformers", "pth"]
KINDS: tuple[Kind, ...] = get_args(Kind)
REMOTE = Path(__file__).parent / "remote"


def export(
    run: str | Path,
    out: Path,
    kind: Kind,
    *,
    step: Step = None,
    dtype: str | None = None,
    overwrite: bool = False,
    parity: bool = True,
    public: bool = False,
) -> dict[str, Any] | None:
    """Export a run.

    Args:
      run: its folder.
      out: the folder to write; it appears only when it is complete.
      kind: "adapter": a PEFT folder; "merged": the language model with its adapters merged; "transformers": encoders,
        fusion and merged language model in one folder that runs with `trust_remote_code`; "pth": the authors' layout.
        The first two hold the fusion in a folder of its own, `fusion`.
      step: which checkpoint; the newest when None.
      dtype: type of the merged language model; None keeps the base's.
      overwrite: replace `out`.
      parity: open the folder again and compare it with the run; that takes the memory of the whole model.
      public: other people shall read it: no path of this machine is in it, folders go by the last part of their names.

    Returns:
      The parity report.

    Raises:
      UserError: the run cannot be exported that way, or nothing can be written.
    """
    trained = _with_float_base(open_trained(run, step))
    portable = _portable(trained.config, public)
    with whole_folder(out, overwrite=overwrite) as folder:
        match kind:
            case "adapter":
                _adapter(trained, folder, dtype, portable.weights.language)
            case "merged":
                _merged(trained, folder, dtype)
            case "transformers":
                _transformers(trained, folder, dtype)
            case "pth":
                _pth(trained, folder, dtype)
        save_config(portable, folder / SETTINGS)
        report = None
        if parity:
            facts = {
                "run": Path(run).resolve().name if public else str(run),
                "step": trained.step,
                "base": base_hashes(trained.config.weights),
            }
            here = [f"weights.{part}={name}" for part, name in trained.config.weights if name]
            report = write_report(
                folder,
                kind,
                lambda: open_whole(trained),
                lambda: open_whole(read_export(folder, overrides=here)),
                facts,
            )
        (folder / CARD).write_text(model_card(Path(run), trained, kind, report), encoding="utf-8")
        return report


def _with_float_base(trained: Trained) -> Trained:
    """The run over its base as it is stored: what is held as int8 in memory stays there."""
    config = trained.config
    decoder = config.model.decoder.model_copy(update={"base": "float"})
    model = config.model.model_copy(update={"decoder": decoder})
    return trained._replace(config=config.model_copy(update={"model": model}))


def open_whole(trained: Trained) -> Opened:
    """The run with its base model."""
    model = AffectGPT(trained.config.model)
    shardings = parameter_shardings(make_mesh(MeshConfig()), parameter_shapes(model))
    return Opened(trained.config, trained.tokenizer, join(trained.params, read_base(trained.config, model, shardings)))


def _portable(config: RunConfig, public: bool) -> RunConfig:
    """The config for a folder that may be opened from anywhere, or by anyone."""

    def names(section: Any, *keys: str) -> Any:
        return section.model_copy(
            update={
                key: hub_name(path) or (Path(path).name if public else str(Path(path).resolve()))
                for key in keys
                if (path := getattr(section, key))
            }
        )

    update = {"weights": names(config.weights, *type(config.weights).model_fields)}
    if public:
        update |= {
            "prepare": names(config.prepare, "corpus"),
            "data": names(config.data, "shards"),
            "train": names(config.train, "output"),
        }
    return config.model_copy(update=update)


def _adapter(trained: Trained, folder: Path, dtype: str | None, base: str | None) -> None:
    _refuse(dtype, "adapter")
    write_adapter(trained, folder, base or "")
    write_fusion(trained, folder / "fusion")


def _merged(trained: Trained, folder: Path, dtype: str | None) -> None:
    write_fusion(trained, folder / "fusion")
    write_language(trained, folder, dtype)


def _pth(trained: Trained, folder: Path, dtype: str | None) -> None:
    _refuse(dtype, "pth")
    flat = paths(trained.params)
    theirs = {path: x for path, x in flat.items() if path.startswith("fusion/") or "/lora_" in path}
    if len(theirs) < len(flat):
        raise UserError(
            f"{trained.source} trains the language model itself, which the authors' checkpoints cannot hold; export "
            "it with --as merged or --as transformers"
        )
    tensors = dict(write_tree(TRAINED, nest(theirs)))
    epoch = trained.step // trained.config.train.optimizer.epoch_steps
    name = f"checkpoint_{epoch:06d}_loss_{_last_loss(trained):.3f}.pth"
    write_pth(folder / name, tensors, export_reference(trained.config), epoch)


def _last_loss(trained: Trained) -> float:
    """The last loss that the run logged up to its checkpoint, for the file's name; 0 where none is known."""
    log = Path(trained.source) / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return next((line["loss"] for line in reversed(lines) if line["step"] <= trained.step and "loss" in line), 0.0)


def _transformers(trained: Trained, folder: Path, dtype: str | None) -> None:
    weights = trained.config.weights
    lost = [f"weights.{part}" for part in ("vision", "audio") if not getattr(weights, part)]
    if lost:
        raise UserError(f"{trained.source}: {' and '.join(lost)} must name the encoders' folders for --as transformers")
    items = merged_items(trained, dtype, PARTS["language"])
    assert weights.vision
    assert weights.audio
    vision = {
        name: x for name, x in open_part(weights.vision, "vision")[1].items() if not re.fullmatch(CLIP.ignored, name)
    }
    # As newer versions of torch spell a normed weight.
    respell = dict(zip(*reversed(WEIGHT_NORM), strict=True))
    audio = {
        respell.get(name, name): x
        for name, x in Renamed(open_part(weights.audio, "audio")[1], "hubert.").items()
        if not name.startswith("lm_head.")
    }
    for part, tensors in (("vision", vision), ("audio", audio)):
        items += [
            Item(PARTS[part] + name, tuple(x.shape), x.dtype, partial(np.asarray, x)) for name, x in tensors.items()
        ]
    items += fusion_items(trained, "fusion.")
    write_shards(folder, items, shard_bytes=4 * 2**30)
    for file in sorted(REMOTE.glob("*.py")):
        shutil.copy(file, folder / file.name)
    write_tokenizer(trained, folder)
    generation = json.dumps(generation_config(trained.tokenizer), indent=2)
    (folder / "generation_config.json").write_text(generation + "\n")
    (folder / "config.json").write_text(json.dumps(_whole_config(trained, dtype), indent=2) + "\n")


def _whole_config(trained: Trained, dtype: str | None) -> dict[str, Any]:
    weights = trained.config.weights
    assert weights.vision
    assert weights.audio
    vision = part_config(weights.vision, "vision")
    return {
        "model_type": "affectgpt",
        "architectures": ["AffectGPTForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_affectgpt.AffectGPTConfig",
            "AutoModelForCausalLM": "modeling_affectgpt.AffectGPTForConditionalGeneration",
        },
        "text_config": language_config(trained, dtype),
        "vision_config": vision.get("vision_config", vision) | {"projection_dim": trained.config.model.vision_width},
        "audio_config": part_config(weights.audio, "audio"),
        "fusion": fusion_config(trained.config.model),
        "placeholders": trained.tokenizer.placeholders,
    }


def _refuse(dtype: str | None, kind: Kind) -> None:
    if dtype:
        raise UserError(f"--as {kind} keeps float32, the type its tensors are trained in; leave --dtype out")
