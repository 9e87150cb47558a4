"""The language model with its adapters merged, as a Hugging Face folder (`Qwen2ForCausalLM`), tensor by tensor."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from affectgpt_jax.config.networks import DecoderConfig, LoraConfig
from affectgpt_jax.data.prompts import PLACEHOLDERS
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import Trained
from affectgpt_jax.model_folders import model_folder
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.weights.files import Item, open_part, part_config, read_config, write_shards
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.networks import DECODER
from affectgpt_jax.weights.table import Entry, entries, nest, paths

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def merged_items(trained: Trained, dtype: str | None = None, prefix: str = "") -> list[Item]:
    """The merged language model's tensors under their Hugging Face names, each made when it is written.

    W' = W + (alpha / rank) (A B)^T, added in float32 and rounded once to the stored type.

    Args:
      trained: the run.
      dtype: a name of `DTYPES`; None keeps each tensor's own type in the base, and float32 where there is no base.
      prefix: put before each name.
    """
    config = trained.config
    flat = paths(trained.params)
    shapes = paths(parameter_shapes(AffectGPT(config.model)))
    decoder = nest({path: x for path, x in shapes.items() if path.startswith("decoder/") and "/lora_" not in path})
    base = open_part(config.weights.language, "language")[1] if config.weights.language else {}
    items = []
    for name, entry in entries(DECODER, decoder):
        kept = base[name].dtype if name in base else DTYPES["float32"]
        stored = DTYPES[dtype] if dtype else kept
        read = partial(_merged, flat, base, config.model.decoder.lora, name, entry, stored)
        items.append(Item(prefix + name, entry.row.their_shape(entry.shape), stored, read))
    return items


def _merged(
    flat: Mapping[str, Any], base: Mapping[str, Any], lora: LoraConfig, name: str, entry: Entry, dtype: np.dtype
) -> np.ndarray:
    layer = ... if entry.layer is None else entry.layer
    own = flat.get(entry.path)
    tensor = np.asarray(base[name]) if own is None else entry.row.to_theirs(np.asarray(own[layer]))
    linear = entry.path.removesuffix("/kernel")
    if (a := flat.get(f"{linear}/lora_a")) is not None:
        delta = np.asarray(flat[f"{linear}/lora_b"][layer]).T @ np.asarray(a[layer]).T
        tensor = tensor.astype(np.float32) + delta * np.float32(lora.alpha / lora.rank)
    return tensor.astype(dtype, copy=False)


def language_config(trained: Trained, dtype: str | None = None) -> dict[str, Any]:
    """The merged model's config.json: the base's own, where there is one."""
    folder = trained.config.weights.language
    config = dict(part_config(folder, "language")) if folder else trained.config.model.decoder.to_hf()
    stored = {item.dtype.name for item in merged_items(trained, dtype)}
    if len(stored) == 1:
        # Older versions of transformers read the first spelling, newer ones the second.
        config |= {"torch_dtype": next(iter(stored)), "dtype": next(iter(stored))}
    return config


def write_language(trained: Trained, folder: Path, dtype: str | None = None, *, shard_bytes: int = 4 * 2**30) -> None:
    """Write the merged model, its tokenizer and its generation defaults.

    Args:
      trained: the run.
      folder: where to; exists.
      dtype: see `merged_items`.
      shard_bytes: largest file.

    Raises:
      UserError: the tokenizer cannot be carried over.
    """
    write_shards(folder, merged_items(trained, dtype), shard_bytes=shard_bytes)
    write_tokenizer(trained, folder)
    (folder / "generation_config.json").write_text(json.dumps(generation_config(trained.tokenizer), indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(language_config(trained, dtype), indent=2) + "\n")


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Generation defaults: greedy, ending at the tokens our own engine ends at (QUIRKS 46, 48)."""
    return {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": list(tokenizer.end_ids),
        "pad_token_id": tokenizer.pad,
        "do_sample": False,
    }


def write_tokenizer(trained: Trained, folder: Path) -> None:
    """Write the run's tokenizer with its placeholder tokens, as transformers opens it.

    Raises:
      UserError: transformers cannot open it, or numbers the placeholders otherwise.
    """
    from transformers import AutoTokenizer

    source = trained.config.weights.tokenizer or trained.config.weights.language
    assert source  # a run cannot be opened without
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_folder(source), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: transformers cannot open this tokenizer ({error})") from error
    present = tokenizer.get_added_vocab()
    tokenizer.add_tokens([token for token in PLACEHOLDERS.values() if token not in present], special_tokens=True)
    ours = {PLACEHOLDERS[modality]: number for modality, number in trained.tokenizer.placeholders.items()}
    theirs = {token: tokenizer.convert_tokens_to_ids(token) for token in ours}
    if ours != theirs:
        raise UserError(f"{source}: the placeholders get ids {theirs} in transformers, but {ours} here")
    tokenizer.save_pretrained(folder)


def read_language_config(folder: Path) -> DecoderConfig:
    """Sizes of a merged model; it has no adapters."""
    return DecoderConfig.from_hf(read_config(folder), lora=LoraConfig(rank=0))
