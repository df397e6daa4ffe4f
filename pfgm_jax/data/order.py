"""The order of training examples: a keyed permutation of the data for every epoch, computed where needed.

Example p of a run, counted from 0 over all steps and devices, is image pi(p mod n), where the permutation pi
is a function of the key and the epoch p // n. There is no shuffled list and no iterator state: a resumed or
differently sharded run asks for the same p and gets the same image.

pi is a Feistel network on b = ceil(log2 n) bits: each half in turn is xored with a keyed hash of the other.
The same xor undoes that, so it permutes [0, 2^b) whatever the hash is. Results >= n go through again ("cycle
walking", Black and Rogaway 2002), which leaves a permutation of [0, n); as 2^b < 2n, fewer than two passes on
average.
"""

import jax
import jax.numpy as jnp
import numpy as np

# 4 do for large domains (Luby and Rackoff 1988); with 5 to 8 images, fewer than 24 favour some of the orders.
ROUNDS = 24


def epoch_order(key: jax.Array, positions, n: int) -> jax.Array:
    """Image indices int32 in [0, n), shape of `positions`, for the global example counters `positions`.

    key: a JAX PRNG key, typed or raw. positions: integers, taken modulo 2^32. n: static, in [1, 2^31 - 1], or
    ValueError. The same numbers under jit, vmap, scan and pmap, with and without x64.
    """
    if not 1 <= n < 2**31:
        raise ValueError(f"n = {n}: epoch_order needs 1 <= n < 2^31")
    positions = jnp.asarray(positions).astype(jnp.uint32)
    size = np.uint32(n)
    words = jax.random.bits(key, (ROUNDS, *[1] * positions.ndim), jnp.uint32)
    round_words = _mix(positions // size ^ words)  # [ROUNDS, *positions.shape]: every epoch has its own

    bits = (n - 1).bit_length()
    low_bits = np.uint32(bits - bits // 2)
    high_mask, low_mask = np.uint32(2 ** (bits // 2) - 1), np.uint32(2 ** int(low_bits) - 1)

    def permute(x):
        high, low = x >> low_bits, x & low_mask
        for r in range(0, ROUNDS, 2):
            high ^= _mix(low ^ round_words[r]) & high_mask
            low ^= _mix(high ^ round_words[r + 1]) & low_mask
        return high << low_bits | low

    def walk(state):
        x, walking = state
        x = jnp.where(walking, permute(x), x)
        return x, x >= size

    start = positions % size
    index, _ = jax.lax.while_loop(lambda state: state[1].any(), walk, (start, start < size))  # all walk once
    return index.astype(jnp.int32)


def _mix(x):
    """uint32 -> uint32, a bijection by which every bit moves every other (MurmurHash3's finaliser)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
