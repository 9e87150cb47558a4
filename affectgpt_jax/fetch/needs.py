"""What a config needs that others publish, and whether it is here."""

import os
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import NamedTuple

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.prompts import needs
from affectgpt_jax.errors import UserError
from affectgpt_jax.fetch.catalogue import CATALOGUE, Item, find_item
from affectgpt_jax.fetch.plan import presence
from affectgpt_jax.model_folders import model_folder

WHEELS = "AFFECTGPT_WHEEL_DIR"


class Need(NamedTuple):
    """One thing that a config needs.

    Attributes:
      key: the setting that names it.
      value: where the config says it is, or where fetch puts it.
      here: "yes", "no", "in part", "not by fetch" or "in the Hub's cache".
      item: what fits of the catalogue; None if it is nothing that others publish.
      setting: what to add to the command line where the config does not say it.
      note: what a user should know of it.
      optional: a run does without it.
    """

    key: str
    value: str
    here: str
    item: Item | None = None
    setting: str = ""
    note: str = ""
    optional: bool = False

    @property
    def missing(self) -> bool:
        return self.here in ("no", "in part")


def config_needs(config: RunConfig, to: Path | None, environment: Mapping[str, str] = os.environ) -> list[Need]:
    """All that a config needs: base model, encoders, data, wheels.

    Args:
      config: of the run.
      to: parent of the items' folders; None is that of `item_folder`.
      environment: variables.
    """
    wanted = needs(config.model.mode)
    found = [_weights(config, "weights.language", config.weights.language, to)]
    if {"face", "frame", "image"} & set(wanted.streams):
        found.append(_weights(config, "weights.vision", config.weights.vision, to))
    if "audio" in wanted.streams:
        found.append(_weights(config, "weights.audio", config.weights.audio, to))
    return [*found, _data(config, to), _wheels(environment, to)]


def item_folder(item: Item, to: Path | None) -> Path:
    """Where an item goes: the folder that configs call it by, in `to`, or in models/ or data/ of the current folder."""
    return (to or Path(item.root)) / item.folder


def _weights(config: RunConfig, key: str, given: str | None, to: Path | None) -> Need:
    values = {setting for item in CATALOGUE if item.fills == key for setting in item.fits}
    sizes = {setting: reduce(getattr, setting.split("."), config) for setting in values}
    fitting = [x for x in CATALOGUE if x.fills == key and all(sizes[name] == value for name, value in x.fits.items())]
    item = fitting[0] if fitting else None
    if given is not None:
        known = item is not None and (given == item.repo or Path(given).name == item.folder)
        here = "yes" if Path(given).is_dir() else _cached(given)
        return Need(key, given, here, item if known else None, note="" if known else "of your own choice")
    if item is None:
        text = ", ".join(f"{name}={value}" for name, value in sorted(sizes.items()))
        note = f"nothing that can be fetched has {text}; " + (
            "it starts from random weights" if key == "weights.language" else "name a folder of your own"
        )
        return Need(key, "-", "not by fetch", note=note)
    folder = item_folder(item, to)
    here = presence(item, folder)
    if here in ("no", "in part") and _cached(item.repo) == "in the Hub's cache":
        return Need(key, item.repo, "in the Hub's cache", item, f"{key}={item.repo}")
    return Need(key, str(folder), here, item, f"{key}={folder}")


def _cached(name: str) -> str:
    """Whether a model's weights are in the Hub's cache."""
    try:
        folder = model_folder(name)
    except UserError:
        return "no"
    return "in the Hub's cache" if any(folder.glob("*.safetensors")) else "no"


def _data(config: RunConfig, to: Path | None) -> Need:
    shards, corpus = config.data.shards, config.prepare.corpus
    if shards and ("://" in shards or Path(shards).is_dir()):
        return Need("data.shards", shards, "yes", note="the corpus is not needed any more")
    kind, colon, path = corpus.partition(":")
    if corpus and Path(path if colon else corpus).exists():
        return Need("prepare.corpus", corpus, "yes", note="`affectgpt prepare` makes data.shards of it")
    item = find_item("mer2025")
    if corpus and kind not in ("mercaptionplus", "ovmerd"):
        return Need("prepare.corpus", corpus, "no", note="a corpus of your own")
    folder = Path(path) if corpus else item_folder(item, to)
    setting = "" if corpus else item.fills.format(folder=folder)
    return Need("prepare.corpus", str(folder), presence(item, folder), item, setting, "or any corpus of your own")


def _wheels(environment: Mapping[str, str], to: Path | None) -> Need:
    item = find_item("emotion-wheels")
    note = "for scores that compare with published ones; without, a small built-in lexicon groups words"
    if given := environment.get(WHEELS):
        return Need(WHEELS, given, "yes" if Path(given).is_dir() else "no", item, "", note, True)
    folder = item_folder(item, to)
    return Need("--wheel-dir", str(folder), presence(item, folder), item, f"--wheel-dir {folder}", note, True)
