"""What JAX says in float64 of the field and its solvers, for the explorer's JavaScript.

`python tests/explorer/field_table.py` writes field.json anew.
"""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax.flow import diffusion, field
from pfgm_jax.flow.process import pfgmpp
from pfgm_jax.sampling import noise, reverse_sde, single_step

FILE = pathlib.Path(__file__).parent / "field.json"
DIMENSIONS = (0.5, 1.0, 2.0, 3.5, 16.0, 128.0, 2048.0, math.inf)
LAMBDA = 0.7
STEPS = 9


def queries(N):
    """(points [24, N], x [8, N], sigma [8]): near and far, σ from 0.01 to 4, two points nearly copies."""
    random = np.random.RandomState(N)
    points = random.uniform(-1, 1, (24, N))
    points[1] = points[0] + 1e-7
    sigma = np.geomspace(0.01, 4, 8)
    x = points[:8] + sigma[:, None] * random.normal(size=(8, N))
    x[7] *= 30
    return points, x, sigma


def moments(N, D):
    """One case of the table: displacement, E‖x − y‖² and τ (null where N + D <= 2)."""
    points, x, sigma = queries(N)
    second = field.second_moment(x, sigma, points, D)
    tau = diffusion.tau(second, sigma, N, D).tolist() if N + D > 2 else None
    away = field.displacement(x, sigma, points, D)
    return {"N": N, "D": str(D), "points": points.tolist(), "x": x.tolist(), "sigma": sigma.tolist(),
            "displacement": np.asarray(away).tolist(), "second": np.asarray(second).tolist(), "tau": tau}  # fmt: skip


def paths(D):
    """Where Euler, Heun and the reverse SDE, given its noise, end from 4 states at σ = 4, in the plane."""
    points, x, _ = queries(2)
    x = jnp.asarray(x[2:6] * 4)
    process = pfgmpp(D, sigma_min=0.01, sigma_max=4.0)
    denoise = field.exact_denoiser(jnp.asarray(points), D)
    keys = jax.random.split(jax.random.key(0), len(x))
    ends = {
        "euler": single_step.euler(process, denoise, x, steps=STEPS)[0],
        "heun": single_step.heun(process, denoise, x, steps=STEPS)[0],
        "sde": reverse_sde.sde(
            process, denoise, x, keys=keys, steps=STEPS, noise=LAMBDA,
            second_moment=field.exact_second_moment(jnp.asarray(points), D),
        )[0],
    }  # fmt: skip
    drawn = [np.asarray(noise.standard_normal(keys, k, x)).tolist() for k in range(STEPS - 1)]
    return {"D": str(D), "points": points.tolist(), "x": x.tolist(), "steps": STEPS, "lambda": LAMBDA, "noise": drawn,
            "ends": {name: np.asarray(end).tolist() for name, end in ends.items()}}  # fmt: skip


def table(dimensions=DIMENSIONS, path_dimensions=(1.0, 3.5, math.inf)):
    with jax.enable_x64(True):
        return {
            "moments": [moments(N, D) for N in (1, 2) for D in dimensions],
            "paths": [paths(D) for D in path_dimensions],
        }


if __name__ == "__main__":
    FILE.write_text(json.dumps(table()) + "\n")
