"""LoRA adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors."""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from affectgpt_jax.config.networks import Linear, LoraConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import Trained
from affectgpt_jax.weights.files import Item, StoredTensor, read_file, write_file
from affectgpt_jax.weights.networks import TRAINED
from affectgpt_jax.weights.table import nest, paths, write_tree

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The reference's names are those of PEFT's modules inside its own model: one more prefix, and the adapter's name.
_OURS = re.compile(r"llama_model\.(.*)\.default\.weight")


def write_adapter(trained: Trained, folder: Path, base: str) -> None:
    """Write the adapters.

    Args:
      trained: the run.
      folder: where to; exists.
      base: what the folder calls the language model under them.

    Raises:
      UserError: the run has no adapters.
    """
    lora, weights = trained.config.model.decoder.lora, trained.config.weights
    tree = nest({path: x for path, x in paths(trained.params).items() if "/lora_" in path})
    if not tree:
        raise UserError(
            f"{trained.source} has no adapters (model.decoder.lora.rank=0), its language model is trained as a whole; "
            "export it with --as merged"
        )
    if not weights.language:
        raise UserError(
            f"{trained.source} has adapters on a language model made from the seed, which stands in no folder; export "
            "it with --as merged"
        )
    # Names and order as PEFT writes them.
    config: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "target_modules": list(lora.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    tensors = {_theirs(name): x for name, x in write_tree(TRAINED, tree)}
    write_file(folder / WEIGHTS, [Item(name, x.shape, x.dtype, partial(np.asarray, x)) for name, x in tensors.items()])
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _theirs(name: str) -> str:
    match = _OURS.fullmatch(name)
    assert match, name
    return f"{match[1]}.weight"


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, StoredTensor], str]:
    """Read a PEFT folder, ours or another's.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.

    Returns:
      The adapters' settings, their tensors under the reference's names, and the base that the folder names.

    Raises:
      UserError: files missing, or a kind of adapter that this model does not have.
    """
    try:
        config: Mapping[str, Any] = json.loads((folder / CONFIG).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read ({error})") from error
    plain = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False}
    plain |= {"rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None}
    odd = [f"{key}={config[key]!r}" for key, usual in plain.items() if config.get(key, usual) not in (usual, None)]
    targets = config.get("target_modules")
    targets = [targets] if isinstance(targets, str) else sorted(targets or [])
    odd += [f"target_modules has {name!r}" for name in targets if name not in get_args(Linear)]
    if odd:
        raise UserError(f"{folder / CONFIG}: {', '.join(odd)} is not supported; plain LoRA on the linear maps is")
    tensors = {
        f"llama_model.{name.removesuffix('.weight')}.default.weight": x
        for name, x in read_file(folder / WEIGHTS).items()
    }
    ordered = tuple(name for name in get_args(Linear) if name in targets)
    lora = LoraConfig(
        rank=config["r"], alpha=config["lora_alpha"], dropout=config.get("lora_dropout", 0.0), targets=ordered
    )
    return lora, tensors, config.get("base_model_name_or_path") or ""
