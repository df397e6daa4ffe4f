"""Reads pickles without Python's own unpickler: every opcode is spelled out, and none can call what a file names.

A pickle is a program for a small stack machine. Python's unpickler calls whatever it names, sizes its memo by an index
in the file, and hashes keys of any depth; restricting `find_class` changes only the first. This one pushes plain
containers, looks names up in the allow-list of `allowed_names.py`, and refuses everything else.

Source: the opcodes' descriptions in Python's `pickletools`.
"""

import pickle
import struct

from pfgm_jax.storage.torch_files import allowed_names
from pfgm_jax.storage.torch_files.allowed_names import Name
from pfgm_jax.storage.torch_files.limits import MAX_LINE, MAX_LONG, Refusal, short

_MARK = object()


class Machine:
    """One pickle machine over `data`; successive calls of `load` read successive pickles.

    Args:
      data: memoryview of bytes.
      budget: Budget shared by all the machines of one file.
      persistent: function of a persistent id, or None when the file's kind has none.
      payload: function of (bytes, budget) that reads a storage which was pickled as the bytes of a file of its own, or
        None inside such a file.
    """

    def __init__(self, data, budget, persistent=None, payload=None):
        self.data, self.position, self.budget = data, 0, budget
        self.persistent, self.payload = persistent, payload

    def load(self):
        """The next pickle's value, plain containers and inert values (`allowed_names.py`); Refusal if it is none."""
        self.stack, self.memo = [], {}
        data, budget, stop = self.data, self.budget, pickle.STOP[0]
        while self.position < len(data):
            budget.spend(items=1)
            opcode = data[self.position]
            self.position += 1
            if opcode == stop:
                return self.pop()
            if opcode not in OPCODES:
                raise Refusal(f"it is damaged or not a checkpoint: {opcode:#04x} is not an opcode of checkpoints")
            OPCODES[opcode](self)
        raise Refusal("it is truncated, damaged or not a checkpoint")

    def take(self, count):
        """The next `count` bytes, as a view: nothing is allocated for a length that only claims to be there."""
        if not 0 <= count <= len(self.data) - self.position:
            raise Refusal("it is truncated, damaged or not a checkpoint")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self):
        rest = bytes(self.data[self.position : self.position + MAX_LINE])
        end = rest.find(b"\n")
        if end < 0:
            raise Refusal("it is truncated, damaged or not a checkpoint")
        self.position += end + 1
        return rest[:end]

    def push(self, value):
        self.stack.append(value)

    def top(self):
        if not self.stack or self.stack[-1] is _MARK:
            raise Refusal("it is damaged or not a checkpoint: an operand is missing")
        return self.stack[-1]

    def pop(self):
        value = self.top()
        self.stack.pop()
        return value

    def pop_to_mark(self):
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise Refusal("it is damaged or not a checkpoint: an operand is missing")

    def remember(self, index):
        self.memo[index] = self.top()

    def recall(self, index):
        if index not in self.memo:
            raise Refusal("it is damaged or not a checkpoint: it recalls what it never stored")
        self.push(self.memo[index])

    def call(self, function, arguments):
        if not isinstance(function, Name) or function.make is None:
            what = short(function.text) if isinstance(function, Name) else f"a {type(function).__name__}"
            raise Refusal(f"the file calls {what}; only tensors and plain containers are read")
        if type(arguments) is not tuple:
            raise Refusal("it is damaged or not a checkpoint: the arguments of a call are not a tuple")
        self.push(function.make(self, *arguments))

    def set_items(self, items):
        target = self.top()
        if type(target) is not dict or len(items) % 2:
            raise Refusal(f"the file sets items of a {type(target).__name__}; only plain containers are read")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[allowed_names.key(key)] = value

    def append(self, items):
        target = self.top()
        if type(target) is not list:
            raise Refusal(f"the file appends to a {type(target).__name__}; only plain containers are read")
        target.extend(items)

    def add(self, items):
        target = self.top()
        if type(target) is not set:
            raise Refusal(f"the file adds to a {type(target).__name__}; only plain containers are read")
        target.update(map(allowed_names.key, items))

    def integer(self, length):
        if not 0 <= length <= MAX_LONG:
            raise Refusal("it holds an integer longer than any checkpoint's")
        return int.from_bytes(self.take(length), "little", signed=True)

    def persist(self, identifier):
        if self.persistent is None:
            raise Refusal("it refers to data outside it, as a plain pickle may not")
        return self.persistent(identifier)


def _build(machine):
    state, target = machine.pop(), machine.top()
    if isinstance(target, allowed_names.STATEFUL):
        target.set_state(state)
    elif type(target) is not dict or type(state) is not dict:  # state dicts carry an attribute with versions: dropped
        raise Refusal(
            f"the file sets the state of a {type(target).__name__}; only tensors and plain containers are read"
        )


def _new(machine, keywords):
    if keywords and machine.pop() != {}:
        raise Refusal("the file constructs an object with keywords; only tensors and plain containers are read")
    arguments = machine.pop()
    machine.call(machine.pop(), arguments)


def _old_instance(machine):
    items = machine.pop_to_mark()
    if not items:
        raise Refusal("it is damaged or not a checkpoint: an operand is missing")
    machine.call(items[0], tuple(items[1:]))


