"""Poisson flow generative models (PFGM, PFGM++) and the diffusion models they are compared with, in JAX/Flax.

    import jax
    import pfgm_jax as pf

    generator = pf.load("pretrained:digits")
    images, stats = generator.sample(jax.random.key(0), 16)

Runs
    load(workdir)                   a trained run or an exported folder: a Generator
    train(config, workdir)          trains a run, or continues it
    tune(source, workdir, {})       tunes a run to 1 or 2 evaluations, as a new run
    load_config("FILE:ARGUMENTS")   the config of a config file; default_config() has every field with its meaning
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
    predictor_corrector; auto, which chooses one by the number of evaluations; SOLVERS by name
    consistency                     by a flow map to σ = 0, such as a tuned network
    flow_map, two_time_denoiser     the flow from any level to any lower one

Inference
    Generator.encode, decode, interpolate, temperature, log_likelihood
    Generator.restore               draws of the posterior of an image given a measurement, with uncertainty
    load_latents(path), bits_per_dim(log_prob, N)

Metrics of features
    fid, kid, precision_recall, density_coverage

Errors
    UserError                       a mistake in the input, in one line that says what to write instead

Everything is imported when it is first used: `import pfgm_jax` itself takes no time. The packages behind these names
(pfgm_jax.flow, .models, .sampling, .inference, .data, .metrics, .training, .evaluation, .exchange, .storage) are
described in CONTRIBUTING.md.
"""

import importlib
from typing import TYPE_CHECKING

from pfgm_jax.errors import UserError, nearest

__version__ = "0.1.0"

# Public names by their module.
_PUBLIC = {
    "generator": ("Generator", "load"),
    "training.loop": ("train",),
    "training.tune": ("tune",),
    "config_file": ("load_config",),
    "config": ("default_config",),
    "evaluation.audit": ("audit",),
    "data": ("Dataset", "load_data", "to_uint8", "to_unit"),
    "flow.field": ("churn", "displacement", "exact_denoiser", "exact_second_moment", "poisson_field", "posterior_draw",
                   "posterior_mean", "second_moment"),
    "flow.process": ("ddpm", "edm", "log_prior", "perturb", "pfgm", "pfgmpp", "prior", "subvp", "ve", "vp", "with_D"),
    "sampling": ("SOLVERS", "SolveStats", "ancestral", "auto", "consistency", "ddim", "dpmpp_2m", "dpmpp_3m", "euler",
                 "euler_maruyama", "flow_map", "heun", "ipndm", "predictor_corrector", "rk45", "sde", "tsit5",
                 "two_time_denoiser", "unipc"),
    "inference": ("bits_per_dim", "load_latents"),
    "metrics": ("density_coverage", "fid", "kid", "precision_recall"),
}  # fmt: skip
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}
_NAMES_THERE = {"load_data": "load", "default_config": "default"}
__all__ = ["UserError", *_MODULES]

if TYPE_CHECKING:  # what a type checker and an editor see: the same names (tests/test_public.py), imported at once
    from pfgm_jax.config import default as default_config
    from pfgm_jax.config_file import load_config as load_config
    from pfgm_jax.data import Dataset as Dataset
    from pfgm_jax.data import load as load_data
    from pfgm_jax.data import to_uint8 as to_uint8
    from pfgm_jax.data import to_unit as to_unit
    from pfgm_jax.evaluation.audit import audit as audit
    from pfgm_jax.flow.field import churn as churn
    from pfgm_jax.flow.field import displacement as displacement
    from pfgm_jax.flow.field import exact_denoiser as exact_denoiser
    from pfgm_jax.flow.field import exact_second_moment as exact_second_moment
    from pfgm_jax.flow.field import poisson_field as poisson_field
    from pfgm_jax.flow.field import posterior_draw as posterior_draw
    from pfgm_jax.flow.field import posterior_mean as posterior_mean
    from pfgm_jax.flow.field import second_moment as second_moment
    from pfgm_jax.flow.process import ddpm as ddpm
    from pfgm_jax.flow.process import edm as edm
    from pfgm_jax.flow.process import log_prior as log_prior
    from pfgm_jax.flow.process import perturb as perturb
    from pfgm_jax.flow.process import pfgm as pfgm
    from pfgm_jax.flow.process import pfgmpp as pfgmpp
    from pfgm_jax.flow.process import prior as prior
    from pfgm_jax.flow.process import subvp as subvp
    from pfgm_jax.flow.process import ve as ve
    from pfgm_jax.flow.process import vp as vp
    from pfgm_jax.flow.process import with_D as with_D
    from pfgm_jax.generator import Generator as Generator
    from pfgm_jax.generator import load as load
    from pfgm_jax.inference import bits_per_dim as bits_per_dim
    from pfgm_jax.inference import load_latents as load_latents
    from pfgm_jax.metrics import density_coverage as density_coverage
    from pfgm_jax.metrics import fid as fid
    from pfgm_jax.metrics import kid as kid
    from pfgm_jax.metrics import precision_recall as precision_recall
    from pfgm_jax.sampling import SOLVERS as SOLVERS
    from pfgm_jax.sampling import SolveStats as SolveStats
    from pfgm_jax.sampling import ancestral as ancestral
    from pfgm_jax.sampling import auto as auto
    from pfgm_jax.sampling import consistency as consistency
    from pfgm_jax.sampling import ddim as ddim
    from pfgm_jax.sampling import dpmpp_2m as dpmpp_2m
    from pfgm_jax.sampling import dpmpp_3m as dpmpp_3m
    from pfgm_jax.sampling import euler as euler
    from pfgm_jax.sampling import euler_maruyama as euler_maruyama
    from pfgm_jax.sampling import flow_map as flow_map
    from pfgm_jax.sampling import heun as heun
    from pfgm_jax.sampling import ipndm as ipndm
    from pfgm_jax.sampling import predictor_corrector as predictor_corrector
    from pfgm_jax.sampling import rk45 as rk45
    from pfgm_jax.sampling import sde as sde
    from pfgm_jax.sampling import tsit5 as tsit5
    from pfgm_jax.sampling import two_time_denoiser as two_time_denoiser
    from pfgm_jax.sampling import unipc as unipc
    from pfgm_jax.training.loop import train as train
    from pfgm_jax.training.tune import tune as tune
else:

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"pfgm_jax has no {name!r}{nearest(name, __all__)}")
        module = importlib.import_module(f"pfgm_jax.{_MODULES[name]}")
        value = globals()[name] = getattr(module, _NAMES_THERE.get(name, name))
        return value


def __dir__():
    return [*__all__, "__version__"]
