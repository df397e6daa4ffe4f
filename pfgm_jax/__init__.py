"""Poisson flow generative models (PFGM, PFGM++) and the diffusion models they are compared with, in JAX/Flax.

    import jax
    import pfgm_jax as pf

    generator = pf.load("pretrained:digits")
    images, stats = generator.sample(jax.random.key(0), 16)

Runs
    load(workdir)                   a trained run or an exported folder: a Generator
    train(config, workdir)          trains a run, or continues it
    tune(source, workdir, {})       tunes a run to 1 or 2 evaluations, as a new run
    load_config("FILE:ARGUMENTS")   a config file's config; default_config() has every field with its meaning
    audit(images, real)             figures of anyone's images against real ones

Data
    load_data(config.data)          a Dataset with the splits train, val and test; to_unit, to_uint8

The exact field of a data set
    exact_denoiser(images, D)       the denoiser that a perfect network would learn
    exact_second_moment(images, D)  E‖x − y‖² beside it, for noise at finite D (sde)
    posterior_mean, second_moment, displacement, poisson_field
    posterior_draw, churn           y ~ p(y | x), and exact noise from one level up to another

Processes
    pfgm, pfgmpp, edm, ve, vp, subvp, ddpm; prior, perturb, log_prior, with_D

Solvers, `(process, denoise, x at σ_max) -> (samples, SolveStats)`
    rk45, tsit5, euler, heun, dpmpp_2m, dpmpp_3m, ipndm, unipc, ddim, sde, ancestral, euler_maruyama,
    predictor_corrector; auto, which takes one by the number of evaluations; SOLVERS by name
    consistency                     by a flow map to σ = 0, such as a tuned network
    flow_map, two_time_denoiser     the flow from any level to any lower one

Inference: what is asked of a network besides samples
    Generator.encode, decode, interpolate, temperature, log_likelihood
    Generator.restore               draws of the posterior of an image given a measurement, with uncertainty
    load_latents(path), bits_per_dim(log_prob, N)

Metrics of features
    fid, kid, precision_recall, density_coverage

Errors
    UserError                       a person's mistake, in one line that says what to write instead

Everything is imported when it is first used: `import pfgm_jax` itself takes no time. The packages behind these names
(pfgm_jax.flow, .models, .sampling, .inference, .data, .metrics, .training, .evaluation, .exchange, .storage) are
described in CONTRIBUTING.md.
"""

import importlib

from pfgm_jax.errors import UserError, nearest

__version__ = "0.1.0"

# Public name: (its module, its name there).
_PUBLIC = {
    "Generator": ("generator", "Generator"),
    "load": ("generator", "load"),
    "train": ("training.loop", "train"),
    "tune": ("training.tune", "tune"),
    "load_config": ("config_file", "load_config"),
    "default_config": ("config", "default"),
    "audit": ("evaluation.audit", "audit"),
    "load_data": ("data", "load"),
    **{name: ("data", name) for name in ("Dataset", "to_uint8", "to_unit")},
    **{name: ("flow.field", name) for name in ("displacement", "exact_denoiser", "poisson_field", "posterior_mean")},
    **{name: ("flow.field", name) for name in ("churn", "exact_second_moment", "posterior_draw", "second_moment")},
    **{name: ("flow.process", name) for name in ("ddpm", "edm", "pfgm", "pfgmpp", "subvp", "ve", "vp")},
    **{name: ("flow.process", name) for name in ("log_prior", "perturb", "prior", "with_D")},
    **{name: ("sampling", name) for name in ("SOLVERS", "SolveStats", "rk45", "tsit5", "euler", "heun", "dpmpp_2m")},
    **{name: ("sampling", name) for name in ("dpmpp_3m", "ddim", "ancestral", "euler_maruyama", "predictor_corrector")},
    **{name: ("inference", name) for name in ("bits_per_dim", "load_latents")},
    **{name: ("sampling", name) for name in ("auto", "consistency", "flow_map", "ipndm", "sde", "two_time_denoiser")},
    "unipc": ("sampling", "unipc"),
    **{name: ("metrics", name) for name in ("density_coverage", "fid", "kid", "precision_recall")},
}
__all__ = ["UserError", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"pfgm_jax has no {name!r}{nearest(name, __all__)}")
    module, there = _PUBLIC[name]
    value = globals()[name] = getattr(importlib.import_module(f"pfgm_jax.{module}"), there)
    return value


def __dir__():
    return [*__all__, "__version__"]
