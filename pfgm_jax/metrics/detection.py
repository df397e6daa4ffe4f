"""How well a score tells one set of images from another: the area under the ROC curve, with its interval."""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata

from pfgm_jax.errors import UserError


class Area(NamedTuple):
    """Area under the ROC curve and its interval."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(usual, unusual, level=0.95):
    """The probability that an unusual image scores above a usual one, ties counting half.

    The interval is DeLong's (Biometrics 44, 837, 1988), on the logit scale, so that it stays within [0, 1]; where the
    sets are told apart without fail it reaches from Hanley's rule of three, 3 in the smaller set, to 1.

    Args:
      usual, unusual: scores [m] and [n], at least 2 each.

    Raises:
      UserError: fewer scores, or some that are not finite.
    """
    usual, unusual = (np.asarray(scores, np.float64).ravel() for scores in (usual, unusual))
    m, n = len(usual), len(unusual)
    if min(m, n) < 2 or not (np.isfinite(usual).all() and np.isfinite(unusual).all()):
        raise UserError(f"an area under the curve needs at least 2 finite scores per set, got {m} and {n}")
    ranks = rankdata(np.concatenate([usual, unusual]))
    # Share of the other set that each score is on the right side of.
    of_usual = 1 - (ranks[:m] - rankdata(usual)) / n
    of_unusual = (ranks[m:] - rankdata(unusual)) / m
    area = float(of_unusual.mean())
    variance = of_usual.var(ddof=1) / m + of_unusual.var(ddof=1) / n
    if variance == 0:
        reach = min(1.0, 3 / min(m, n))
        return Area(area, max(0.0, area - reach) if area > 0 else 0.0, min(1.0, area + reach) if area < 1 else 1.0)
    spread = norm.ppf((1 + level) / 2) * math.sqrt(variance) / (area * (1 - area))
    logit = math.log(area / (1 - area))
    low, high = (1 / (1 + math.exp(-(logit + side * spread))) for side in (-1, 1))
    return Area(area, low, high)
