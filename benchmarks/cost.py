"""What every network costs, by the compiler's own analysis, and the dry run's memory estimate against a measured peak.

    python -m benchmarks.cost [--networks=ddpmpp,ncsnpp] [--no_memory]
    python -m benchmarks.cost --check

The first prints a Markdown table: parameters; operations (a multiplication and an addition count two) of a forward pass
and of a loss with its gradient, per image, as XLA counts them in the program before it is optimised; and the temporary
memory of loss and gradient, per image, which is what batch 2 takes beyond batch 1 in the compiled program, and in
which activations are nearly all. Memory is of the backend it runs on, with plain convolutions, no remat, float32.

--check trains one call of two steps in a process of its own, on random images, and compares `dry_run.memory_estimate`
with how far resident memory rises from before the data and the state are put on the device to its peak (Linux only).
"""

import argparse
import ctypes
import dataclasses
import functools
import gc
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import lsun_bedroom256
from pfgm_jax import config_file, data, models, parallel
from pfgm_jax import run as run_lib
from pfgm_jax.data import pipeline
from pfgm_jax.training import dry_run, step

# The sizes that the presets are for; the networks of the recipes that are no presets.
SIZES = {
    "ddpmpp": 32, "ncsnpp": 32, "ddpmpp_song": 32, "ncsnpp_song": 32, "ddpmpp_deep": 32, "ncsnpp_deep": 32,
    "ncsnpp_pfgm": 32, "adm": 64, "dit_cpu": 28, "ncsnv2": 32, "ncsnv2_128": 128, "ncsnv2_256": 256,
    **{f"{kind}_{size}": size for kind in ("medical", "cpu") for size in (28, 64, 128, 224)},
}  # fmt: skip
OTHERS = {"ddpmpp_celeba64": (lambda: models.preset("ddpmpp_song"), 64)} | {
    f"{network}_lsun256": (functools.partial(lambda arg: lsun_bedroom256.get_config(arg).model.to_dict(), arg), 256)
    for network, arg in (("ddpmpp", "process=pfgm,network=ddpmpp"), ("ncsnpp", "process=ve,network=ncsnpp"))
}
NETWORKS = {name: (functools.partial(models.preset, name), size) for name, size in SIZES.items()} | OTHERS
# Runs for --check, of two steps a call, on random images: (config, overrides).
STEPS = 2
CHECKS = {
    "28 px, cpu_28, batch 64": ("configs/medmnist.py:size=28,cpu", {}),
    "28 px, medical_28, batch 32": ("configs/medmnist.py:size=28", {"train.batch": "32"}),
    "28 px, PFGM, cpu_28, batch 64, 4096 references": ("configs/medmnist.py:size=28,cpu,process=pfgm", {}),
    "64 px, cpu_64, batch 32": ("configs/medmnist.py:size=64,cpu", {"train.batch": "32"}),
    "128 px, cpu_128, remat, batch 8": ("configs/medmnist.py:size=128,cpu,remat", {"train.batch": "8"}),
    "32 px, EDM, ddpmpp, batch 8": ("configs/cifar10.py:process=edm,network=ddpmpp", {"train.batch": "8"}),
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


def resident(field):
    """This process's resident memory in bytes: now ("VmRSS"), or its largest so far ("VmHWM")."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def probe(path, overrides):
    """{estimate, peak} in bytes of the start of a run in this process, on random images, by a config and overrides."""
    config = config_file.load_config(path, overrides)
    shape, n = (config.data.size, config.data.size, 3), max(1024, config.train.large_batch)
    images = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    split = data.Split(images, np.zeros(n, np.int32))
    dataset = data.Dataset("random", split, split, split, ("a",), "", "")
    derived = run_lib.derive(config, dataset)
    task = step.make_task(config, derived)
    state = step.init_state(task, shape)
    estimate = dry_run.memory_estimate(task, state, dataset, STEPS, resident=True)
    batches = task.order, task.batch, task.large_batch, STEPS
    shapes = pipeline.call_shapes((images, split.labels), *batches, resident=True)
    compiled = step.train_steps.lower(task, parallel.replicated_shapes(state), *shapes).compile()
    indices = pipeline.planner(task.seed, task.order, split.labels, task.batch, task.large_batch)(0, STEPS)
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what compiling has freed would else be room for what follows
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    held = parallel.replicate(state), parallel.replicate((images, split.labels))
    jax.block_until_ready(compiled(*held, pipeline.send(indices)))
    return {"estimate": estimate, "peak": resident("VmHWM") - before}


def measure(path, overrides):
    """`probe` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cost", f"--probe={json.dumps([path, overrides])}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""})
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def check(name):
    """A line of the second table."""
    estimate, measured = (value / 2**20 for value in measure(*CHECKS[name]).values())
    return f"| {name} | {estimate:.0f} | {measured:.0f} | {estimate / measured:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="all")
    parser.add_argument("--no_memory", action="store_true", help="leave out what has to be compiled")
    parser.add_argument("--check", action="store_true", help="the memory estimate against a measured peak")
    parser.add_argument("--only", default="", help="with --check: the runs whose name has this in it")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        print(json.dumps(probe(*json.loads(args.probe))))
        return
    if args.check:
        print("| run | estimate, MiB | measured, MiB | ratio |\n|---|--:|--:|--:|")
        for name in (name for name in CHECKS if args.only in name):
            print(check(name), flush=True)
        return
    print("| network | px | parameters | forward, GFLOP | training, GFLOP | memory, MiB |\n|---|--:|--:|--:|--:|--:|")
    for name in NETWORKS if args.networks == "all" else args.networks.split(","):
        begun = time.perf_counter()
        print(row(name, not args.no_memory), flush=True)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
