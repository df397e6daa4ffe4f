"""The kernel distance against its definition by loops, and without bias."""

import numpy as np
import pytest

from pfgm_jax.metrics import kernel_distance
from pfgm_jax.metrics.kernel_distance import kid, kid_subsets

A, B = np.random.default_rng(0).normal(size=(7, 4)), np.random.default_rng(1).normal(size=(9, 4)) + 0.5


@pytest.mark.parametrize("elements", [1, 2**22])
def test_against_the_definition(elements, monkeypatch):
    monkeypatch.setattr(kernel_distance, "BLOCK_ELEMENTS", elements)
    k = lambda x, y: (x @ y / 4 + 1) ** 3
    within = lambda s: np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j])
    want = within(A) + within(B) - 2 * np.mean([k(x, y) for x in A for y in B])
    np.testing.assert_allclose(kid(A, B), want, rtol=1e-12)
    np.testing.assert_allclose(kid(B, A), want, rtol=1e-12)


def test_subsets_of_everything_are_the_full_estimate():
    mean, std = kid_subsets(A, B[:7], subsets=5, size=1000)
    np.testing.assert_allclose(mean, kid(A, B[:7]), rtol=1e-12)
    assert std < 1e-12


def test_subsets_estimate_the_full_figure():
    """Each draw is unbiased for it; 800 of them, so 5 of their standard errors."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(60, 3)), rng.normal(size=(60, 3)) + 0.3
    mean, std = kid_subsets(a, b, subsets=800, size=10)
    assert abs(mean - kid(a, b)) < 5 * std / np.sqrt(800)


def test_no_bias_and_negative_values():
    """Two sets of one law: the mean is 0 at any n, and many values lie below."""
    rng = np.random.default_rng(0)
    values = np.array([kid(rng.normal(size=(8, 3)), rng.normal(size=(12, 3))) for _ in range(2000)])
    assert abs(values.mean()) < 5 * values.std() / np.sqrt(2000)
    assert (values < 0).mean() > 0.3


def test_what_has_no_distance_is_refused():
    with pytest.raises(ValueError, match="at least 2 images"):
        kid(A, B[:1])
    with pytest.raises(ValueError, match="differ in width"):
        kid(A, B[:, :3])
