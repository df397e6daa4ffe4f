"""What a sampler costs beside the network that it calls, on random weights.

    python -m benchmarks.sampling [--networks=cpu_28] [--n=64] [--repeats=3] [--steps=18]

A network's first line is a loop of its posterior mean alone, compiled; then comes every solver: images a second,
milliseconds an evaluation of one image, and that time over the loop's, 1 where the solver itself costs nothing. All n
images are one batch; times are the best of compiled calls, after one that is not counted and is given as "first call".
"""

import argparse
import time

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.training import CASES, on_random_images, timed
from pfgm_jax import models, parallel
from pfgm_jax import run as run_lib
from pfgm_jax.flow import process
from pfgm_jax.generator import Generator

LOOPED = 9  # evaluations of the loop that a network is timed by


def solvers(steps):
    """{solver: options}."""
    return {
        "heun": {"steps": steps},
        "dpmpp_3m": {"steps": steps},
        "ipndm": {"steps": steps},
        "rk45": {"fixed_steps": max(1, steps // 6)},  # error control of random weights would say nothing
    }


def measure(name, n, repeats, steps):
    """Prints the lines of one network."""
    case = CASES[name]
    config, dataset = on_random_images(case)
    derived = run_lib.derive(config, dataset)
    config.sample.batch = n
    run, shape = run_lib.make_run(config, derived), dataset.shape
    generator = Generator(run, jax.device_put(models.init(run.model, shape)))
    x = process.prior(run.process, jax.random.split(jax.random.key(0), n), shape)

    @jax.jit
    def loop(params, x):
        denoise = generator.network.denoiser(params, None)
        body = lambda x, sigma: (x + 1e-9 * denoise(x, jnp.full(n, sigma)), None)
        return lax.scan(body, x, jnp.geomspace(run.process.sigma_max, run.process.sigma_min, LOOPED))[0]

    key = jax.random.key(0)

    def sampled(solver, options):
        """A function that draws n samples: (samples, evaluations)."""

        def draw():
            samples, stats = generator.sample_unit(key, n, solver=solver, progress=False, **options)
            return samples, float(stats.nfe)

        return draw

    calls = {"network alone": lambda: (jax.block_until_ready(loop(generator.params, x)), LOOPED)}
    calls |= {solver: sampled(solver, options) for solver, options in solvers(steps).items()}
    alone = None
    for label, call in calls.items():
        begun = time.perf_counter()
        _, evaluations = call()
        first = time.perf_counter() - begun
        seconds = min(timed(call, repeats=repeats))
        each = 1e3 * seconds / n / evaluations
        alone = alone or each
        speed = f"{n / seconds:.2f} | {each:.2f} | {each / alone:.2f}"
        print(f"| {name} | {label} | {evaluations:g} | {speed} | {first:.0f} s |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="cpu_28", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=18)
    args = parser.parse_args()
    print(f"{parallel.device_count()} × {parallel.device_kind()}, jax {jax.__version__}, {args.n} images at once\n")
    print("| network | | evaluations | images/s | ms an evaluation of an image | over the network's own | first call |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name in args.networks.split(","):
        measure(name, args.n, args.repeats, args.steps)


if __name__ == "__main__":
    main()
