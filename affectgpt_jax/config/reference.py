"""The authors' settings as ours: their YAML, or the same as one of their checkpoints keeps it."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from math import isfinite, nan
from operator import getitem
from pathlib import Path
from typing import Any

from affectgpt_jax.config.loading import build_config
from affectgpt_jax.config.networks import ModelConfig
from affectgpt_jax.config.run import RunConfig
from affectgpt_jax.data.prompts import MODES, needs
from affectgpt_jax.data.shard_schema import parse_stream
from affectgpt_jax.errors import UserError

AUDIO_CLIPS = 8
"""Clips of a sound; the reference's constant."""

ROW_MULTIPLE = 128
"""A row is rounded up to a multiple of this many tokens."""

_FOLDERS = {
    "vision": ("model.visual_encoder", "CLIP_VIT_LARGE", "openai/clip-vit-large-patch14"),
    "audio": ("model.acoustic_encoder", "HUBERT_LARGE", "TencentGameMate/chinese-hubert-large"),
    "language": ("model.llama_model", "Qwen25", "Qwen/Qwen2.5-7B-Instruct"),
}
"""For each folder of `weights`: their setting, their name for what we can load, and where that is published."""

_SHORT = {
    "model.multi": "model.multi_fusion_type",
    "model.video": "model.video_fusion_type",
    "model.audio": "model.audio_fusion_type",
    "model.image": "model.image_fusion_type",
    "model.nm": "model.num_multi_query_token",
    "model.nv": "model.num_video_query_token",
    "model.na": "model.num_audio_query_token",
    "model.ni": "model.num_image_query_token",
}
"""Short names for the same settings, as checkpoints without their settings file carry them."""


def _number(value: Any) -> float:
    """A number, also one that YAML takes for text (`1e-5`)."""
    try:
        number = nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = nan
    if not isfinite(number):
        raise ValueError("a number")
    return number


def _count(value: Any) -> int:
    if (number := _number(value)) != int(number):
        raise ValueError("a whole number")
    return int(number)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _choice(*names: str, **renamed: Any) -> Callable[[Any], Any]:
    """Admits some values; `renamed` says which of them have another one here."""
    known = {name: name for name in names} | renamed

    def convert(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{', '.join(known)}; nothing else is supported here")
        return known[value]

    return convert


_TAKEN: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "model.multi_fusion_type": ("model.prefusion", _choice("attention", "qformer")),
    "model.video_fusion_type": ("model.video", _choice("attention", "qformer", "mean")),
    "model.audio_fusion_type": ("model.audio", _choice("attention", "qformer", "mean")),
    "model.image_fusion_type": ("model.image", _choice("mean", "token")),
    "model.num_multi_query_token": ("model.tokens.multi", _count),
    "model.num_video_query_token": ("model.tokens.video", _count),
    "model.num_audio_query_token": ("model.tokens.audio", _count),
    "model.num_image_query_token": ("model.tokens.image", _count),
    "run.init_lr": ("train.optimizer.peak", _number),
    "run.min_lr": ("train.optimizer.end", _number),
    "run.warmup_lr": ("train.optimizer.warmup_start", _number),
    "run.warmup_steps": ("train.optimizer.warmup_steps", _count),
    "run.weight_decay": ("train.optimizer.weight_decay", _number),
    "run.lr_sched": ("train.optimizer.schedule", _choice(linear_warmup_cosine_lr="reference")),
    "run.batch_size_train": ("train.rows", _count),
    "run.seed": ("train.seed", _count),
}
"""Their settings with one place here, and how a value is read."""

_FROZEN = {
    r"model\.frozen_llm": r"decoder/.*/lora_",
    r"model\.frozen_(video|audio|multi)_Qformer": r"fusion/\1/qformer/",
    r"model\.frozen_(video|audio|multi)(?:_llama)?_proj": r"fusion/\1/proj/",
}
"""Their flags, and the parameters that are not trained where one is set."""

_LABEL_TYPES = {"hybird": ("ovlabel", "description"), "ovlabel": ("ovlabel",), "description": ("description",)}
"""Question kinds of a training sample; `hybird` draws one of both (QUIRKS 30)."""

_NOT_TAKEN = {
    r"model\.(arch|model_type)": "there is one model here, and no registry of names",
    r"model\.ckpt(_\d+)?": "a checkpoint to begin with is imported by itself",
    r"(model|datasets)\.(.*\.)?((vis|img|image)_processor\..*|image_size)": (
        "the vision folder's own preprocessing decides; their random crop never reaches CLIP (QUIRKS 8)"
    ),
    r"run\.(device|gpu|rank|world_size|dist_url|dist_backend|distributed)": (
        "devices are found at the start, and `mesh` divides them; train.rows counts over all devices, their "
        "batch_size_train on each"
    ),
    r"run\.(num_workers|batch_size_eval)": "see data.threads and evaluate.batch; results do not depend on them",
    r"run\.(task|evaluate|(train|valid|test)_splits|output_dir)": "the command, data.split and train.output decide",
    r"run\.resume_ckpt_path": "a run goes on by itself from the latest checkpoint in its folder",
    r"inference(\..*)?": "how clips are answered is set where they are: `evaluate` and the commands",
}
"""Why a setting is not taken over."""


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = nested
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return nested