def _instance(machine):
    function = allowed_names.find(machine.line().decode(), machine.line().decode())
    machine.call(function, tuple(machine.pop_to_mark()))


def _global_on_stack(machine):
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise Refusal("it is damaged or not a checkpoint: the name of a class is not a string")
    machine.push(allowed_names.find(module, name))


def _reduce(machine):
    arguments = machine.pop()
    machine.call(machine.pop(), arguments)


def _tuple(count):
    def run(machine):
        machine.push(tuple(reversed([machine.pop() for _ in range(count)])))

    return run


def _dict(machine):
    items = machine.pop_to_mark()
    machine.push({})
    machine.set_items(items)


def _pair(machine):
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _text_integer(machine):
    line = machine.line().rstrip(b"L")
    if len(line) > 2 * MAX_LONG:
        raise Refusal("it holds an integer longer than any checkpoint's")
    machine.push(line == b"01" if line in (b"00", b"01") else int(line))


def _text_string(machine):
    line = machine.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"" or b"\\" in line:
        raise Refusal("it is damaged or not a checkpoint: a string without quotes, or with escapes")
    machine.push(line[1:-1].decode("ascii"))


def _protocol(machine):
    if machine.number("B") > pickle.HIGHEST_PROTOCOL:
        raise Refusal("it is damaged or not a checkpoint: a pickle protocol that does not exist")


def _unsupported(what):
    def run(machine):
        raise Refusal(f"the file uses {what}; only tensors and plain containers are read")

    return run


def _string(form, decode):
    return lambda m: m.push(decode(m.take(m.number(form))))


def _utf8(view):
    return str(view, "utf-8", "surrogatepass")


def _ascii(view):
    return str(view, "ascii")


def _view(view):
    return view


_RUN = {
    pickle.PROTO: _protocol,
    pickle.FRAME: lambda m: m.number("<Q"),  # a hint for readers of streams
    pickle.MARK: lambda m: m.push(_MARK),
    pickle.POP: lambda m: m.stack.pop() if m.stack else m.top(),
    pickle.POP_MARK: lambda m: m.pop_to_mark(),
    pickle.DUP: lambda m: m.push(m.top()),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.push(m.integer(m.number("B"))),
    pickle.LONG4: lambda m: m.push(m.integer(m.number("<i"))),
    pickle.INT: _text_integer,
    pickle.LONG: _text_integer,
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.FLOAT: lambda m: m.push(float(m.line())),
    pickle.STRING: _text_string,
    pickle.UNICODE: lambda m: m.push(str(m.line(), "raw-unicode-escape")),
    pickle.SHORT_BINUNICODE: _string("B", _utf8),
    pickle.BINUNICODE: _string("<I", _utf8),
    pickle.BINUNICODE8: _string("<Q", _utf8),
    pickle.SHORT_BINSTRING: _string("B", _ascii),
    pickle.BINSTRING: _string("<i", _ascii),
    pickle.SHORT_BINBYTES: _string("B", _view),
    pickle.BINBYTES: _string("<I", _view),
    pickle.BINBYTES8: _string("<Q", _view),
    pickle.BYTEARRAY8: _string("<Q", _view),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_to_mark())),
    pickle.TUPLE1: _tuple(1),
    pickle.TUPLE2: _tuple(2),
    pickle.TUPLE3: _tuple(3),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.LIST: lambda m: m.push(m.pop_to_mark()),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.pop_to_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.DICT: _dict,
    pickle.SETITEM: _pair,
    pickle.SETITEMS: lambda m: m.set_items(m.pop_to_mark()),
    pickle.EMPTY_SET: lambda m: m.push(set()),
    pickle.ADDITEMS: lambda m: m.add(m.pop_to_mark()),
    pickle.FROZENSET: lambda m: m.push(set(map(allowed_names.key, m.pop_to_mark()))),
    pickle.PUT: lambda m: m.remember(int(m.line()[:20])),
    pickle.BINPUT: lambda m: m.remember(m.number("B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.GET: lambda m: m.recall(int(m.line()[:20])),
    pickle.BINGET: lambda m: m.recall(m.number("B")),
    pickle.LONG_BINGET: lambda m: m.recall(m.number("<I")),
    pickle.GLOBAL: lambda m: m.push(allowed_names.find(m.line().decode(), m.line().decode())),
    pickle.STACK_GLOBAL: _global_on_stack,
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: lambda m: _new(m, keywords=False),
    pickle.NEWOBJ_EX: lambda m: _new(m, keywords=True),
    pickle.OBJ: _old_instance,
    pickle.INST: _instance,
    pickle.BUILD: _build,
    pickle.BINPERSID: lambda m: m.push(m.persist(m.pop())),
    pickle.PERSID: lambda m: m.push(m.persist(m.line().decode())),
    **dict.fromkeys((pickle.EXT1, pickle.EXT2, pickle.EXT4), _unsupported("the registry of extensions")),
    **dict.fromkeys((pickle.NEXT_BUFFER, pickle.READONLY_BUFFER), _unsupported("buffers outside it")),
}
OPCODES = {opcode[0]: run for opcode, run in _RUN.items()}
