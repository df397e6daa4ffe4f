"""A trained run as an object to sample from: `load(workdir)`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from pfgm_jax import checkpoint, models, parallel, process, sampling
from pfgm_jax import config as config_lib
from pfgm_jax.data.dataset import to_uint8
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.parametrization import denoiser


@functools.lru_cache(maxsize=32)
def _sampler(flow, parametrization, model, solver, options, shape):
    """The compiled program from keys to samples, mapped over devices.

    `(params, keys, labels) -> (x [b, *S], trajectory [b, T, *S], the other SolveStats)`.
    """

    def per_device(params, keys, labels):
        x = process.prior(flow, keys, shape)
        network = lambda x, noise: model.apply({"params": params}, x, noise, labels)
        denoise = denoiser(parametrization, flow, network)
        x, stats = sampling.SOLVERS[solver](flow, denoise, x, axis_name=parallel.AXIS, **dict(options))
        return x, jnp.swapaxes(stats.trajectory, 0, 1), stats._replace(trajectory=())

    return parallel.pmap(per_device, in_axes=(None, 0, 0))


class Generator:
    """What a notebook holds: a process, a network and its weights.

    Attributes:
      config, derived: of the run.
      process, parametrization, model: made from them.
      params: the weights, EMA as a rule.
      step: training step of the weights.
    """

    def __init__(self, config, derived, params, step=0):
        self.config, self.derived, self.params, self.step = config, derived, params, step
        self.process = config_lib.make_process(config, derived)
        self.parametrization = config_lib.make_parametrization(config, derived)
        self.model = config_lib.make_model(config, derived)

    @property
    def shape(self):
        """(H, W, C) of an image."""
        return tuple(self.derived["shape"])

    def denoise(self, x, sigma, labels=None):
        """The network's posterior mean E[y | x, σ]: x [B, H, W, C] unscaled, sigma [B], labels [B] -> [B, H, W, C]."""
        network = lambda x, noise: self.model.apply({"params": self.params}, x, noise, labels)
        return denoiser(self.parametrization, self.process, network)(x, sigma)

    def sample(self, key, n, labels=None, solver=None, **options):
        """Draws n images.

        Sample i depends on (key, i): asking for more keeps the first ones (up to the step control of rk45, which a
        batch shares).

        Args:
          key: a PRNG key, `jax.random.key(0)`.
          n: how many.
          labels: [n] classes for a conditional network; None draws them with the training set's frequencies.
          solver: "rk45" or "heun"; None takes the run's sample.solver.
          options: of the solver: rtol, atol, steps, rho, frames; unset ones come from the run's sample section.

        Returns:
          (uint8 [n, H, W, C], SolveStats as NumPy arrays: nfe and steps are means over batches, the trajectory float
          [T, n, H, W, C]).

        Raises:
          UserError: an unknown solver or option, labels that do not fit, or a solve that did not reach the data.
        """
        x, stats = self.sample_unit(key, n, labels, solver, **options)
        return to_uint8(x), stats

    def sample_unit(self, key, n, labels=None, solver=None, **options):
        """As `sample`, but float images in the unit scale [-1, 1], not clipped."""
        solver = solver or self.config.sample.solver
        defaults = {"rtol", "atol", "steps", "rho"}
        _, taken = sampling.find(solver, {"frames", "max_steps"} | defaults)
        for name in options:
            if name not in taken:
                raise UserError(
                    f"solver {solver} has no option {name!r}{nearest(name, taken)}; it takes {', '.join(sorted(taken))}"
                )
        options = {name: self.config.sample[name] for name in taken & defaults} | options
        if n < 1:
            raise UserError(f"n must be at least 1, got {n}")
        labels = self._labels(key, n, labels)

        program = _sampler(
            self.process, self.parametrization, self.model, solver, tuple(sorted(options.items())), self.shape
        )
        devices = parallel.device_count()
        batch = -(-min(self.config.sample.batch, n) // devices) * devices
        parts = []
        for start in tqdm(range(0, n, batch), desc=f"sample, {batch} at once", disable=n <= batch):
            indices = np.arange(start, start + batch)  # the last batch is filled up, so that one program serves all
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
            told = labels[np.minimum(indices, n - 1)]
            x, trajectory, stats = program(self.params, parallel.shard(keys), parallel.shard(told))
            parts.append((parallel.gather(x), parallel.gather(trajectory), parallel.unreplicate(stats)))
        images, trajectories, every = zip(*parts, strict=True)
        images = np.concatenate(images)[:n]
        if not all(stats.completed for stats in every):
            raise UserError(f"{solver} did not reach the data within its step limit; raise max_steps, rtol or atol")
        if not np.isfinite(images).all():
            raise UserError("the samples are not finite; the network's weights or the sample.* settings are unusable")
        return images, every[0]._replace(
            nfe=float(np.mean([stats.nfe for stats in every])),
            steps=float(np.mean([stats.steps for stats in every])),
            rejected=float(np.mean([stats.rejected for stats in every])),
            completed=True,
            trajectory=np.concatenate(trajectories)[:n].swapaxes(0, 1),
        )

    def _labels(self, key, n, labels):
        classes = self.derived["classes"]
        if not self.config.model.conditional:
            if labels is not None:
                raise UserError(
                    "this network was trained without labels; train one with --config.model.conditional=True"
                )
            return np.full(n, -1)
        if labels is None:
            counts = jnp.asarray(self.derived["label_counts"], jnp.float32)
            return np.asarray(jax.random.categorical(jax.random.fold_in(key, 2**31), jnp.log(counts), shape=(n,)))
        labels = np.asarray(labels)
        if labels.shape != (n,) or labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"labels must be {n} integers from 0 to {len(classes) - 1} ({', '.join(classes)})")
        return labels


def load(workdir):
    """The run in `workdir` with the EMA weights of its newest sound checkpoint.

    Raises:
      UserError: no run there, no checkpoint yet, or a checkpoint of another network.
    """
    config, derived = config_lib.load_run(workdir)
    model = config_lib.make_model(config, derived)
    restored = checkpoint.restore(workdir, {"ema": jax.eval_shape(lambda: models.init(model, derived["shape"]))})
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet; its run saves one every {config.train.save_every:,} images")
    step, items = restored
    return Generator(config, derived, items["ema"], step)
