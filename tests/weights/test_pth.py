"""The authors' checkpoints: read as torch reads them but running nothing, and written so that torch reads them."""

import json
import os
import pickle
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from affectgpt_jax.config.networks import LINEARS, DecoderConfig, LoraConfig, ModelConfig, QFormerConfig, SoftTokens
from affectgpt_jax.errors import UserError
from affectgpt_jax.weights.pth import check_settings, infer_settings, read_pth, write_pth
from tests.conftest import reference_folder

# ---------------------------------------------------------------------------------------------------------------------
# Archives by hand, so that what no torch would write can be tried too


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def ints(*values: int) -> bytes:
    return b"".join(b"I%d\n" % value for value in values)


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, numel: int, storage: str = "Float") -> bytes:
    """The pickle of a tensor on the storage data/0."""
    own = (
        b"("
        + text("storage")
        + b"ctorch\n%bStorage\n" % storage.encode()
        + text("0")
        + text("cpu")
        + ints(numel)
        + b"tQ"
    )
    tuples = b"(" + ints(*shape) + b"t(" + ints(*stride) + b"t"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + own + ints(offset) + tuples + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def described(**entries: bytes) -> bytes:
    """The pickle of a dictionary."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u."


def model(value: bytes) -> bytes:
    return described(model=b"}" + text("w") + value + b"s")


def archive(path: Path, description: bytes, storages: Iterable[bytes] = (), **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", description)
        for number, content in enumerate(storages):
            file.writestr(f"archive/data/{number}", content)
        for name, content in entries.items():
            file.writestr(f"archive/{name}", content)
    return path


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive with other entries; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    return target


def assert_same(found: Any, expected: np.ndarray, name: str = "") -> None:
    array = np.asarray(found)
    assert (array.dtype, array.shape) == (found.dtype, found.shape) == (expected.dtype, expected.shape), name
    assert array.tobytes() == expected.tobytes(), name


def as_numpy(value: Any) -> np.ndarray:
    """A torch tensor, bfloat16 too."""
    import torch

    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.detach().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def golden_files() -> list[Path]:
    files = sorted((reference_folder("AFFECTGPT_GOLDENS", "../shared/goldens") / "models").glob("*_checkpoint_*.pth"))
    assert files
    return files


def test_golden_checkpoints_hold_the_golden_weights() -> None:
    """Both were saved after three steps; the weights then are golden arrays of their own."""
    for file in golden_files():
        checkpoint = read_pth(file)
        name = file.name.split("_checkpoint_")[0]
        with np.load(file.with_name(f"{name}.npz")) as arrays:
            before = {key.removeprefix("w/") for key in arrays if key.startswith("w/")}
            after = {key.removeprefix("w3/"): arrays[key] for key in arrays if key.startswith("w3/")}
        parts = [part for part in ("video", "audio", "multi") if f"{part}_query_tokens" in before]
        assert set(checkpoint.tensors) == before | {f"{part}_Qformer.bert.embeddings.position_ids" for part in parts}
        assert after
        for key, expected in after.items():
            assert_same(checkpoint.tensors[key], expected, key)
        assert checkpoint.epoch == 1
        facts = json.loads(file.with_name(f"{name}.json").read_text())
        assert checkpoint.config["run"] == facts["run"]
        for key, value in checkpoint.config["model"].items():
            assert facts["setting"][key] == value


def test_golden_checkpoints_are_read_as_torch_reads_them() -> None:
    torch = pytest.importorskip("torch")
    for file in golden_files():
        checkpoint, expected = read_pth(file), torch.load(file, weights_only=True)
        assert list(checkpoint.tensors) == list(expected["model"])
        for name, value in expected["model"].items():
            assert_same(checkpoint.tensors[name], as_numpy(value), name)
        assert (checkpoint.config, checkpoint.epoch) == (expected["config"], expected["epoch"])


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A file with tensors of every type and layout, and what torch reads from it."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 10, generator=generator)
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    tensors: dict[str, Any] = {kind: (base * 10).to(getattr(torch, kind)) for kind in kinds}
    tensors |= {
        "transposed": base.T,
        "permuted": torch.randn(2, 3, 4, generator=generator).permute(2, 0, 1),
        "rows": base[2:4],
        "columns": base[:, 1::3],
        "strided half": tensors["float16"][::2, 3:].T,
        "strided bfloat16": tensors["bfloat16"][1:, ::4].T,
        "expanded": torch.arange(5).expand(3, 5),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "empty part": base[3:3],
        "parameter": torch.nn.Parameter(base.clone()),
        "frozen parameter": torch.nn.Parameter(base.half(), requires_grad=False),
    }
    path = tmp_path_factory.mktemp("pth") / "views.pth"
    torch.save({"model": tensors, "config": {}, "epoch": 3}, path)
    loaded = torch.load(path, weights_only=True)["model"]
    return path, {name: as_numpy(value) for name, value in loaded.items()}


def test_every_type_and_layout(views: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, expected = views
    tensors = read_pth(path).tensors
    assert list(tensors) == list(expected)
    for name, array in expected.items():
        assert_same(tensors[name], array, name)
        part = tuple(slice(1, size) for size in array.shape)
        assert tensors[name][part].tobytes() == array[part].tobytes(), name


def test_the_other_byte_order(views: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """The same file as a machine of the other byte order writes it; torch agrees on what it holds."""
    torch = pytest.importorskip("torch")
    path, expected = views
    order = "big" if sys.byteorder == "little" else "little"
    size = {f"views/data/{x.storage.key}": x.dtype.itemsize for x in read_pth(path).tensors.values()}

    def swap(name: str, content: bytes) -> bytes:
        if name.endswith("byteorder"):
            return order.encode()
        return np.frombuffer(content, f"u{size[name]}").byteswap().tobytes() if name in size else content

    other = rewritten(path, tmp_path / "other.pth", swap)
    assert other.read_bytes() != path.read_bytes()
    by_torch = torch.load(other, weights_only=True)["model"]
    for name, found in read_pth(other).tensors.items():
        assert_same(found, expected[name], name)
        assert_same(found, as_numpy(by_torch[name]), name)


def test_tensors_are_read_one_at_a_time(tmp_path: Path) -> None:
    count, size = 6, 1 << 20
    tensors = {f"w{i}": np.full(size, i, np.float32) for i in range(count)}
    pytest.importorskip("torch")
    write_pth(tmp_path / "x.pth", tensors, {}, 1)
    del tensors
    tracemalloc.start()
    found = read_pth(tmp_path / "x.pth").tensors
    assert [tensor.shape for tensor in found.values()] == [(size,)] * count
    assert tracemalloc.get_traced_memory()[1] < size  # bytes: a quarter of one tensor
    for i, tensor in enumerate(found.values()):
        assert (np.asarray(tensor) == i).all()
    # One tensor of 4 bytes a number, the comparison's byte a number, and what zipfile holds while it reads.
    assert tracemalloc.get_traced_memory()[1] < 3 * 4 * size
    tracemalloc.stop()


def test_settings_become_plain(tmp_path: Path) -> None:
    """Devices, sizes and types among the settings are kept as text and numbers; containers lose their class."""
    torch = pytest.importorskip("torch")
    config = OrderedDict(
        device=torch.device("cuda", 1), cpu=torch.device("cpu"), size=torch.Size([2, 3]), dtype=torch.float16,
        nested={"lr": "1e-5", "amp": True, "none": None, "betas": (0.9, 0.999)},
    )  # fmt: skip
    torch.save({"model": torch.nn.Linear(2, 1).state_dict(), "config": config, "epoch": 7}, tmp_path / "x.pth")
    checkpoint = read_pth(tmp_path / "x.pth")
    assert checkpoint.config == {
        "device": "cuda:1", "cpu": "cpu", "size": [2, 3], "dtype": "torch.float16",
        "nested": {"lr": "1e-5", "amp": True, "none": None, "betas": [0.9, 0.999]},
    }  # fmt: skip
    assert type(checkpoint.config) is dict
    assert list(checkpoint.tensors) == ["weight", "bias"]


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


class Payload:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


PAYLOADS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "shell": (r"(posix|nt)\.system", lambda marker: Payload(os.system, f"touch '{marker}'")),
    "eval": (r"(__)?builtins?(__)?\.eval", lambda marker: Payload(eval, f"open({marker!r}, 'w')")),
    "nested": (r"(__)?builtins?(__)?\.list", lambda marker: Payload(list, (Payload(eval, f"open({marker!r}, 'w')"),))),
}
"""What is asked for first, and an object that makes a file when it is unpickled."""


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["model", "config", "optimizer", "all"])
@pytest.mark.parametrize("kind", PAYLOADS)
def test_code_is_refused_and_does_not_run(kind: str, place: str, protocol: int, tmp_path: Path) -> None:
    named, make = PAYLOADS[kind]
    marker = tmp_path / "ran"
    payload = make(str(marker))
    description = pickle.dumps(payload if place == "all" else {"model": {}, place: {"x": payload}}, protocol)
    path = archive(tmp_path / "x.pth", description)
    with pytest.raises(UserError, match=rf"x\.pth holds a pickle that asks for {named}; .*nothing of it was run"):
        read_pth(path)
    assert not marker.exists()
    with suppress(TypeError):  # `list` takes no file; the file is there all the same
        pickle.loads(description)
    assert marker.exists()


def test_admitted_names_cannot_be_changed_from_within(tmp_path: Path) -> None:
    """BUILD sets attributes of whatever stands on the stack; a second file must not see what a first one set."""
    for target in (b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"):
        attack = target + b"N}" + text("name") + text("torch.device") + b"s\x86b"
        with pytest.raises(UserError, match=r"data\.pkl is damaged"):
            read_pth(archive(tmp_path / "x.pth", described(model=b"}", config=attack)))
    # Nor does it matter what a dictionary is given besides its entries.
    odd = b"ccollections\nOrderedDict\n)R}(" + b"".join(text(x) + b"ctorch\nSize\n" for x in ("items", "get")) + b"ub"
    tensors = odd + text("w") + tensor((1,), (1,), 0, 1) + b"s"
    found = read_pth(archive(tmp_path / "z.pth", described(model=tensors, config=odd), [bytes(4)]))
    assert (list(found.tensors), found.config) == (["w"], {})
    plain = archive(tmp_path / "y.pth", model(tensor((2,), (1,), 0, 2)), [np.array([1, 2], np.float32).tobytes()])
    assert np.asarray(read_pth(plain).tensors["w"]).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("description", "parts"),
    [
        (described(model=b"}", config=b"comegaconf.dictconfig\nDictConfig\n)R"), ["omegaconf.", "to_container("]),
        (described(model=b"cnumpy._core.multiarray\n_reconstruct\n"), ["numpy._core.multiarray._reconstruct"]),
        (described(model=b"ctorch.nn.modules.linear\nLinear\n)R"), ["torch.nn.modules.linear.Linear"]),
        (model(b"ctorch._utils\n_rebuild_tensor_v3\n"), ["torch._utils._rebuild_tensor_v3"]),
        (model(tensor((1,), (1,), 0, 1, "QInt8")), ["torch.QInt8Storage"]),
        (model(b"(" + text("module") + b"ctorch\nFloatStorage\n" + text("0") + b"tQ"), ["the storage ('module'"]),
        (described(config=b"}", epoch=b"I1\n"), ["no entry 'model'", "it holds config, epoch"]),
        (described(), ["no entry 'model'", "nothing"]),
        (b"\x80\x02I5\n.", ["no entry 'model'", "int"]),
        (described(model=b"I5\n"), ["no entry 'model'"]),
        (model(text("no tensor")), ["'w' of the entry 'model' is not a plain tensor"]),
        (model(b"ctorch\nSize\n(I1\ntR"), ["'w' of the entry 'model' is not a plain tensor"]),
        (model(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), ["not a plain tensor"]),
        (model(b"ctorch._utils\n_rebuild_parameter\n)R"), ["not a plain tensor"]),
        (described(model=b"}", config=b"I3\n"), ["'config' is of type int"]),
        (described(model=b"}", epoch=text("last")), ["'epoch' of type str"]),
        (described(model=b"}", config=b"}" + text("x") + tensor((1,), (1,), 0, 1) + b"s"), ["'config' is not made of"]),
        (b"\x80\x02}(", ["data.pkl is damaged"]),
        (b"nonsense", ["data.pkl is damaged"]),
        (b"", ["data.pkl is damaged"]),
    ],
)  # fmt: skip
def test_descriptions_that_are_refused(description: bytes, parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read_pth(archive(tmp_path / "x.pth", description, [np.zeros(1, np.float32).tobytes()]))
    for part in [str(tmp_path / "x.pth"), *parts]:
        assert part in str(refused.value), refused.value


def test_a_circle_of_settings_is_refused(tmp_path: Path) -> None:
    circle = b"}q\x01" + text("x") + b"h\x01s"
    with pytest.raises(UserError, match="'config' is not made of plain"):
        read_pth(archive(tmp_path / "x.pth", described(model=b"}", config=circle)))


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "fits"),
    [
        ((2, 3), (3, 1), 0, True),
        ((3, 2), (1, 3), 0, True),
        ((2,), (4,), 1, True),
        ((9,), (0,), 5, True),
        ((0, 4), (4, 1), 6, True),
        ((), (), 5, True),
        ((2, 3), (3, 1), 1, False),
        ((2,), (6,), 0, False),
        ((7,), (1,), 0, False),
        ((), (), 6, False),
        ((0,), (1,), 7, False),
        ((3,), (1,), -1, False),
        ((3,), (-1,), 5, False),
        ((-1,), (1,), 0, False),
        ((2, 3), (1,), 0, False),
        ((1 << 40, 1 << 40), (0, 0), 0, False),
    ],
)
def test_tensors_stay_inside_their_storage(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, fits: bool, tmp_path: Path
) -> None:
    numbers = np.arange(6, dtype=np.float32)
    path = archive(tmp_path / "x.pth", model(tensor(shape, stride, offset, 6)), [numbers.tobytes()])
    if not fits:
        with pytest.raises(UserError, match=r"x\.pth: w of shape .* lies outside its storage of 6 numbers"):
            read_pth(path)
        return
    found = np.asarray(read_pth(path).tensors["w"])
    assert found.shape == shape
    for index in np.ndindex(*shape):
        assert found[index] == numbers[offset + sum(i * step for i, step in zip(index, stride, strict=True))]


def test_storages_that_do_not_fit(tmp_path: Path) -> None:
    description = model(tensor((2,), (1,), 0, 2))
    with pytest.raises(UserError, match=r"data/0, which holds w, is missing"):
        read_pth(archive(tmp_path / "a.pth", description))
    with pytest.raises(UserError, match=r"data/0, which holds w, has 12 bytes, expected 8"):
        read_pth(archive(tmp_path / "b.pth", description, [bytes(12)]))
    with pytest.raises(UserError, match=r"byteorder=b'mixed'"):
        read_pth(archive(tmp_path / "c.pth", description, [bytes(8)], byteorder=b"mixed"))


def test_a_directory_that_promises_more_than_there_is(tmp_path: Path) -> None:
    """Else reading would go beyond the memory that was read."""
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("archive/data.pkl", model(tensor((1000,), (1,), 0, 1000)))
        file.writestr("archive/data/0", bytes(8))
        file.getinfo("archive/data/0").file_size = 4000
    found = read_pth(tmp_path / "x.pth").tensors["w"]
    with pytest.raises(UserError, match=r"x\.pth: .*data/0"):
        np.asarray(found)


def test_cut_and_damaged_files(tmp_path: Path) -> None:
    numbers = np.arange(64, dtype=np.float32).tobytes()
    whole = archive(tmp_path / "x.pth", model(tensor((64,), (1,), 0, 64)), [numbers]).read_bytes()
    cut = tmp_path / "cut.pth"
    for length in (4, 50, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.pth was cut off.*fetch the file again"):
            read_pth(cut)
    place = whole.index(numbers) + 10
    cut.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    tensor_with_damage = read_pth(cut).tensors["w"]
    with pytest.raises(UserError, match=r"cut\.pth: archive/data/0 is damaged"):
        np.asarray(tensor_with_damage)


def test_foreign_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"model": {}}))
    for name, said in {
        "x.npz": "not one that torch.save wrote",
        "pointer.pth": "git lfs pull",
        "page.pth": "is not a checkpoint that torch.save wrote",
        "empty.pth": "is not a checkpoint that torch.save wrote",
        "bare.pth": "a bare pickle",
        "gone.pth": "is not there",
        "": "is not there",
    }.items():
        with pytest.raises(UserError, match=said) as refused:
            read_pth(tmp_path / name)
        assert name in str(refused.value)


def test_files_from_before_torch_1_6(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"model": {}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"old\.pth is in torch's format from before version 1\.6.*torch\.save\("):
        read_pth(tmp_path / "old.pth")


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def test_written_files_are_read_back_by_torch_and_by_us(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    tensors = {
        "single": random.normal(size=(3, 4)).astype(np.float32),
        "transposed": random.normal(size=(3, 4)).astype(np.float32).T,
        "half": random.normal(size=5).astype(np.float16),
        "bfloat16": random.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "read only": np.broadcast_to(np.float32(3), (2, 2)),
        "integers": np.arange(24).reshape(1, 24),
    }
    config = {"run": {"init_lr": 1e-5, "betas": (0.9, 0.999), "steps": np.int64(5)}, "model": {"ckpt": None}}
    optimizer = {"state": {0: {"step": 3, "exp_avg": tensors["single"]}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    path = tmp_path / "folder" / "checkpoint_000002_loss_0.602.pth"
    write_pth(path, tensors, config, 2, optimizer)
    assert [file.name for file in path.parent.iterdir()] == [path.name]

    loaded = torch.load(path, weights_only=True)
    assert list(loaded) == ["model", "optimizer", "config", "scaler", "epoch"]
    assert (loaded["scaler"], loaded["epoch"]) == (None, 2)
    assert loaded["config"] == {"run": {"init_lr": 1e-5, "betas": (0.9, 0.999), "steps": 5}, "model": {"ckpt": None}}
    assert loaded["optimizer"]["state"][0]["step"] == 3
    assert_same(as_numpy(loaded["optimizer"]["state"][0]["exp_avg"]), tensors["single"])
    checkpoint = read_pth(path)
    assert list(loaded["model"]) == list(checkpoint.tensors) == list(tensors)
    for name, expected in tensors.items():
        assert_same(as_numpy(loaded["model"][name]), expected, name)
        assert_same(checkpoint.tensors[name], expected, name)

    write_pth(path, checkpoint.tensors, {}, 3)  # over the very file that is being read
    again = read_pth(path)
    assert again.epoch == 3
    for name, expected in tensors.items():
        assert_same(again.tensors[name], expected, name)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "x.pth"
    write_pth(path, {"w": np.ones(2)}, {}, 1)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        write_pth(path, {"w": np.zeros(2)}, {"unpicklable": lambda: 0}, 2)
    assert read_pth(path).epoch == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_writing_without_torch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"x\.pth.*needs torch.*affectgpt-jax\[torch\]"):
        write_pth(tmp_path / "x.pth", {}, {}, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def expected_settings(
    setting: dict[str, Any], *, vision: int, audio: int, decoder: DecoderConfig, qformer: QFormerConfig
) -> dict[str, Any]:
    """What must be found, from the file's description of itself."""
    kinds = {"multi": setting["multi"], "video": setting["video"], "audio": setting["audio"]}
    counts = {"multi": setting["nm"], "video": setting["nv"], "audio": setting["na"]}
    tables = {"multi": 264, "video": 32, "audio": 8}
    queries = {part for part, kind in kinds.items() if kind == "qformer"}
    return {
        "prefusion": kinds["multi"],
        "video": kinds["video"],
        "audio": kinds["audio"],
        "vision_width": vision,
        "audio_width": audio,
        **{f"tokens.{part}": count if part in queries else None for part, count in counts.items()},
        **{f"positions.{part}": size if part in queries else None for part, size in tables.items()},
        "qformer.width": qformer.width if queries else None,
        "qformer.mlp_width": qformer.mlp_width if queries else None,
        "qformer.layers": qformer.layers if queries else None,
        "decoder.width": decoder.width,
        "decoder.mlp_width": decoder.mlp_width,
        "decoder.layers": decoder.layers,
        "decoder.lora.rank": decoder.lora.rank,
        "decoder.lora.targets": LINEARS,
    }


