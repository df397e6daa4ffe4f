"""What a file may cost, and the refusal it gets for asking more.

Every limit is far above what a genuine checkpoint needs and far below what a machine cannot bear: the largest published
network is one gigabyte and some hundred thousand operations.
"""

MAX_FILE = 16 * 2**30  # bytes
MAX_ITEMS = 2_000_000  # operations of pickles, and members of containers that are copied; at most 216 bytes each
MAX_DEPTH = 100  # containers inside containers, so that a reader of the result may recurse
MAX_MEMBERS = 100_000  # of a zip archive
MAX_NAMES = 100_000  # of a state dict
MAX_NAME = 1000  # characters of a key: where long ones are nearly equal, comparing them takes time
MAX_GLOBAL = 200  # characters of a module's or a class's name
MAX_HEADER = 8 * 2**20  # bytes of the header of safetensors, which is parsed to objects far larger
MAX_DIMENSIONS = 32
MAX_LINE = 4096  # bytes of an argument that ends with its line (protocol 0)
MAX_LONG = 256  # bytes of an integer: printing larger ones is an error in Python


class Refusal(Exception):
    """Why a file is not read, without its name; `read` adds that and raises a UserError."""


class Budget:
    """What is left to spend on one file, over all the pickles in it.

    Tensors may share memory, and each is copied: without a limit, a small file could ask for endless copies.
    """

    def __init__(self, file_bytes):
        self.items = MAX_ITEMS
        self.bytes = 4 * file_bytes + 2**20

    def spend(self, items=0, nbytes=0):
        self.items -= items
        self.bytes -= nbytes
        if self.items < 0:
            raise Refusal("it holds more objects than any checkpoint")
        if self.bytes < 0:
            raise Refusal("its tensors are larger than the file")


def short(value, length=80):
    """`value` as printable ASCII on one line, of at most `length` characters: what a message may quote from a file."""
    text = str(value[: length + 1] if isinstance(value, str) else value).encode("unicode_escape").decode("ascii")
    return text if len(text) <= length else text[: length - 3] + "..."
