"""Where the time of a training step goes, as a share of what the machine's matrix products reach.

    python -m benchmarks.training [--quick] [--networks=cpu_28,dit_cpu] [--optim=muon] [--seconds=20]

For each network prints its images a second, its GFLOP/s and their share of the peak, then, on one device, every part
of the step by itself. Operations are those of the plain network's matrix products and convolutions, counted from the
shapes of its forward pass and multiplied by three for the gradient, whatever routine computes them. The peak is the
best of five float32 products of 2048³, in the same run. Images are random; times are medians of compiled calls of
several steps, after one that is not counted. --quick takes a few seconds a network and leaves CIFAR-10's DDPM++ out.
"""

import argparse
import functools
import math
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.extend.core import jaxprs_in_params

from configs import cifar10, digits, medmnist
from pfgm_jax import data, parallel
from pfgm_jax import run as run_lib
from pfgm_jax.data import pipeline
from pfgm_jax.flow import field
from pfgm_jax.flow import process as processes
from pfgm_jax.training import step


class Case(NamedTuple):
    """A run to time: its config, and the changes to it."""

    config: object
    argument: str
    batch: int
    steps: int = 8


CASES = {
    "digits": Case(digits, "", 64),
    "cpu_28": Case(medmnist, "size=28,cpu", 64),
    "dit_cpu": Case(medmnist, "size=28,cpu,network=dit_cpu", 64),
    "ddpmpp (CIFAR-10)": Case(cifar10, "process=edm,network=ddpmpp", 8, 1),
}


def peak(size=2048, repeats=5):
    """GFLOP/s of the best of `repeats` float32 products of size³."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=lax.Precision.HIGHEST))
    jax.block_until_ready(product(a, a))
    return 2 * size**3 / min(timed(lambda: product(a, a), repeats=repeats)) / 1e9


def timed(call, seconds=0.0, repeats=3):
    """Seconds of single calls: at least `repeats` of them, for at least `seconds` in all."""
    times = []
    while len(times) < repeats or sum(times) < seconds:
        begun = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begun)
    return times


def products(jaxpr):
    """Operations of a program's matrix products and convolutions: two for each multiplication with its addition."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            total += 2 * depth * equation.outvars[0].aval.size
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            out_channels = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * kernel.size // out_channels * equation.outvars[0].aval.size
        for inner in jaxprs_in_params(equation.params):
            total += products(inner) * equation.params.get("length", 1)
    return total


def operations(task, shape):
    """Operations of training on one image: three forward passes' products of the plain network."""
    model = task.model.clone(canonical_conv=False) if hasattr(task.model, "canonical_conv") else task.model
    x, noise = jnp.zeros((1, *shape)), jnp.zeros(1)
    params = jax.eval_shape(model.init, jax.random.key(0), x, noise)
    return 3 * products(jax.make_jaxpr(model.apply)(params, x, noise).jaxpr)


def on_random_images(case, optim="adam"):
    """(config, Dataset) of a case, on random images, with the optimiser `optim`."""
    config = case.config.get_config(case.argument or None)
    config.optim.name = optim
    config.train.batch = case.batch
    n = max(1024, config.train.large_batch)
    shape = (config.data.size, config.data.size, 1 if config.data.name == "digits" else 3)
    images = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    split = data.Split(images, np.zeros(n, np.int32))
    return config, data.Dataset("random", split, split, split, ("a",), "", "")


