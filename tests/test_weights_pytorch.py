"""Reading PyTorch's containers: exact tensors from honest files, one line about damaged ones."""

import io
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from weights_files import WRITERS, Call, Global, Persistent, Raw, Storages, emit, pickled, write_stream, write_zip

from jdepth.errors import UserError
from jdepth.weights import pickle_machine, pytorch_file
from jdepth.weights.torch_objects import KNOWN

both = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def read(path: Path) -> dict[str, np.ndarray]:
    with pytorch_file.opened(path) as tensors:
        return {name: tensor.read() for name, tensor in tensors.items()}


def failure(path: Path) -> str:
    """The message of the UserError that reading raises: one line that names the file."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message and len(message) < 700
    return message


@both
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"])
def test_every_number_type_is_read_exactly(tmp_path, write, dtype):
    array = (np.random.default_rng(0).standard_normal((3, 5, 2)) * 100).astype(dtype)
    found = read(write(tmp_path / "a.pth", {"x": array}))["x"]
    assert found.dtype == np.dtype(dtype) and np.array_equal(found, array)


@both
def test_bfloat16_is_the_upper_half_of_float32(tmp_path, write):
    exact = np.array([[1.0, -2.5], [np.inf, 0.0]], np.float32)
    bits = (exact.view(np.uint32) >> 16).astype(np.uint16)
    found = read(write(tmp_path / "a.pth", {"x": bits}))["x"]
    assert found.dtype == np.float32 and np.array_equal(found, exact)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int16", "uint64", "uint32", "uint16", "uint8", "bool"])
@pytest.mark.parametrize("kind", ["torch.UntypedStorage", "torch.storage.UntypedStorage"])
def test_storages_of_bytes_are_read_in_the_type_of_the_tensor(tmp_path, dtype, kind):
    array = np.array([[0, 1, 200], [7, 0, 1]]).astype(dtype)
    identifier = ("storage", Global(*kind.rsplit(".", 1)), "0", "cpu", array.nbytes)
    arguments = (Persistent(identifier), 1, (2, 2), (3, 1), False, emit_ordered(), Global("torch", dtype))
    content = pickled({"x": Call(Global("torch._utils", "_rebuild_tensor_v3"), arguments)})
    found = read(archive_of(tmp_path / "a.pth", ("a/data.pkl", content), ("a/data/0", array.tobytes())))["x"]
    assert found.dtype == np.dtype(dtype) and np.array_equal(found, array[:, 1:])
    beyond = pickled({"x": Call(Global("torch._utils", "_rebuild_tensor_v3"), (arguments[0], 2, *arguments[2:]))})
    path = archive_of(tmp_path / "b.pth", ("a/data.pkl", beyond), ("a/data/0", array.tobytes()))
    assert f"beyond its storage of {array.nbytes} numbers" in failure(path)


@both
def test_views_share_a_storage_and_keep_strides_and_offsets(tmp_path, write):
    base = np.arange(24, dtype=np.float32)
    views = {
        "transposed": base.reshape(4, 6).T,
        "step": base[3::5],
        "inner": base.reshape(2, 3, 4)[1, 1:, :2],
        "scalar": base[7:8].reshape(()),
        "repeated": np.broadcast_to(base[4:5], (2, 3)),
        "empty": base[:0].reshape(0, 3),
    }
    found = read(write(tmp_path / "a.pth", views))
    for name, view in views.items():
        assert found[name].shape == view.shape and np.array_equal(found[name], view), name
    with zipfile.ZipFile(write_zip(tmp_path / "b.pth", views)) as archive:
        assert sum("/data/" in name for name in archive.namelist()) == 1


@pytest.mark.parametrize("folder", ["archive", "dinov2_vits14_pretrain", "any name"])
@pytest.mark.parametrize("byteorder", ["little", "big", None])
def test_any_folder_and_byte_order(tmp_path, folder, byteorder):
    array = np.arange(5, dtype=np.float32)
    assert np.array_equal(read(write_zip(tmp_path / "a.pth", {"x": array}, folder, byteorder))["x"], array)


def test_values_beside_the_weights_are_read_for_what_they_are():
    def built(value: object) -> object:
        return pickle_machine.run(io.BytesIO(pickled(value)), KNOWN)

    def array(fortran: bool) -> np.ndarray:
        start = Call(
            Global("numpy.core.multiarray", "_reconstruct"),
            (Global("numpy", "ndarray"), (0,), b"b"),
            (1, (2, 3), Call(Global("numpy", "dtype"), ("i2", False, True)), fortran, bytes([1, 0, 2, 0] * 3)),
        )
        return built(start).array

    assert np.array_equal(array(False), [[1, 2, 1], [2, 1, 2]])
    assert np.array_equal(array(True), [[1, 1, 1], [2, 2, 2]])
    big = Call(Global("numpy", "dtype"), ("i2", False, True), (3, ">", *[None] * 3, -1, -1, 0))
    assert built(Call(Global("numpy._core.multiarray", "scalar"), (big, b"\x01\x02"))) == 258
    assert built(Call(Global("torch", "device"), ("cuda", 3))) == "cuda:3"
    assert built(Call(Global("torch", "device"), ("cuda", -1))) == "cuda"
    assert built(Call(Global("torch", "device"), ("cuda", 2**70))) == "cuda"
    assert built(Call(Global("torch", "Size"), ((3, 4),))) == (3, 4)
    assert built(Call(Global("builtins", "set"), ([1, 2, 1],))) == {1, 2}
    assert built(Call(Global("builtins", "frozenset"), ([1],))) == frozenset({1})
    assert built(Call(Global("builtins", "bytes"), ())) == b""
    assert built(b"\xff\x00") == b"\xff\x00"
    assert list(built(OrderedDict(b=1, a=2)).items()) == [("b", 1), ("a", 2)]


def training_checkpoint(weights: dict[str, np.ndarray]) -> dict:
    """What an MMCV runner saves: text, NumPy numbers and AdamW's moments beside the weights."""
    moments = {i: {"step": i, "exp_avg": np.zeros(w.shape, w.dtype)} for i, w in enumerate(weights.values())}
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.01, "params": list(moments)}
    number = Call(Global("numpy", "dtype"), ("i8", False, True), (3, "<", *[None] * 3, -1, -1, 0))
    array = Call(
        Global("numpy.core.multiarray", "_reconstruct"),
        (Global("numpy", "ndarray"), (0,), b"b"),
        (1, (3,), number, False, np.arange(3).tobytes()),
    )
    return {
        "meta": {
            "epoch": 7,
            "time": "Mon Mar 27 10:33:21 2023",
            "config": "a = 1\nb = 2",
            "best": np.float64(0.0893),
            "best32": np.float32(0.5),
            "palette": array,
            "classes": None,
            "names": Call(Global("__builtin__", "set"), (["a", "b"],)),
            "size": Call(Global("torch", "Size"), ((3, 4),)),
            "device": Call(Global("torch", "device"), ("cuda", 0)),
            "order": OrderedDict(a=1),
        },
        "state_dict": OrderedDict(weights),
        "optimizer": {"state": moments, "param_groups": [group]},
    }


