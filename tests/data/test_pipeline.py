"""The examples of a step: the same from the host as on the devices, in order, ahead of time."""

import threading
import time

import jax
import numpy as np
import pytest

from pfgm_jax import data, parallel
from pfgm_jax.config import default
from pfgm_jax.data import pipeline
from pfgm_jax.training import dry_run

N, B, R = 100, 16, 32
rng = np.random.default_rng(0)
SPLIT = data.Split(rng.integers(0, 256, (N, 4, 4, 3), dtype=np.uint8), rng.integers(0, 3, N).astype(np.int32))


def planned(order="real", large_batch=0, seed=0):
    return pipeline.planner(seed, order, SPLIT.labels, B, large_batch)


@pytest.mark.parametrize("order", ["real", "balanced"])
@pytest.mark.parametrize("large_batch", [0, R])
def test_resident_and_streamed_examples_are_the_same_on_every_device(order, large_batch):
    indices = planned(order, large_batch)(5, 3)
    sent, streamed = pipeline.send(indices), pipeline.send(indices, SPLIT)
    source = parallel.replicate((SPLIT.images, SPLIT.labels))
    resident = parallel.pmap(lambda source, chosen: data.take(*source, chosen))(source, sent)
    for a, b in zip(jax.tree.leaves(resident), jax.tree.leaves(streamed), strict=True):
        assert a.shape[:2] == (8, 3)
        np.testing.assert_array_equal(a, b)
    # As one device would have them: shares of the batch side by side, the large batch whole on each.
    images = np.asarray(streamed.images).swapaxes(0, 1).reshape(3, B, 4, 4, 3)
    np.testing.assert_array_equal(images, SPLIT.images[indices.examples])
    if large_batch:
        np.testing.assert_array_equal(streamed.references[6], SPLIT.images[indices.references])


def test_a_step_sees_the_same_examples_however_the_steps_are_grouped():
    steps = planned(large_batch=R)
    whole, parts = steps(0, 6), [steps(0, 4), steps(4, 1), steps(5, 1)]
    for name in ("examples", "references"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(p, name) for p in parts]))
    assert (steps(0, 1).examples != planned(seed=1)(0, 1).examples).any()
    # An epoch holds every image once.
    epoch = steps(0, 7).examples.ravel()[:N]
    assert sorted(epoch) == list(range(N))


def test_the_large_batch_begins_with_the_small_one_and_a_whole_one_repeats_nothing():
    indices = planned(large_batch=R)(3, 2)
    np.testing.assert_array_equal(indices.references[:, :B], indices.examples)
    assert all(len(set(row)) == R for row in planned(large_batch=R)(0, 3).references)  # within the first epoch
    whole = planned(large_batch=5 * N)(3, 2).references
    np.testing.assert_array_equal(whole, np.tile(np.arange(N), (2, 1)))
    balanced = planned("balanced", large_batch=3 * N)(0, 1).references
    assert balanced.shape == (1, 3 * N) and (np.bincount(SPLIT.labels[balanced[0]]) == N).all()


def test_shapes_for_the_compiler_are_those_that_are_sent():
    split = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (SPLIT.images, SPLIT.labels))
    for order, large_batch in (("real", 0), ("real", R), ("real", 5 * N), ("balanced", 5 * N)):
        indices = planned(order, large_batch)(0, 3)
        for resident in (True, False):
            source, shapes = pipeline.call_shapes(split, order, B, large_batch, 3, resident)
            sent = pipeline.send(indices, None if resident else SPLIT)
            assert jax.tree.map(lambda a: (a.shape, a.dtype), sent) == jax.tree.map(
                lambda a: (a.shape, a.dtype), shapes
            )
            assert (source is None) == (not resident)


def test_images_stay_on_the_devices_where_they_fit(monkeypatch):
    monkeypatch.setattr(parallel, "device_memory", lambda: 4000)
    assert pipeline.is_resident(None, (10, 10, 10, 1)) and not pipeline.is_resident(None, (10, 10, 10, 3))
    assert not pipeline.is_resident(None, (10, 10, 10, 1), itemsize=4)
    assert pipeline.is_resident(True, (10, 10, 10, 3)) and not pipeline.is_resident(False, (1, 1, 1, 1))


def test_an_image_of_both_batches_is_read_once():
    read = []

    def reading(indices):
        read.extend(indices.tolist())
        return SPLIT.images[indices]

    split = data.Split(data.LazyImages(SPLIT.images.shape, reading), SPLIT.labels)
    indices = planned(large_batch=R)(0, 2)
    sent = pipeline.send(indices, split)
    assert len(read) == 2 * R
    np.testing.assert_array_equal(np.asarray(sent.images).swapaxes(0, 1).reshape(2, B, 4, 4, 3),
                                  SPLIT.images[indices.examples])  # fmt: skip
    assert not dry_run.is_resident(default(), data.Dataset("lazy", split, split, split, ("a", "b", "c"), "", ""))


# ---- the thread


def test_results_come_in_order_and_a_few_ahead():
    made = []

    def make(i):
        made.append(i)
        return i * i

    with pipeline.ahead(make, range(20)) as results:
        assert next(results) == 0
        deadline = time.monotonic() + 20
        while len(made) < 1 + pipeline.AHEAD and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(made) == 1 + pipeline.AHEAD  # and no further, or memory would fill up
        assert list(results) == [i * i for i in range(1, 20)]


def test_what_goes_wrong_in_the_thread_is_raised_in_its_turn():
    def make(i):
        if i == 2:
            raise OSError("the disk is gone")
        return i

    with pipeline.ahead(make, range(5)) as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            next(results)


def test_leaving_early_ends_the_thread():
    with pytest.raises(KeyboardInterrupt):
        with pipeline.ahead(lambda i: i, iter(int, 1)) as results:
            next(results)
            raise KeyboardInterrupt
    assert not [t for t in threading.enumerate() if t.name == "pfgm_jax feed"]