def parts(task, state, source, batches):
    """{part of a step: (a function that does all the steps of a call, its arguments)}, on one device."""
    steps = len(jax.tree.leaves(batches)[0])
    examples = data.take(*source, jax.tree.map(lambda a: a[0], batches))
    keys = jax.random.split(jax.random.key(0), task.batch)
    gradient = jax.tree.map(jnp.ones_like, state.params)

    def often(function):
        """`function` in a loop that no compiler can shorten: its argument depends on what came before."""

        @jax.jit
        def repeat(*args):
            def body(carry, _):
                moved = jax.tree.map(lambda a: a + carry.astype(a.dtype) if a.dtype == jnp.float32 else a, args)
                out = function(*moved)
                return sum(jnp.sum(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(out)) * 1e-30, None

            return lax.scan(body, jnp.zeros(()), None, length=steps)[0]

        return repeat

    def loss(params):
        return jnp.mean(step.example_losses(task, params, examples, keys, train=True))

    def update(gradient, opt_state, params):
        updates, opt_state = task.optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def average(ema, params):
        return optax.incremental_update(params, ema, 1e-3)

    images = data.to_unit(examples.images)
    functions = {
        "forward": (often(loss), (state.params,)),
        "gradient": (often(jax.value_and_grad(loss)), (state.params,)),
        "optimiser": (often(update), (gradient, state.opt_state, state.params)),
        "moving average": (often(average), (state.ema, state.params)),
        "noise": (often(lambda y: processes.training_pairs(task.process, keys, y)), (images,)),
        "images": (jax.jit(lambda *source: lax.map(lambda batch: data.take(*source, batch).images, batches)), source),
    }
    if examples.references is not None:
        points, sigma = data.to_unit(examples.references), jnp.ones(task.batch)
        mean = functools.partial(field.posterior_mean, D=task.process.D)
        functions["large-batch mean"] = (often(lambda y: mean(y, sigma, points)), (images,))
    return functions


def measure(name, best, seconds, optim="adam"):
    """Prints the lines of one network."""
    case = CASES[name]
    config, dataset = on_random_images(case, optim)
    task, shape = step.make_task(config, run_lib.derive(config, dataset)), dataset.shape
    images, labels = dataset.train.images, dataset.train.labels
    per_image = operations(task, shape) / 1e9
    plan = pipeline.planner(task.seed, task.order, labels, task.batch, task.large_batch)
    state = step.init_state(task, shape)
    held = [parallel.replicate(state), parallel.replicate((images, labels))]
    batches = pipeline.send(plan(0, case.steps))

    def call():
        held[0], metrics = step.train_steps(task, *held, batches)
        return metrics

    begun = time.perf_counter()
    jax.block_until_ready(call())
    compiling = time.perf_counter() - begun
    times = timed(call, seconds)
    middle = statistics.median(times) / case.steps
    speed = task.batch / middle
    print(
        f"| **{name}** | whole step | {middle * 1e3:.1f} | {min(times) / case.steps * 1e3:.1f} to "
        f"{max(times) / case.steps * 1e3:.1f} | {speed:.1f} images/s, {per_image * speed:.0f} GFLOP/s, "
        f"**{per_image * speed / best:.0%} of the peak**; {per_image:.2f} GFLOP an image, batch {task.batch}, "
        f"first call {compiling:.0f} s |",
        flush=True,
    )
    if parallel.device_count() > 1:
        return
    alone = parts(task, parallel.unreplicate(held[0]), (images, labels), jax.tree.map(lambda a: a[0], batches))
    for part, (function, arguments) in alone.items():
        arguments = jax.device_put(arguments)
        jax.block_until_ready(function(*arguments))
        each = [t / case.steps * 1e3 for t in timed(lambda f=function, a=arguments: f(*a), seconds / 4)]
        median = statistics.median(each)
        print(f"| | {part} | {median:.2f} | {min(each):.2f} to {max(each):.2f} | {median / 1e3 / middle:.1%} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--optim", default="adam", help="adam, as the published code, or muon")
    parser.add_argument("--seconds", type=float, default=20.0, help="that each network is timed, at least")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    names = args.networks.split(",") if args.networks else [n for n in CASES if not (args.quick and "CIFAR" in n)]
    best = peak()
    print(f"{parallel.device_count()} × {parallel.device_kind()}, jax {jax.__version__}; peak {best:.0f} GFLOP/s\n")
    print("| network | part | ms a step | from to | |\n|---|---|--:|---|---|")
    for name in names:
        measure(name, best, 3.0 if args.quick else args.seconds, args.optim)


if __name__ == "__main__":
    main()
