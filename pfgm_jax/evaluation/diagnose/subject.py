"""A run under study: its denoiser, compiled once for one batch, which every solver and every setting shares.

A study solves the same flow in dozens of ways. A compiled program for each of them would take far longer than the
solves, so solvers run here operation by operation, and the network alone is compiled.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax import sampling
from pfgm_jax.data.dataset import to_unit
from pfgm_jax.flow import field, process
from pfgm_jax.run import weighs_by_class
from pfgm_jax.sampling.settings import labels_for
from pfgm_jax.storage import array_cache

TITLES = {"pfgmpp": "PFGM++", "pfgm": "PFGM", "edm": "EDM", "ve": "VE", "vp": "VP", "subvp": "sub-VP", "ddpm": "DDPM"}
# Training images × pixels × states: above this no exact posterior mean is asked for (`training.monitor.TRUTH_LIMIT`).
TRUTH_LIMIT = 2e8


def title(flow):
    """ "PFGM++, D = 128", "EDM, D = ∞"."""
    D = "∞" if flow.is_gaussian else f"{flow.D:g}"
    return f"{TITLES.get(flow.name, flow.name)}, D = {D}"


class Subject:
    """A Generator with what studies ask of it.

    Attributes:
      name: in tables and figures.
      generator: the Generator; its process is `flow`.
      dataset: the real images.
      settings: config.diagnose of the run that the command opened, the same for all subjects.
    """

    def __init__(self, name, generator, dataset, settings):
        self.name, self.generator, self.dataset, self.settings = name, generator, dataset, settings
        self.flow, self.shape = generator.process, generator.shape

    @property
    def identity(self):
        """What results of this subject depend on, as JSON: weights, process, labels, seed."""
        return [self.generator.weighted.run, self.generator.num_classes, self.settings.seed]

    @functools.cached_property
    def content(self):
        """A hash of the training images."""
        return array_cache.content(self.dataset.train.images)

    # ---- denoisers, of any number of states

    @functools.cached_property
    def _network(self):
        denoise = lambda params, x, sigma, labels: self.generator.network.denoiser(params, labels)(x, sigma)
        return jax.jit(denoise)

    def denoise(self, x, sigma, labels, params=None):
        """E[y | x, σ] [n, *S] by the network, or by the same network with other weights."""
        return self._in_batches(self._network, self.generator.params if params is None else params, x, sigma, labels)

    @property
    def no_truth(self):
        """Why there is no exact posterior mean to compare with, "" where there is one."""
        if weighs_by_class(self.generator.config.train.order, self.generator.num_classes):
            return "this unconditional network was trained on class-balanced batches"
        too_many = math.prod(self.dataset.train.images.shape) > TRUTH_LIMIT
        return "the training set is too large for that" if too_many else ""

    @functools.cached_property
    def points(self):
        """(images, labels) that the exact posterior mean is of, those trained on; None for `no_truth`."""
        if self.no_truth:
            return None
        train = self.dataset.train
        images, labels = np.asarray(train.images), np.asarray(train.labels)
        if self.generator.config.train.flip:
            images, labels = np.concatenate([images, images[:, :, ::-1]]), np.tile(labels, 2)
        return jnp.asarray(images), jnp.asarray(labels)

    @functools.cached_property
    def _exact(self):
        size = field.fitting_chunk(self.settings.batch, self.points[0].shape)

        def posterior_mean(points, x, sigma, labels):
            images, known = points
            allowed = labels[:, None] == known if self.generator.classes else None
            return field.posterior_mean(
                x, sigma, images, self.flow.D, chunk=size or len(images), allowed=allowed, prepare=to_unit
            )

        return jax.jit(posterior_mean)

    def exact(self, x, sigma, labels):
        """The exact posterior mean [n, *S] of the training set, by class for a class-conditional network."""
        return self._in_batches(self._exact, self.points, x, sigma, labels)

    def _in_batches(self, compiled, first, x, sigma, labels):
        x, B, n = jnp.asarray(x, jnp.float32), self.settings.batch, len(x)
        filled = np.minimum(np.arange(-(-n // B) * B), n - 1)  # the last batch is filled up
        sigma, labels = jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), n), jnp.asarray(labels, jnp.int32)
        with jax.disable_jit(False):  # in `solve` nothing else is compiled
            parts = [compiled(first, x[rows], sigma[rows], labels[rows]) for rows in filled.reshape(-1, B)]
        return jnp.concatenate(parts)[:n]

    # ---- samples

    def start(self, n):
        """(keys [n], x [n, *S] at σ_max, labels [n]) as `Generator.sample` draws them from the seed."""
        seed = jax.random.key(self.settings.seed)
        keys, x = _start(self.flow, self.shape, seed, n)
        return keys, x, labels_for(self.generator.run, "real", n, seed)

    def solve(self, solver, n, params=None, exact=False, **options):
        """(samples [n, *S] in the unit scale, SolveStats) by a solver's name, or by a function like one.

        params: other weights of the network. exact: by the exact posterior mean in its place.
        """
        keys, x, labels = self.start(n)
        network = lambda x, sigma: self.denoise(x, sigma, labels, params)
        denoise = (lambda x, sigma: self.exact(x, sigma, labels)) if exact else network
        run = sampling.SOLVERS[solver] if isinstance(solver, str) else solver
        with jax.disable_jit():
            return run(self.flow, denoise, x, keys=keys, **options)

    def perturbed(self, sigma, n, images):
        """(x [n, *S], indices [n]): n of the uint8 images, spread over the set, perturbed by the kernel at σ."""
        indices = np.linspace(0, len(images) - 1, n).astype(int)
        y = jnp.asarray(to_unit(np.asarray(images[indices])), jnp.float32)
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 7)
        return _perturbed(self.flow, key, y, jnp.float32(sigma)), indices


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _start(flow, shape, seed, n):
    """(keys [n] of a solver, x [n, *shape] at σ_max)."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(seed, jnp.arange(n))
    return jax.vmap(jax.random.fold_in, (0, None))(keys, 1), process.prior(flow, keys, shape)


@functools.partial(jax.jit, static_argnums=0)
def _perturbed(flow, key, y, sigma):
    """Images y [n, *S] perturbed by the kernel at σ."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(y)))
    return process.perturb(flow, keys, y, jnp.full(len(y), sigma))
