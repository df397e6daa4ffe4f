"""Steps of training with a tiny network, on any devices: what several test files need."""

import jax
import numpy as np

from configs import digits
from pfgm_jax import config as config_lib
from pfgm_jax import data, parallel
from pfgm_jax.data import pipeline

# A network that compiles in a fifth of the U-Net's time, for properties of the step around it.
MLP = {"model.name": "mlp", "model.channels": 16, "model.blocks": 1}


def tiny(arg="quick", **overrides):
    """The quick digits config with the smallest U-Net."""
    config = digits.get_config(arg)
    small = {
        "model.channels": 4, "model.multipliers": (1,), "model.embedding_channels": 8, "model.noise_channels": 8,
        "train.batch": 16, "train.images": 512, "train.steps_per_call": 4, "train.log_every": 64,
        "train.eval_every": 512, "train.sample_every": 512, "train.save_every": 128, "train.eval_images": 48,
        "sample.solver": "heun", "sample.steps": 3, "sample.n": 8, "train.grace": 600.0,
    }  # fmt: skip
    for key, value in (small | overrides).items():
        config_lib.override(config, key, value)
    return config


def stacked(tree, devices):
    """A copy on each of the devices, placed as a mapped function would leave it: the first step compiles for all."""
    sharding = jax.NamedSharding(jax.sharding.Mesh(np.asarray(devices), (parallel.AXIS,)), jax.P(parallel.AXIS))
    return jax.device_put(jax.tree.map(lambda a: np.stack([np.asarray(a)] * len(devices)), tree), sharding)


def examples_of(config, dataset, step):
    """What each of eight devices sees of a step, [8, ...] on the host."""
    c = config.train
    indices = pipeline.planner(config.seed, c.order, dataset.train.labels, c.batch, c.large_batch)(step, 1)
    seen = data.take(dataset.train.images, dataset.train.labels, indices)
    images, references = pipeline.on_devices(seen.images, seen.references)
    labels, known = pipeline.on_devices(seen.labels, seen.reference_labels)
    return jax.tree.map(lambda a: a[:, 0], data.Examples(images, labels, references, known))


def on_one(examples):
    """The same examples as one device sees them, [1, ...]."""
    images, labels = (a.reshape(1, -1, *a.shape[2:]) for a in examples[:2])
    return data.Examples(images, labels, *(None if a is None else a[:1] for a in examples[2:]))
