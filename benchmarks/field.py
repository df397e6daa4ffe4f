"""Time, memory and accuracy of the exact field, against the published formula written down directly.

    python -m benchmarks.field [--queries 32 --points 2048 --dim 3072 --D 128 --repeats 5]

"direct" is the published form: a [queries, points, N + 1] array of differences in float32, distances raised to the
power −(N + D) (through a logarithm, for the power itself overflows) and a weighted sum. "whole" and "streamed" are
`pfgm_jax.flow.field.poisson_field` with and without `chunk=1024`. Times are medians of interleaved runs; memory is the
compiler's temporary memory, without inputs and outputs; the error is the largest ‖error‖/‖E‖ of a query against NumPy
float64.

Expected on 2 CPU cores, float32: 19 times faster (whole; 9 to 17 times streamed) than the direct form, in some 500
times less memory (about 3 MB against 1.6 GB; 16 MB streamed), with an error of 4e-8 against 4e-6. With --D 1e6: 36
times, the same memory, 5e-8 against 1e-4. 512 queries × 4096 points take 0.8 s in 72 MB; the direct form would need
26 GB. Among 600 copies of an image they take about five times as long, for the exact differences of all of those.
"""

import argparse
import functools
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax.flow import field
from pfgm_jax.flow.process import perturb, pfgmpp

CHUNK = 1024


def direct(x, sigma, points, D):
    """E = Σ w_i (x̃ − ỹ_i), w_i ∝ ‖x̃ − ỹ_i‖^−(N+D), over x̃ = (x, r), ỹ = (y, 0) of N + 1 dimensions."""
    radius = jnp.broadcast_to(sigma[:, None, None] * math.sqrt(D), (len(x), len(points), 1))
    difference = jnp.concatenate([x[:, None] - points, radius], axis=2)
    distance = jnp.linalg.norm(difference, axis=2)
    weight = jax.nn.softmax(-(x.shape[1] + D) * jnp.log(distance), axis=1)
    E = jnp.sum(weight[:, :, None] * difference, axis=1)
    return E[:, :-1], E[:, -1]


def reference(x, sigma, points, D):
    """The same in NumPy float64, one query at a time."""
    x, sigma, points = (np.asarray(a, np.float64) for a in (x, sigma, points))
    E = []
    for query, level in zip(x, sigma, strict=True):
        difference = np.concatenate([query - points, np.full((len(points), 1), level * math.sqrt(D))], axis=1)
        log_weight = -(len(query) + D) * np.log(np.linalg.norm(difference, axis=1))
        weight = np.exp(log_weight - log_weight.max())
        E.append(weight @ difference / weight.sum())
    return np.stack(E)


def problem(queries, points, dim, D):
    """Images of uniform noise, and queries drawn from the kernel around them, σ from 0.01 to 80."""
    y = jax.random.uniform(jax.random.key(0), (points, dim), minval=-1, maxval=1)
    sigma = jnp.geomspace(0.01, 80, queries)
    keys = jax.random.split(jax.random.key(1), queries)
    return perturb(pfgmpp(D), keys, y[jnp.arange(queries) % points], sigma), sigma, y


def compiled(function, arguments, D):
    return jax.jit(functools.partial(function, D=D)).lower(*arguments).compile()


def seconds(functions, arguments, repeats):
    """Median time of each of the functions, which take turns."""
    times = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if repeat:  # the first is a warm-up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def table(methods, arguments, D, repeats, expected=None):
    functions = {name: compiled(function, arguments, D) for name, function in methods.items()}
    times = seconds(functions, arguments, repeats)
    memory = {name: f.memory_analysis().temp_size_in_bytes / 1e6 for name, f in functions.items()}
    base = next(iter(functions))
    print(f"{'':10}{'time':>12}{'memory':>13}{base + ' / this':>28}{'error':>12}")
    for name, function in functions.items():
        error = ""
        if expected is not None:
            E_x, E_r = function(*arguments)
            E = np.concatenate([E_x, np.asarray(E_r)[:, None]], axis=1, dtype=np.float64)
            error = f"{(np.linalg.norm(E - expected, axis=1) / np.linalg.norm(expected, axis=1)).max():.1e}"
        ratios = f"time {times[base] / times[name]:.1f}, memory {memory[base] / memory[name]:.1f}"
        print(f"{name:10}{1e3 * times[name]:9.1f} ms{memory[name]:10.2f} MB{ratios:>28}{error:>12}")


def main():
    parser = argparse.ArgumentParser(description="Time, memory and accuracy of the exact field.")
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=3072, help="N")
    parser.add_argument("--D", type=float, default=128.0)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    ours = {
        "whole": field.poisson_field,
        "streamed": functools.partial(field.poisson_field, chunk=CHUNK),
    }
    device = jax.devices()[0]
    print(f"{args.queries} queries × {args.points} points × N = {args.dim}, D = {args.D:g}, on {device.device_kind}")
    arguments = problem(args.queries, args.points, args.dim, args.D)
    expected = reference(*arguments, args.D)
    table({"direct": direct} | ours, arguments, args.D, args.repeats, expected)
    size = 4 * 512 * 4096 * 3073 / 1e9
    print(f"\n512 queries × 4096 points × N = 3072, where the direct form's differences alone are {size:.1f} GB")
    table(ours, problem(512, 4096, 3072, args.D), args.D, args.repeats)


if __name__ == "__main__":
    main()