def model_config(setting: dict[str, Any], vision: int, audio: int, **sections: Any) -> ModelConfig:
    return ModelConfig(
        vision_width=vision,
        audio_width=audio,
        prefusion=setting["multi"],
        video=setting["video"],
        audio=setting["audio"],
        tokens=SoftTokens(multi=setting["nm"], audio=setting["na"], video=setting["nv"], image=setting["ni"]),
        **sections,
    )


def full_size_lists() -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    files = sorted((reference_folder("AFFECTGPT_GOLDENS", "../shared/goldens") / "fullsize").glob("trainable_*.json"))
    assert len(files) == 4
    lists = {}
    for file in files:
        facts = json.loads(file.read_text())
        tensors = {row["name"]: np.broadcast_to(np.float32(0), row["shape"]) for row in facts["trainable"]}
        buffers = facts["checkpoint_keys_that_are_not_trainable_parameters"]
        lists[file.stem] = facts["setting"], tensors | {name: np.zeros((1, 512), np.int64) for name in buffers}
    return lists


def test_settings_of_the_full_size_models() -> None:
    for name, (setting, tensors) in full_size_lists().items():
        found = infer_settings(tensors)
        sizes = {"decoder": DecoderConfig(), "qformer": QFormerConfig()}
        assert found == expected_settings(setting, vision=768, audio=1024, **sizes), name
        check_settings(found, model_config(setting, 768, 1024), name)


