"""Tables that say, for each parameter of a network, what it is called elsewhere, how its axes lie, what they mean.

A parameter's *path* is its keys joined by "/". Layers are stacked: a path below `layers/` holds L tensors, and its
row's name contains `{layer}`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from affectgpt_jax.errors import UserError

Shape = tuple[int, ...]
Reader = Callable[[Any], np.ndarray]
"""Reads a part of an array, named by a slice an axis."""
_BAND = 128
"""Rows of a matrix that are turned at a time."""


class Row(NamedTuple):
    """One kind of parameter.

    Attributes:
      path: regular expression that matches the whole path.
      name: the tensor's name elsewhere, with the path's groups as \\1, \\2, ... and `{layer}` for the layer's number.
      axes: logical axes of our array, without the leading "layers" of stacked ones; None is never sharded.
      order: our array is the other one transposed by `order` (then reshaped). None: as it is.
      unfold: from our shape to the transposed shape before reshaping, where the two differ.
    """

    path: str
    name: str
    axes: tuple[str | None, ...]
    order: tuple[int, ...] | None = None
    unfold: Callable[[Shape], Shape] | None = None

    def to_ours(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """The array in our layout."""
        return (array if self.order is None else array.transpose(self.order)).reshape(shape)

    def read(self, tensor: Any, shape: Shape, index: tuple[slice, ...]) -> np.ndarray:
        """A part of our array, reading no more of theirs than it needs.

        Args:
          tensor: theirs; anything with `shape` of which `tensor[slices]` is an array.
          shape: of our whole array.
          index: a slice an axis of ours.
        """
        if len(tensor.shape) != len(shape) or self.unfold is not None:
            return self.to_ours(np.asarray(tensor[...]), shape)[index]
        if self.order is None:
            return np.asarray(tensor[index])
        theirs = tuple(index[ours] for ours in np.argsort(self.order))
        return np.asarray(tensor[theirs]).transpose(self.order)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """The array in the other layout."""
        if self.unfold is not None:
            array = array.reshape(self.unfold(array.shape))
        return array if self.order is None else array.transpose(np.argsort(self.order))

    def their_shape(self, shape: Shape) -> Shape:
        """The other layout's shape for a shape of ours."""
        if self.unfold is not None:
            shape = self.unfold(shape)
        return shape if self.order is None else tuple(shape[i] for i in np.argsort(self.order))


class Table(NamedTuple):
    """Rows of one network, and names elsewhere that have no counterpart here."""

    network: str
    rows: Sequence[Row]
    ignored: str = r"(?!)"


