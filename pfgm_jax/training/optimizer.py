"""The optimiser: learning rate over a run, clipping, moments and weight decay."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

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


def make_optimizer(config, derived):
    """Adam or RAdam, warm-up, clipping by the global norm and decoupled weight decay, as the config asks for them."""
    c = config.optim
    clip = optax.identity() if math.isinf(c.clip) else optax.clip_by_global_norm(c.clip)
    rate = learning_rate(config, derived)
    if c.name == "radam":
        decay = optax.add_decayed_weights(c.weight_decay, _trained)
        moments = optax.scale_by_radam(c.beta1, c.beta2, c.eps)
        return optax.chain(clip, moments, decay, optax.scale_by_learning_rate(rate))
    return optax.chain(clip, optax.adamw(rate, c.beta1, c.beta2, c.eps, weight_decay=c.weight_decay, mask=_trained))


def _trained(params):
    """A tree of booleans: all parameters but the stored frequencies of a Fourier embedding, which nothing changes."""
    key = lambda path: getattr(path[-1], "key", "") if path else ""
    return jax.tree_util.tree_map_with_path(lambda path, _: key(path) != "frequencies", params)