def test_settings_of_the_golden_models() -> None:
    folder = reference_folder("AFFECTGPT_GOLDENS", "../shared/goldens") / "models"
    bases = json.loads((folder / "base_configs.json").read_text())
    files = [file for file in sorted(folder.glob("*.npz")) if file.stem != "base_weights"]
    assert len(files) == 9
    for file in files:
        facts = json.loads(file.with_suffix(".json").read_text())
        with np.load(file) as arrays:
            tensors = {key.removeprefix("w/"): arrays[key] for key in arrays if key.startswith("w/")}
        bert = facts["spec"]["bert"]
        sections = {
            "decoder": DecoderConfig.from_hf(bases["qwen"], lora=LoraConfig(rank=facts["spec"]["lora_r"])),
            "qformer": QFormerConfig(
                width=bert["hidden_size"], heads=bert["num_attention_heads"], mlp_width=bert["intermediate_size"]
            ),
        }
        found = infer_settings(tensors)
        assert found == expected_settings(facts["setting"], vision=24, audio=32, **sections), file.stem
        check_settings(found, model_config(facts["setting"], 24, 32, **sections), file)


def test_what_was_frozen_is_not_seen() -> None:
    """Only trained parameters are saved, so what is missing says nothing."""
    _, tensors = full_size_lists()["trainable_all_qformer"]
    frozen = {name: x for name, x in tensors.items() if "lora" not in name and not name.startswith("audio")}
    found = infer_settings(frozen)
    assert (found["decoder.lora.rank"], found["decoder.layers"], found["decoder.lora.targets"]) == (None, None, None)
    assert (found["audio"], found["tokens.audio"], found["audio_width"]) == (None, None, 1024)
    # The Q-Former's buffer is saved even so.
    buffers = {"audio_Qformer.bert.embeddings.position_ids": np.zeros((1, 512))}
    assert infer_settings(frozen | buffers)["audio"] == "qformer"
    assert set(infer_settings({}).values()) == {None}

    _, tensors = full_size_lists()["trainable_shipped_bestfusion_attention"]
    two = [name for name in tensors if "lora" not in name or "q_proj" in name or "v_proj" in name]
    assert infer_settings({name: tensors[name] for name in two})["decoder.lora.targets"] == ("q_proj", "v_proj")
    inputs = [name for name in tensors if name.startswith(("multi_audio_embs", "multi_video_embs"))]
    assert infer_settings({name: tensors[name] for name in inputs})["prefusion"] == "none"


