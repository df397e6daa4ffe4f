"""What a training step says to the other devices: collectives and bytes, counted from the compiled program.

    python -m benchmarks.collectives [--dir=FOLDER] [CONFIG ...]

For 1, 2 and 8 devices (of the CPU, forced) the step of each config is compiled, and its collectives are counted in what
the compiler made of it, which may have merged or removed some. Bytes are of the operands, on one device; to reduce n
bytes over d devices in a ring, each device sends and receives 2 n (d − 1) / d. The gradient's own size, 4 bytes a
parameter, and the scalars beside it are what they should come to.
"""

import argparse
import os
import re

# Machine code need not be good: the collectives are decided before.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from pfgm_jax import config_file, data
from pfgm_jax import run as run_lib
from pfgm_jax.data import pipeline
from pfgm_jax.training import step

CONFIGS = ("configs/digits.py", "configs/medmnist.py:size=28,cpu")
DEVICES = (1, 2, 8)
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
SIZES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def collectives(text):
    """[(kind, bytes)] of the collectives in a compiled program's text; a merged one is one, with all its arrays."""
    found = []
    for line in text.splitlines():
        kinds = "|".join(KINDS)
        if match := re.search(rf"= (\(.*?\)|\S+) ({kinds})(?:-start)?\(", line):
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            size = sum(SIZES[kind] * int(np.prod([int(n) for n in dims.split(",") if n])) for kind, dims in shapes)
            found.append((match[2], size))
    return found


def compiled_step(config, devices):
    """(parameters, text of one step's program compiled for so many devices) of a config, on stand-in images."""
    dataset = data.load(config.data, stand_in=True)
    derived = run_lib.derive(config, dataset)
    task = step.make_task(config, derived)
    state = step.init_state(task, dataset.shape)
    split = dataset.train
    shapes = pipeline.call_shapes((split.images, split.labels), task.order, task.batch, task.large_batch, 1, True)
    per_device = (shapes[1].examples.shape[0], task.batch // devices)

    def on(a):
        """The shapes for eight devices as those for `devices`."""
        return jax.ShapeDtypeStruct((devices, *a.shape[1:]), a.dtype)

    source, batch = jax.tree.map(on, shapes)
    batch = batch._replace(examples=jax.ShapeDtypeStruct((devices, 1, per_device[1]), np.int32))
    held = jax.tree.map(lambda a: jax.ShapeDtypeStruct((devices, *np.shape(a)), a.dtype), state)
    program = step.train_steps.lower(task, held, source, batch).compile()
    return sum(a.size for a in jax.tree.leaves(state.params)), program.as_text()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=CONFIGS, metavar="CONFIG")
    parser.add_argument("--dir", help="the folder of the data, as data.dir")
    flags = parser.parse_args()
    print("| config | parameters | devices | collectives a step | bytes a step | beyond the gradient |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in flags.configs:
        config = config_file.load_config(name, {"data.dir": flags.dir} if flags.dir else {})
        for devices in DEVICES:
            parameters, text = compiled_step(config, devices)
            found = collectives(text)
            kinds = {kind: sum(k == kind for k, _ in found) for kind, _ in found}
            said = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "none"
            size = sum(bytes_ for _, bytes_ in found)
            beyond = f"{size - 4 * parameters:,}" if found else "–"
            print(f"| `{name}` | {parameters:,} | {devices} | {said} | {size:,} | {beyond} |", flush=True)


if __name__ == "__main__":
    main()
