"""The order of training examples: keyed permutations of the data, computed where needed.

Which image example p of a run is, p counted from 0 over all steps and devices, is a function of the seed and p alone:
in `epoch_order` image π(p mod n), where the permutation π belongs to the epoch p // n. There is no shuffled list and no
iterator state: a resumed or differently sharded run asks for the same p and gets the same image.

π is a Feistel network on b = ⌈log₂ n⌉ bits: each half in turn is xored with a keyed hash of the other. The same xor
undoes that, so it permutes [0, 2^b) whatever the hash is. Results ≥ n go through again ("cycle walking", Black and
Rogaway 2002), which leaves a permutation of [0, n); as 2^b < 2n, fewer than two passes on average.

All of it is NumPy on the host: a streamed data set needs the indices there, and a device could only give them after
the steps that it is busy with.
"""

import numpy as np

# 4 do for large domains (Luby and Rackoff 1988); with 5 to 8 images, fewer than 24 favour some of the orders.
ROUNDS = 24


def epoch_order(seed, positions, n) -> np.ndarray:
    """Image indices int32 in [0, n), shape of `positions`: every image once an epoch.

    Args:
      seed: a whole number ≥ 0, or a tuple of them.
      positions: whole numbers ≥ 0, the global example counters.
      n: images, in [1, 2^31 − 1].

    Raises:
      ValueError: any other n.
    """
    if not 1 <= n < 2**31:
        raise ValueError(f"n = {n}: epoch_order needs 1 <= n < 2^31")
    positions = np.asarray(positions, np.int64)
    return _permute(seed, positions // n, positions % n, n)


def balanced_order(seed, positions, labels) -> np.ndarray:
    """Image indices int32, shape of `positions`: every class that has images as often, each time its next image.

    Every K positions, K being the number of such classes, visit each of them once in a keyed order; a class's own
    images come in an `epoch_order` of their own, so that a rare class is through more often than a common one.

    Args:
      seed, positions: as for `epoch_order`.
      labels: int [n], the classes of the images.
    """
    positions = np.asarray(positions, np.int64)
    counts = np.bincount(labels)
    by_class = np.argsort(labels, kind="stable")  # the images of class 0, of class 1, …
    first, present = np.cumsum(counts) - counts, np.flatnonzero(counts)
    classes = present[epoch_order((*_tuple(seed), 0), positions, len(present))]
    turns, sizes = positions // len(present), counts[classes]
    # The class is part of what the permutation depends on: two of one size do not move in step.
    epochs = turns // sizes * len(counts) + classes
    return by_class[first[classes] + _permute((*_tuple(seed), 1), epochs, turns % sizes, sizes)].astype(np.int32)


def _tuple(seed):
    return seed if isinstance(seed, tuple) else (seed,)


def _permute(seed, epochs, places, n):
    """π of `places`, each in [0, n): int32; epochs, places and n broadcast, and each n and epoch has a π of its own."""
    shape = np.broadcast_shapes(np.shape(epochs), np.shape(places), np.shape(n))
    epochs, places, n = (np.broadcast_to(a, shape).ravel().astype(np.uint32) for a in (epochs, places, n))
    words = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint32)  # its algorithm is frozen
    bits = np.frexp((n - 1).astype(np.float64))[1].astype(np.uint32)  # the length of n − 1 in bits
    low_bits = bits - bits // 2
    one = np.uint32(1)
    high_mask, low_mask = (one << bits // 2) - one, (one << low_bits) - one
    walking = np.arange(places.size)
    result = np.empty_like(places)
    while walking.size:
        high, low = places >> low_bits, places & low_mask
        for r in range(0, ROUNDS, 2):
            high ^= _mix(low ^ _mix(epochs ^ words[r])) & high_mask
            low ^= _mix(high ^ _mix(epochs ^ words[r + 1])) & low_mask
        places = high << low_bits | low
        result[walking] = places
        again = places >= n
        walking, places, epochs, n = walking[again], places[again], epochs[again], n[again]
        low_bits, high_mask, low_mask = low_bits[again], high_mask[again], low_mask[again]
    return result.reshape(shape).astype(np.int32)


def _mix(x):
    """uint32 -> uint32, a bijection by which every bit moves every other (MurmurHash3's finaliser)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
