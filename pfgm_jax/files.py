"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def replacing(path):
    """A temporary path beside `path`, which takes its name when the block ends, or is removed when the block fails.

    A reader sees the old file or the new one, never a part. The temporary name holds the process's number, so that two
    processes do not write into one file.

        with replacing(folder / "config.json") as temporary:
            temporary.write_text(text)
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())  # or a crash of the machine could leave the name without the bytes
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_text(path, text):
    """Writes UTF-8 text in one piece."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
