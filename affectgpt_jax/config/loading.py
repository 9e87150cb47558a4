"""From YAML files and command-line overrides to a checked config, and back.

A file may name another one with `base:` (a path beside it, or the name of a shipped config); its own keys are merged
over that. Overrides are dotted keys: `train.steps=200`.
"""

import difflib
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError

from affectgpt_jax.config.base import Section
from affectgpt_jax.config.run import MeshConfig, RunConfig
from affectgpt_jax.errors import UserError

SHIPPED = Path(__file__).parent.parent / "configs"
CLONE = Path(__file__).parents[2] / "configs"
Checked = TypeVar("Checked", bound=Section)
RUN_CONFIG = "config.yaml"
"""What a run folder calls its config."""


def config_folder() -> Path:
    """Where the shipped configs lie: in a clone beside the package, in an installed wheel inside it."""
    return SHIPPED if SHIPPED.is_dir() else CLONE


def find_config(name: str, beside: Path | None = None) -> Path:
    """Resolve a config's name: a path, a run folder, a path beside another file, or a shipped config with or without
    `.yaml`.

    Raises:
      UserError: nothing there; names the nearest shipped config.
    """
    candidates = [Path(name)] if beside is None else [beside.parent / name, Path(name)]
    candidates += [config_folder() / name, config_folder() / f"{name}.yaml"]
    for path in candidates:
        for file in (path, path / RUN_CONFIG):
            if file.is_file():
                return file
    shipped = sorted(path.stem for path in config_folder().glob("*.yaml"))
    near = difflib.get_close_matches(Path(name).name.removesuffix(".yaml"), shipped, 1, 0.0)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"no config {name}: neither a file nor one of {', '.join(shipped)}{hint}")


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in seen:
        raise UserError(f"{path}: base files name each other in a circle")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    base = values.pop("base", None)
    return values if base is None else _merge(_read(find_config(base, path), (*seen, path)), values)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _override(text: str) -> dict[str, Any]:
    key, found, value = text.partition("=")
    if not found or not key.strip():
        raise UserError(f"override {text!r}: expected key=value, for example train.steps=200")
    try:
        nested: Any = yaml.safe_load(value) if value else ""
    except yaml.YAMLError as error:
        raise UserError(f"override {text!r}: the value is not valid YAML: {error}") from error
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Values with dotted overrides merged over them, in order."""
    return reduce(_merge, map(_override, overrides), dict(values))


def _fields(section: type[Section], path: Sequence[str | int]) -> dict[str, Any]:
    """Fields of the section that a path of keys leads to; empty where it leads to no section."""
    rest = [str(part) for part in path]
    while rest:
        field = section.model_fields.get(rest.pop(0))
        if field is not None and get_origin(field.annotation) in (dict, tuple):
            rest = rest[1:]  # its key, or number
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if not inner:
            return {}
        section = inner[0]
    return dict(section.model_fields)


def _all_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += _all_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _nearest(section: type[Section], path: Sequence[str | int]) -> str:
    """The valid key most like a wrong one: in the same section if anything there is alike, else anywhere."""
    *parents, last = (str(part) for part in path)
    near = difflib.get_close_matches(last, _fields(section, parents), 1, 0.6)
    if near:
        return ".".join([*parents, near[0]])
    keys = _all_keys(section)
    same = [key for key in keys if key.split(".")[-1] == last]
    return (same or difflib.get_close_matches(".".join([*parents, last]), keys, 1, 0.0))[0]


def _line(section: type[Section], error: Mapping[str, Any]) -> str:
    path = list(error["loc"])
    key = ".".join(str(part) for part in path)
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}; nearest valid key: {_nearest(section, path)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]} (found {error['input']!r})"


def check_section(section: type[Checked], values: Any, origin: str) -> Checked:
    """Values as a section.

    Args:
      section: what they should be.
      values: sections and keys.
      origin: where they come from, for messages.

    Raises:
      UserError: one line a problem, each with the key, what was found and the nearest valid key.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = [_line(section, detail) for detail in error.errors()]
        raise UserError(f"{origin}: " + "\n  ".join(lines)) from None


def build_config(values: Mapping[str, Any], origin: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Check values.

    Args:
      values: sections and keys.
      origin: where they come from, for messages.
      overrides: dotted keys, applied in order.

    Raises:
      UserError: one line a problem, each with the key, what was found and the nearest valid key.
    """
    values = with_overrides(values, overrides)
    return check_section(RunConfig, values, f"{origin} with {' '.join(overrides)}" if overrides else origin)


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config.

    Args:
      name: a path, a run folder or the name of a shipped config.
      overrides: dotted keys, applied in order.

    Raises:
      UserError: a file or key that does not exist, a value of the wrong type, an impossible combination.
    """
    path = find_config(str(name))
    return build_config(_read(path), str(path), overrides)


def parse_mesh(text: str) -> MeshConfig:
    """A mesh as it is written on a command line, such as data=4,tensor=2.

    Raises:
      UserError: another axis, no number, or sizes that no mesh has.
    """
    return build_config({}, f"mesh {text!r}", [f"mesh.{part.strip()}" for part in text.split(",")]).mesh


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved config; `load_config` of the file gives an equal one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    path.write_text(f"# Every setting of this run; `affectgpt train {path.name}` starts it again.\n{text}")
