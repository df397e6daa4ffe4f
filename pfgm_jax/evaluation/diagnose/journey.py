"""What happens to samples on their way: norms, the posterior mean's walk, the network's error where it is asked.

One set of trajectories serves three studies: Heun's method on EDM's grid, from noise that a seed decides.
"""

import jax.numpy as jnp
import numpy as np

LEVELS, QUICK_LEVELS = 40, 8


def levels(settings):
    """Steps of a journey."""
    return QUICK_LEVELS if settings.quick else LEVELS


def travelled(subject, store):
    """Figures of settings.n samples on their way, as arrays.

    Returns:
      sigmas [T]; norms [T, n] of the states; walk [T − 1], the rms over samples and values of dE[y | x, σ]/d ln σ
      between two levels, by the network; length and chord [n] of a trajectory; mean_length and mean_chord [n] of the
      posterior mean's way. Where the exact posterior mean is to be had also error [T], the rms distance of the
      network's to it at the states, and exact_walk [T − 1], the walk of the exact flow's own
      trajectories from the same noise.
    """
    n, T = subject.settings.n, levels(subject.settings)
    exact = subject.points is not None
    facts = [subject.identity, n, T, exact and subject.content]
    return store.kept("journey", facts, lambda: _travel(subject, n, T, exact))


def _travel(subject, n, T, exact):
    _, stats = subject.solve("heun", n, steps=T, frames=T)
    labels = subject.start(n)[2]
    states, sigmas = np.asarray(stats.trajectory), np.asarray(stats.sigmas, np.float64)
    means = [np.asarray(subject.denoise(x, s, labels)) for x, s in zip(states, sigmas, strict=True)]
    arrays = {"sigmas": sigmas, "norms": _norms(states), "walk": _walk(means, sigmas)}
    arrays |= {"length": _norms(np.diff(states, axis=0)).sum(0), "chord": _norms(states[-1:] - states[:1])[0]}
    means = np.stack(means)
    arrays |= {"mean_length": _norms(np.diff(means, axis=0)).sum(0), "mean_chord": _norms(means[-1:] - means[:1])[0]}
    if exact:
        truth = [np.asarray(subject.exact(x, s, labels)) for x, s in zip(states, sigmas, strict=True)]
        arrays["error"] = np.array([_rms(m - t) for m, t in zip(means, truth, strict=True)])
        own = np.asarray(subject.solve("heun", n, exact=True, steps=T, frames=T)[1].trajectory)
        arrays["exact_walk"] = _walk(
            [np.asarray(subject.exact(x, s, labels)) for x, s in zip(own, sigmas, strict=True)], sigmas
        )
    return arrays


def _norms(states):
    """‖x‖ [T, n] of states [T, n, *S]."""
    return np.linalg.norm(states.reshape(*states.shape[:2], -1), axis=-1)


def _rms(values):
    return float(jnp.sqrt(jnp.mean(jnp.square(values))))


def _walk(means, sigmas):
    """rms of dE[y | x, σ]/d ln σ between neighbouring levels [T − 1]."""
    steps = np.diff(np.log(sigmas))
    return np.array([_rms(b - a) / abs(step) for a, b, step in zip(means[:-1], means[1:], steps, strict=True)])