def paths(tree: Any) -> dict[str, Any]:
    """A nested dictionary as {path: leaf}, in order."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `paths`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def find_row(table: Table, path: str) -> tuple[Row, re.Match[str]]:
    """The one row that matches a path.

    Raises:
      LookupError: no row or several; a mistake in the table.
    """
    found = [(row, match) for row in table.rows if (match := re.fullmatch(row.path, path))]
    if len(found) != 1:
        raise LookupError(f"{table.network}: {len(found)} rows of the table match {path}")
    return found[0]


class Entry(NamedTuple):
    """Where one tensor of the other side lies in ours."""

    path: str
    layer: int | None
    row: Row
    shape: Shape
    """Our shape of this tensor, without the layer axis."""


def entries(table: Table, tree: Any) -> Iterator[tuple[str, Entry]]:
    """Every tensor of the other side that `tree` (arrays or their shapes) corresponds to, by its name there."""
    for path, leaf in paths(tree).items():
        row, match = find_row(table, path)
        name = match.expand(row.name)
        if "{layer}" in name:
            for layer in range(leaf.shape[0]):
                yield name.replace("{layer}", str(layer)), Entry(path, layer, row, tuple(leaf.shape[1:]))
        else:
            yield name, Entry(path, None, row, tuple(leaf.shape))


def logical_axes(table: Table, tree: Any) -> dict[str, Any]:
    """The tree with each leaf replaced by its logical axes."""
    flat = {}
    for path in paths(tree):
        row, _ = find_row(table, path)
        flat[path] = ("layers", *row.axes) if "{layer}" in row.name else row.axes
    return nest(flat)


def read_tree(
    table: Table, shapes: Any, source: Mapping[str, Any], origin: str, shardings: Any = None
) -> dict[str, Any]:
    """Fill a tree from named tensors, a leaf at a time.

    Args:
      table: the network's table.
      shapes: the tree to fill, of anything with `shape` and `dtype` (`jax.eval_shape`).
      source: tensors by their names there; each has `shape`, and `tensor[slices]` is an array.
      origin: where they come from, for messages.
      shardings: of each leaf. With them the leaves are jax arrays, made device by device from no more than the
        device's own part; without, they are host arrays.

    Raises:
      UserError: names that are missing, unused or of another shape, all of them listed.
    """
    where = {} if shardings is None else paths(shardings)
    flat: dict[str, Any] = {}
    for path, leaf, read in readers(table, shapes, source, origin):
        if shardings is None:
            flat[path] = read(tuple(slice(0, size) for size in leaf.shape))
        else:
            flat[path] = jax.make_array_from_callback(leaf.shape, where[path], read)
    return nest(flat)


def readers(table: Table, shapes: Any, source: Mapping[str, Any], origin: str) -> Iterator[tuple[str, Any, Reader]]:
    """Each leaf of a tree with its path and with what reads parts of it; see `read_tree`.

    Raises:
      UserError: as `read_tree`, before the first leaf.
    """
    places = _check_names(table, shapes, source, origin)
    for path, leaf in paths(shapes).items():
        yield path, leaf, partial(read_part, places[path], source, tuple(leaf.shape), leaf.dtype)


def read_part(
    places: Sequence[tuple[str, Entry]], source: Mapping[str, Any], shape: Shape, dtype: Any, index: tuple[slice, ...]
) -> np.ndarray:
    """A part of one leaf.

    Args:
      places: its tensors, in the order of the layers where it is stacked.
      source: tensors by their names there.
      shape: the leaf's whole shape.
      dtype: the leaf's type.
      index: a slice an axis.
    """
    index = tuple(slice(*part.indices(size)) for part, size in zip(index, shape, strict=True))
    if places[0][1].layer is None:
        ((name, entry),) = places
        part = entry.row.read(source[name], entry.shape, index)
        if part.flags.c_contiguous:
            return part.astype(dtype, copy=False)
        out = np.empty(part.shape, dtype)
        _copy(part, out)
        return out
    layers, rest = range(shape[0])[index[0]], index[1:]
    out = np.empty((len(layers), *(len(range(size)[part]) for part, size in zip(rest, shape[1:], strict=True))), dtype)
    for slot, layer in enumerate(layers):
        name, entry = places[layer]
        _copy(entry.row.read(source[name], entry.shape, rest), out[slot])
    return out


def _copy(array: np.ndarray, out: np.ndarray) -> None:
    """Copy an array into one of its shape.

    A transposed matrix goes by bands of its rows, whose cache lines stay until all of their numbers are taken: three
    times as fast.
    """
    if array.ndim == 2 and array.strides[0] < array.strides[1]:
        for start in range(0, array.shape[1], _BAND):
            band = slice(start, start + _BAND)
            out[:, band] = array[:, band]
    else:
        out[...] = array


def _check_names(
    table: Table, shapes: Any, source: Mapping[str, Any], origin: str
) -> dict[str, list[tuple[str, Entry]]]:
    """Compare names and shapes of both sides; the tensors of each leaf, by its path."""
    wanted = dict(entries(table, shapes))
    names = set(source)
    missing = sorted(set(wanted) - names)
    unused = sorted(name for name in names - set(wanted) if not re.fullmatch(table.ignored, name))
    places: dict[str, list[tuple[str, Entry]]] = {}
    wrong = []
    for name, entry in wanted.items():
        places.setdefault(entry.path, []).append((name, entry))
        if name in names:
            found, expected = tuple(source[name].shape), entry.row.their_shape(entry.shape)
            if found != expected:
                wrong.append(f"{name}: {found}, expected {expected}")
    problems = [("missing", missing), ("not used", unused), ("of another shape", wrong)]
    if any(found for _, found in problems):
        lines = [f"  {kind}: " + "\n    ".join(["", *found]) for kind, found in problems if found]
        raise UserError(
            f"{origin} does not fit the {table.network} it was read for (is its config.json the right one?)\n"
            + "\n".join(lines)
        )
    return places


def write_tree(table: Table, tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """A tree's tensors under their names on the other side, one at a time."""
    flat = paths(tree)
    for name, entry in entries(table, tree):
        array = np.asarray(flat[entry.path][... if entry.layer is None else entry.layer])
        yield name, np.ascontiguousarray(entry.row.to_theirs(array))
