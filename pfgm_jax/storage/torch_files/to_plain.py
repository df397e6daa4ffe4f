"""From a pickle's inert values to plain ones: arrays of checked bounds, containers of bounded depth, no cycles."""

import math

import numpy as np

from pfgm_jax.storage.torch_files.allowed_names import Array, DType, Name, Record, Storage, Tensor
from pfgm_jax.storage.torch_files.limits import MAX_DEPTH, MAX_DIMENSIONS, Refusal

_LEAVES = (str, int, float, bool, type(None))


def plain(value, budget):
    """`value` of nested dict, list, tuple, set, str, int, float, bool, None, bytes and np.ndarray.

    Objects become {"class": name, "state": attributes}, names their text. What is shared in the file stays shared.

    Raises:
      Refusal: a tensor that reaches outside its storage, more tensors than the file can hold, a cycle, or nesting
        deeper than MAX_DEPTH.
    """
    return _Plain(budget).convert(value, 0)[0]


class _Plain:
    def __init__(self, budget):
        self.budget = budget
        # {id: (result, height)}; None while under way. The root keeps the values alive, and so their ids unique.
        self.done = {}

    def convert(self, value, depth):
        """(result, how many containers deep it is). Height as well as depth: what is shared is walked only once."""
        if type(value) in _LEAVES:
            return value, 0
        if id(value) not in self.done:
            if depth > MAX_DEPTH:
                raise Refusal(f"it nests containers more than {MAX_DEPTH} deep")
            self.done[id(value)] = None
            self.done[id(value)] = self.build(value, depth)
        found = self.done[id(value)]
        if found is None:
            raise Refusal("it holds an object that contains itself; only trees are read")
        if depth + found[1] > MAX_DEPTH:
            raise Refusal(f"it nests containers more than {MAX_DEPTH} deep")
        return found

    def build(self, value, depth):
        kind = type(value)
        if kind is dict:
            items = {k: self.convert(v, depth + 1) for k, v in value.items()}
            return {k: v for k, (v, _) in items.items()}, 1 + max((h for _, h in items.values()), default=0)
        if kind in (list, tuple):
            items = [self.convert(v, depth + 1) for v in value]
            return kind(v for v, _ in items), 1 + max((h for _, h in items), default=0)
        if kind is Record:
            state, height = ({}, 1) if value.state is None else self.convert(value.state, depth + 1)
            return {"class": value.name, "state": state}, 1 + height
        if kind is set:
            return value, 1
        return self.leaf(value, kind), 0

    def leaf(self, value, kind):
        if kind is Tensor:
            return _tensor(value, self.budget)
        if kind is Storage:
            return _tensor(Tensor(value, 0, (value.count,), (1,), value.dtype), self.budget)
        if kind is Array:
            return _array(value, self.budget)
        if kind in (bytes, memoryview):
            self.budget.spend(nbytes=len(value))
            return bytes(value)
        if kind is Name:
            return value.text
        if kind is DType:
            return value.code
        raise Refusal(f"it holds a {kind.__name__}; only tensors and plain containers are read")


def _naturals(values, what):
    """`values` as a tuple, if they are non-negative integers of 64 bits, few enough to be a shape."""
    if type(values) not in (tuple, list) or len(values) > MAX_DIMENSIONS:
        raise Refusal(f"it holds an array whose {what} is not a tuple of at most {MAX_DIMENSIONS} integers")
    for value in values:
        if type(value) is not int or not 0 <= value < 2**63:
            raise Refusal(f"it holds an array whose {what} has negative or huge entries")
    return tuple(values)


def _tensor(tensor, budget):
    """The array of a tensor: a copy of its own, in C order."""
    shape, stride = _naturals(tensor.shape, "shape"), _naturals(tensor.stride, "stride")
    (offset,) = _naturals((tensor.offset,), "offset")
    if len(shape) != len(stride):
        raise Refusal("it holds an array with another number of strides than dimensions")
    count, size = math.prod(shape), tensor.dtype.itemsize
    if count == 0:
        return _empty(shape, tensor.dtype)
    data = tensor.storage.data
    if (offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1) * size > len(data):
        raise Refusal("it holds a tensor that reaches outside its storage")
    budget.spend(nbytes=count * size)
    # Bytes of truth values other than 0 and 1 would be undefined behaviour in NumPy.
    dtype = np.dtype(np.uint8) if tensor.dtype.kind == "b" else tensor.dtype
    flat = np.frombuffer(data, dtype, count=len(data) // size)[offset:]
    view = np.lib.stride_tricks.as_strided(flat, shape, [s * size for s in stride], writeable=False)
    return view.astype(tensor.dtype, order="C", copy=True)


def _array(array, budget):
    """The array of a NumPy pickle, in C order and this machine's byte order; a scalar as a number."""
    shape = _naturals(array.shape, "shape")
    if type(array.dtype) is not DType or not isinstance(array.raw, bytes | memoryview):
        raise Refusal("it holds a NumPy array that is not numbers alone")
    dtype = np.dtype(array.dtype.code).newbyteorder(array.dtype.order)
    count = math.prod(shape)
    if count * dtype.itemsize != len(array.raw):
        raise Refusal("it holds a NumPy array whose shape does not match its data")
    if count == 0:
        return _empty(shape, dtype.newbyteorder("="))
    budget.spend(nbytes=len(array.raw))
    flat = np.frombuffer(array.raw, np.uint8 if dtype.kind == "b" else dtype)
    shaped = flat.reshape(shape, order="F" if array.fortran else "C")
    result = shaped.astype(dtype.newbyteorder("="), order="C", copy=True)
    return result.item() if array.scalar else result


def _empty(shape, dtype):
    if math.prod(n for n in shape if n) >= 2**40:
        raise Refusal("it holds an array whose shape has negative or huge entries")
    return np.empty(shape, dtype)
