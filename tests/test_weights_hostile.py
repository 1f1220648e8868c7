"""Checkpoints made to harm: every one is refused by one line, and nothing that they ask for happens."""

import builtins
import collections
import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from weights_files import Call, Global, Raw, emit, pickled, write_stream, write_zip

from jdepth import weights
from jdepth.errors import UserError
from jdepth.weights import pickle_machine
from jdepth.weights.torch_objects import KNOWN


class Reduced:
    """Pickles as a call, the way every exploit does."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def refused(path: Path, sentinel: Path) -> str:
    with pytest.raises(UserError) as caught:
        weights.load(path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message and len(message) < 700
    assert not sentinel.exists(), "the file's code ran"
    return message


def files(folder: Path, data: bytes) -> list[Path]:
    """The same pickle as the object of either container and as a bare file; the zip has a storage 0 of 16 bytes."""
    (folder / "bare.pth").write_bytes(data)
    with zipfile.ZipFile(write_zip(folder / "zip.pth", Raw(data)), "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    return [
        folder / "zip.pth",
        write_stream(folder / "stream.pth", Raw(data)),
        folder / "bare.pth",
    ]


def calls(sentinel: Path) -> dict[str, Reduced]:
    code = f"open({str(sentinel)!r}, 'w').close()"
    return {
        "system": Reduced(os.system, f"touch {sentinel}"),
        "popen": Reduced(subprocess.Popen, ["touch", str(sentinel)]),
        "eval": Reduced(builtins.eval, code),
        "exec": Reduced(builtins.exec, code),
        "open": Reduced(builtins.open, str(sentinel), "w"),
        "getattr": Reduced(getattr, Reduced(__import__, "os"), "system"),
        "import": Reduced(__import__, "os"),
        "pickle in pickle": Reduced(pickle.loads, pickle.dumps(Reduced(os.system, f"touch {sentinel}"))),
        "path": Reduced(Path(sentinel).touch),
        "defaultdict": Reduced(collections.defaultdict),
        "defaultdict of lists": Reduced(collections.defaultdict, list),
        "bytearray": Reduced(bytearray, 2**40),
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", calls(Path("x")))
def test_calls_are_refused_by_name(tmp_path, name, protocol):
    sentinel = tmp_path / "sentinel"
    data = pickle.dumps({"state_dict": {}, "meta": calls(sentinel)[name]}, protocol)
    for path in files(tmp_path, data):
        assert "refers to" in (message := refused(path, sentinel)), message


def test_the_name_is_in_the_message(tmp_path):
    data = pickle.dumps(Reduced(os.system, "true"), 2)
    for path in files(tmp_path, data):
        assert f"{os.system.__module__}.system" in refused(path, tmp_path / "none")


@pytest.mark.parametrize(
    "module, name",
    [
        ("os", "system"),
        ("builtins", "getattr"),
        ("builtins", "object"),
        ("builtins", "dict.__class__"),
        ("collections", "OrderedDict.__init__"),
        ("collections", "OrderedDict.__reduce__.__globals__"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.hub", "load"),
        ("torch", "load"),
        ("numpy", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.core.multiarray", "_reconstruct.__class__"),
        ("jdepth.weights.torch_objects", "KNOWN"),
        ("os\n", "sys\ttem\x1b[31m"),
        ("", ""),
    ],
)
def test_names_are_looked_up_never_resolved(tmp_path, module, name):
    text = b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode()
    for path in files(tmp_path, b"\x80\x04" + text + b"\x93)R."):
        message = refused(path, tmp_path / "none")
        assert "refers to" in message and "\x1b" not in message


def test_classic_text_pickle(tmp_path):
    sentinel = tmp_path / "sentinel"
    for data in (
        f"cos\nsystem\n(S'touch {sentinel}'\ntR.",
        f"(S'touch {sentinel}'\nios\nsystem\n.",
        f"(cos\nsystem\nS'touch {sentinel}'\no.",
    ):
        for path in files(tmp_path, data.encode()):
            assert "nothing was run" in refused(path, sentinel)


ordered = Call(Global("collections", "OrderedDict"), ())
storage = Raw(emit(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4)) + b"Q")
tensor = Call(Global("torch._utils", "_rebuild_tensor"), (storage, 0, (1,), (1,)))
kind = Call(Global("numpy", "dtype"), ("f8", False, True))
empty_text = Call(Global("numpy", "dtype"), ("S0", False, True))  # elements of no bytes
empty_array = Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"))


def call(name: str, *arguments: object, state: object = None) -> Call:
    module, _, function = name.rpartition(".")
    return Call(Global(module, function), arguments, state)


OPERATIONS = {  # words of the refusal -> pickles of a value
    # Our constructors with arguments they cannot have
    "calls collections.OrderedDict with arguments it cannot have": [
        call("collections.OrderedDict", 3),
        call("collections.OrderedDict", [[1, 2, 3]]),
        call("collections.OrderedDict", [], []),
    ],
    "has a list as a key": [
        call("collections.OrderedDict", [[[], 2]]),
        call("builtins.set", [[]]),
        call("builtins.frozenset", [[]]),
        Raw(emit({}) + emit([]) + emit(1) + b"s"),
        Raw(emit({}) + b"(" + emit([]) + emit(1) + b"u"),
        Raw(b"(" + emit([]) + emit(1) + b"d"),
        Raw(b"\x8f(" + emit([]) + b"\x90"),
        Raw(b"(" + emit([]) + b"\x91"),
    ],
    "calls _codecs.encode with arguments it cannot have": [
        call("_codecs.encode", "x", "rot13"),
        call("_codecs.encode", "x", "hex"),
        call("_codecs.encode", ordered, "latin1"),
    ],
    "calls builtins.bytes with arguments it cannot have": [call("builtins.bytes", 2**40)],
    "calls builtins.set with arguments it cannot have": [call("builtins.set", 5)],
    "calls builtins.frozenset with arguments it cannot have": [call("builtins.frozenset", "ab")],
    "calls torch.Size with arguments it cannot have": [
        call("torch.Size", "abc"),
        call("torch.Size"),
        call("torch.Size", (1,) * 9),
    ],
    "calls torch.device with arguments it cannot have": [
        call("torch.device", ordered),
        call("torch.device", "cuda", "0"),
    ],
    "calls torch._utils._rebuild_tensor with arguments it cannot have": [
        call("torch._utils._rebuild_tensor", Global("torch", "FloatStorage"), 0, (1,), (1,)),
        call("torch._utils._rebuild_tensor", storage, 0, (1,)),
        call("torch._utils._rebuild_tensor", storage, 0, (1,), (1,), False),
    ],
    "calls torch._utils._rebuild_tensor_v2 with arguments it cannot have": [
        call("torch._utils._rebuild_tensor_v2"),
        call("torch._utils._rebuild_tensor_v2", ordered, 0, (1,), (1,), False, ordered),
        call("torch._utils._rebuild_tensor_v2", storage, 0, (1,), (1,), False),
        call("torch._utils._rebuild_tensor_v2", storage, 0, (1,), (1,), False, ordered, {}, 1),
    ],
    "calls torch._utils._rebuild_tensor_v3 with arguments it cannot have": [
        call("torch._utils._rebuild_tensor_v3", ordered, 0, (1,), (1,), False, ordered, Global("torch", "float32")),
        call("torch._utils._rebuild_tensor_v3", storage, 0, (1,), (1,), False, ordered),
        call("torch._utils._rebuild_tensor_v3", storage, 0, (1,), (1,), False, ordered, "float32"),
        call("torch._utils._rebuild_tensor_v3", storage, 0, (1,), (1,), False, ordered, Global("torch", "Size")),
    ],
    "calls torch._utils._rebuild_parameter with arguments it cannot have": [
        call("torch._utils._rebuild_parameter", ordered, True, ordered),
        call("torch._utils._rebuild_parameter", tensor, 1, ordered),
        call("torch._utils._rebuild_parameter", tensor, True, {}),
    ],
    # Things that are not functions
    "calls torch.FloatStorage, which cannot be called": [call("torch.FloatStorage", 2**40)],
    "calls torch.float32, which cannot be called": [call("torch.float32")],
    "calls numpy.ndarray, which cannot be called": [call("numpy.ndarray", (2**40,))],
    "calls a OrderedDict, which cannot be called": [Call(ordered, ())],
    "calls a str, which cannot be called": [Call("os.system", ("true",))],
    "calls a NoneType, which cannot be called": [Call(Raw(b"N"), ())],
    "calls torch.Size, which cannot be called": [Raw(emit(Global("torch", "Size")) + emit([(1,)]) + b"R")],
    # NumPy: objects, structures, sizes
    "calls numpy.dtype with arguments it cannot have": [
        call("numpy.dtype", "O8", False, True),
        call("numpy.dtype", "O", False, True),
        call("numpy.dtype", "V8", False, True),
        call("numpy.dtype", "f8,O", False, True),
        call("numpy.dtype", "M8[ns]", False, True),
        call("numpy.dtype", [("a", "O")], False, True),
        call("numpy.dtype", "f8", False, True, {}),
    ],
    "calls numpy.dtype.__setstate__ with arguments it cannot have": [
        call("numpy.dtype", "f8", False, True, state=(3, "<", None, ("a",), {"a": 1}, -1, -1, 0)),
        call("numpy.dtype", "f8", False, True, state=(3, "O", None, None, None, -1, -1, 0)),
        call("numpy.dtype", "f8", False, True, state=(3, "<", None, None, None, -1, -1)),
        call("numpy.dtype", "f8", False, True, state={"__class__": 1}),
    ],
    "calls numpy scalar with arguments it cannot have": [
        call("numpy.core.multiarray.scalar", kind, b"123"),
        call("numpy.core.multiarray.scalar", kind, b"123456789"),
        call("numpy.core.multiarray.scalar", kind, [1]),
        call("numpy.core.multiarray.scalar", "O", b"12345678"),
        call("numpy.core.multiarray.scalar", empty_text, b""),
    ],
    "calls numpy._reconstruct with arguments it cannot have": [
        call("numpy.core.multiarray._reconstruct", Global("torch", "float32"), (0,), b"b"),
        call("numpy.core.multiarray._reconstruct", Global("numpy", "ndarray"), (2**40,), b"b"),
        call("numpy.core.multiarray._reconstruct", Global("numpy", "ndarray"), (0,), b"O"),
    ],
    "calls numpy.ndarray with arguments it cannot have": [
        Call(empty_array.function, empty_array.arguments, (1, (2**40,), kind, False, b"")),
        Call(empty_array.function, empty_array.arguments, (1, (0, 2**47, 2**47), kind, False, b"x")),
        Call(empty_array.function, empty_array.arguments, (1, (1,), kind, False, [ordered])),
        Call(empty_array.function, empty_array.arguments, (1, (1,), kind, False, bytes(9))),
        Call(empty_array.function, empty_array.arguments, (1, (2**40,), empty_text, False, b"")),
        Call(empty_array.function, empty_array.arguments, (1, (-1,), kind, False, bytes(8))),
        call("numpy.core.numeric._frombuffer", bytes(9), kind, (1,), "C"),
    ],
    "calls numpy.ndarray.__setstate__ with arguments it cannot have": [
        Call(empty_array.function, empty_array.arguments, {"__dict__": {}}),
        Call(empty_array.function, empty_array.arguments, (1, (1,), "f8", False, bytes(8))),
    ],
    "calls numpy._frombuffer with arguments it cannot have": [
        call("numpy.core.numeric._frombuffer", bytes(8), kind, (1,), "K"),
        call("numpy.core.numeric._frombuffer", bytes(8), "f8", (1,), "C"),
    ],
    # States for what takes none
    "sets the state of a OrderedDict": [call("collections.OrderedDict", state=["__class__"])],
    "sets the state of a tuple": [call("torch.Size", (1,), state={"__class__": 1})],
    "sets the state of a str": [call("torch.device", "cpu", state={"x": 1})],
    "sets the state of a dict": [Raw(emit({}) + emit({"__class__": 1}) + b"b")],
    "sets the state of a Known": [
        Raw(emit(Global("torch", "FloatStorage")) + emit({"build": 1}) + b"b"),
        Raw(emit(Global("collections", "OrderedDict")) + emit({"build": Global("torch", "Size")}) + b"b"),
    ],
    # Containers misused
    "puts items into a tuple": [Raw(emit(()) + emit(1) + b"a")],
    "puts items into a str": [Raw(emit("x") + b"(" + emit(1) + b"e"), Raw(emit("x") + b"(" + emit(1) + b"\x90")],
    "puts items into a Known": [Raw(emit(Global("torch", "Size")) + emit("name") + emit(1) + b"s")],
    "puts items into a list": [Raw(emit([]) + b"(" + emit(1) + emit(2) + b"u")],
    "has a key without a value": [Raw(emit({}) + b"(" + emit(1) + b"u"), Raw(b"(" + emit(1) + b"d")],
    # Persistent ids of other kinds
    "something other than a storage": [
        Raw(emit("storage") + b"Q"),
        Raw(emit(("module", Global("collections", "OrderedDict"), "file.py", "source")) + b"Q"),
        Raw(emit(("storage", ordered, "0", "cpu", 4)) + b"Q"),
        Raw(emit(("storage", Global("collections", "OrderedDict"), "0", "cpu", 4)) + b"Q"),
        Raw(emit(("storage", Global("torch", "FloatStorage"), 0, "cpu", 4)) + b"Q"),
        Raw(emit(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4, None, None)) + b"Q"),
        Raw(emit(("storage",)) + b"Q"),
    ],
    "uses PERSID": [Raw(b"Pabc\n")],
    # Opcodes for arbitrary objects
    "uses NEWOBJ,": [Raw(emit(Global("collections", "OrderedDict")) + b")\x81")],
    "uses NEWOBJ_EX": [Raw(emit(Global("collections", "OrderedDict")) + b")}\x92")],
    "uses NEXT_BUFFER": [Raw(b"\x97"), Raw(b"\x97\x98")],
    "uses READONLY_BUFFER": [Raw(b"N\x98")],
    "names an object by something other than text": [
        Raw(b"\x93"),
        Raw(emit(1) + emit(2) + b"\x93"),
        Raw(emit("os") + emit(2) + b"\x93"),
        Raw(emit(1) + emit("system") + b"\x93"),
    ],
    # Stack, memo and declared sizes
    "takes more values than it has": [Raw(b"(\x85"), Raw(b"(N\x86"), Raw(b"(NN\x87")],
    "truncated": [
        Raw(b"0000"),
        Raw(b"h\x09"),
        Raw(b"j\xff\xff\xff\xff"),
        Raw(b"(R"),
        Raw(b"(b"),
        Raw(b"((e"),
        Raw(b"B\xff\xff\xff\x7fabc"),
        Raw(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc"),
        Raw(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc"),
        Raw(b"\x96\xff\xff\xff\xff\xff\xff\xff\x0fabc"),
        Raw(b"\x8b\xff\xff\xff\x7fabc"),
    ],
}


@pytest.mark.parametrize(
    "words, value",
    [
        pytest.param(words, value, id=f"{words} {number}")
        for words, values in OPERATIONS.items()
        for number, value in enumerate(values)
    ],
)
def test_odd_values_are_refused(tmp_path, words, value):
    data = pickled({"state_dict": {}, "meta": value})
    in_zip, in_stream, bare = files(tmp_path, data)
    assert words in refused(in_zip, tmp_path / "none")
    assert words in refused(in_stream, tmp_path / "none")
    # The first pickle of a stream is its magic number, which has no storages to refer to.
    first = refused(bare, tmp_path / "none")
    assert words in first or "storage where there is none" in first


def test_no_other_name_is_known():
    """What a file may name, and which of these can be called: anything more is a way in."""
    called = {
        "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter", "torch.Size", "torch.device", "collections.OrderedDict", "_codecs.encode",
        "builtins.bytes", "builtins.set", "builtins.frozenset",
        "__builtin__.bytes", "__builtin__.set", "__builtin__.frozenset",
        "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
        "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer",
    }  # fmt: skip
    kinds = "Double Float Half BFloat16 Long Int Short Char Byte Bool Untyped".split()
    types = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool".split()
    named = {"numpy.ndarray", "torch.storage.UntypedStorage"}
    named |= {f"torch.{kind}Storage" for kind in kinds} | {f"torch.{name}" for name in types}
    assert {name for name, known in KNOWN.items() if known.build is not None} == called
    assert {name for name, known in KNOWN.items() if known.build is None} == named
    assert all(name == known.name for name, known in KNOWN.items() if known.build is None)


@pytest.mark.parametrize("opcode", [b"\x82\x07", b"\x83\x07\x00", b"\x84\x07\x00\x00\x00"])
def test_the_extension_registry_is_not_asked(tmp_path, opcode):
    copyreg.add_extension("os", "system", 7)
    try:
        for path in files(tmp_path, b"\x80\x02" + opcode + emit(("true",)) + b"R."):
            assert "EXT" in refused(path, tmp_path / "none")
    finally:
        copyreg.remove_extension("os", "system", 7)


def test_a_memo_index_is_only_a_name(tmp_path):
    # Python's own machine sizes an array by it: 64 GB for this one.
    content = Raw(b"\x80\x02" + emit({}) + b"r\xff\xff\xff\xff" + b".")
    assert "no tensor" in refused(write_zip(tmp_path / "a.pth", content), tmp_path / "none")


def test_deep_nesting_is_refused_where_it_would_be_hashed(tmp_path):
    deep = b")" + b"\x85" * 50_000
    data = b"\x80\x02}" + deep + b"Ns."
    for path in files(tmp_path, data):
        assert "tuple as a key" in refused(path, tmp_path / "none")
    for path in files(tmp_path, b"\x80\x02" + deep + b"."):
        words = "magic number is missing" if path.stem == "bare" else "holds a tuple"
        assert words in refused(path, tmp_path / "none")


def test_a_list_that_holds_itself_and_doubling_lists_cost_nothing(tmp_path):
    twice = b"]q\x00h\x00a"  # a list with itself
    doubling = b"]" + b"".join(b"q\x010](h\x01h\x01e" for _ in range(60))  # 2^60 leaves, 60 lists
    for content in (twice, doubling):
        for path in files(tmp_path, b"\x80\x02" + content + b"."):
            words = "magic number is missing" if path.stem == "bare" else "holds a list"
            assert words in refused(path, tmp_path / "none")


LONG = "x" * 2**20
raw_kind = Call(Global("numpy", "dtype"), ("u1", False, True))


@pytest.mark.parametrize(
    "call",
    [
        Call(Global("_codecs", "encode"), (LONG, "latin1")),
        Call(Global("torch", "device"), (LONG, 0)),
        Call(Global("builtins", "set"), ([1] * 2**16,)),
        Call(Global("builtins", "frozenset"), ([1] * 2**16,)),
        Call(Global("collections", "OrderedDict"), ([(1, 2)] * 2**16,)),
        Call(empty_array.function, empty_array.arguments, (1, (2**20,), raw_kind, False, LONG)),
    ],
    ids=lambda call: call.function.name,
)
def test_many_calls_cannot_copy_one_long_argument(tmp_path, call):
    if call.state is None:
        argument, again = call.arguments, emit(call.function) + b"h\x00R"
    else:
        argument, again = call.state, emit(Call(call.function, call.arguments)) + b"h\x00b"
    data = b"\x80\x02" + emit(argument) + b"q\x000](" + again * 200 + b"e."
    assert "copy more than" in refused(write_zip(tmp_path / "a.pth", Raw(data)), tmp_path / "none")


@pytest.mark.parametrize("left", [b"N}.", b"(}.", b"((}."])
def test_nothing_may_be_left_behind(tmp_path, left):
    for path in files(tmp_path, b"\x80\x02" + left):
        assert "leaves values behind" in refused(path, tmp_path / "none")


def test_too_many_operations(monkeypatch):
    monkeypatch.setattr(pickle_machine, "MAX_OPCODES", 100)
    with pytest.raises(pickle_machine.Fault, match="100 operations"):
        pickle_machine.run(io.BytesIO(b"\x80\x02" + b"N0" * 100 + b"N."), KNOWN)


def test_an_enormous_pickle_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(weights.pytorch_file, "MAX_PICKLE", 1000)
    in_zip, *others = files(tmp_path, pickled({"text": "x" * 2000}))
    assert "has a pickle of 2020 bytes, more than any weights file needs" in refused(in_zip, tmp_path / "none")
    for path in others:
        assert "truncated" in refused(path, tmp_path / "none")


def test_stream_storage_lists_are_checked(tmp_path):
    whole = write_stream(tmp_path / "a.pth", {}).read_bytes()
    assert whole.endswith(pickled([]))
    for keys in (["0"], [[]], {}, [1], [["0"] * 5]):
        (tmp_path / "b.pth").write_bytes(whole.removesuffix(pickled([])) + pickled(keys) + struct.pack("<q", 4))
        assert "lists other storages than its tensors use" in refused(tmp_path / "b.pth", tmp_path / "none")


def test_reading_imports_neither_torch_nor_jax(tmp_path):
    write_zip(tmp_path / "a.pth", {"x": Call(Global("torch._utils", "_rebuild_tensor_v2"), ())})
    script = (
        "import sys\nfrom jdepth import weights\nfrom jdepth.errors import UserError\n"
        f"try:\n    weights.load({str(tmp_path / 'a.pth')!r})\nexcept UserError:\n    pass\n"
        "print([name for name in ('torch', 'jax', 'flax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
