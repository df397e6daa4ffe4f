"""Writes files in PyTorch's formats without PyTorch: as `torch.save`, `pickle.dump`, and EDM's persistence do.

Names of PyTorch exist only while a pickle is being written, as modules of placeholders.
"""

import collections
import io
import itertools
import pickle
import struct
import sys
import types
import zipfile
from unittest import mock

import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16", "uint8": "Byte", "int8": "Char",
    "int16": "Short", "int32": "Int", "int64": "Long", "bool": "Bool", "complex64": "ComplexFloat",
}  # fmt: skip


_KEYS = itertools.count()  # names of the storages of networks, each its own
MODULES = {}  # placeholders of PyTorch's modules, by name


def register(thing):
    """Puts a placeholder where pickle will look for it."""
    parts = thing.__module__.split(".")
    for i in range(1, len(parts) + 1):
        name = ".".join(parts[:i])
        MODULES.setdefault(name, types.ModuleType(name))
    return vars(MODULES[thing.__module__]).setdefault(thing.__qualname__, thing)


class Global:
    """A name that a pickle is to ask for, `Global("torch.Size")`."""

    def __new__(cls, text):
        self = super().__new__(cls)
        self.__module__, self.__qualname__ = text.rsplit(".", 1)
        return register(self)

    def __reduce__(self):
        return self.__qualname__

    def __call__(self, *arguments):
        raise AssertionError("placeholders are only written")


LOAD = Global("torch.storage._load_from_bytes")


class Call:
    """What the pickle is to construct: `function(*arguments)`, and its state."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function if callable(function) else Global(function), arguments, state)

    def __reduce__(self):
        return self.call


class Storage:
    """Memory of tensors; `kind` is PyTorch's name of its class and `count` what is claimed of its length."""

    def __init__(self, array, key="0", kind=None, count=None):
        array = np.ascontiguousarray(array)
        self.data, self.key = array.tobytes(), key
        self.kind = kind or STORAGES[array.dtype.name]
        self.count = array.size if count is None else count

    def identifier(self):
        return ("storage", Global(f"torch.{self.kind}Storage"), self.key, "cpu", self.count)

    def __reduce__(self):  # in a plain pickle: the bytes of a file of its own
        return LOAD, (legacy(self),)


def tensor(array, key="0", offset=0, shape=None, stride=None, storage=None):
    """A tensor as PyTorch pickles it, of a storage of its own that holds `array`, or of `storage`."""
    array = np.asarray(array)
    shape = array.shape if shape is None else shape
    if stride is None:
        stride = tuple(int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim))
    storage = storage or Storage(array, key)
    hooks = collections.OrderedDict()
    return Call("torch._utils._rebuild_tensor_v2", storage, offset, shape, stride, False, hooks)


def parameter(*arguments, **keywords):
    return Call("torch._utils._rebuild_parameter", tensor(*arguments, **keywords), True, collections.OrderedDict())


def persistent(name, **state):
    """A module as EDM's `persistence.py` pickles it, with source text that must never run."""
    source = "import pathlib, os\npathlib.Path(os.environ['MARKER']).touch()\n"
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def network(name, arrays, make=persistent, **state):
    """A module of PyTorch with the arrays of a state_dict in it, each in the submodule that its dotted name says."""
    own = {key: value for key, value in arrays.items() if "." not in key}
    parts = {}
    for key, value in arrays.items():
        if "." in key:
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = value
    modules = {part: network("Part", inner, make) for part, inner in parts.items()}
    parameters = collections.OrderedDict((key, parameter(value, f"{next(_KEYS)}")) for key, value in own.items())
    containers = {"_parameters": parameters, "_buffers": collections.OrderedDict()}
    return make(name, training=False, **containers, _modules=collections.OrderedDict(modules), **state)


def module(name, **state):
    """An object of a class, as pickle writes it: NEWOBJ and BUILD."""
    path, cls = name.rsplit(".", 1)
    made = register(type(cls, (), {"__module__": path, "__qualname__": cls}))()
    made.__dict__.update(state)
    return made


class _Pickler(pickle.Pickler):
    storages = None  # where those referred to are collected, in files that hold them beside the pickle

    def persistent_id(self, value):
        if self.storages is None or not isinstance(value, Storage):
            return None
        self.storages[value.key] = value
        return value.identifier()


def dumps(value, protocol=4, storages=None):
    """The pickle of `value`; with a dict of `storages`, they are referred to and collected there."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol)
    pickler.storages = storages
    with mock.patch.dict(sys.modules, MODULES):  # pickle checks that a name means what it says
        pickler.dump(value)
    return file.getvalue()


def legacy(value, protocol=2):
    """What torch.save wrote before version 1.6, and still writes for a storage inside a plain pickle."""
    storages = {}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(head, protocol) for head in (LEGACY_MAGIC, 1001, system)]
    parts.append(dumps(value, protocol, storages))
    parts.append(pickle.dumps(sorted(storages), protocol))
    parts += [struct.pack("<q", min(storages[key].count, 2**63 - 1)) + storages[key].data for key in sorted(storages)]
    return b"".join(parts)


def zipped(value, compression=zipfile.ZIP_STORED, **members):
    """What torch.save writes; `members` replace those of the archive, by name."""
    storages = {}
    contents = {"data.pkl": dumps(value, 2, storages), "byteorder": b"little"}
    contents |= {f"data/{key}": storage.data for key, storage in storages.items()} | members
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()
