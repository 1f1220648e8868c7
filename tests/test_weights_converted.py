"""Our own file: exact, atomic, strict; and the trees it holds."""

import dataclasses
import json
import os
import resource
import signal
import stat
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jdepth import weights
from jdepth.errors import UserError
from jdepth.models import depth_model
from jdepth.weights import safetensors_file, warm_start

INFO = weights.WeightsInfo(
    family="dinov2_dpt",
    model="rooms_nano",
    backbone="vit_nano14",
    channels=16,
    min_depth=0.001,
    max_depth=10.0,
    source="a run of our own",
    licence="Apache-2.0",
)


@pytest.fixture(scope="module")
def params() -> dict:
    model = depth_model.build("vit_nano14", channels=16)
    shapes = jax.eval_shape(lambda key: model.init(key, (28, 28)), jax.random.key(0))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.standard_normal(leaf.shape, np.float32), shapes)


def failure(path: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        weights.load(path, **options)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("parts", [("backbone",), ("decoder", "depth_head"), ("backbone", "decoder", "depth_head")])
def test_round_trip_is_exact(params, tmp_path, parts):
    tree = {part: params[part] for part in parts}
    weights.save(tmp_path / "a.safetensors", tree, INFO)
    loaded = weights.load(tmp_path / "a.safetensors")
    assert loaded.info == INFO
    assert weights.fingerprint(loaded.params) == weights.fingerprint(tree)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(tree)
    assert all(array.dtype == np.float32 for array in weights.flatten(loaded.params).values())


def test_the_file_is_plain_safetensors(params, tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, params, INFO)
    with safe_open(path, framework="np") as file:
        assert json.loads(file.metadata()["jdepth"])["max_depth"] == 10.0
    found = load_file(path)
    assert np.array_equal(
        found["backbone/blocks_3/attn/qkv/kernel"], params["backbone"]["blocks_3"]["attn"]["qkv"]["kernel"]
    )


def test_half_precision_device_arrays_are_stored_as_float32(params, tmp_path):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), {"backbone": params["backbone"]})
    weights.save(tmp_path / "a.safetensors", half, INFO)
    found = weights.load(tmp_path / "a.safetensors").params
    assert weights.fingerprint(found) == weights.fingerprint(jax.tree.map(lambda x: x.astype(jnp.float32), half))


