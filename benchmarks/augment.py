"""The time that augmentation takes, as a share of a training step without it.

    python -m benchmarks.augment [--arg=size=28,cpu --batch=64 --probability=0.12 --calls=5 --dir=FOLDER]

Both are measured in one run and in turns: a call of steps of `configs/medmnist.py` (its data in FOLDER or to be
downloaded), and as many augmentations of such a batch, each inside a `lax.scan` as in training; medians.

Expected on 2 CPU cores, which other programs shared: 0.2 % to 1.2 % of a step at p = 0.12, 0.5 % at p = 1.
"""

import argparse
import functools
import statistics
import time

import jax
from jax import lax

from configs import medmnist
from pfgm_jax import parallel
from pfgm_jax.data import augment, pipeline, to_unit
from pfgm_jax.training import dry_run, step

STEPS = 4  # a call


@functools.partial(parallel.pmap, in_axes=(0, None))
def augmentations(images, probability):
    """The batch [b, H, W, C] of a device, augmented by STEPS sets of keys one after the other."""

    def body(images, key):
        changed, labels = augment.augment(jax.random.split(key, len(images)), images, probability)
        return changed, labels

    return lax.scan(body, images, jax.random.split(jax.random.key(0), STEPS))


def main():
    parser = argparse.ArgumentParser(description="Augmentation's share of a training step.")
    parser.add_argument("--arg", default="size=28,cpu", help="argument of configs/medmnist.py")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--probability", type=float, default=0.12)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--dir", help="config.data.dir")
    args = parser.parse_args()

    config = medmnist.get_config(args.arg)
    config.train.batch = args.batch
    if args.dir:
        config.data.update(dir=args.dir, check_md5=False)
    dataset, _, task, _ = dry_run.prepare(config)
    state = parallel.replicate(step.init_state(task, dataset.shape))
    indices = pipeline.planner(task.seed, task.order, dataset.train.labels, task.batch, task.large_batch)
    examples = pipeline.send(indices(0, STEPS), dataset.train)
    batch = parallel.shard(to_unit(dataset.train.images[: args.batch]))

    times = {"step": [], "augmentation": []}
    for call in range(args.calls + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step.train_steps(task, state, None, examples))
        middle = time.perf_counter()
        jax.block_until_ready(augmentations(batch, args.probability))
        if call:  # the first compiles
            times["step"].append((middle - start) / STEPS)
            times["augmentation"].append((time.perf_counter() - middle) / STEPS)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{args.arg}, batch {args.batch}, p = {args.probability:g}, on {parallel.device_kind()}")
    print(", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in medians.items()))
    print(f"share of a step: {100 * medians['augmentation'] / medians['step']:.2f} %")


if __name__ == "__main__":
    main()
