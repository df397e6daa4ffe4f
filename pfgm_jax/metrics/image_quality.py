"""How near images are to others, pixel by pixel: PSNR and SSIM."""

import numpy as np
from jaxtyping import Float, Num
from scipy.ndimage import gaussian_filter

from pfgm_jax.array_types import Arrays


def psnr(images: Num[Arrays, "n H W C"], truth: Num[Arrays, "n H W C"], span: float) -> Float[np.ndarray, "n"]:
    """10 log₁₀(span²/mean squared error) in dB of each image; inf for equal ones.

    span: largest minus smallest possible value: 255 for bytes, 2 in the unit scale.
    """
    squared = np.square(np.asarray(images, np.float64) - np.asarray(truth, np.float64))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(span**2 / squared.reshape(len(squared), -1).mean(axis=1))


def ssim(images: Num[Arrays, "n H W C"], truth: Num[Arrays, "n H W C"], span: float) -> Float[np.ndarray, "n"]:
    """Structural similarity (Wang et al. 2004, equation 13): Gaussian windows of 1.5 px and 11 × 11, K = 0.01, 0.03.

    The mean over channels and over the pixels whose window lies inside, over all pixels where the sides are below 11
    (windows then see the image mirrored).
    """
    x, y = np.asarray(images, np.float64), np.asarray(truth, np.float64)
    smooth = lambda a: gaussian_filter(a, (0, 1.5, 1.5, 0), truncate=RADIUS / 1.5, mode="reflect")
    mx, my = smooth(x), smooth(y)
    vx, vy, vxy = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    each = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    if min(x.shape[1:3]) > 2 * RADIUS:
        each = each[:, RADIUS:-RADIUS, RADIUS:-RADIUS]
    return each.reshape(len(each), -1).mean(axis=1)


RADIUS = 5  # pixels of an SSIM window to each side
