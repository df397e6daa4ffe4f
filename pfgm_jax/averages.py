"""Averages of weights whose length is chosen after training (arXiv 2312.02696, section 3 and appendix C).

    average_γ(T) = (γ + 1) / T^(γ + 1) ∫₀ᵀ t^γ weights(t) dt

is a power-function average. Its length is a share of the training, its relative width: the standard deviation of its
weight function over T. Two of them, of WIDTHS, are tracked, and both are kept with every checkpoint, in
RUN/averages/STEP.safetensors. Any other is solved for: the sum of all that were kept whose weight function is nearest
to its own in least squares.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax.errors import UserError
from pfgm_jax.storage import safetensors

WIDTHS = (0.05, 0.10)  # of the averages that are tracked: γ = 16.97 and 6.94
NEAR = 0.1  # largest relative error of a weight function that is taken for the one asked for


def exponent(width: float) -> float:
    """γ of a relative width in (0, 0.28): the positive root of (γ + 1) / ((γ + 2)² (γ + 3)) = width²."""
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def start(params: dict) -> dict:
    """{width: average} before the first step."""
    return {str(width): params for width in WIDTHS}


def advanced(averages: dict, params: dict, count: jax.Array) -> dict:
    """The averages after `count` steps, [] from 1, of which the last led to `params`."""

    def moved(width, average):
        # (1 − 1/count)^(γ + 1), 0 at the first step, without the digits that 1 − 1/count loses.
        decay = jnp.exp((exponent(float(width)) + 1) * jnp.log1p(-1 / count.astype(jnp.result_type(float))))
        return jax.tree.map(lambda a, p: p + (decay * (a - p)).astype(p.dtype), average, params)

    return {width: moved(width, average) for width, average in averages.items()}


def keep(workdir, step, averages):
    """Writes the averages of a step, host arrays, in one piece."""
    path = _path(workdir, step)
    path.parent.mkdir(exist_ok=True)
    safetensors.save(path, averages, {"step": str(step)})


def _path(workdir, step):
    return pathlib.Path(workdir, "averages", f"{step}.safetensors")


def load(workdir, step, like):
    """The averages of a step as `keep` wrote them, each a tree like `like`; UserError for none, or damaged ones."""
    return safetensors.load(_path(workdir, step), start(like))


def kept(workdir, last):
    """The steps up to `last` of which averages were kept, in ascending order."""
    names = (re.fullmatch(r"([0-9]+)\.safetensors", path.name) for path in pathlib.Path(workdir, "averages").glob("*"))
    return sorted(step for name in names if name and (step := int(name[1])) <= last)


def required(workdir, last):
    """`kept`; UserError where there are none of `last` itself."""
    steps = kept(workdir, last)
    if not steps or steps[-1] != last:
        raise UserError(f"{workdir} has no averages of step {last:,}, which sample.ema_width needs")
    return steps


def coefficients(steps, width):
    """([n, 2] coefficients of the averages of WIDTHS that were kept after `steps` [n], relative error).

    Their sum is nearest to the average of `width` after the last of the steps, and is one for constant weights. The
    error is that of the weight functions, in the norm of square-integrable ones.
    """
    T, gamma = steps[-1], exponent(width)
    ends = np.repeat(np.asarray(steps, float) / T, len(WIDTHS))
    gammas = np.tile([exponent(each) for each in WIDTHS], len(steps))
    products, wanted = _product(ends[:, None], gammas[:, None], ends, gammas), _product(ends, gammas, 1.0, gamma)
    found, *_ = np.linalg.lstsq(products, wanted, rcond=1e-12)
    found /= found.sum()
    squares = found @ products @ found - 2 * found @ wanted
    error = np.sqrt(max(0.0, 1 + squares / _product(1.0, gamma, 1.0, gamma)))
    return found.reshape(len(steps), len(WIDTHS)), float(error)


def _product(end, gamma, other_end, other_gamma):
    """∫ of the product of two weight functions (γ + 1) t^γ / T^(γ + 1), each 0 beyond its end T."""
    until = np.minimum(end, other_end)
    ratios = (until / end) ** (gamma + 1) * (until / other_end) ** (other_gamma + 1)
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * ratios / until


def of_width(workdir, width, last, like):
    """The weights of the run in `workdir` averaged with a relative width up to step `last`; a tree like `like`.

    Raises:
      UserError: no averages of that step, damaged ones, or too few for this width: which widths there are.
    """
    steps = required(workdir, last)
    parts, error = coefficients(steps, width)
    if error > NEAR:
        least, most = possible(steps)
        raise UserError(
            f"sample.ema_width={width:g} cannot be reconstructed from {len(steps)} checkpoints: choose {least:g} "
            f"to {most:g}, or keep more with a smaller train.save_every"
        )
    total = None
    for step, row in zip(steps, parts, strict=True):
        if not np.any(row):
            continue
        tree = load(workdir, step, like)
        for name, share in zip(start(like), row, strict=True):
            scaled = jax.tree.map(lambda a, share=share: share * np.asarray(a, np.float64), tree[name])
            total = scaled if total is None else jax.tree.map(np.add, total, scaled)
    return jax.tree.map(lambda a, wanted: a.astype(wanted.dtype), total, like)


def possible(steps):
    """(least, most) relative width, in hundredths, of which the averages kept after `steps` can make all between."""
    near = [w / 100 for w in range(1, 28) if coefficients(steps, w / 100)[1] <= NEAR]
    return min(near), max(near)
