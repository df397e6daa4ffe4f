"""The names that a checkpoint's pickle may ask for, and the inert values that stand for what they would construct.

Each allowed name is a constructor of ours that stores its arguments. Arrays are built later, by `to_plain.py`, once all
the data have been read; until then there is nothing here but references to them. The source text of modules that EDM's
pickles carry along is dropped unread.

Sources: `torch/_utils.py`, `torch/storage.py`, `torch/jit/_pickle.py` (PyTorch 2.13); `torch_utils/persistence.py` of
EDM; NumPy's pickles.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from pfgm_jax.storage.torch_files.limits import MAX_GLOBAL, MAX_NAME, Refusal, short

PLAIN_ONLY = "only tensors and plain containers are read"


@dataclass(eq=False, slots=True)
class Name:
    """A global name; `make(machine, *arguments)` is our constructor, `dtype` what a storage or dtype stands for."""

    text: str
    make: Callable | None = None
    dtype: np.dtype | None = None


@dataclass(eq=False, slots=True)
class Record:
    """An object of a class: its name, and its attributes by name."""

    name: str
    state: dict | None = None

    def set_state(self, state):
        if type(state) is not dict or self.state is not None:
            raise Refusal(f"the state of its {short(self.name)} is not a dict of attributes; {PLAIN_ONLY}")
        self.state = state


@dataclass(eq=False, slots=True)
class Storage:
    """Memory of tensors: `data` are its bytes once they have been read."""

    dtype: np.dtype
    count: int
    data: memoryview | bytes | None = None


@dataclass(eq=False, slots=True)
class Tensor:
    """A tensor, as read: offset and strides in elements; nothing is checked yet."""

    storage: Storage
    offset: int
    shape: tuple
    stride: tuple
    dtype: np.dtype


@dataclass(eq=False, slots=True)
class DType:
    """A NumPy dtype; its byte order comes with its state."""

    code: str
    order: str = "|"

    def set_state(self, state):
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise Refusal("it holds a NumPy array of a compound type; only numbers are read")
        self.order = state[1]


@dataclass(eq=False, slots=True)
class Array:
    """A NumPy array or, with `scalar`, a number; nothing is checked yet."""

    dtype: DType | None = None
    shape: tuple = ()
    raw: memoryview | bytes | None = None
    fortran: bool = False
    scalar: bool = False

    def set_state(self, state):
        if type(state) is not tuple or len(state) != 5 or self.raw is not None:
            raise Refusal("the state of its NumPy array is not one")
        _, self.shape, self.dtype, fortran, self.raw = state
        self.fortran = bool(fortran)


STATEFUL = (Record, DType, Array)


def key(value):
    """A key of a dict or a member of a set.

    Only what hashes and compares fast: a tuple's hash takes time exponential in its depth where its members are shared.
    """
    if type(value) is str and len(value) <= MAX_NAME or type(value) in (float, bool, type(None)):
        return value
    if type(value) is int and abs(value) < 2**63:
        return value
    raise Refusal(f"it has a {type(value).__name__} for a key; only short strings and numbers are read as keys")


def _of(value, kind):
    if type(value) is not kind:
        raise Refusal(f"it is damaged or not a checkpoint: a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _mapping(machine, items=()):
    """A dict: OrderedDict of pairs, or EasyDict of a dict."""
    machine.budget.spend(items=len(items))
    pairs = (
        items.items() if type(items) is dict else [_of(item, tuple if type(item) is tuple else list) for item in items]
    )
    return {key(k): v for k, v in pairs}


def _members(kind):
    def make(machine, items=()):
        machine.budget.spend(items=len(items))
        return kind(map(key, items)) if kind is set else kind(items)

    return make


def _tensor(machine, storage, offset, shape, stride, requires_grad=False, hooks=None, metadata=None):
    storage = _of(storage, Storage)
    if metadata:
        raise Refusal("it holds a tensor that is a lazy conjugate or negative; only plain tensors are read")
    return Tensor(storage, offset, shape, stride, storage.dtype)


def _tensor_of_dtype(machine, storage, offset, shape, stride, requires_grad, hooks, dtype, metadata=None):
    tensor = _tensor(machine, storage, offset, shape, stride, metadata=metadata)
    if _of(dtype, Name).dtype is None:
        raise Refusal(f"it holds a tensor of {short(dtype.text)}; only numbers are read")
    tensor.dtype = dtype.dtype
    return tensor


def _parameter(machine, data, requires_grad=False, hooks=None, state=None):
    return _of(data, Tensor)


def _from_type(machine, function, kind, arguments, state=None):
    if _of(function, Name).make not in (_tensor, _tensor_of_dtype, _parameter):
        raise Refusal(f"it builds a tensor by {short(function.text)}; {PLAIN_ONLY}")
    return function.make(machine, *_of(arguments, tuple))


def _load_from_bytes(machine, data):
    if machine.payload is None:
        raise Refusal("it holds a pickle inside a pickle inside a pickle; only tensors are read out of pickles")
    return machine.payload(memoryview(data), machine.budget)


def _persistent_object(machine, meta):
    """Of EDM's meta, the class's name and the attributes; `module_src`, which EDM itself would run, is dropped."""
    if _of(meta, dict).get("type") != "class":
        raise Refusal(f"its persistent object is not an object of a class; {PLAIN_ONLY}")
    record = Record(_of(meta.get("class_name"), str))
    record.set_state(meta.get("state"))
    return record


def _record(text):
    def make(machine, *arguments):
        if arguments:
            raise Refusal(f"the file calls {short(text)} with arguments; {PLAIN_ONLY}")
        return Record(text)

    return make


def _reconstruct(machine, cls, base, state=None):
    """Objects by pickle's protocols 0 and 1."""
    if _of(cls, Name).make is None or _of(base, Name).text not in ("builtins.object", "builtins.dict"):
        raise Refusal(f"the file asks for {short(cls.text)}; {PLAIN_ONLY}")
    return cls.make(machine, *([] if state is None else [state]))