def test_contradictions_are_listed_at_once() -> None:
    setting, tensors = full_size_lists()["trainable_multi_qformer_rest_attention"]
    found = infer_settings(tensors)
    with pytest.raises(UserError) as refused:
        check_settings(found, model_config(setting, 768, 1024, decoder=DecoderConfig(lora=LoraConfig(rank=8))), "a.pth")
    assert str(refused.value).splitlines() == [
        "a.pth does not fit the config; change one or the other:",
        "  model.decoder.lora.rank: 16 in the file, expected 8 by the config",
    ]
    other = ModelConfig(
        vision_width=512,
        prefusion="attention",
        video="mean",
        tokens=SoftTokens(multi=2),
        decoder=DecoderConfig(width=896, layers=24, mlp_width=4864, lora=LoraConfig(targets=("q_proj",))),
    )
    with pytest.raises(UserError) as refused:
        check_settings(found, other, "a.pth")
    assert {line.split(":")[0].strip() for line in str(refused.value).splitlines()[1:]} == {
        *(f"model.{key}" for key in ("vision_width", "prefusion", "video", "tokens.multi")),
        *(f"model.decoder.{key}" for key in ("width", "layers", "mlp_width", "lora.targets")),
    }
    reordered = DecoderConfig(lora=LoraConfig(targets=LINEARS[::-1]))
    check_settings(found, model_config(setting, 768, 1024, decoder=reordered), "a.pth")


def test_a_file_of_two_models_is_refused() -> None:
    tensors = {"image_llama_proj.weight": np.zeros((64, 24)), "affectgpt_proj.weight": np.zeros((96, 24))}
    with pytest.raises(
        UserError, match=r"a\.pth contradicts itself.*decoder\.width=64, but affectgpt_proj\.weight.*96"
    ):
        infer_settings(tensors, "a.pth")
    with pytest.raises(UserError, match=r"decoder\.width=64, but affectgpt_proj\.weight of shape \(\) says None"):
        infer_settings(tensors | {"affectgpt_proj.weight": np.zeros(())}, "a.pth")
