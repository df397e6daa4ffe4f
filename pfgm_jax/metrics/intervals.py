"""How far a figure would move with other samples of the same number: intervals, and differences that they resolve.

There is no bootstrap here, as its resamples hold duplicates: a Fréchet distance takes them for missing variance and is
biased upwards a second time, a kernel distance takes them for like samples, neighbour balls for samples at distance 0.
Random subsets have none. With m of the n samples drawn without replacement, the delete-d jackknife (Shao and Wu 1989,
Annals of Statistics 17, 1176; Politis, Romano and Wolf 1999, "Subsampling") estimates

    variance of the figure of n samples = m / (n - m) * (variance of the figure over subsets)

so with halves, m = n / 2, it is the variance over subsets itself. The figure of a half may be shifted (a Fréchet
distance falls with n): only the spread is used, and the interval is put round the figure of all samples. It covers what
the metric would give on average at this n, against this reference; not what it would at n = infinity, nor what another
training run would give. With normal features, intervals at 95 % were seen to hold that average in 85 to 99 % of cases:
least for a kernel distance of few samples with outliers, and for coverage by fewer samples than there are real images.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

REPLICATES = 20


class Estimate(NamedTuple):
    """A figure, its standard error and its interval."""

    value: float
    error: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Difference(NamedTuple):
    """The figure of a minus that of b; resolved if the interval of the difference leaves out 0."""

    a: float
    b: float
    difference: Estimate
    resolved: bool

    def __str__(self):
        text = f"{self.difference.value:+.4g} [{self.difference.low:+.4g}, {self.difference.high:+.4g}]"
        return text if self.resolved else f"not resolved: {text}"


def estimate(
    metric: Callable, samples: Any, replicates: int = REPLICATES, level: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """Every figure of `metric(samples)` with its interval: {name: Estimate}.

    Args:
      metric: samples -> {name: value}, such as `frechet.against(reference)`.
      samples: features [n, d], n >= 4, or what else the metric takes and indices select from.
      replicates: random halves; a standard error from 20 of them is itself good to 16 %, which the interval allows for.
    """
    values = metric(samples)
    halves = [metric(samples[indices]) for indices in _halves(len(samples), replicates, seed, 0)]
    kept = len(samples) // 2 / (len(samples) - len(samples) // 2)
    return {
        name: _interval(value, np.array([half[name] for half in halves]), kept, level) for name, value in values.items()
    }


def compare(
    metric: Callable,
    a: Any,
    b: Any,
    paired: bool = False,
    *,
    replicates: int = REPLICATES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Every figure of two models' samples and their difference: {name: Difference}.

    Both are measured against the reference inside `metric`, so that its chance is common to both.

    Args:
      a, b: samples of two models, equally many: figures of different n do not compare.
      paired: sample i of both came from the same noise. Halves then hold the same i, and what a pair shares drops out.
    """
    n = len(a)
    if n != len(b):
        raise ValueError(f"figures of {n} and {len(b)} samples cannot be compared: pass equally many")
    values_a, values_b = metric(a), metric(b)
    halves = zip(_halves(n, replicates, seed, 0), _halves(n, replicates, seed, 0 if paired else 1), strict=True)
    figures = [(metric(a[i]), metric(b[j])) for i, j in halves]
    differences = {}
    for name, value in values_a.items():
        spread = np.array([x[name] - y[name] for x, y in figures])
        interval = _interval(value - values_b[name], spread, n // 2 / (n - n // 2), level)
        differences[name] = Difference(value, values_b[name], interval, not interval.low <= 0 <= interval.high)
    return differences


def _halves(n, replicates, seed, stream):
    """Random subsets of n // 2 of n indices."""
    if n < 4 or replicates < 2:
        raise ValueError(f"an interval needs at least 4 samples and 2 replicates, got {n} and {replicates}")
    rng = np.random.default_rng([seed, stream])
    return [rng.choice(n, n // 2, replace=False) for _ in range(replicates)]


def _interval(value, halves, kept, level):
    error = float(np.sqrt(kept * halves.var(ddof=1)))
    reach = error * student.ppf((1 + level) / 2, len(halves) - 1)
    return Estimate(float(value), error, float(value - reach), float(value + reach))
