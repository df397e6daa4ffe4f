"""A trained run as an object to sample from: `load(workdir)`."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from pfgm_jax import build, checkpoint, models, parallel, process, sampling, weights
from pfgm_jax import config as config_lib
from pfgm_jax.data.dataset import to_uint8
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.parametrization import denoiser

# Weights that come with the package, each a folder as `--mode=export` writes it.
PRETRAINED = pathlib.Path(__file__).parent / "pretrained"


@functools.lru_cache(maxsize=32)
def _sampler(trained, flow, parametrization, model, solver, options, shape):
    """The compiled program from keys to samples, mapped over devices, for a network of `trained`, sampled by `flow`.

    `(params, keys, labels) -> (x [b, *S], trajectory [b, T, *S], the other SolveStats)`.
    """

    def per_device(params, keys, labels):
        x = process.prior(flow, keys, shape)
        network = lambda x, noise: model.apply({"params": params}, x, noise, labels)
        denoise = denoiser(parametrization, trained, network)
        solver_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        options_ = dict(options, keys=solver_keys, axis_name=parallel.AXIS)
        x, stats = sampling.SOLVERS[solver](flow, denoise, x, **options_)
        return x, jnp.swapaxes(stats.trajectory, 0, 1), stats._replace(trajectory=())

    return parallel.pmap(per_device, in_axes=(None, 0, 0))


def sampling_process(config, trained, D=None):
    """The process to sample with: the trained one, with `D`, or else sample.D, in place of its own if given."""
    D = config.sample.D if D is None else D
    return trained if D is None else process.with_D(trained, D)


def solver_options(config, solver):
    """What the sample section says to the solver: {option: value}, without those left to its default."""
    _, defaults = sampling.find(solver)
    given = {name: config.sample[name] for name in defaults if name != "frames"}
    return {name: value for name, value in given.items() if value is not None}


def check_sampling(config, trained):
    """Raises UserError if the config's solver is not defined for the process, or not with its options."""
    solver = config.sample.solver
    sampling.check(solver, sampling_process(config, trained), solver_options(config, solver))


def _over_devices(stats):
    """SolveStats with a device axis -> of the whole batch, on the host: devices may take steps of their own."""
    stats = jax.tree.map(np.asarray, stats._replace(sample_nfe=()))
    return stats._replace(
        nfe=stats.nfe.max(),
        steps=stats.steps.max(),
        rejected=stats.rejected.max(),
        completed=stats.completed.all(),
        finite=stats.finite.all(),
        # The highest level is where the first of them stopped.
        sigma=stats.sigma.max(),
        sigmas=stats.sigmas[0],
    )


def _require_completed(solver, stats):
    """Raises UserError for a solve that stopped on its way."""
    if not stats.finite:
        raise UserError(
            f"{solver} stopped at σ = {stats.sigma:.4g}, where the network returned NaN or inf (or jumps): its weights "
            "or the sample.* settings are unusable"
        )
    if not stats.completed:
        raise UserError(
            f"{solver} came only to σ = {stats.sigma:.4g} within its step limit of {stats.steps + stats.rejected}; "
            "raise max_steps, rtol or atol"
        )