class _Theirs:
    """Their settings by dotted key; what has been taken is gone."""

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        self.origin = origin
        self.left = {_SHORT.get(key, key): value for key, value in _flatten(values)}
        self.missing: list[str] = []

    def take(self, key: str, convert: Callable[[Any], Any], default: Any = None) -> Any:
        """A setting, or the default where it is missing."""
        if key not in self.left:
            self.missing.append(key)
            return default
        value = self.left.pop(key)
        try:
            return convert(value)
        except ValueError as error:
            raise UserError(f"{self.origin}: {key}={value!r}; expected {error}") from None

    def agreed(self, pattern: str, name: str, convert: Callable[[Any], Any], default: Any = None) -> Any:
        """A setting that may stand in several places, which must agree."""
        keys = [key for key in self.left if re.fullmatch(pattern, key)]
        found = {key: self.take(key, convert) for key in keys}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{key}={value}" for key, value in found.items())
            raise UserError(f"{self.origin}: {listed}; a run here has one {name} for all its data, so make them equal")
        if not found:
            self.missing.append(name)
        return next(iter(found.values()), default)


def import_reference(values: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], list[str]]:
    """Translate the reference's settings.

    The result reproduces the original's training, oddities included (`compat: reference`), one sample a row. Folders
    are left for the user to fill in.

    Args:
      values: the sections model, datasets, run and inference of its YAML, or the `config` of one of its checkpoints.
      origin: the file, for messages and for the run's name.

    Returns:
      Keys of `RunConfig`, accepted by `build_config`; and a line for each thing that was not taken over, and why.

    Raises:
      UserError: no settings of the reference, or something that cannot be reproduced here.
    """
    if not all(isinstance(values.get(section), Mapping) for section in ("model", "run")):
        raise UserError(
            f"{origin}: no sections 'model' and 'run'; expected the settings of the reference (its YAML, or the "
            f"`config` of one of its checkpoints), found {', '.join(map(str, values)) or 'nothing'}"
        )
    theirs = _Theirs(values, origin)
    notes: list[str] = []
    flat: dict[str, Any] = {
        "name": Path(origin).stem,
        "compat": "reference",
        "weights.vision": None,
        "weights.audio": None,
        "weights.language": None,
    }
    for key, (ours, convert) in _TAKEN.items():
        if (value := theirs.take(key, convert)) is not None:
            flat[ours] = value
    flat |= _data(theirs, notes) | _steps(theirs) | _adapters(theirs, notes)
    _folders(theirs, notes)
    if theirs.left.pop("run.amp", False):
        # Their float16 needs a scaled loss, bfloat16 does not.
        flat["model.decoder.dtype"] = "bfloat16"
    if "train.rows" in flat:
        flat["data.group"] = flat["train.rows"]  # the loss is a mean over each of their batches

    if theirs.missing:
        notes.append(f"not in the file, so the published setting stands: {', '.join(theirs.missing)}")
    reasons: dict[str, list[str]] = {}
    for key, value in theirs.left.items():
        reason = next((why for pattern, why in _NOT_TAKEN.items() if re.fullmatch(pattern, key)), "unknown here")
        reasons.setdefault(reason, []).append(f"{key}={value}")
    notes += [f"not taken over: {', '.join(keys)}: {reason}" for reason, keys in reasons.items()]

    nested = _nest(flat)
    build_config(nested, origin)
    return nested, notes


