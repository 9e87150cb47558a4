"""Tables: which row a path meets, and what reading says when a source does not fit."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from affectgpt_jax.errors import UserError
from affectgpt_jax.weights.table import (
    Row,
    Table,
    entries,
    find_row,
    logical_axes,
    nest,
    paths,
    read_part,
    read_tree,
    write_tree,
)

TABLE = Table(
    "toy network",
    [
        Row("layers/(a|b)/kernel", r"blocks.{layer}.\1.weight", ("embed", "mlp"), (1, 0)),
        Row("conv/kernel", "conv.weight", (None, "embed"), (2, 1, 0), lambda shape: (shape[0] // 3, 3, shape[1])),
        Row("scale", "norm.weight", (None,)),
    ],
    ignored=r"text\..*",
)

SHAPES = {
    "layers": {part: {"kernel": jax.ShapeDtypeStruct((2, 3, 5), np.float32)} for part in "ab"},
    "conv": {"kernel": jax.ShapeDtypeStruct((6, 4), np.float32)},
    "scale": jax.ShapeDtypeStruct((7,), np.float32),
}


def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {f"blocks.{layer}.{part}.weight": (5, 3) for layer in (0, 1) for part in "ab"}
    shapes |= {"conv.weight": (4, 3, 2), "norm.weight": (7,)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


class Stored:
    """A tensor that counts the numbers read of it."""

    def __init__(self, tensor: np.ndarray) -> None:
        self.tensor, self.shape, self.read = tensor, tensor.shape, 0

    def __getitem__(self, index: Any) -> np.ndarray:
        part = self.tensor[index]
        self.read += part.size
        return part


class Counted(Mapping[str, Stored]):
    """Counts what is read of each tensor."""

    def __init__(self, source: dict[str, np.ndarray]) -> None:
        self.source = {name: Stored(tensor) for name, tensor in source.items()}

    def __getitem__(self, name: str) -> Stored:
        return self.source[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def test_paths_and_nest_are_inverse() -> None:
    flat = paths(SHAPES)
    assert list(flat) == ["conv/kernel", "layers/a/kernel", "layers/b/kernel", "scale"]
    assert nest(flat) == SHAPES


def test_one_row_a_path() -> None:
    row, match = find_row(TABLE, "layers/b/kernel")
    assert match.expand(row.name) == "blocks.{layer}.b.weight"
    with pytest.raises(LookupError, match="0 rows of the table match layers/c/kernel"):
        find_row(TABLE, "layers/c/kernel")
    with pytest.raises(LookupError, match="0 rows of the table match above/scale"):
        find_row(TABLE, "above/scale")  # the whole path must match
    twice = Table("twice", [*TABLE.rows, Row("sc.le", "other", (None,))])
    with pytest.raises(LookupError, match="2 rows of the table match scale"):
        find_row(twice, "scale")


def test_reading_places_every_entry() -> None:
    source = tensors()
    tree = read_tree(TABLE, SHAPES, source, "here")
    for layer in (0, 1):
        for part in "ab":
            np.testing.assert_array_equal(
                tree["layers"][part]["kernel"][layer], source[f"blocks.{layer}.{part}.weight"].T
            )
    for out in range(4):
        for channel in range(3):
            for step in range(2):
                assert tree["conv"]["kernel"][step * 3 + channel, out] == source["conv.weight"][out, channel, step]
    written = dict(write_tree(TABLE, tree))
    assert set(written) == set(source)
    for name, tensor in source.items():
        assert written[name].tobytes() == tensor.tobytes()
        assert written[name].shape == tensor.shape
    assert {name: entry.row.their_shape(entry.shape) for name, entry in entries(TABLE, SHAPES)} == {
        name: tensor.shape for name, tensor in source.items()
    }


def test_axes_of_stacked_layers_start_with_layers() -> None:
    axes = logical_axes(TABLE, SHAPES)
    assert axes["layers"]["a"]["kernel"] == ("layers", "embed", "mlp")
    assert axes["conv"]["kernel"] == (None, "embed")
    for path, leaf in paths(SHAPES).items():
        node: Any = axes
        for key in path.split("/"):
            node = node[key]
        assert len(node) == len(leaf.shape)


def test_every_tensor_is_read_once() -> None:
    source = Counted(tensors() | {"text.embedding": np.zeros(9, np.float32)})
    read_tree(TABLE, SHAPES, source, "here")
    assert source["text.embedding"].read == 0
    assert all(x.read == x.tensor.size for name, x in source.items() if name != "text.embedding")


@pytest.mark.parametrize("path", paths(SHAPES))
def test_parts_are_cut_from_what_they_need(path: str) -> None:
    """Any part of a leaf is that part of the whole leaf, and of plain tensors nothing else is read."""
    whole = paths(read_tree(TABLE, SHAPES, tensors(), "here"))[path]
    places = [(name, entry) for name, entry in entries(TABLE, SHAPES) if entry.path == path]
    random = np.random.default_rng(1)
    for _ in range(20):
        index = []
        for size in whole.shape:
            start, stop = sorted(random.choice(size + 1, 2, replace=False).tolist())
            index.append(slice(start, stop) if random.random() < 0.8 else slice(None))
        source = Counted(tensors())
        found = read_part(places, source, whole.shape, whole.dtype, tuple(index))
        np.testing.assert_array_equal(found, whole[tuple(index)])
        read = sum(x.read for x in source.values())
        assert read == (found.size if path != "conv/kernel" else whole.size)


def test_wide_matrices_are_turned_whole() -> None:
    """Wider than what is turned at a time, and not a multiple of it; of layers and alone."""
    swapped = Row("layers/kernel", "{layer}.weight", ("embed", "mlp"), (1, 0))
    table = Table("wide", [swapped, swapped._replace(path="head", name="head.weight")])
    theirs = np.arange(2 * 300 * 5, dtype=np.float32).reshape(2, 300, 5)
    shapes = {
        "layers": {"kernel": jax.ShapeDtypeStruct((2, 5, 300), np.float32)},
        "head": jax.ShapeDtypeStruct((5, 300), np.float32),
    }
    source = {"0.weight": theirs[0], "1.weight": theirs[1], "head.weight": theirs[1]}
    tree = read_tree(table, shapes, source, "here")
    np.testing.assert_array_equal(tree["layers"]["kernel"], theirs.transpose(0, 2, 1))
    np.testing.assert_array_equal(tree["head"], theirs[1].T)
    assert tree["head"].flags.c_contiguous


def test_sharded_leaves_are_made_device_by_device() -> None:
    mesh = jax.make_mesh((1,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    found = read_tree(TABLE, SHAPES, tensors(), "here", jax.tree.map(lambda _: sharding, SHAPES))
    for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(read_tree(TABLE, SHAPES, tensors(), "here"))):
        assert ours.sharding == sharding
        np.testing.assert_array_equal(ours, expected)


def test_the_tree_decides_the_type() -> None:
    source = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors().items()}
    tree = read_tree(TABLE, SHAPES, source, "here")
    assert tree["scale"].dtype == np.float32
    np.testing.assert_array_equal(tree["scale"], source["norm.weight"].astype(np.float32))


def test_all_that_does_not_fit_is_listed_at_once() -> None:
    source = tensors()
    del source["blocks.1.a.weight"], source["norm.weight"]
    source |= {"blocks.2.a.weight": np.zeros((5, 3)), "extra": np.zeros(1), "text.embedding": np.zeros(1)}
    source["blocks.0.b.weight"] = np.zeros((3, 5))
    with pytest.raises(UserError) as caught:
        read_tree(TABLE, SHAPES, source, "folder/x")
    assert str(caught.value).splitlines() == [
        "folder/x does not fit the toy network it was read for (is its config.json the right one?)",
        "  missing: ",
        "    blocks.1.a.weight",
        "    norm.weight",
        "  not used: ",
        "    blocks.2.a.weight",
        "    extra",
        "  of another shape: ",
        "    blocks.0.b.weight: (3, 5), expected (5, 3)",
    ]
