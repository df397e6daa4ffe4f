"""The containers of checkpoints: torch.save's zip archives and older streams, plain pickles, and safetensors.

Each takes a file's bytes and returns plain values. Nothing is decompressed and nothing is written to disk: PyTorch
stores the members of its archives uncompressed, and a compressed one is refused.

Source: `torch/serialization.py` (PyTorch 2.13), `_save`, `_legacy_save`; the zip format's APPNOTE for local headers.
"""

import io
import struct
import zipfile
import zlib

import numpy as np

from pfgm_jax.storage.torch_files import allowed_names
from pfgm_jax.storage.torch_files.allowed_names import DTYPES, Name, Storage
from pfgm_jax.storage.torch_files.limits import MAX_HEADER, MAX_MEMBERS, MAX_NAME, Budget, Refusal, short
from pfgm_jax.storage.torch_files.pickle_machine import Machine
from pfgm_jax.storage.torch_files.to_plain import plain

ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles in a stream
_LEGACY_PROTOCOL = 1001
_ARCHIVES = {
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
}


def not_a_checkpoint(data):
    """What a file obviously is instead of a checkpoint, and what to do; None where its first bytes do not say."""
    if not data:
        return "it is empty (0 bytes): download it again"
    if data.startswith(b"version https://git-lfs.github.com/"):
        return "it is a pointer of git-lfs, not the file itself: run git lfs pull, or download the file"
    if data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, such as a server's error or a log-in form: download the file itself"
    for magic, kind in _ARCHIVES.items():
        if data.startswith(magic):
            return f"it is {kind}: unpack it, and give the checkpoint inside"
    return None