def _encode(machine, text, encoding):
    """bytes, as protocol 2 writes them."""
    if _of(encoding, str) not in ("latin1", "latin-1"):
        raise Refusal(f"it encodes bytes as {short(encoding)}; only latin1 is read")
    machine.budget.spend(nbytes=len(_of(text, str)))
    return text.encode("latin1")


def _bytes(machine, *arguments):
    if arguments and type(arguments[0]) is str:
        return _encode(machine, *arguments)
    if arguments and not isinstance(arguments[0], bytes | memoryview):  # bytes(10**12) would allocate
        raise Refusal(f"it makes bytes of a {type(arguments[0]).__name__}; {PLAIN_ONLY}")
    return arguments[0] if arguments else b""


def _device(machine, kind, index=None):
    if len(_of(kind, str)) > MAX_GLOBAL:
        raise Refusal("the name of its device is longer than any")
    return kind if index is None else f"{kind}:{_of(index, int)}"


def _numpy_dtype(machine, code, align=False, copy=False):
    if not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", _of(code, str)):
        raise Refusal(f"it holds a NumPy array of type {short(code)}; only numbers are read")
    return DType(code)


def _numpy_array(machine, cls, shape, code):
    if _of(cls, Name).text != "numpy.ndarray":
        raise Refusal(f"it holds an array of class {short(cls.text)}; {PLAIN_ONLY}")
    return Array()


def _numpy_scalar(machine, dtype, raw):
    return Array(dtype, (), raw, scalar=True)


def _numpy_buffer(machine, raw, dtype, shape, order):
    return Array(dtype, shape, raw, fortran=order == "F")


_float8 = {n: getattr(ml_dtypes, n) for n in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")}
_plain = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 complex64 complex128".split()
_aliases = {
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "short": "int16",
    "int": "int32",
    "long": "int64",
}
DTYPES = {name: np.dtype(name) for name in _plain} | {name: np.dtype(code) for name, code in _aliases.items()}
DTYPES |= {"bfloat16": np.dtype(ml_dtypes.bfloat16)} | {name: np.dtype(code) for name, code in _float8.items()}
_storages = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Byte": "uint8",
    "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64", "Bool": "bool",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8",
}  # fmt: skip

_CONSTRUCTORS = {
    "collections.OrderedDict": _mapping,
    "dnnlib.util.EasyDict": _mapping,
    "dnnlib.EasyDict": _mapping,
    "builtins.dict": _mapping,
    "builtins.list": _members(list),
    "builtins.tuple": _members(tuple),
    "builtins.set": _members(set),
    "builtins.frozenset": _members(set),
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstruct,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.storage._load_from_bytes": _load_from_bytes,
    "torch.Size": _members(tuple),
    "torch.device": _device,
    "torch.jit._pickle.build_intlist": _members(list),
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "numpy.dtype": _numpy_dtype,
    "numpy._core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy._core.numeric._frombuffer": _numpy_buffer,
}
_NAMES_ONLY = {"builtins.object", "torch.Tensor", "torch.nn.parameter.Parameter", "numpy.ndarray"}
# Of TorchScript only objects' attributes are read; the code of their classes is in members of its own, never opened.
SCRIPTED = "__torch__."
_CLASSES = re.compile(r"(torch\.nn\.modules|training\.(networks|augment|loss)|models|__torch__)(\.\w+)+", re.ASCII)
_STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?_?(\w+)Storage", re.ASCII)
_MOVED = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.tensor": "torch._tensor"}


def find(module, name):
    """The inert Name that stands for `module.name`; Refusal by that name if it is none of a checkpoint's."""
    if max(len(module), len(name)) > MAX_GLOBAL:
        raise Refusal(f"the file asks for {short(f'{module[:99]}.{name[:99]}')}; {PLAIN_ONLY}")
    module = _MOVED.get(module, module)
    if module.startswith("numpy.core."):
        module = "numpy._core." + module.removeprefix("numpy.core.")
    text = f"{module}.{name}"
    if text in _CONSTRUCTORS:
        return Name(text, _CONSTRUCTORS[text])
    if module == "torch" and name in DTYPES:
        return Name(text, dtype=DTYPES[name])
    storage = _STORAGE.fullmatch(text)
    if storage and storage[1] in _storages:
        return Name(text, dtype=DTYPES[_storages[storage[1]]])
    if text in _NAMES_ONLY:
        return Name(text)
    if _CLASSES.fullmatch(text):
        return Name(text, _record(text))
    raise Refusal(f"the file asks for {short(text)}; {PLAIN_ONLY}")
