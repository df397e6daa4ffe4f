"""The optimiser: learning rate over a run, clipping, moments and weight decay."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from pfgm_jax.training.cadence import make_cadence


def learning_rate(config, derived):
    """Schedule step -> learning rate: linear warm-up over optim.warmup images, then constant or a cosine to lr_end.

    Of a step on the host it is computed by NumPy: on a device it would wait behind the training steps that are queued.
    """
    batch, c = config.train.batch, config.optim
    # Steps are int32 inside a compiled program.
    steps, warmup = (min(n, 2**31 - 1) for n in (make_cadence(config).total, c.warmup // batch))

    # Not `optax.linear_schedule`: it subtracts from the peak, so that the first rates lose digits (errors of 5e-6).
    def schedule(step):
        xp = jnp if isinstance(step, jax.Array) else np
        ramp = xp.minimum(1.0, (step + 1) / max(warmup, 1))
        if c.decay == "constant":
            return derived["lr"] * ramp
        progress = xp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
        return derived["lr"] * ramp * (c.lr_end + (1 - c.lr_end) * 0.5 * (1 + xp.cos(math.pi * progress)))

    return schedule


# Muon's steps have the root mean square that Adam's have (arXiv 2502.16982, section 2.2), so that kernels and all else
# share a learning rate; its momentum is that of K. Jordan's published code (2024).
MUON_RMS, MUON_MOMENTUM = 0.2, 0.95
# Layers whose kernel is no map from features to features: it takes or gives images, or takes a class or augmentation.
OUTER = re.compile(r"(conv|patch|dense)_(in|out)|gain|label|augment|enc\d+_aux|dec\d+_conv")


def make_optimizer(config, derived):
    """Adam, RAdam or Muon, warm-up, clipping by the global norm and decoupled weight decay, as the config asks."""
    c = config.optim
    clip = optax.identity() if math.isinf(c.clip) else optax.clip_by_global_norm(c.clip)
    rate = learning_rate(config, derived)
    if c.name == "adam":  # a chain of its own, as the checkpoints of all versions hold its state
        adam = optax.adamw(rate, c.beta1, c.beta2, c.eps, weight_decay=c.weight_decay, mask=_trained)
        return optax.chain(clip, adam)
    direction = _muon(c) if c.name == "muon" else optax.scale_by_radam(c.beta1, c.beta2, c.eps)
    decay = optax.add_decayed_weights(c.weight_decay, _trained)
    return optax.chain(clip, direction, decay, optax.scale_by_learning_rate(rate))


def _muon(c):
    """Muon's direction for kernels, Adam's with Nesterov's momentum for all else, before decay and learning rate."""
    muon = optax.contrib.muon(
        1.0, beta=MUON_MOMENTUM, adam_b1=c.beta1, adam_b2=c.beta2, eps=c.eps, consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=_matrices,
    )  # fmt: skip
    return optax.chain(muon, optax.scale(-1.0))  # its updates go down, and the learning rate turns directions round


def _trained(params):
    """A tree of booleans: all parameters but the stored frequencies of a Fourier embedding, which nothing changes."""
    key = lambda path: getattr(path[-1], "key", "") if path else ""
    return jax.tree_util.tree_map_with_path(lambda path, _: key(path) != "frequencies", params)


def _matrices(params):
    """Which parameters Muon trains, and as which matrix: what a kernel sums over times what it gives; None: Adam's."""

    def matrix(path, leaf):
        names = [getattr(part, "key", "") for part in path]
        if names[-1:] != ["kernel"] or leaf.ndim < 2 or any(map(OUTER.fullmatch, names)):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(matrix, params)
