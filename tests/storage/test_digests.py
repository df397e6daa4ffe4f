"""Digests are kept in files of all versions: they must never change."""

import hashlib

import ml_dtypes
import numpy as np
import pytest

from pfgm_jax.storage import array_cache, digests, safetensors


def test_parts_are_hashed_one_after_another():
    columns = np.arange(6, dtype=np.float32).reshape(2, 3).T
    content = "ü".encode() + b"\0" + columns.tobytes()  # tobytes gives C order
    assert digests.sha256("ü", b"\0", columns) == hashlib.sha256(content).hexdigest()
    assert digests.sha256() == digests.sha256(np.zeros((0, 3))) == hashlib.sha256(b"").hexdigest()
    narrow = np.array(1.5, ml_dtypes.bfloat16)  # without dimensions, and without a buffer of its own
    assert digests.sha256(narrow) == hashlib.sha256(b"\xc0\x3f").hexdigest()


def test_settings_do_not_depend_on_the_order_of_keys():
    text = '{"a": [Infinity, null], "b": "x"}'
    assert digests.of_json({"b": "x", "a": [float("inf"), None]}) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file(tmp_path, algorithm):
    (tmp_path / "file").write_bytes(b"content")
    assert digests.of_file(tmp_path / "file", algorithm) == hashlib.new(algorithm, b"content").hexdigest()


def test_equal_images_have_equal_hashes():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 1), dtype=np.uint8)
    images[2] = images[0]
    hashes = digests.of_images(images)
    assert hashes[0] == hashes[2] and len(set(hashes)) == 3 and {len(text) for text in hashes} == {32}


def test_checksums_of_named_arrays():
    arrays = {"b/x": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(3)}
    header_a, header_b = b"a int64 ()\n", b"b/x float32 (2, 3)\n"
    content = header_a + arrays["a"].tobytes() + header_b + arrays["b/x"].tobytes()
    assert safetensors.checksum(arrays) == hashlib.sha256(content).hexdigest()
    plain = hashlib.sha256(arrays["a"].tobytes() + arrays["b/x"].tobytes()).digest()
    assert array_cache.digest(arrays).tobytes() == plain
