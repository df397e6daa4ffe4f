"""Counters of examples past 2^31 and 2^32, against Python's integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfgm_jax.training import example_keys


@pytest.mark.parametrize("a, b", [(0, 64), (5, 7), (2**31 - 1, 4096), (2**32 - 1, 2**32 - 1), (123456789, 98765)])
def test_products_of_64_bits(a, b):
    high, low = example_keys._wide_product(jnp.uint32(a), b)
    assert int(high) * 2**32 + int(low) == a * b


def bits(keys):
    return np.asarray(jax.random.key_data(keys))


@pytest.mark.parametrize("first", [0, 2**31 - 32, 2**31 + 64])
def test_keys_below_2_to_32_are_those_of_the_number(first):
    key, places = jax.random.key(3), jnp.arange(64)
    keys = example_keys.example_keys(key, jnp.int32(first // 16), 16, places[:16])
    expected = [bits(jax.random.fold_in(key, np.uint32(first // 16 * 16 + i))) for i in range(16)]
    np.testing.assert_array_equal(bits(keys), expected)


def test_keys_do_not_come_again_after_2_to_32():
    key, step = jax.random.key(3), 2**32 // 48  # whose batch passes 2^32
    keys = [example_keys.example_keys(key, jnp.int32(s), 48, jnp.arange(48)) for s in (0, step, 2 * step)]
    everything = np.concatenate([bits(k) for k in keys])
    assert len(np.unique(everything, axis=0)) == 3 * 48