@both
def test_meta_and_optimizer_beside_the_weights_are_ignored(tmp_path, write):
    weights = {"decode_head.a": np.ones((2, 3), np.float32), "decode_head.b": np.arange(4, dtype=np.float32)}
    found = read(write(tmp_path / "a.pth", training_checkpoint(weights)))
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_metadata_of_an_ordered_state_dict_and_parameters_are_understood(tmp_path):
    storages = Storages()
    array = np.arange(3, dtype=np.float32)
    hooks = Call(Global("collections", "OrderedDict"), ())
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (storages.tensor(array), True, hooks))
    content = Call(Global("collections", "OrderedDict"), ([["x", parameter]],), {"_metadata": {"": {"version": 1}}})
    path = tmp_path / "a.pth"
    write_zip(path, {"state_dict": content})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", array.tobytes())
    assert np.array_equal(read(path)["x"], array)


def test_views_of_storages_in_old_files(tmp_path):
    array = np.arange(8, dtype=np.float32)

    def view(start: int, count: int) -> Call:
        identifier = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 8, ("1", start, count))
        hooks = Call(Global("collections", "OrderedDict"), ())
        arguments = (Persistent(identifier), 1, (count - 1,), (1,), False, hooks)
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)

    assert np.array_equal(read(write_stream(tmp_path / "a.pth", {"base": array, "x": view(2, 4)}))["x"], array[3:6])
    assert "does not exist" in failure(write_stream(tmp_path / "b.pth", {"base": array, "x": view(5, 4)}))


