"""Files that mean harm: one line each, nothing happens, and nothing is exhausted."""

import builtins
import copy
import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import foreign_files as ff
import numpy as np
import pytest

from pfgm_jax.errors import UserError
from pfgm_jax.storage import torch_files
from pfgm_jax.storage.torch_files import limits

A = np.arange(24, dtype=np.float32).reshape(4, 6)
WRITERS = [ff.zipped, ff.legacy, ff.dumps]
TOUCH = "import os, pathlib; pathlib.Path(os.environ['MARKER']).touch()"
DEEP = 30_000  # deeper than any recursion
LOAD_BYTES = b"ctorch.storage\n_load_from_bytes\n"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that harm would leave behind."""
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


@pytest.fixture
def refused(tmp_path):
    """The line that refuses `data`; fails if there is none, or if finding it took much memory or time."""

    def refused(data, name="file.pt"):
        (tmp_path / name).write_bytes(data)
        start = time.monotonic()
        tracemalloc.start()
        try:
            with pytest.raises(UserError) as caught:
                torch_files.read(tmp_path / name)
            # The file itself is in memory, and so may be its strings and what its tensors are copied to.
            assert tracemalloc.get_traced_memory()[1] < 2**25 + 8 * len(data)
        finally:
            tracemalloc.stop()
        assert time.monotonic() - start < 20
        line = str(caught.value)
        assert name in line and line.isascii() and line.isprintable() and len(line) < 500
        assert caught.value.__suppress_context__  # no traceback of what was going on inside
        return line

    return refused


def opcodes(*parts):
    """A pickle of protocol 2 by hand."""
    return b"\x80\x02" + b"".join(parts) + b"."


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def binary(value):
    return b"B" + struct.pack("<I", len(value)) + value


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("function", [os.system, builtins.exec, builtins.eval, open, getattr, __import__])
def test_functions_are_refused_by_name(refused, marker, function, write):
    arguments = {os.system: ["touch $MARKER"], open: [str(marker), "w"]}.get(function, [TOUCH])
    line = refused(write({"a": ff.Call(function, *arguments)}))
    asked = f"{function.__module__}.{function.__qualname__}".removeprefix("_")  # open is of io or _io
    assert f"{asked}; only tensors and plain containers are read" in line


EXEC = opcodes(b"cbuiltins\nexec\n", text(TOUCH), b"\x85R")


HARM = {
    "reduce": (EXEC, "asks for builtins.exec;"),
    "stack": (opcodes(text("builtins"), text("exec"), b"\x93", text(TOUCH), b"\x85R"), "asks for builtins.exec;"),
    "text": (b"cos\nsystem\n(S'touch $MARKER'\ntR.", "asks for os.system;"),
    "inst": (b"(S'touch $MARKER'\nios\nsystem\n.", "asks for os.system;"),
    "obj": (b"(cos\nsystem\nS'touch $MARKER'\no.", "asks for os.system;"),
    "newobj": (opcodes(b"csubprocess\nPopen\n", text("touch $MARKER"), b"\x85\x81"), "asks for subprocess.Popen;"),
    "newobj_ex": (opcodes(b"csubprocess\nPopen\n)}", text("args"), b"K\x01s\x92"), "asks for subprocess.Popen;"),
    "build": (opcodes(b"}}", text("__setstate__"), b"cos\nsystem\nsb"), "asks for os.system;"),
    "state of a list": (opcodes(b"]}b"), "sets the state of a list"),
    "slots": (
        opcodes(b"ctorch.nn.modules.linear\nLinear\n)\x81N}", text("__class__"), b"K\x01s\x86b"),
        "not a dict of attributes",
    ),
    "path": (
        opcodes(text("torch._utils"), text("_rebuild_tensor_v2.__globals__"), b"\x93"),
        "asks for torch._utils._rebuild_tensor_v2.__globals__;",
    ),
    "a class's prefix": (
        opcodes(text("torch.nn.modules.module"), text("os.system"), b"\x93", text("touch $MARKER"), b"\x85R"),
        "calls torch.nn.modules.module.os.system with arguments",
    ),
    "an unknown class": (opcodes(b"cmodels_of_mine\nNet\n)\x81"), "asks for models_of_mine.Net;"),
    "a type": (opcodes(b"ctorch\nTensor\n)R"), "calls torch.Tensor;"),
    "a value": (opcodes(text("x"), b")R"), "calls a str;"),
    "a result": (opcodes(b"cbuiltins\nset\n)R)R"), "calls a set;"),
    "payload": (opcodes(LOAD_BYTES, binary(EXEC), b"\x85R"), "a pickle inside a pickle that is no storage"),
    "extension": (opcodes(b"\x82\x01"), "registry of extensions"),
    "buffer": (opcodes(b"\x97"), "buffers outside"),
    "persistent id": (opcodes(text("x"), b"Q"), "data outside"),
    "line breaks": (opcodes(text("os\nb"), text("x\x1b[2Jy"), b"\x93"), r"asks for os\nb.x\x1b[2Jy;"),
    "a long name": (opcodes(text("a" * 10**6), text("b"), b"\x93"), "aaa...;"),
}


@pytest.mark.parametrize("name", HARM)
def test_every_opcode_that_could_call_is_refused(refused, marker, name):
    data, said = HARM[name]
    assert said in refused(data)


def test_harm_inside_the_parts_of_a_stream(refused, marker):
    assert "asks for builtins.exec;" in refused(ff.legacy(ff.Call("torch.Size", ff.Call(exec, TOUCH))))
    storage = ff.legacy(ff.Storage(A))
    magic = storage[: storage.index(b".") + 1]
    assert "asks for builtins.exec;" in refused(magic + EXEC)
    inner = opcodes(LOAD_BYTES, binary(magic + EXEC), b"\x85R")
    assert "asks for builtins.exec;" in refused(inner)
    assert "pickle inside a pickle inside a pickle" in refused(
        opcodes(LOAD_BYTES, binary(ff.legacy(ff.Call(ff.LOAD, storage))), b"\x85R")
    )


def test_source_text_in_a_file_never_runs(tmp_path, marker):
    (tmp_path / "file.pkl").write_bytes(ff.dumps({"ema": ff.persistent("Toy", _parameters={"w": ff.tensor(A)})}))
    assert torch_files.read(tmp_path / "file.pkl")["ema"].keys() == {"class", "state"}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "said, keywords",
    [
        ("negative or huge", {"shape": (-1, 6)}),
        ("negative or huge", {"shape": (2**64, 6)}),
        ("outside its storage", {"shape": (2**40, 2**40)}),
        ("negative or huge", {"shape": (0, 2**62), "stride": (1, 1)}),
        ("negative or huge", {"offset": -1}),
        ("outside its storage", {"offset": 1}),
        ("outside its storage", {"offset": 2**62}),
        ("outside its storage", {"stride": (7, 1)}),
        ("outside its storage", {"stride": (2**62, 2**62)}),
        ("negative or huge", {"stride": (-6, 1)}),
        ("another number of strides", {"stride": (1,)}),
        ("not a tuple of at most", {"shape": (1,) * 64, "stride": (1,) * 64}),
        ("negative or huge", {"shape": (4.0, 6)}),
        ("negative or huge", {"shape": (True, 6)}),
        ("larger than the file", {"shape": (2**40, 1), "stride": (0, 1)}),
    ],
)
def test_shapes_and_strides_are_checked(refused, write, said, keywords):
    assert said in refused(write({"a": ff.tensor(A, **keywords)}))


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("count", [-1, 25, 2**40, 2**70])
def test_sizes_of_storages_are_checked(refused, write, count):
    refused(write({"a": ff.tensor(A, storage=ff.Storage(A, count=count))}))


def test_storages_and_streams_that_contradict_themselves(refused):
    other = ff.tensor(A, storage=ff.Storage(A, kind="Int"))
    for write in (ff.zipped, ff.legacy):
        assert "two types or sizes" in refused(write([ff.tensor(A), other]))
    stream = ff.legacy([ff.tensor(A)])
    count = struct.pack("<q", 24)
    assert "two types or sizes" in refused(stream.replace(count, struct.pack("<q", 23)))
    assert "data follow its end" in refused(stream + b"x")
    assert "not those its tensors refer to" in refused(stream.replace(b"\x00\x00\x000q", b"\x00\x00\x001q", 1))
    start = stream.index(b"little_endian")
    assert "big-endian" in refused(stream[:start] + stream[start:].replace(b"\x88", b"\x89", 1))
    assert "that is no storage" in refused(opcodes(LOAD_BYTES, binary(ff.legacy({"a": 1})), b"\x85R"))


def test_numpy_arrays_are_checked(refused):
    assert "NumPy array of type O8" in refused(ff.dumps({"a": np.array([None, "x"], object)}))
    assert "NumPy array of type V8" in refused(ff.dumps(np.zeros(2, [("x", "f4"), ("y", "f4")])))
    good = pickle.dumps(np.arange(5, dtype=np.float32), 2)
    assert "does not match" in refused(good.replace(b"K\x05\x85", b"K\x06\x85"))
    assert "negative or huge" in refused(good.replace(b"K\x05\x85", b"J\xff\xff\xff\xff\x85"))
    assert "not a dict of attributes" not in refused(ff.dumps(np.array("x")))


def test_endless_copies_of_one_storage_are_refused(refused):
    storage = ff.Storage(np.zeros(10**5, np.float32))
    tensors = [ff.tensor(np.zeros(10**5), storage=storage) for _ in range(1000)]
    assert "larger than the file" in refused(ff.dumps(tensors))


def test_endless_objects_are_refused(refused, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ITEMS", 10**4)
    assert "more objects" in refused(opcodes(b"(" + b"}" * 10**5 + b"l"))
    many = b"](" + b"K\x01" * 2000 + b"eq\x01"  # one list, made a set again and again
    assert "more objects" in refused(opcodes(many, b"(" + b"cbuiltins\nset\nh\x01\x85R" * 500 + b"l"))


def test_deep_and_circular_objects_are_refused(refused):
    assert "more than 100 deep" in refused(opcodes(b"]" + b"\x85" * DEEP))
    assert "more than 100 deep" in refused(opcodes(b"(" + b"]" * DEEP + b"a" * (DEEP - 1) + b"l"))
    # Each is first met at no depth at all, and is deep only through the one before.
    ladder = b"]q\x00" + b"".join(b"(h\x00" + b"lq\x00" for _ in range(500))
    assert "more than 100 deep" in refused(opcodes(b"(", ladder, b"l"))
    assert "contains itself" in refused(opcodes(b"]q\x00h\x00a"))
    assert "contains itself" in refused(opcodes(b"}q\x00K\x01h\x00s"))


def test_shared_objects_cost_nothing(tmp_path):
    laughs = b"]" + b"2\x86" * 90  # 2 ** 90 leaves, were each its own
    (tmp_path / "file").write_bytes(opcodes(laughs))
    value = torch_files.read(tmp_path / "file")
    for _ in range(90):
        assert value[0] is value[1]
        value = value[0]


def test_keys_that_would_take_for_ever_to_hash_are_refused(refused):
    assert "a tuple for a key" in refused(opcodes(b"})", b"2\x86" * 60, b"K\x01s"))
    assert "a tuple for a key" in refused(opcodes(b"cbuiltins\nset\n)", b"2\x86" * 60, b"\x85\x85R"))


def test_long_names_and_keys_are_refused(refused, tmp_path):
    """Where a file says often what is long, copies of names take memory, and comparisons of keys time."""
    assert "only short strings" in refused(ff.dumps({"a" * 1001: 1}))
    (tmp_path / "file").write_bytes(ff.dumps({"a" * 1000: 1}))
    assert torch_files.read(tmp_path / "file") == {"a" * 1000: 1}
    for text_length in (201, 10**6):
        long = [text("torch.nn.modules"), text("a" * text_length), b"\x93"]
        assert "asks for torch.nn.modules.aaa" in refused(opcodes(*long))
    assert "the name of its device" in refused(ff.dumps(ff.Call("torch.device", "a" * 1000, 1)))
    many = [ff.tensor(A, key=key * 1001) for key in "ab"]
    assert "no storage of a tensor" in refused(ff.zipped(many))
    assert "no storage of a tensor" in refused(ff.legacy(many))


def test_lengths_that_are_not_there_are_not_allocated(refused):
    for code, form in ((b"B", "<I"), (b"X", "<I"), (b"T", "<i"), (b"\x8b", "<i")):
        refused(opcodes(code + struct.pack(form, 2**31 - 1)))
    for code in (b"\x8e", b"\x8d", b"\x96"):
        refused(opcodes(code + struct.pack("<Q", 2**62)))
    assert "truncated" in refused(opcodes(b"T" + struct.pack("<i", -5)))  # would read itself again
    refused(opcodes(b"Nr\xff\xff\xff\xff") + b"junk")  # the memo is no array
    refused(opcodes(b"\x8b" + struct.pack("<i", 10**6) + b"1" * 10**6))
    refused(opcodes(b"L" + b"9" * 10**5 + b"L\n"))
    refused(opcodes(b"cbuiltins\nbytes\n\x8a\x06" + b"\xff" * 5 + b"\x00\x85R"))


def test_zip_bombs_are_refused(refused, monkeypatch):
    zeros = ff.tensor(np.zeros(2**22, np.float32))
    assert "compressed" in refused(ff.zipped({"a": zeros}, zipfile.ZIP_DEFLATED))
    good = ff.zipped({"a": ff.tensor(A)})
    assert "damaged" in refused(good.replace(A.tobytes(), bytes(A.nbytes)))  # by its checksum
    assert "lacks the data of storage 0" in refused(good.replace(b"data/0", b"data/1"))
    assert "not a checkpoint of PyTorch" in refused(good.replace(b"data.pkl", b"date.pkl"))
    monkeypatch.setattr(limits, "MAX_MEMBERS", 2)
    monkeypatch.setattr(torch_files.archives, "MAX_MEMBERS", 2)
    assert "too many members" in refused(good)
    assert "big-endian" in refused(ff.zipped({"a": 1}, byteorder=b"big"))


def test_members_that_overlap_are_not_read_again_and_again(refused):
    zeros = np.zeros(10**5, np.float32)
    tensors = [ff.tensor(zeros, str(i), shape=(1,), stride=(1,)) for i in range(10)]
    with zipfile.ZipFile(io.BytesIO(ff.zipped(tensors))) as source:
        members = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("data.pkl", "data/0"):
            archive.writestr(f"archive/{name}", members[name])
        for i in range(1, 10):
            archive.filelist.append(copy.copy(archive.filelist[-1]))
            archive.filelist[-1].filename = f"archive/data/{i}"
    assert len(file.getvalue()) < 5 * 10**5  # ten storages of 400 kB each
    assert "larger than the file" in refused(file.getvalue())


def test_headers_of_safetensors_are_bounded(refused):
    entries = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(200_000))
    data = struct.pack("<Q", len(entries) + 2) + b"{" + entries.encode() + b"}"
    assert "its header is too large" in refused(data, "x.safetensors")


def test_what_is_no_file(tmp_path, refused, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", ".", "pipe"):
        with pytest.raises(UserError, match="cannot read|not a file"):
            torch_files.read(tmp_path / name)
    for data in (b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"<!DOCTYPE html>", b"version https://git-lfs", bytes(4096)):
        refused(data)
        refused(data, "x.safetensors")
    monkeypatch.setattr(torch_files, "MAX_FILE", 3)
    assert "larger than" in refused(b"four")
    (tmp_path / "two\nlines").write_bytes(b"x")
    with pytest.raises(UserError, match=r"two\\nlines") as caught:
        torch_files.read(tmp_path / "two\nlines")
    assert "\n" not in str(caught.value)