def export_reference(config: RunConfig) -> dict[str, Any]:
    """A run's settings under the reference's keys, as its checkpoints hold them; `import_reference` takes them back."""
    nested = config.model_dump(mode="json")
    flat: dict[str, Any] = {key: reduce(getitem, ours.split("."), nested) for key, (ours, _) in _TAKEN.items()}
    if config.model.prefusion == "none":
        flat["model.multi_fusion_type"] = "attention"  # theirs always has one; the mode decides whether it is used
    flat["run.lr_sched"] = "linear_warmup_cosine_lr"
    flat |= {key: name for key, name, _ in _FOLDERS.values()}
    labels = next((name for name, kinds in _LABEL_TYPES.items() if kinds == config.data.label_types), "hybird")
    frames = [parse_stream(stream).count for stream in config.prepare.streams if not stream.startswith("audio")]
    epoch = config.train.optimizer.epoch_steps
    return _nest(
        flat
        | {
            "model.max_length": config.data.max_length,
            "model.vis_processor.train.n_frms": max(frames, default=8),
            "datasets.mercaptionplus.data_type": "video",
            "datasets.mercaptionplus.face_or_frame": config.model.mode,
            "datasets.mercaptionplus.label_type": labels,
            "run.amp": config.model.decoder.dtype == "bfloat16",
            "run.max_epoch": -(-config.train.steps // epoch),
            "run.iters_per_epoch": epoch,
        }
    )


def _data(theirs: _Theirs, notes: list[str]) -> dict[str, Any]:
    """Input mode, feature streams and samples."""
    corpora = list(dict.fromkeys(key.split(".")[1] for key in theirs.left if key.startswith("datasets.")))
    if len(corpora) > 1:
        notes.append(
            f"datasets {', '.join(corpora)}: prepare them as one corpus; each clip is then seen once a pass, while the "
            "reference draws a data set for each batch, whatever its size"
        )
    theirs.agreed(r"datasets\.[^.]+\.data_type", "datasets.*.data_type", _choice("video"))
    mode = theirs.agreed(
        r"datasets\.[^.]+\.face_or_frame", "datasets.*.face_or_frame", _choice(*MODES), ModelConfig().mode
    )
    labels = theirs.agreed(
        r"datasets\.[^.]+\.label_type", "datasets.*.label_type", _choice(**_LABEL_TYPES), _LABEL_TYPES["hybird"]
    )
    frames = theirs.agreed(
        r"(model|datasets\.[^.]+)\.vis_processor\.train\.n_frms", "vis_processor.train.n_frms", _count, 8
    )
    length = theirs.take("model.max_length", _count, 1024)
    notes.append("fill in: prepare.corpus and data.shards, your own folders")
    return {
        "model.mode": mode,
        "prepare.streams": [
            f"{stream}@{AUDIO_CLIPS if stream == 'audio' else frames}"
            for stream in needs(mode).streams
            if stream != "image"
        ],
        "data.label_types": list(labels),
        "data.label_weights": [1.0] * len(labels),
        "data.max_length": length,
        # Room for bos and eos, which their limit does not count.
        "data.row_length": -(-(length + 2) // ROW_MULTIPLE) * ROW_MULTIPLE,
        "data.row_samples": 1,
        "data.row_targets": length,
        "data.weighting": "reference",
    }


def _steps(theirs: _Theirs) -> dict[str, Any]:
    """Steps, and the epochs into which the reference's schedule divides them."""
    if (rounds := theirs.left.pop("run.accum_grad_iters", 1)) != 1:
        raise UserError(
            f"{theirs.origin}: run.accum_grad_iters={rounds}; the reference adds such gradients up without dividing, "
            "across the ends of epochs, which is not done here. Set it to 1 and change train.accumulate of the result"
        )
    epochs = theirs.take("run.max_epoch", _count, 60)
    steps = theirs.take("run.iters_per_epoch", _count, 5000)
    return {
        "train.steps": epochs * steps,
        "train.optimizer.epoch_steps": steps,
        "train.optimizer.schedule": "reference",
        "train.checkpoint_every": steps,
    }


def _adapters(theirs: _Theirs, notes: list[str]) -> dict[str, Any]:
    """What is trained."""
    frozen = {}
    for pattern, path in _FROZEN.items():
        for key in [key for key in theirs.left if re.fullmatch(pattern, key)]:
            if theirs.take(key, _flag):
                frozen[key] = re.sub(pattern, path, key)
    if frozen:
        listed = ", ".join(f"{key} ({path})" for key, path in frozen.items())
        notes.append(f"frozen, as the file says: {listed}; see train.trainable")
    fusion = "|".join(path.removeprefix("fusion/") for path in frozen.values() if path.startswith("fusion/"))
    adapters = [] if "model.frozen_llm" in frozen else [r"/lora_[ab]$"]
    return {
        "train.trainable": [rf"^fusion/(?!{fusion})" if fusion else "^fusion/", *adapters],
        # Constants of their code.
        "model.decoder.lora.rank": 16,
        "model.decoder.lora.alpha": 32.0,
        "model.decoder.lora.dropout": 0.05,
    }


def _folders(theirs: _Theirs, notes: list[str]) -> None:
    """Which published weights they used; ours are named by folder."""
    for folder, (key, known, published) in _FOLDERS.items():
        name = theirs.take(key, str if folder == "language" else _choice(known))
        if name in (known, None):
            notes.append(f"fill in: weights.{folder}, a folder with {published}")
        else:
            notes.append(f"fill in: weights.{folder}, a folder with {name}; it must be of the Qwen2 kind")
