"""Devices: what lies on all of them, and whose memory it is."""

import jax
import numpy as np

from pfgm_jax import parallel


def test_copies_are_placed_as_a_mapped_function_leaves_them_and_are_not_the_host_s():
    # On a 64-byte boundary, where a CPU device may take a host array as its own; donated, it must not be overwritten.
    raw = np.zeros(1040, np.float32)
    first = -raw.ctypes.data % 64 // 4
    host = raw[first : first + 1024]
    copies = parallel.replicate({"a": host, "step": np.asarray(3, np.int32)})
    assert copies["step"].tolist() == [3] * 8 and copies["step"].dtype == np.int32
    add = parallel.pmap(lambda a: a + 1, donate_argnums=(0,))
    assert copies["a"].shape == (8, 1024) and copies["a"].sharding == add(np.zeros((8, 1024), np.float32)).sharding
    assert np.asarray(add(copies["a"])).min() == 1 and copies["a"].is_deleted()
    assert not host.any()


def test_cores_that_could_be_devices(monkeypatch):
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert parallel.unused_cores(64) == 0  # there are eight devices
    monkeypatch.setattr(parallel, "device_count", lambda: 1)
    assert [parallel.unused_cores(batch) for batch in (64, 6, 5, 7, 1)] == [4, 6, 5, 0, 0]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert parallel.unused_cores(64) == 0
