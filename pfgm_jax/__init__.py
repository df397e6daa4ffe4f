"""pfgm_jax: Poisson flow generative models (PFGM, PFGM++) and their diffusion peers in JAX/Flax."""

__version__ = "0.1.0"
__all__ = ["UserError", "audit", "load"]

from pfgm_jax.errors import UserError


def load(workdir, step=None):
    """Opens a trained run: `load("runs/digits").sample(key, 16)`. See `pfgm_jax.generator.load`."""
    from pfgm_jax.generator import load as load_generator  # jax and flax are imported only when they are used

    return load_generator(workdir, step)


def audit(images, real, labels=None, **options):
    """Measures anyone's images: `print(audit("samples.npz", real))`. See `pfgm_jax.evaluation.audit.audit`."""
    from pfgm_jax.evaluation.audit import audit as measured

    return measured(images, real, labels, **options)