def read_zip(data):
    """The value in a zip archive by torch.save: `*/data.pkl`, and a member `*/data/<key>` for each storage."""
    if data.count(b"PK\x01\x02") > MAX_MEMBERS:  # zipfile would make an object of each, far larger than its entry
        raise Refusal("it is a zip archive of too many members")
    members = {info.filename: info for info in zipfile.ZipFile(io.BytesIO(data)).infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise Refusal("it is a zip archive, but not a checkpoint of PyTorch")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in members and bytes(_member(data, members[f"{root}byteorder"])) != b"little":
        raise Refusal("it was written on a big-endian machine")
    storages, budget = {}, Budget(len(data))

    def persistent(identifier):
        key, storage = _storage(identifier, storages)
        if storage.data is None:
            if f"{root}data/{key}" not in members:
                raise Refusal(f"it lacks the data of storage {short(key)}")
            storage.data = _member(data, members[f"{root}data/{key}"])
            budget.spend(nbytes=len(storage.data))  # members may overlap, and each is read for its checksum
            if len(storage.data) < storage.count * storage.dtype.itemsize:
                raise Refusal(f"storage {short(key)} claims to be larger than its data")
        return storage

    return plain(_single(Machine(_member(data, members[pickles[0]]), budget, persistent, read_payload)), budget)


def read_pickle(data):
    """The value in a plain pickle, or in a stream of pickles and storages by torch.save before version 1.6."""
    budget = Budget(len(data))
    if data[:2] == b"\x80\x02" and _is_legacy(memoryview(data)):
        return plain(_legacy(memoryview(data), budget, read_payload), budget)
    return plain(_single(Machine(memoryview(data), budget, payload=read_payload)), budget)


def read_payload(data, budget):
    """The Storage that torch pickled as the bytes of a file of its own, inside a pickle."""
    if not _is_legacy(data):
        raise Refusal("it holds a pickle inside a pickle that is no storage")
    storage = _legacy(data, budget, None)
    if not isinstance(storage, Storage):
        raise Refusal("it holds a pickle inside a pickle that is no storage")
    return storage


def read_safetensors(data):
    """{name: array} of a safetensors file."""
    import safetensors

    dtypes = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
    dtypes |= {f"{c}{b}": f"{name}{b}" for c, name in (("I", "int"), ("U", "uint")) for b in (8, 16, 32, 64)}
    dtypes |= {"C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    if int.from_bytes(data[:8], "little") > MAX_HEADER:
        raise Refusal("it is damaged or not a safetensors file: its header is too large")
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise Refusal(f"it is damaged or not a safetensors file: {short(str(error))}") from None
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in dtypes:
            raise Refusal(f"it holds a tensor of {short(entry['dtype'])}; only numbers are read")
        dtype = DTYPES[dtypes[entry["dtype"]]]
        flat = np.frombuffer(entry["data"], np.uint8 if dtype.kind == "b" else dtype)
        arrays[name] = flat.reshape(entry["shape"]).astype(dtype)
    return arrays


def _single(machine):
    value = machine.load()
    if machine.position != len(machine.data):
        raise Refusal("it is damaged: data follow its end")
    return value


def _member(data, info):
    """A view of a member's bytes, their checksum compared."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise Refusal(f"its member {short(info.filename)} is compressed or encrypted, which PyTorch never does")
    header = data[info.header_offset : info.header_offset + 30]
    if len(header) < 30 or header[:4] != ZIP_MAGIC:
        raise Refusal(f"its member {short(info.filename)} is damaged")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    view = memoryview(data)[start : start + info.file_size]
    if len(view) != info.file_size or zlib.crc32(view) != info.CRC:
        raise Refusal(f"its member {short(info.filename)} is damaged")
    return view


def _storage(identifier, storages):
    """(key, Storage) of a persistent id ("storage", type, key, location, number of elements, ...)."""
    if type(identifier) is not tuple or len(identifier) < 5 or identifier[0] != "storage":
        raise Refusal("it refers to data that are no storage of a tensor")
    _, kind, key, _, count, *view = identifier
    if type(kind) is not Name or kind.dtype is None or type(key) is not str or len(key) > MAX_NAME:
        raise Refusal("it refers to data that are no storage of a tensor")
    if type(count) is not int or not 0 <= count < 2**63:
        raise Refusal(f"storage {short(key)} has a negative or huge size")
    if any(part is not None for part in view):
        raise Refusal(f"storage {short(key)} is a view of another, as only PyTorch before 0.4 wrote")
    storage = storages.setdefault(key, Storage(kind.dtype, count))
    if (storage.dtype, storage.count) != (kind.dtype, count):
        raise Refusal(f"storage {short(key)} has two types or sizes")
    return key, storage


def _is_legacy(data):
    """Whether `data` begins with the pickle of the magic number: PROTO 2, LONG1 of ten bytes, STOP."""
    return bytes(data[:15]) == b"\x80\x02\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little") + b"."


def _legacy(data, budget, payload):
    """Pickles of magic number, version, machine, value and storages' keys, then each storage's length and bytes."""
    storages = {}

    def persistent(identifier):
        if type(identifier) is tuple and len(identifier) == 4 and identifier[0] == "module":
            return identifier[1]  # a class, with its source text: dropped unread
        return _storage(identifier, storages)[1]

    machine = Machine(data, budget, persistent, payload)
    _, version, system = machine.load(), machine.load(), machine.load()
    if type(version) is not int or version != _LEGACY_PROTOCOL or type(system) is not dict:
        raise Refusal("it is damaged or of an unknown version of PyTorch's format")
    if system.get("little_endian") is not True:
        raise Refusal("it was written on a big-endian machine")
    value, keys = machine.load(), machine.load()
    # TypeError for keys of other types
    if type(keys) is not list or sorted(map(allowed_names.key, keys)) != sorted(storages):
        raise Refusal("it is damaged: its storages are not those its tensors refer to")
    for key in keys:
        storage = storages[key]
        if machine.number("<q") != storage.count:
            raise Refusal(f"storage {short(key)} has two types or sizes")
        storage.data = machine.take(storage.count * storage.dtype.itemsize)
    if machine.position != len(data):
        raise Refusal("it is damaged: data follow its end")
    return value