def to_images(derived, x):
    """Samples in the unit scale as what the data of `derived` are: uint8 images, or floats as they come."""
    return x if derived.get("dtype", "uint8") == "float32" else to_uint8(x)


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
        self.process = build.make_process(config, derived)
        self.parametrization = build.make_parametrization(config, derived)
        self.model = build.make_model(config, derived)

    @property
    def shape(self):
        """(H, W, C) of an image."""
        return tuple(self.derived["shape"])

    def denoise(self, x, sigma, labels=None):
        """The network's posterior mean E[y | x, σ]: x [B, H, W, C] unscaled, sigma [B], labels [B] -> [B, H, W, C]."""
        network = lambda x, noise: self.model.apply({"params": self.params}, x, noise, labels)
        return denoiser(self.parametrization, self.process, network)(x, sigma)

    def sample(self, key, n, labels=None, solver=None, D=None, **options):
        """Draws n images.

        Sample i depends on (key, i): asking for more keeps the first ones, up to what a batch shares: the step control
        of rk45 and tsit5, unless per_sample, and the step size of predictor_corrector's corrector.

        Args:
          key: a PRNG key, `jax.random.key(0)`.
          n: how many.
          labels: [n] classes for a conditional network; None draws them with the training set's frequencies.
          solver: a name in `sampling.SOLVERS`; None takes the run's sample.solver.
          D: sample with another D than the one trained with; None takes the run's sample.D, and the trained one where
            that is None too.
          options: of the solver, such as rtol, steps, grid, frames; unset ones come from the run's sample section.

        Returns:
          (uint8 [n, H, W, C], or float32 where the data are points; SolveStats as NumPy arrays: nfe, steps and rejected
          are means over batches, sample_nfe [n], the trajectory float [T, n, H, W, C]).

        Raises:
          UserError: an unknown solver or option, a solver that the process does not admit, labels that do not fit, or a
            solve that did not reach the data.
        """
        x, stats = self.sample_unit(key, n, labels, solver, D, **options)
        return to_images(self.derived, x), stats

    def sample_unit(self, key, n, labels=None, solver=None, D=None, **options):
        """As `sample`, but float images in the unit scale [-1, 1], not clipped."""
        solver = solver or self.config.sample.solver
        sampling.check_options(solver, options)
        options = solver_options(self.config, solver) | options
        flow = sampling_process(self.config, self.process, D)
        if n < 1:
            raise UserError(f"n must be at least 1, got {n}")
        labels = self._labels(key, n, labels)

        program = _sampler(
            self.process, flow, self.parametrization, self.model, solver, tuple(sorted(options.items())), self.shape
        )
        devices = parallel.device_count()
        batch = -(-min(self.config.sample.batch, n) // devices) * devices
        parts = []
        for start in tqdm(range(0, n, batch), desc=f"sample, {batch} at once", disable=n <= batch):
            indices = np.arange(start, start + batch)  # the last batch is filled up, so that one program serves all
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
            told = labels[np.minimum(indices, n - 1)]
            x, trajectory, stats = program(self.params, parallel.shard(keys), parallel.shard(told))
            x, trajectory, nfe = (parallel.gather(a) for a in (x, trajectory, stats.sample_nfe))
            stats = _over_devices(stats)
            _require_completed(solver, stats)
            parts.append((x, trajectory, nfe, stats))
        images, trajectories, sample_nfe, every = zip(*parts, strict=True)
        images = np.concatenate(images)[:n]
        mean = lambda name: float(np.mean([getattr(stats, name) for stats in every]))
        return images, every[0]._replace(
            nfe=mean("nfe"),
            steps=mean("steps"),
            rejected=mean("rejected"),
            sample_nfe=np.concatenate(sample_nfe)[:n],
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


def _pretrained(workdir):
    """The folder that `pretrained:NAME` means; any other workdir as it is."""
    prefix, _, name = str(workdir).partition(":")
    if prefix != "pretrained":
        return workdir
    names = sorted(file.parent.name for file in PRETRAINED.glob(f"*/{weights.EXPORTED}"))
    if name not in names:
        there = f"there are {', '.join(names)}" if names else "there are none in this package"
        raise UserError(f"no pretrained weights are called {name!r}{nearest(name, names)}; {there}")
    return PRETRAINED / name


def load(workdir):
    """The run in `workdir` with the EMA weights of its newest sound checkpoint, or an exported folder with its weights.

    `pretrained:NAME` opens the weights called NAME that come with the package.

    Raises:
      UserError: no run there, no checkpoint yet, a checkpoint of another network, or an unknown NAME.
    """
    workdir = _pretrained(workdir)
    config, derived = config_lib.load_run(workdir)
    model = build.make_model(config, derived)
    like = jax.eval_shape(lambda: models.init(model, derived["shape"]))
    exported = pathlib.Path(workdir, weights.EXPORTED)
    if exported.exists():
        return Generator(config, derived, weights.load(exported, like), derived.get("step", 0))
    restored = checkpoint.restore(workdir, {"ema": like})
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet; its run saves one every {config.train.save_every:,} images")
    step, items = restored
    return Generator(config, derived, items["ema"], step)
