"""Files that are broken: only a UserError of one line comes out, whatever the bytes."""

import collections
import pathlib
import tracemalloc

import foreign_files as ff
import numpy as np
import pytest
from safetensors.numpy import save

from pfgm_jax.errors import UserError
from pfgm_jax.storage import torch_files

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
A = np.arange(24, dtype=np.float32).reshape(4, 6)
FILES = {path.name: path.read_bytes() for path in sorted(FIXTURES.iterdir()) if path.is_file()}
FILES["x.safetensors"] = save({"a": A, "b": np.arange(3)})
PLAIN = {"a": [A, np.float64(3)], "s": {1, 2}, "o": collections.OrderedDict(a=ff.parameter(A))}
FILES["plain.pkl"] = ff.dumps(PLAIN, 4)


def damaged(data, rng):
    """`data` with a few bytes changed, dropped or repeated, or its end lost."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(data)))
        kind = rng.integers(5)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            data[at:at] = data[at : at + int(rng.integers(1, 40))]
        elif rng.integers(4) == 0:
            del data[at:]
        data = data or bytearray(b"x")
    return bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_damage_never_escapes_as_another_error(tmp_path, name):
    rng = np.random.default_rng(0)
    path = tmp_path / name
    tracemalloc.start()
    try:
        for _ in range(200):
            data = damaged(FILES[name], rng)
            if data[:4] == b"PK\x03\x04" and rng.integers(2):  # below the checksums
                data = ff.zipped(PLAIN, **{"data.pkl": damaged(ff.dumps(PLAIN, 2, {}), rng)})
            path.write_bytes(data)
            try:
                torch_files.read(path)
            except UserError as error:
                assert len(str(error).splitlines()) == 1 and len(str(error)) < 500
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("write", [ff.zipped, ff.legacy, ff.dumps])
def test_every_truncated_file_is_refused(tmp_path, write):
    data = write({"a": ff.tensor(A), "b": A, "c": "text"})
    for end in range(len(data) - 1, 0, -7):
        (tmp_path / "file").write_bytes(data[:end])
        with pytest.raises(UserError, match="truncated" if data[:2] != b"PK" else "not a checkpoint|damaged"):
            torch_files.read(tmp_path / "file")
