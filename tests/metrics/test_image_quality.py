"""PSNR and SSIM against the definitions, pixel by pixel in NumPy."""

import math

import numpy as np
import pytest

from pfgm_jax.metrics.image_quality import psnr, ssim


def test_psnr():
    truth = np.zeros((2, 4, 4, 1), np.uint8)
    images = truth + np.array([0, 51], np.uint8).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(psnr(images, truth, 255), [math.inf, 20 * math.log10(5)])


def by_windows(x, y, span):
    """Equation 13 of Wang et al. in every window of 11 × 11 that lies inside, one channel [H, W]."""
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, each = (0.01 * span) ** 2, (0.03 * span) ** 2, []
    for i in range(5, x.shape[0] - 5):
        for j in range(5, x.shape[1] - 5):
            a, b = (image[i - 5 : i + 6, j - 5 : j + 6] for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            each.append(luminance * (2 * cov + c2) / (va + vb + c2))
    return np.mean(each)


@pytest.mark.parametrize("side", [16, 13])
def test_ssim(side):
    rng = np.random.default_rng(side)
    x = rng.integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    y = np.clip(x + rng.normal(0, 60, x.shape), 0, 255).astype(np.uint8)
    expected = [
        np.mean([by_windows(a[..., c] * 1.0, b[..., c] * 1.0, 255) for c in range(3)])
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(ssim(x, y, 255), expected, rtol=1e-9)
    np.testing.assert_allclose(ssim(x, x, 255), 1)


def test_ssim_of_small_images():
    x, y = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 1))
    assert np.all(ssim(x, x, 2) == 1) and np.all(np.abs(ssim(x, y, 2)) < 0.5)
