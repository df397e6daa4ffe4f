"""What stopped a command, as a line for people: a machine at its limits is no bug of the program."""

import errno
import os

from pfgm_jax.errors import UserError, printable

LONGEST = 1500  # characters of a message: what a file or a server says has no end
_HINTS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EFBIG: "a file may not grow as large there (a quota, or ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose another one, or change its permissions",
    errno.EPERM: "choose another one, or change its permissions",
    errno.ENOENT: "was it moved or removed in the meantime?",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk or its connection may be failing",
}
# Of these the libraries that write checkpoints say no more than their text.
_BY_TEXT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
_PLANS = ("train", "advise")
_DATA = ("data", "stats", "audit", "import")


def explain(error, mode):
    """The line that says why `error` ended a command of this mode, and what helps; None for a bug of the program."""
    for cause in _causes(error):
        line = _line(cause, mode)
        if line:
            return shown(line)
    return None


def shown(text, longest=LONGEST):
    """A text of several lines as a terminal may have it: printable, and of `longest` characters at most, if given."""
    text = "\n".join(map(printable, str(text).split("\n")))
    return text if longest is None or len(text) <= longest else f"{text[:longest]}…"


def out_of_memory(error):
    """Whether an exception says that memory is short, that of the host or of a device."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower())
    )


def _causes(error):
    """The exception and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _line(error, mode):
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        hint = f"; {_HINTS[error.errno]}" if error.errno in _HINTS else ""
        return f"{name}{(error.strerror or os.strerror(error.errno)).lower()}{hint}"
    for number in _BY_TEXT:
        if os.strerror(number) in str(error):
            return f"{os.strerror(number).lower()}; {_HINTS[number]} ({_first_line(error)})"
    if out_of_memory(error):
        return f"out of memory ({_first_line(error) or 'of the host'}): {_less_memory(mode)}"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "pfgm_jax").startswith("pfgm_jax"):
        return f"the package {error.name} is missing: pip install -e . in the folder of pfgm_jax installs what it needs"
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error):
        return f"JAX finds no device: {_first_line(error)}; JAX_PLATFORMS=cpu runs on the CPU"
    return None


def _less_memory(mode):
    if mode in _PLANS:
        return (
            "lower --config.train.batch or set --config.train.microbatch for the same steps in parts, or "
            "--config.model.remat=True, or lower --config.sample.batch if samples were being drawn; --mode=advise "
            "finds the largest batch that fits"
        )
    if mode in _DATA:
        return "lower --config.data.size, or use fewer images or a machine with more memory"
    return "lower --config.sample.batch, or --config.sample.n and --config.sample.frames"


def _first_line(error):
    """The first line of an exception's text, shortened."""
    line = (str(error).strip().splitlines() or [""])[0]
    return line if len(line) <= 200 else f"{line[:199]}…"
