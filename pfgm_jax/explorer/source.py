"""Charges of a person's own for the explorer: points in the plane from a .npy file or a run."""

import math
import os
import pathlib
from typing import NamedTuple

import numpy as np

from pfgm_jax import data, run_record
from pfgm_jax.errors import UserError, counted, printable

SHOWN = 500  # charges that the page takes from a source: what a browser moves in a frame
MOST = 10_000_000  # points that are read at all


class Source(NamedTuple):
    """Points [n, 2] in the page's coordinates, where the data reach to about 1, and a line about them."""

    points: np.ndarray
    text: str


def read(path) -> Source:
    """At most SHOWN of the points in `path`, evenly chosen, brought to mean 0 and largest coordinate 1.

    Args:
      path: a .npy file of [n, 2] numbers, or the folder of a run on points in the plane, whose training points are
        taken as they are.

    Raises:
      UserError: nothing there, no .npy file, another shape, values that are not finite, no points or more than MOST, or
        a run on images.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _shown(_training_points(path), path.name, fitted=False)
    return _shown(_array(path), path.name, fitted=True)


def _array(path):
    """The float64 points [n, 2] of a .npy file."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give points [n, 2] in a .npy file, or a run's folder")
    if not path.is_file():
        raise UserError(f"{path} is not a file: give points [n, 2] in a .npy file, or a run's folder")
    try:
        points = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        reason = printable(str(error).split("\n")[0])
        raise UserError(f"{path} is not a .npy file of numbers: {reason}") from None
    shape = getattr(points, "shape", None)
    if shape is None:
        raise UserError(f"{path} holds several arrays: save one, points [n, 2], with numpy.save")
    if len(shape) != 2 or shape[1] != 2 or points.dtype.kind not in "fiu":
        raise UserError(f"{path} must hold numbers of shape [n, 2], points in the plane; it has {list(shape)}")
    if not 1 <= shape[0] <= MOST:
        raise UserError(f"{path} must hold 1 to {MOST:,} points, it has {shape[0]:,}")
    points = np.asarray(points, np.float64)
    if not np.isfinite(points).all():
        bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
        raise UserError(f"{path} has {counted(len(bad), 'point')} that are not finite, the first in row {bad[0]}")
    if np.abs(points).max() > 1e100:
        raise UserError(f"{path} has coordinates beyond 1e100: give them in another unit")
    return points


def _training_points(folder):
    """The training points of a run in the plane, float64 [n, 2]."""
    config, derived = run_record.load(folder)
    if list(derived.get("shape", ())) != [1, 1, 2]:
        shape = "×".join(map(str, derived.get("shape", ()))) or "unknown size"
        raise UserError(
            f"{folder} is a run on images of {shape}: the explorer needs points in the plane (configs/toy.py)"
        )
    return np.asarray(data.load(config.data).train.images, np.float64).reshape(-1, 2)


def _shown(points, name, fitted):
    """The Source of points, moved and scaled into the page's frame if `fitted`."""
    chosen = points[np.arange(min(len(points), SHOWN)) * len(points) // min(len(points), SHOWN)]
    text = f"{counted(len(chosen), 'charge')} of {os.fspath(name)}"
    if len(chosen) < len(points):
        text = f"{len(chosen):,} of the {len(points):,} points of {os.fspath(name)}, evenly chosen"
    if fitted:
        middle = points.mean(axis=0)
        unit = float(np.abs(points - middle).max())
        unit = unit if unit > 0 and math.isfinite(unit) else 1.0
        chosen = (chosen - middle) / unit
        text += f"; 1 in the page is {unit:.4g} around ({middle[0]:.4g}, {middle[1]:.4g})"
    return Source(chosen, text)
