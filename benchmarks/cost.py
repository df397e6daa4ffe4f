"""What every network costs, by the compiler's own analysis, and the dry run's memory estimate against a measured peak.

    python -m benchmarks.cost [--networks=ddpmpp,ncsnpp] [--no_memory]
    python -m benchmarks.cost --check

The first prints a Markdown table: parameters; operations (a multiplication and an addition count two) of a forward pass
and of a loss with its gradient, per image, as XLA counts them in the program before it is optimised; and the temporary
memory of loss and gradient, per image, which is what batch 2 takes beyond batch 1 in the compiled program, and in
which activations are nearly all. Memory is of the backend it runs on, with plain convolutions, no remat, float32.

--check trains one call in a process of its own and compares its peak resident memory, less that of a process that has
done all but put the state on the device and call, with `train.memory_estimate`.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from configs import lsun_bedroom256
from pfgm_jax import main as command_line
from pfgm_jax import models, parallel, step, train

# The sizes that the presets are for; the networks of the recipes that are no presets.
SIZES = {
    "ddpmpp": 32, "ncsnpp": 32, "ddpmpp_song": 32, "ncsnpp_song": 32, "ddpmpp_deep": 32, "ncsnpp_deep": 32,
    "ncsnpp_pfgm": 32, "adm": 64, "ncsnv2": 32, "ncsnv2_128": 128, "ncsnv2_256": 256,
    **{f"{kind}_{size}": size for kind in ("medical", "cpu") for size in (28, 64, 128, 224)},
}  # fmt: skip
OTHERS = {"ddpmpp, celeba64": (lambda: models.preset("ddpmpp_song"), 64)} | {
    f"{network}, lsun": (functools.partial(lambda arg: lsun_bedroom256.get_config(arg).model.to_dict(), arg), 256)
    for network, arg in (("ddpmpp", "process=pfgm,network=ddpmpp"), ("ncsnpp", "process=ve,network=ncsnpp"))
}
NETWORKS = {name: (functools.partial(models.preset, name), size) for name, size in SIZES.items()} | OTHERS
# Runs for --check, of one step a call: random images stand in for the data.
CHECKS = {
    "CIFAR-10, EDM, ddpmpp, batch 8": ("configs/cifar10.py:process=edm,network=ddpmpp", {"train.batch": "8"}),
    "CelebA, PFGM, ddpmpp of 32 channels, batch 16": (
        "configs/celeba64.py:process=pfgm",
        {"train.batch": "16", "train.large_batch": "256", "model.channels": "32"},
    ),
}


def network(fields):
    """The module of fields of config.model, for colour images and no labels."""
    kind = models.NETWORKS[fields["name"]]
    attributes = {field.name for field in dataclasses.fields(kind)}
    return kind(out_channels=3, **{k: v for k, v in fields.items() if k in attributes - {"dtype", "name"}})


def programs(model, size, batch):
    """(parameters, forward pass, loss and gradient), the last two as functions that lower to a program of `batch`."""
    params = jax.eval_shape(lambda: models.init(model, (size, size, 3)))
    x = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    noise = jax.ShapeDtypeStruct((batch,), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))

    def forward(params, x, noise):
        return model.apply({"params": params}, x, noise)

    def loss(params, x, noise, keys, target):
        return jnp.mean(jnp.square(model.apply({"params": params}, x, noise, None, keys) - target))

    number = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    learn = jax.jit(jax.value_and_grad(loss))
    return number, lambda: jax.jit(forward).lower(params, x, noise), lambda: learn.lower(params, x, noise, keys, x)


def temporary(lowered):
    """Bytes of temporaries in the compiled program; on a CPU its machine code is not worth optimising."""
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    compiled = lowered.compile(quickly if jax.default_backend() == "cpu" else None)
    return compiled.memory_analysis().temp_size_in_bytes


def row(name, memory):
    """A line of the table."""
    fields, size = NETWORKS[name]
    model = network(fields())
    number, forward, learn = programs(model, size, 1)
    flops = [program().cost_analysis()["flops"] / 1e9 for program in (forward, learn)]
    held = "–"
    if memory:
        one, two = (temporary(programs(model, size, batch)[2]()) for batch in (1, 2))
        held = f"{(two - one) / 2**20:.0f}"
    return f"| {name} | {size} | {number / 1e6:.2f} M | {flops[0]:.2f} | {flops[1]:.2f} | {held} |"


def peak():
    """This process's largest resident memory so far, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def probe(name, call):
    """{estimate, peak} of a process that readies one training call of a check and, if asked, makes it."""
    path, overrides = CHECKS[name]
    config = command_line.load_config(path, overrides | {"train.steps_per_call": "1"})
    dataset, _, task, cadence = train.prepare(config, stand_in=True)
    dataset = dataclasses.replace(dataset, stands_for=0)
    state = step.init_state(task, dataset.shape)
    estimate = train.memory_estimate(task, state, dataset, cadence.per_call)
    arrays = (state, dataset.train.images, dataset.train.labels)
    compiled = step.train_steps.lower(task, *parallel.replicated_shapes(arrays), cadence.per_call).compile()
    if call:
        jax.block_until_ready(compiled(*(parallel.replicate(a) for a in arrays)))
    return {"estimate": estimate, "peak": peak()}


def check(name):
    """A line of the second table."""
    with tempfile.TemporaryDirectory() as cache:  # so that compiling is not what takes the memory
        settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        results = []
        for what in ("load", "load", "call"):
            command = [sys.executable, "-m", "benchmarks.cost", f"--probe={what}:{name}"]
            done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    _, loaded, called = results
    measured, estimate = called["peak"] - loaded["peak"], called["estimate"]
    return f"| {name} | {estimate / 2**20:.0f} | {measured / 2**20:.0f} | {estimate / measured:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="all")
    parser.add_argument("--no_memory", action="store_true", help="leave out what has to be compiled")
    parser.add_argument("--check", action="store_true", help="the memory estimate against a measured peak")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        what, _, name = args.probe.partition(":")
        print(json.dumps(probe(name, what == "call")))
        return
    if args.check:
        print("| run | estimate, MiB | measured, MiB | ratio |\n|---|--:|--:|--:|")
        for name in CHECKS:
            print(check(name), flush=True)
        return
    print("| network | px | parameters | forward, GFLOP | training, GFLOP | memory, MiB |\n|---|--:|--:|--:|--:|--:|")
    for name in NETWORKS if args.networks == "all" else args.networks.split(","):
        begun = time.perf_counter()
        print(row(name, not args.no_memory), flush=True)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