def test_replaces_an_older_file_and_leaves_ordinary_permissions(params, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    weights.save(path, {"backbone": params["backbone"]}, INFO)
    assert weights.load(path).info == INFO
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["a.safetensors", "plain"]


@pytest.fixture
def little_room():
    """No file of this process may grow beyond 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_no_space_leaves_everything_as_it_was(params, tmp_path, little_room):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match="a.safetensors: cannot be written"):
        weights.save(path, params, INFO)
    assert [child.name for child in tmp_path.iterdir()] == ["a.safetensors"] and path.read_bytes() == b"old"


def test_interruption_leaves_everything_as_it_was(params, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(weights.converted, "_flush", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.save(tmp_path / "a.safetensors", params, INFO)
    assert not list(tmp_path.iterdir())


def test_the_bytes_are_on_disk_before_the_file_takes_its_name(params, tmp_path, monkeypatch):
    """A crash after renaming would otherwise leave a file without its end."""
    done = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, lambda *given, name=name, do=getattr(os, name): (done.append(name), do(*given)))
    weights.save(tmp_path / "a.safetensors", {"backbone": params["backbone"]}, INFO)
    assert done == ["fsync", "replace"]


def test_destinations(params, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for name, words in (
        ("a.pth", "ends in"),
        ("absent/a.safetensors", "no such folder"),
        ("folder.safetensors", "a folder"),
    ):
        with pytest.raises(UserError, match=words):
            weights.save(tmp_path / name, params, INFO)


def test_a_tree_that_is_not_what_it_says_is_not_written(params, tmp_path):
    path = tmp_path / "a.safetensors"
    for tree, info, words in (
        ({}, INFO, "holds nothing"),
        ({"decoder": params["decoder"]}, INFO, "expected one of"),
        (params | {"auxiliary_head": {"bias": np.zeros(3)}}, INFO, "auxiliary_head"),
        (params, dataclasses.replace(INFO, channels=32), "of another shape"),
        (params, dataclasses.replace(INFO, channels=None), "does not say its channels"),
        (params, dataclasses.replace(INFO, backbone="vit_tiny14"), "missing"),
        (params, dataclasses.replace(INFO, min_depth=None), "min_depth None"),
        (params, dataclasses.replace(INFO, max_depth=np.inf), "max_depth inf"),
    ):
        with pytest.raises(UserError, match=words):
            weights.save(path, tree, info)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"format": 2}, "another format"),
        ({"backbone": "vit_x"}, "unknown backbone vit_x"),
        ({"backbone": "vit_tiny14"}, "of another shape"),
        ({"channels": "16"}, "channels = 16"),
        ({"channels": 10**9}, "of 1000000000 channels, expected an even number"),
        ({"channels": 15}, "of 15 channels, expected an even number"),
        ({"channels": 0}, "of 0 channels, expected an even number"),
        ({"max_depth": True}, "max_depth = True"),
        ({"max_depth": "10"}, "max_depth = 10"),
        ({"min_depth": "0"}, "min_depth = 0"),
        ({"input_area": 0}, "input_area = 0"),
        ({"channels": True}, "channels = True"),
        ({"licence": None}, "licence = None"),
        ({"more": 1}, "incomplete"),
        ({"source": "a\nb"}, "control characters"),
    ],
)
def test_metadata_is_checked(params, tmp_path, change, words):
    metadata = {"format": 1} | dataclasses.asdict(INFO) | change
    flat = {name: np.ascontiguousarray(array) for name, array in weights.flatten(params).items()}
    save_file(flat, tmp_path / "a.safetensors", {"jdepth": json.dumps(metadata)})
    assert words in failure(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "low, high",
    [
        (None, None), (0.001, None), (None, 10.0), (np.nan, 10.0), (0.001, np.nan), (0.001, np.inf), (0.001, 10**39),
        (10.0, 0.001), (5, 5), (-1.0, 10.0), (0, 10),
    ],
)  # fmt: skip
def test_a_depth_head_needs_a_range(params, tmp_path, low, high):
    metadata = {"format": 1} | dataclasses.asdict(INFO) | {"min_depth": low, "max_depth": high}
    flat = {name: np.ascontiguousarray(array) for name, array in weights.flatten(params).items()}
    save_file(flat, tmp_path / "a.safetensors", {"jdepth": json.dumps(metadata)})
    assert "finite metres 0 < min_depth < max_depth" in failure(tmp_path / "a.safetensors")


def test_a_backbone_needs_no_range(params, tmp_path):
    info = dataclasses.replace(INFO, min_depth=None, max_depth=None)
    weights.save(tmp_path / "a.safetensors", {"backbone": params["backbone"]}, info)
    assert weights.load(tmp_path / "a.safetensors").info == info


def test_model_argument_must_be_the_files_own(params, tmp_path):
    weights.save(tmp_path / "a.safetensors", params, INFO)
    assert "not dinov2_vits14" in failure(tmp_path / "a.safetensors", model="dinov2_vits14")


# safetensors themselves


def raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(**changes) -> dict:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


UNFIT = "describes x by a shape and a place that do not fit"
SPREAD = "has tensors that overlap or leave gaps"


@pytest.mark.parametrize(
    "header, data, words",
    [
        ({"x": entry()}, bytes(7), "has 76 bytes, its header says 77"),
        ({"x": entry()}, bytes(9), "has 78 bytes, its header says 77"),
        ({"x": entry(shape=[3])}, bytes(8), UNFIT),
        ({"x": entry(shape=[1])}, bytes(8), UNFIT),
        ({"x": entry(shape=[-2])}, bytes(8), UNFIT),
        ({"x": entry(shape=[-1, -2])}, bytes(8), UNFIT),
        ({"x": entry(shape=[2.0])}, bytes(8), UNFIT),
        ({"x": entry(shape=[True, 2])}, bytes(8), UNFIT),
        ({"x": entry(shape=[2**62, 2**62])}, bytes(8), UNFIT),
        ({"x": entry(data_offsets=[8, 0])}, bytes(8), UNFIT),
        ({"x": entry(data_offsets=[-8, 0])}, bytes(8), UNFIT),
        ({"x": entry(data_offsets=[8, 16])}, bytes(16), SPREAD),
        ({"x": entry(), "y": entry(data_offsets=[12, 20])}, bytes(20), SPREAD),
        ({"x": entry(), "y": entry(data_offsets=[4, 12])}, bytes(12), SPREAD),
        ({"x": entry(), "y": entry()}, bytes(8), SPREAD),
        ({"x": entry(data_offsets=[0])}, bytes(8), "describes x wrongly"),
        ({"x": 3}, b"", "describes x wrongly"),
        ({"x": entry(dtype="F8_E4M3")}, bytes(8), "has x in the number type F8_E4M3, expected one of F64, F32"),
        ({"__metadata__": {"jdepth": 3}}, b"", "has metadata that is not text"),
        ({"__metadata__": 3}, b"", "has metadata that is not text"),
        (b'{"x": 1', b"", "damaged or truncated (Expecting"),
        (b'{"x": {}, "x": {}}', b"", "names a tensor twice"),
        (b"{" + b'"a":{' * 100_000, b"", "damaged or truncated (maximum recursion depth"),
        (b'{"\xff": 1}', b"", "damaged or truncated ('utf-8' codec"),
    ],
)
def test_damaged_safetensors(tmp_path, header, data, words):
    assert words in failure(raw(tmp_path / "a.safetensors", header, data))


def test_damaged_starts(tmp_path):
    path = tmp_path / "a.safetensors"
    for content in (b"", b"\x00", b"{}", bytes(100), b"PK\x03\x04" + bytes(99)):
        path.write_bytes(content)
        assert ("is not a safetensors file" if content else "is empty (0 bytes)") in failure(path)
    assert "is not a safetensors file" in failure(raw(path, {}, length=2**60))
    for length in (3, 99_000_000):
        assert "ends after 10 bytes, inside its header" in failure(raw(path, {}, length=length))


def test_safetensors_number_types(tmp_path):
    bits = np.array([1.5, -2.0, np.inf], np.float32).view(np.uint32) >> 16
    header = {"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    with safetensors_file.opened(raw(tmp_path / "a.safetensors", header, bits.astype("<u2").tobytes())) as (tensors, _):
        assert np.array_equal(tensors["x"].read(), np.array([1.5, -2.0, np.inf], np.float32))
    names = "f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 b1".split()
    arrays = {name: np.array([[0, 1, 200], [7, 0, 1]]).astype(name) for name in names}
    save_file(arrays, tmp_path / "b.safetensors")
    with safetensors_file.opened(tmp_path / "b.safetensors") as (tensors, _):
        for name, array in arrays.items():
            found = tensors[name].read()
            assert found.dtype == array.dtype and np.array_equal(found, array), name


def test_cut_while_it_is_open(tmp_path):
    """Tensors are read late: the file may have lost its end since it was opened."""
    path = tmp_path / "a.safetensors"
    save_file({"x": np.zeros(2**18, np.float32)}, path)
    with safetensors_file.opened(path) as (tensors, _):
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match="a.safetensors: ends inside its tensors"):
            tensors["x"].read()


def test_whole_numbers_are_no_parameters(params, tmp_path):
    flat = {name: np.ascontiguousarray(array) for name, array in weights.flatten(params).items()}
    flat["backbone/norm/bias"] = flat["backbone/norm/bias"].astype(np.int32)
    metadata = {"format": 1} | dataclasses.asdict(INFO)
    save_file(flat, tmp_path / "a.safetensors", {"jdepth": json.dumps(metadata)})
    assert "backbone/norm/bias holds int32, expected floating-point" in failure(tmp_path / "a.safetensors")


def test_flipped_bytes_never_raise_anything_else(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}, path, {"format": "pt"})
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for case in range(400):
        changed = bytearray(data[: generator.integers(0, len(data))] if case % 4 == 0 else data)
        for _ in range(generator.integers(1, 4) if changed else 0):
            changed[generator.integers(0, len(changed))] = generator.integers(0, 256)
        path.write_bytes(changed)
        failure(path)  # never a model of ours, whatever else it may still be


# Trees


def test_names_of_trees():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert weights.flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert weights.unflatten(weights.flatten(tree)) == tree
    for flat, words in (({"a": 1, "a/b": 2}, "a in a/b is an array"), ({"a/b": 2, "a": 1}, "a is there twice")):
        with pytest.raises(ValueError, match=words):
            weights.unflatten(flat)


def test_fingerprint_depends_on_names_shapes_types_and_values_only():
    a = {"x": {"k": np.arange(6, dtype=np.float32).reshape(2, 3)}, "y": np.float32(1)}
    same = {"y": jnp.float32(1), "x": {"k": np.asfortranarray(a["x"]["k"])}}
    mark = weights.fingerprint(a)
    assert len(mark) == 64 and weights.fingerprint(same) == mark
    kernel = a["x"]["k"]
    others = [
        {"x": {"k": kernel.reshape(3, 2)}, "y": a["y"]},
        {"x": {"k": kernel + 1e-6}, "y": a["y"]},
        {"x": {"k": kernel.astype(np.float64)}, "y": a["y"]},
        {"x": {"k": jnp.asarray(kernel, jnp.bfloat16)}, "y": a["y"]},
        {"x": {"l": kernel}, "y": a["y"]},
        {"x": {"k": kernel}},
    ]
    assert len({mark, *map(weights.fingerprint, others)}) == 1 + len(others)


def test_warm_start_copies_what_fits_and_lists_the_rest():
    target = {"decoder": {"k": jnp.zeros((2, 2)), "new": np.ones(1)}, "head": {"k": np.zeros((3, 4), np.float32)}}
    source = {"decoder": {"k": np.full((2, 2), 7.0)}, "head": {"k": np.ones((3, 5))}, "old": np.ones(2)}
    merged, report = warm_start.merge(target, source)
    assert np.array_equal(merged["decoder"]["k"], np.full((2, 2), 7.0)) and merged["decoder"]["k"].dtype == np.float32
    assert merged["decoder"]["new"] is target["decoder"]["new"] and merged["head"]["k"] is target["head"]["k"]
    assert report == warm_start.Report(
        loaded=("decoder/k",),
        missing=("decoder/new",),
        reshaped=(("head/k", (3, 4), (3, 5)),),
        unused=("old",),
    )
    assert len(report.lines()) == 4 and "head/k (here (3, 4), there (3, 5))" in " ".join(report.lines())
    assert not np.any(target["decoder"]["k"])


def test_warm_start_from_something_else_entirely():
    with pytest.raises(UserError, match="nothing in the weights"):
        warm_start.merge({"a": np.zeros(2)}, {"b": np.zeros(2)})