# Files that are something else


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty"),
        (b"hello, this is not a checkpoint", "not a PyTorch checkpoint"),
        (b"\x00" * 4096, "not a PyTorch checkpoint"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"PK\x03\x04 and then nothing", "truncated"),
        (pickled({"a": 1}), "magic number"),
        (pickled(0x1950A86A20F9469CFC6C) + pickled(7), "unknown version"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert words in failure(path)


def test_missing_file_and_folder(tmp_path):
    assert "no such file" in failure(tmp_path / "absent.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "cannot be read" in failure(tmp_path / "folder.pth")


def archive_of(path: Path, *records: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records:
            archive.writestr(name, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_no_checkpoints(tmp_path):
    pickle = ("a/data.pkl", pickled({}))
    path = tmp_path / "a.pth"
    assert "no <name>/data.pkl" in failure(archive_of(path, ("a/readme", b"")))
    assert "no <name>/data.pkl" in failure(archive_of(path, ("../a/data.pkl", pickled({}))))
    assert "no <name>/data.pkl" in failure(archive_of(path, pickle, ("b/data.pkl", pickled({}))))
    assert "TorchScript" in failure(archive_of(path, pickle, ("a/constants.pkl", b"")))
    assert "twice" in failure(archive_of(path, pickle, pickle))
    assert "compressed" in failure(archive_of(path, pickle, compression=zipfile.ZIP_DEFLATED))
    assert "byte order" in failure(archive_of(path, pickle, ("a/byteorder", b"middle")))


@pytest.mark.parametrize("key", ["../../secret", "/etc/hostname", "1", "0/../0"])
def test_storage_keys_are_only_looked_up(tmp_path, key):
    identifier = ("storage", Global("torch", "FloatStorage"), key, "cpu", 4)
    path = archive_of(
        tmp_path / "a.pth", ("a/data.pkl", pickled({"x": Persistent(identifier)})), ("a/data/0", bytes(16))
    )
    assert "no record" in failure(path)


@both
@pytest.mark.parametrize(
    "content, words",
    [
        ([1, 2], "holds a list"),
        ({"state_dict": 3}, "state_dict is a int"),
        ({"epoch": 3, "model": {}}, "holds epoch, model; expected named tensors"),
        ({"state_dict": {"x": 3}}, "not tensors: x"),
        ({7: np.ones(2, np.float32)}, "holds 7; expected"),
    ],
)
def test_checkpoints_without_named_tensors(tmp_path, write, content, words):
    assert words in failure(write(tmp_path / "a.pth", content))


# Sizes that do not fit


def tensor_call(storage: object, *rest: object) -> Call:
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (Persistent(storage), *rest, False, emit_ordered()))


def emit_ordered() -> Call:
    return Call(Global("collections", "OrderedDict"), ())


def stream_of(path: Path, content: bytes, *storages: bytes) -> Path:
    """A stream of this pickle, with storages of 4-byte numbers under the keys 0, 1, ... behind it."""
    start, none = write_stream(path, Raw(content)).read_bytes(), pickled([])
    assert start.endswith(none)
    keys = pickled([str(key) for key in range(len(storages))])
    stored = b"".join(struct.pack("<q", len(raw) // 4) + raw for raw in storages)
    path.write_bytes(start.removesuffix(none) + keys + stored)
    return path


def floats(key: str, count: object) -> tuple:
    """Persistent id of a storage of `count` float32 numbers."""
    return ("storage", Global("torch", "FloatStorage"), key, "cpu", count)


FOUR = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


@pytest.mark.parametrize(
    "count, in_zip, in_stream",
    [
        (3, "declares 12 bytes for data/0, which has 16", "declares 3 numbers in a storage that has 4"),
        (5, "declares 20 bytes for data/0, which has 16", "declares 5 numbers in a storage that has 4"),
        (2**40, f"declares {2**42} bytes for data/0", f"declares {2**40} numbers in a storage that has 4"),
        *((count, *["something other than a storage"] * 2) for count in (2**48, 2**62, -4, 2**70, True, 4.0, "4")),
    ],
)
def test_declared_storage_size_must_be_the_records(tmp_path, count, in_zip, in_stream):
    def content(count: object) -> bytes:
        return pickled({"x": tensor_call(floats("0", count), 0, (1,), (1,))})

    def written(count: object) -> tuple[Path, Path]:
        records = ("a/data.pkl", content(count)), ("a/data/0", FOUR.tobytes())
        return archive_of(tmp_path / "a.pth", *records), stream_of(tmp_path / "b.pth", content(count), FOUR.tobytes())

    for path, words in zip(written(count), (in_zip, in_stream), strict=True):
        assert words in failure(path)
    for path in written(4):
        assert read(path)["x"] == 1.0


BEYOND, IMPOSSIBLE = "reaches beyond its storage of 4 numbers", "_rebuild_tensor_v2 with arguments it cannot have"


def both_ways(folder: Path, offset: object, shape: object, strides: object) -> tuple[Path, Path]:
    """A tensor in the storage FOUR, as a zip and as a stream in which another storage follows."""
    x = tensor_call(floats("0", 4), offset, shape, strides)
    after = {"x": x, "y": tensor_call(floats("1", 8), 0, (8,), (1,))}
    return (
        archive_of(folder / "a.pth", ("a/data.pkl", pickled({"x": x})), ("a/data/0", FOUR.tobytes())),
        stream_of(folder / "b.pth", pickled(after), FOUR.tobytes(), bytes(32)),
    )


@pytest.mark.parametrize(
    "offset, shape, strides, words",
    [
        (0, (5,), (1,), BEYOND),
        (1, (4,), (1,), BEYOND),
        (4, (1,), (1,), BEYOND),
        (5, (0,), (1,), BEYOND),
        (0, (2, 2), (3, 1), BEYOND),
        (0, (2**40, 2**40), (1, 1), BEYOND),
        (-1, (1,), (1,), IMPOSSIBLE),
        (0, (2,), (-1,), IMPOSSIBLE),
        (0, (-2,), (1,), IMPOSSIBLE),
        (0, (2,), (1, 1), IMPOSSIBLE),
        (0, (2,) * 9, (0,) * 9, IMPOSSIBLE),
        (0, (2.0,), (1,), IMPOSSIBLE),
        (0, (True,), (1,), IMPOSSIBLE),
        (0, (2,), (True,), IMPOSSIBLE),
        (True, (2,), (1,), IMPOSSIBLE),
        (2**48, (1,), (1,), IMPOSSIBLE),
        (0, (2**48,), (0,), IMPOSSIBLE),
        (0, (2**200,), (0,), IMPOSSIBLE),
        (0, "ab", "ab", IMPOSSIBLE),
        (None, (2,), (1,), IMPOSSIBLE),
    ],
)
def test_tensors_must_lie_inside_their_storage(tmp_path, offset, shape, strides, words):
    for path in both_ways(tmp_path, offset, shape, strides):
        assert words in failure(path)


@pytest.mark.parametrize(
    "offset, shape, strides, values",
    [
        (0, (4,), (1,), [1, 2, 3, 4]),
        (3, (1,), (1,), [4]),
        (0, (2, 2), (2, 1), [[1, 2], [3, 4]]),
        (1, (2, 2), (1, 1), [[2, 3], [3, 4]]),
        (3, (1,) * 8, (7,) * 8, np.full((1,) * 8, 4)),
        (4, (0, 3), (3, 1), np.zeros((0, 3))),
    ],
)
def test_tensors_may_use_their_storage_to_its_end(tmp_path, offset, shape, strides, values):
    for path in both_ways(tmp_path, offset, shape, strides):
        found = read(path)["x"]
        assert found.shape == shape and np.array_equal(found, values)


def test_a_huge_declared_record_is_refused_before_reading(tmp_path):
    identifier = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 2**33)
    content = pickled({"x": tensor_call(identifier, 0, (2**33,), (1,))})
    path = archive_of(tmp_path / "a.pth", ("a/data.pkl", content), ("a/data/0", bytes(16)))
    data = path.read_bytes()
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    size = struct.pack("<I", 2**31)
    path.write_bytes(data[: entry + 20] + size + size + data[entry + 28 :])
    assert f"declares {2**31} bytes for data/0, more than the whole file" in failure(path)


# Damage


def small_checkpoint() -> dict:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    return training_checkpoint({"a": array, "b": array.T, "c": np.ones(2, np.float16)})


@both
def test_truncated_anywhere(tmp_path, write):
    data = write(tmp_path / "whole.pth", small_checkpoint()).read_bytes()
    path = tmp_path / "cut.pth"
    for length in [*range(0, len(data) - 1, 23), len(data) - 1]:
        path.write_bytes(data[:length])
        assert ("truncated" if length else "is empty") in failure(path)


def test_cut_while_it_is_open(tmp_path):
    """The stream's tensors are read late: the file may have lost its end since it was opened."""
    path = write_stream(tmp_path / "a.pth", {"x": np.zeros(2**18, np.float32)})  # more than is read ahead
    with pytorch_file.opened(path) as tensors:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match="a.pth: ends inside its tensors"):
            tensors["x"].read()


def only_user_errors(path: Path) -> None:
    try:
        read(path)
    except UserError as error:
        assert "\n" not in str(error) and path.name in str(error)


@both
def test_flipped_bytes_never_raise_anything_else(tmp_path, write):
    data = write(tmp_path / "whole.pth", small_checkpoint()).read_bytes()
    generator = np.random.default_rng(1)
    path = tmp_path / "flipped.pth"
    for _ in range(300):
        changed = bytearray(data)
        for position in generator.integers(0, len(data), generator.integers(1, 4)):
            changed[position] = generator.integers(0, 256)
        path.write_bytes(changed)
        only_user_errors(path)


@both
def test_changed_pickles_inside_a_sound_file_never_raise_anything_else(tmp_path, write):
    storages = Storages(legacy=write is write_stream)
    whole = pickled(small_checkpoint(), storages)
    generator = np.random.default_rng(2)
    opcodes = np.frombuffer(
        b"(.0123FIJKLMNPQRSTUVXabcdeghijlopqrstu]})\x85\x86\x87\x88\x89\x8a\x8c\x8f\x93\x94", np.uint8
    )
    path = tmp_path / "changed.pth"
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(generator.integers(1, 4)):
            position = generator.integers(0, len(changed))
            if generator.random() < 0.3:
                del changed[position]
            else:
                changed[position] = generator.choice(opcodes)
        only_user_errors(write(path, Raw(bytes(changed))))


def test_flipped_weights_of_a_zip_fail_their_checksum(tmp_path):
    array = np.full(64, 3.0, np.float32)
    path = write_zip(tmp_path / "a.pth", {"x": array})
    data = bytearray(path.read_bytes())
    data[data.index(array.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    assert "CRC" in failure(path)


def test_the_first_pickle_of_a_stream_may_be_anything(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(io.BytesIO(emit(3) + b".").getvalue())
    assert "magic number" in failure(path)
