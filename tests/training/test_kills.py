"""A run that is killed at random moments ends with the same bits as one that was left alone."""

import numpy as np
import pytest

from benchmarks import kills


@pytest.mark.slow
def test_ten_kills_lose_nothing(tmp_path):
    moments = kills.soak(tmp_path, 10, devices=1, seed=1)
    assert sum(moments.values()) == 10 and len(moments) >= 3  # the moments differ


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "count"), [(1, 100), (8, 20)])
def test_many_kills_lose_nothing(tmp_path, devices, count):
    assert sum(kills.soak(tmp_path, count, devices, seed=2).values()) == count


def test_a_difference_is_found():
    a = {"step": 3, "params['w']": np.ones(2), "metrics.jsonl": [{"images": 64, "loss": 1.0}]}
    assert kills.differences(a, dict(a)) == []
    assert kills.differences(a, a | {"params['w']": np.array([1, 1 + 1e-16 + 2e-16])}) == ["params['w']"]
    assert kills.differences(a, a | {"metrics.jsonl": [{"images": 64, "loss": 1.0 + 1e-9}]}) == ["metrics.jsonl"]
    assert kills.differences(a, {"step": 3}) == ["metrics.jsonl", "params['w']"]
